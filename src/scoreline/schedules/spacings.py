"""Maps in which steps are spaced evenly and polynomials are fitted, beside the noise schedules themselves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import Schedule


@dataclass(frozen=True)
class Polynomial(Schedule):
    """u = base(rho)^(1/power) in any base map; in the native time of a process power 1 is uniform, 2 quadratic.

    Negative coordinates (left of a discrete process's first index) keep their sign, so the map stays monotone.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, App. D.2; Zhang & Chen (2023), arXiv:2204.13902.
    """

    base: Schedule
    power: float = 1.0

    def __call__(self, rho: Tensor) -> Tensor:
        u = self.base(rho)
        return u.sign() * u.abs() ** (1 / self.power)

    def inverse(self, u: Tensor) -> Tensor:
        return self.base.inverse(u.sign() * u.abs() ** self.power)

    def knots(self) -> Tensor:
        return self.base.knots()


@dataclass(frozen=True)
class Power(Schedule):
    """u = rho^(1/exponent). Exponent 7 spaces steps as EDM does ("Karras"); exponent 1 is rho itself.

    Source: Karras et al. (2022), arXiv:2206.00364, Eq. 5, where the exponent is called rho.
    """

    exponent: float = 7.0

    def __call__(self, rho: Tensor) -> Tensor:
        return rho ** (1 / self.exponent)

    def inverse(self, u: Tensor) -> Tensor:
        return u**self.exponent


@dataclass(frozen=True)
class LogSNR(Schedule):
    """u = ln rho = -lambda, lambda being half the log signal-to-noise ratio. It cannot reach rho = 0.

    Source: Lu et al. (2022), arXiv:2206.00927, Sec. 3.1.
    """

    def __call__(self, rho: Tensor) -> Tensor:
        return torch.log(rho)

    def inverse(self, u: Tensor) -> Tensor:
        return torch.exp(u)
