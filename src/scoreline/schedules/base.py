"""The map itself, and the grid of noise levels that it spaces."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoreline.errors import InputError


class Schedule(ABC):
    """A strictly increasing map between the noise level rho > 0 and a coordinate u.

    Subclasses are frozen dataclasses; tensors of any shape go in, the same shape comes out, float64 stays float64.
    """

    @abstractmethod
    def __call__(self, rho: Tensor) -> Tensor:
        """u(rho)."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """rho(u), with inverse(u(rho)) == rho."""

    def on(self, sigma_max: float, sigma_min: float) -> "Schedule":
        """The map for steps between these levels; itself, unless the spacing depends on where it ends."""
        return self

    def knots(self) -> Tensor:
        """Noise levels (M,), increasing, where the map is continuous but not smooth; quadrature never crosses one."""
        return torch.empty(0, dtype=torch.float64)


class NoiseSchedule(Schedule):
    """A process x_t = alpha(t) x_0 + sigma(t) eps; as a map, rho <-> t.

    Attributes:
        t_min: the native time at which solvers end by default. It is part of a protocol: it changes FID noticeably at
            small NFE.
        t_max: the native time at which solvers start by default.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale alpha(t) > 0; sigma(t) = alpha(t) * inverse(t)."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale of the native state x_t."""
        return self.alpha(t) * self.inverse(t)

    @property
    def sigma_min(self) -> float:
        """rho(t_min), the noise level at which solvers stop by default."""
        return float(self.inverse(torch.tensor(self.t_min, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:
        """rho(t_max), the noise level at which solvers start by default."""
        return float(self.inverse(torch.tensor(self.t_max, dtype=torch.float64)))


class VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1, hence alpha(t) = 1 / sqrt(1 + rho(t)^2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self.inverse(t) ** 2).rsqrt()


def grid(schedule: Schedule, sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    """Noise levels uniform in the schedule's coordinate.

    rho_i = u^-1(u(sigma_max) + (i / steps) (u(sigma_min) - u(sigma_max))), both ends pinned exactly.

    Returns:
        (steps + 1,) float64 on the CPU, strictly decreasing; `steps` counts intervals.

    Raises:
        InputError: unless 0 <= sigma_min < sigma_max < inf, steps >= 1 and the levels come out finite and distinct.
    """
    if not 0 <= sigma_min < sigma_max < float("inf"):
        raise InputError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}: choose 0 <= sigma_min < sigma_max < inf"
        )
    if steps < 1:
        raise InputError(f"steps={steps}: a grid needs at least one step; ask for a larger nfe")
    schedule = schedule.on(sigma_max, sigma_min)
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    first, last = schedule(ends)
    levels = schedule.inverse(torch.lerp(first, last, torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    levels[0], levels[-1] = ends
    if not bool((levels.isfinite().all()) & (levels.diff() < 0).all()):
        raise InputError(
            f"{schedule} gives no strictly decreasing grid of {steps} steps from sigma_max={sigma_max:g} to "
            f"sigma_min={sigma_min:g}; choose fewer steps, another range or another schedule"
        )
    return levels
