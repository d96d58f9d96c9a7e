"""Training densities: rho = density.inverse(u), u uniform on [0, 1]."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import NoiseSchedule, Schedule


@dataclass(frozen=True)
class LogNormal(Schedule):
    """ln rho ~ N(mean, std^2): u = Phi((ln rho - mean) / std).

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1 (P_mean = -1.2, P_std = 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, rho: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtr((torch.log(rho) - self.mean) / self.std)
        return quantile

    def inverse(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class UniformTime(Schedule):
    """The native time of a process uniform on [start, stop]: u = (t(rho) - start) / (stop - start).

    Source: Song et al. (2021), arXiv:2011.13456 (continuous VP: start 1e-5, stop 1).
    """

    noise_schedule: NoiseSchedule
    start: float = 1e-5
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start < self.stop):
            raise ValueError(f"start={self.start} and stop={self.stop}: choose start < stop")

    def __call__(self, rho: Tensor) -> Tensor:
        return (self.noise_schedule(rho) - self.start) / (self.stop - self.start)

    def inverse(self, u: Tensor) -> Tensor:
        return self.noise_schedule.inverse(self.start + (self.stop - self.start) * u)
