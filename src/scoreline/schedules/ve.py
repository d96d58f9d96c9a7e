"""Variance-exploding processes: alpha = 1, the native state is the unit-signal state."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import NoiseSchedule


@dataclass(frozen=True)
class VE(NoiseSchedule):
    """The variance-exploding process of score_sde: rho(t) = scale_min (scale_max / scale_min)^t, t in [0, 1].

    The defaults belong to images in [-1, 1] (EDM's convention); score_sde's 0.01 .. 50 belongs to images in [0, 1]. Use
    this for score_sde's VE networks.

    Attributes:
        scale_min: noise level at t = 0.
        scale_max: noise level at t = 1.
        t_min: time at which solvers stop by default.
        t_max: time at which solvers start by default.

    Source: Song et al. (2021), arXiv:2011.13456, Eq. 31; range from Karras et al. (2022), arXiv:2206.00364, Table 1.
    """

    scale_min: float = 0.02
    scale_max: float = 100.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __call__(self, rho: Tensor) -> Tensor:
        return torch.log(rho / self.scale_min) / math.log(self.scale_max / self.scale_min)

    def inverse(self, u: Tensor) -> Tensor:
        return self.scale_min * torch.exp(u * math.log(self.scale_max / self.scale_min))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """EDM's process, t = rho: time is the noise level itself, integrated by default from 80 to 0.002.

    Use this for networks of the EDM code base and to train with EDM's recipe.

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def __call__(self, rho: Tensor) -> Tensor:
        return rho.clone()

    def inverse(self, u: Tensor) -> Tensor:
        return u.clone()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)
