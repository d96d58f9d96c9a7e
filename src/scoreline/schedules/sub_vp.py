"""The sub-VP process, which has less noise than the variance-preserving one with the same signal."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import NoiseSchedule


@dataclass(frozen=True)
class SubVP(NoiseSchedule):
    """Sub-VP with linear beta: alpha = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2), sigma = 1 - alpha^2.

    t lies in [0, 1] and rho = 1 / alpha - alpha = 2 sinh(-ln alpha). The default end time is that of `LinearVP`. Use
    this for score_sde's sub-VP networks.

    Source: Song et al. (2021), arXiv:2011.13456, Eqs. 27 and 29, App. B.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __call__(self, rho: Tensor) -> Tensor:
        log = 2 * torch.asinh(rho / 2)
        return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * log).sqrt())

    def inverse(self, u: Tensor) -> Tensor:
        return 2 * torch.sinh(self._log_alpha(u).neg())

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) / 4 * t**2 - self.beta_min / 2 * t
