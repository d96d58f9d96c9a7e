"""Training densities: rho = density.inverse(u), u uniform on [0, 1]."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoreline.device import moved
from scoreline.errors import InputError
from scoreline.parameterisations import IDDPM
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.discrete import DiscreteVP


@dataclass(frozen=True)
class LogNormal(Schedule):
    """EDM's density, ln rho ~ N(mean, std^2): u = Phi((ln rho - mean) / std).

    Use this to train with `EDMWeight` and `EDMPreconditioning`.

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
    """The native time of a process, uniform on [start, stop]: u = (t(rho) - start) / (stop - start).

    Use this to train continuous VP and VE networks as score_sde does.

    Source: Song et al. (2021), arXiv:2011.13456 (continuous VP: start 1e-5, stop 1).

    Raises:
        ValueError: unless start < stop.
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


@dataclass(frozen=True)
class UniformLevels(Schedule):
    """One of M given levels with equal probability: rho = level[floor(M u)], as discrete processes are trained.

    The map is a staircase: u(rho) is the middle of the stair of the nearest level, and inverse(u(rho)) that level.

    Attributes:
        levels: increasing noise levels, all positive.

    Raises:
        InputError: if the levels do not increase or are not positive.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0] <= 0 or not all(map(float.__lt__, self.levels, self.levels[1:])):
            raise InputError("objective.density: its noise levels must be positive and increase")

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)

    def __call__(self, rho: Tensor) -> Tensor:
        table = moved(self._table, rho.device).to(rho.dtype)
        right = torch.searchsorted(table, rho.contiguous()).clamp(1, len(table) - 1)
        nearest = torch.where(rho - table[right - 1] < table[right] - rho, right - 1, right)
        return (nearest + 0.5) / len(table)

    def inverse(self, u: Tensor) -> Tensor:
        table = moved(self._table, u.device).to(u.dtype)
        return table[(u * len(table)).floor().clamp(0, len(table) - 1).to(torch.int64)]


def uniform_index(noise_schedule: DiscreteVP) -> UniformLevels:
    """Return the levels of a discrete process at its training indices 0 .. steps - 1, for DDPM's objective.

    Source: Ho et al. (2020), arXiv:2006.11239, Algorithm 1.
    """
    index = torch.arange(noise_schedule.steps, dtype=torch.float64)
    return UniformLevels(tuple(noise_schedule.inverse(index).tolist()))


def uniform_iddpm(parameterisation: IDDPM) -> UniformLevels:
    """Return the levels u_0 > .. > u_{M-1} of improved DDPM, in increasing order.

    Source: Nichol & Dhariwal (2021), arXiv:2102.09672; levels as in Karras et al. (2022), arXiv:2206.00364, Table 1.
    """
    return UniformLevels(tuple(parameterisation.levels[:-1].flip(0).tolist()))
