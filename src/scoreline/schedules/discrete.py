"""Variance-preserving processes given by a list of betas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.runtime.device import to_device
from scoreline.schedules.base import VariancePreserving
from scoreline.values import is_number

LARGEST = 0.999
"""The largest beta of the cosine schedule."""

KEY = "model.noise_schedule.betas"
"""The key of the betas in error messages."""

RANGE = (1e-4, 0.02)
"""Default beta_min and beta_max."""


@dataclass(frozen=True)
class DiscreteVP(VariancePreserving):
    """A discrete process; t is the training index 0 .. steps - 1, fractions allowed.

    alpha(t)^2 is the piecewise-linear interpolation of the cumulative product of 1 - beta; one more knot, alpha^2 = 1
    at t = -1, lets solvers go on to clean data as DEIS-SN does. Where rho lies outside the knots (alpha^2 below the
    last entry) the last segment is not extended: t saturates at steps - 1. Use this for DDPM's, guided diffusion's and
    latent diffusion's networks, whose labels are indices; `LinearVP` and `CosineVP` are the continuous processes.

    With `zero_terminal_snr` the last level is pure noise, rho = infinity, where solvers start exactly.

    The last noise level of 1000 cosine betas is rho = 20291; float64 resolves rho(t) there to eight digits.

    Attributes:
        beta_min: first beta of `linear` and `scaled_linear`.
        beta_max: last beta of `linear` and `scaled_linear`.
        steps: number of betas.
        t_min: the index at which solvers stop by default.
        betas: `linear` from beta_min to beta_max; `scaled_linear`, whose square roots are linear; `cosine`,
            beta_i = min(1 - f((i + 1) / steps) / f(i / steps), 0.999) with f(t) = cos^2(pi/2 (t + 0.008) / 1.008); or
            the betas themselves.
        zero_terminal_snr: shift and scale alpha so that alpha_0 stays and the last alpha is zero,
            alpha <- (alpha - alpha_T) alpha_0 / (alpha_0 - alpha_T). Networks trained so predict v or x_0. Betas that
            end in 1 are rescaled already and stay.

    Raises:
        InputError: for an unknown name, a beta that is not between 0 and 1, a list of other than `steps` entries or
            with so much noise that float64 loses the signal, and for beta_min or beta_max with `cosine` or a list.

    Source: Ho et al. (2020), arXiv:2006.11239; scaled_linear: Rombach et al. (2022), arXiv:2112.10752, as released;
    cosine: Nichol & Dhariwal (2021), arXiv:2102.09672, Eq. 17; interpolation as in Zhang & Chen (2023),
    arXiv:2204.13902; zero terminal SNR: Lin et al. (2023), arXiv:2305.08891, Alg. 1.
    """

    beta_min: float = RANGE[0]
    beta_max: float = RANGE[1]
    steps: int = 1000
    t_min: float = 0.0
    betas: str | Sequence[float] = "linear"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.betas, str):
            object.__setattr__(self, "betas", _checked(self.betas, self.steps, self.zero_terminal_snr))
            increasing = bool((self.noise_variance.diff() > 0).all())
            if not (increasing and (self.zero_terminal_snr or self.noise_variance[-1] < 1)):
                raise InputError(f"{KEY}: they leave less signal than float64 can tell from none; give smaller betas")
        elif self.betas not in ("linear", "scaled_linear", "cosine"):
            raise InputError(
                f"{KEY}={self.betas}: choose from cosine, linear, scaled_linear, or give a list of numbers"
            )
        if self.betas not in ("linear", "scaled_linear") and (self.beta_min, self.beta_max) != RANGE:
            what = self.betas if isinstance(self.betas, str) else "a list"
            raise InputError(
                f"{KEY}={what}: has no use for beta_min={self.beta_min:g} beta_max={self.beta_max:g}; leave them out"
            )

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.steps - 1.0

    @cached_property
    def noise_variance(self) -> Tensor:
        """1 - alpha^2 at the knots t = -1, 0, .., steps - 1; (steps + 1,) float64, increasing from 0."""
        log_alpha2 = torch.log1p(-self._beta()).cumsum(0)
        if self.zero_terminal_snr:
            alpha = (log_alpha2 / 2).exp()
            log_alpha2 = 2 * ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))).log()
        return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.expm1(log_alpha2)])

    def _beta(self) -> Tensor:
        if not isinstance(self.betas, str):
            return torch.tensor(self.betas, dtype=torch.float64)
        if self.betas == "cosine":
            return _cosine(self.steps)
        if self.betas == "scaled_linear":
            ends = math.sqrt(self.beta_min), math.sqrt(self.beta_max)
            return torch.linspace(*ends, self.steps, dtype=torch.float64) ** 2
        return torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)

    def __call__(self, rho: Tensor) -> Tensor:
        level = rho.double()
        # 1 - alpha^2, which is linear in t between the knots
        variance = torch.where(level.isinf(), 1.0, level**2 / (1 + level**2))
        table = to_device(self.noise_variance, variance.device)
        right = torch.searchsorted(table, variance.contiguous()).clamp(1, self.steps)
        left = right - 1
        fraction = (variance - table[left]) / (table[right] - table[left])
        return (left + fraction.clamp(0, 1) - 1).to(rho.dtype)

    def inverse(self, u: Tensor) -> Tensor:
        after_clean = u.double() + 1
        table = to_device(self.noise_variance, after_clean.device)
        left = after_clean.floor().clamp(0, self.steps - 1).to(torch.int64)
        variance = torch.lerp(table[left], table[left + 1], (after_clean - left).clamp(0, 1))
        return (variance / (1 - variance)).sqrt().to(u.dtype)

    def knots(self) -> Tensor:
        return (self.noise_variance / (1 - self.noise_variance)).sqrt()


def _cosine(steps: int) -> Tensor:
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha2 = torch.cos((t + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - alpha2[1:] / alpha2[:-1]).clamp(max=LARGEST)


def _checked(betas: Sequence[float], steps: int, zero_terminal_snr: bool) -> tuple[float, ...]:
    if len(betas) != steps:
        raise InputError(f"{KEY}: {len(betas)} numbers for steps={steps}; give one for each step")
    for place, beta in enumerate(betas, start=1):
        rescaled = zero_terminal_snr and place == steps and beta == 1
        if not (is_number(beta) and (0 < beta < 1 or rescaled)):
            raise InputError(f"{KEY}: {beta!r:.40} is not a number between 0 and 1")
    return tuple(map(float, betas))
