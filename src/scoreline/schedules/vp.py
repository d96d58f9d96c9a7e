"""Continuous variance-preserving processes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import VariancePreserving


@dataclass(frozen=True)
class LinearVP(VariancePreserving):
    """The VP process with linear beta: alpha(t)^2 = exp(-(beta_max - beta_min) t^2 / 2 - beta_min t), t in [0, 1].

    rho(t) = sqrt(expm1((beta_max - beta_min) t^2 / 2 + beta_min t)). The default end time 1e-3 is that of the few-step
    literature. Use this for score_sde's continuous VP networks; `DiscreteVP` is DDPM's.

    Source: Song et al. (2021), arXiv:2011.13456, Eq. 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __call__(self, rho: Tensor) -> Tensor:
        log = torch.log1p(rho**2)
        return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * log).sqrt())

    def inverse(self, u: Tensor) -> Tensor:
        return torch.expm1((self.beta_max - self.beta_min) / 2 * u**2 + self.beta_min * u).sqrt()


@dataclass(frozen=True)
class CosineVP(VariancePreserving):
    """The VP process with cosine alpha: alpha(t) = cos(pi/2 (t + s) / (1 + s)), rho(t) = tan(pi/2 (t + s) / (1 + s)).

    alpha is not normalised by alpha(0). rho is infinite at t = 1, so solvers start at t_max = 0.9946 (rho = 119), the
    value of DPM-Solver's released code. Use this for continuous cosine networks; improved DDPM's are `DiscreteVP`.

    Source: Nichol & Dhariwal (2021), arXiv:2102.09672, Eq. 17.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __call__(self, rho: Tensor) -> Tensor:
        return torch.atan(rho) * (2 / math.pi * (1 + self.s)) - self.s

    def inverse(self, u: Tensor) -> Tensor:
        return torch.tan((u + self.s) * (math.pi / 2 / (1 + self.s)))
