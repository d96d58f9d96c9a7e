"""Spacings of steps and variables of polynomials, beside the noise schedules themselves."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule


def _refuse_unless_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"schedule.{name}={value}: must be a number greater than 0")


@dataclass(frozen=True)
class Polynomial(Schedule):
    """u = base(rho)^(1/power); in the native time of a process power 1 is uniform time, 2 quadratic time.

    Negative coordinates (left of a discrete process's first index) keep their sign, so the map stays monotone. Use
    power 2 with DEIS at few evaluations; for two-call methods such as `heun` its first steps are too long.

    Attributes:
        base: any map.
        power: of the coordinate.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, App. D.2; Zhang & Chen (2023), arXiv:2204.13902.

    Raises:
        InputError: unless 0 < power < inf.
    """

    base: Schedule
    power: float = 1.0

    def __post_init__(self) -> None:
        _refuse_unless_positive("power", self.power)

    def __call__(self, rho: Tensor) -> Tensor:
        u = self.base(rho)
        return u.sign() * u.abs() ** (1 / self.power)

    def inverse(self, u: Tensor) -> Tensor:
        return self.base.inverse(u.sign() * u.abs() ** self.power)

    def knots(self) -> Tensor:
        return self.base.knots()


@dataclass(frozen=True)
class Blend(Schedule):
    """u = v + weight v^(1/3), v = base(rho) >= 0: v where it is large, its cube root where it is small.

    Use this as a variable of polynomials: in linear VP's time it is smooth at high noise, where networks are, and
    resolves the fine scales of low noise like a logarithm.

    Attributes:
        base: any map with values of at least 0.
        weight: of the cube root.

    Raises:
        InputError: unless 0 < weight < inf.
    """

    base: Schedule
    weight: float

    def __post_init__(self) -> None:
        _refuse_unless_positive("weight", self.weight)

    def __call__(self, rho: Tensor) -> Tensor:
        v = self.base(rho)
        return v + self.weight * v ** (1 / 3)

    def inverse(self, u: Tensor) -> Tensor:
        # the real root r = v^(1/3) of r^3 + weight r = u, by hyperbolic functions
        third = self.weight / 3
        root = 2 * third**0.5 * torch.sinh(torch.asinh(u / (2 * third**1.5)) / 3)
        return self.base.inverse(root**3)

    def knots(self) -> Tensor:
        return self.base.knots()


@dataclass(frozen=True)
class Power(Schedule):
    """u = rho^(1/exponent). Exponent 7 spaces steps as EDM does ("Karras"); exponent 1 is rho itself.

    Use exponent 7 with `heun` and `EDMHeun`, exponent 1 as the variable of DEIS-rhoAB.

    Source: Karras et al. (2022), arXiv:2206.00364, Eq. 5, where the exponent is called rho.

    Raises:
        InputError: unless 0 < exponent < inf.
    """

    exponent: float = 7.0

    def __post_init__(self) -> None:
        _refuse_unless_positive("exponent", self.exponent)

    def __call__(self, rho: Tensor) -> Tensor:
        return rho ** (1 / self.exponent)

    def inverse(self, u: Tensor) -> Tensor:
        return u**self.exponent


@dataclass(frozen=True)
class LogSNR(Schedule):
    """u = ln rho = -lambda, lambda being half the log signal-to-noise ratio. It cannot reach rho = 0.

    Use this with `DPMSolver`, whose authors space steps so, and as the variable of DEIS in ln rho.

    Source: Lu et al. (2022), arXiv:2206.00927, Sec. 3.1.
    """

    def __call__(self, rho: Tensor) -> Tensor:
        return torch.log(rho)

    def inverse(self, u: Tensor) -> Tensor:
        return torch.exp(u)


@dataclass(frozen=True)
class NSRLog(Schedule):
    """u = ln(rho + k sigma_min): SciRE's "NSR" trajectory. Use this to reproduce SciRE's tables.

    k = 0 is log-SNR, k to infinity uniform in rho; the released code has 3.1 and recommends 2 .. 7.

    Attributes:
        k: the shift in units of sigma_min.
        sigma_min: the last noise level. `grid` takes it from the run (`on`); a variable of a solver must be given one.

    Source: Li et al. (2023), SciRE-Solver, arXiv:2308.07896; formula and k as in its released code.

    Raises:
        InputError: for k < 0, or if the map is used without `sigma_min`.
    """

    k: float = 3.1
    sigma_min: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.k < float("inf"):
            raise InputError(f"schedule.k={self.k}: choose 0 <= k < inf; 0 is log-SNR, 3.1 SciRE's value")

    def on(self, sigma_max: float, sigma_min: float) -> "NSRLog":
        return replace(self, sigma_min=min(sigma_max, sigma_min))

    @property
    def _shift(self) -> float:
        if self.sigma_min is None:
            raise InputError(
                "NSRLog depends on where the steps end; space steps with it (schedule=nsr_log), or give it sigma_min"
            )
        return self.k * self.sigma_min

    def __call__(self, rho: Tensor) -> Tensor:
        return torch.log(rho + self._shift)

    def inverse(self, u: Tensor) -> Tensor:
        return torch.exp(u) - self._shift
