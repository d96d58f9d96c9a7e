"""Variance-preserving processes that are given as a list of betas."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoreline.schedules.base import VariancePreserving


@dataclass(frozen=True)
class DiscreteVP(VariancePreserving):
    """Betas linear from beta_min to beta_max; t is the training index 0 .. steps - 1, fractions allowed.

    alpha(t)^2 is the piecewise-linear interpolation of the cumulative product of 1 - beta; one more knot, alpha^2 = 1
    at t = -1, lets solvers go on to clean data as DEIS-SN does. Where rho lies outside the knots (alpha^2 below the
    last entry) the last segment is not extended: t saturates at steps - 1.

    Source: Ho et al. (2020), arXiv:2006.11239; interpolation as in Zhang & Chen (2023), arXiv:2204.13902.
    """

    beta_min: float = 1e-4
    beta_max: float = 0.02
    steps: int = 1000
    t_min: float = 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.steps - 1.0

    @cached_property
    def noise_variance(self) -> Tensor:
        """1 - alpha^2 at the knots t = -1, 0, .., steps - 1; (steps + 1,) float64, increasing from 0."""
        log_alpha2 = torch.log1p(-torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)).cumsum(
            0
        )
        return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.expm1(log_alpha2)])

    def __call__(self, rho: Tensor) -> Tensor:
        variance = rho**2 / (1 + rho**2)
        table = self.noise_variance.to(rho)
        right = torch.searchsorted(table, variance.contiguous()).clamp(1, self.steps)
        left = right - 1
        fraction = (variance - table[left]) / (table[right] - table[left])
        return left + fraction.clamp(0, 1) - 1

    def inverse(self, u: Tensor) -> Tensor:
        table = self.noise_variance.to(u)
        left = (u + 1).floor().clamp(0, self.steps - 1).to(torch.int64)
        variance = torch.lerp(table[left], table[left + 1], (u + 1 - left).clamp(0, 1))
        return (variance / (1 - variance)).sqrt()

    def knots(self) -> Tensor:
        return (self.noise_variance / (1 - self.noise_variance)).sqrt()
