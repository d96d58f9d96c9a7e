"""The base classes of schedules, and `grid`: the noise levels of a run."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoreline.errors import InputError, check_kind


class Schedule(ABC):
    """A strictly increasing map between the noise level rho > 0 and a coordinate u.

    Subclasses are frozen dataclasses. They take tensors of any shape and return the same shape; float64 stays float64.
    Subclass this for a new spacing of steps, `NoiseSchedule` for a new process.
    """

    @abstractmethod
    def __call__(self, rho: Tensor) -> Tensor:
        """Return u(rho)."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """Return rho(u), with inverse(u(rho)) == rho."""

    def on(self, sigma_max: float, sigma_min: float) -> "Schedule":
        """Return the map for steps between these levels: itself, unless the spacing depends on its ends."""
        return self

    def knots(self) -> Tensor:
        """Return the noise levels (M,), increasing, where the map is not smooth; quadrature never crosses one."""
        return torch.empty(0, dtype=torch.float64)


class NoiseSchedule(Schedule):
    """A diffusion process x_t = alpha(t) x_0 + sigma(t) eps; as a map, rho = sigma / alpha <-> t.

    Subclass this for a process of your own; a map without alpha is a `Schedule`.

    Attributes:
        t_min: the native time at which solvers stop by default. It is part of a protocol: it changes FID noticeably at
            small NFE.
        t_max: the native time at which solvers start by default.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the signal scale alpha(t) > 0."""

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise scale of the native state x_t, sigma(t) = alpha(t) rho(t); 1 where rho is infinite."""
        rho = self.inverse(t)
        return torch.where(rho.isinf(), 1.0, self.alpha(t) * rho)

    @property
    def sigma_min(self) -> float:
        """rho(t_min), the noise level at which solvers stop by default."""
        return float(self.inverse(torch.tensor(self.t_min, dtype=torch.float64)))

    @property
    def sigma_max(self) -> float:
        """rho(t_max), the noise level at which solvers start by default."""
        return float(self.inverse(torch.tensor(self.t_max, dtype=torch.float64)))

    @property
    def finite_sigma_max(self) -> float:
        """sigma_max, or `NEARLY_NOISE` where that is infinite, for measurements at noise levels."""
        return NEARLY_NOISE if math.isinf(self.sigma_max) else self.sigma_max


NEARLY_NOISE = 1000.0
"""The level that stands for infinite noise in measurements: t = 0.999 of a flow model."""


class VariancePreserving(NoiseSchedule):
    """A process with alpha^2 + sigma^2 = 1, hence alpha(t) = 1 / sqrt(1 + rho(t)^2).

    Subclass this for a VP process of your own: only the map and its inverse are left to write.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self.inverse(t) ** 2).rsqrt()


SAME_LEVEL = 1e-4
"""Largest relative error of inverse(u(rho))."""


def check_map(schedule: object, sigma_max: float, sigma_min: float) -> Schedule:
    """Return a schedule if it is a strictly increasing map with its inverse, at levels of a range.

    Use it for a schedule of your own; `solvers.tableau.build` does.

    Args:
        schedule: what the config describes.
        sigma_max: upper end of the range; levels above `HIGHEST` are not tried.
        sigma_min: lower end.

    Raises:
        InputError: naming the class, and what it returned.
    """
    own: Schedule = check_kind("schedule", schedule, Schedule)
    ends = sorted((min(max(sigma_min, 1e-3), HIGHEST / 2), min(max(sigma_max, 2e-3), HIGHEST)))
    rho = torch.logspace(math.log10(ends[0]), math.log10(ends[1]), 7, dtype=torch.float64)
    moved, name = own.on(sigma_max, sigma_min), type(own).__name__
    u = moved(rho)
    again = moved.inverse(u) if _is_like(u, rho) else u
    for what, value in ((f"{name}(rho)", u), (f"{name}.inverse(u)", again)):
        if not _is_like(value, rho):
            kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"schedule: {what} is {kind} for torch.float64 (7,); keep shape and dtype")
    if not bool(u.isfinite().all() and (u.diff() > 0).all()):
        raise InputError(f"schedule: {name} does not increase from rho={rho[0]:.3g} to {rho[-1]:.3g}: {_listed(u)}")
    if not bool(((again / rho - 1).abs() <= SAME_LEVEL).all()):
        raise InputError(f"schedule: {name}.inverse(u(rho)) is {_listed(again)} for rho = {_listed(rho)}; correct it")
    return own


def _is_like(value: object, rho: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dtype == rho.dtype and value.shape == rho.shape


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist())


HIGHEST = 80.0
"""The finite level that stands for infinity in `grid`, that of EDM: 160 deviations of images in [-1, 1]."""


def _expanded(levels: Tensor) -> Tensor:
    """Map levels from `HIGHEST` to sigma_min to levels from infinity to sigma_min."""
    return (1 - levels[-1] / HIGHEST) / (1 / levels - 1 / HIGHEST)


def grid(schedule: Schedule, sigma_max: float, sigma_min: float, steps: int) -> Tensor:
    """Return noise levels uniform in the schedule's coordinate, with both ends pinned exactly:

        rho_i = u^-1(u(sigma_max) + (i / steps) (u(sigma_min) - u(sigma_max))).

    Use it in a solver of your own to place its steps. sigma_max may be infinite. Where the coordinate is infinite there
    too, the steps are uniform in u(r) with 1 / r = 1 / 80 + (1 - sigma_min / 80) / rho: r is 80 at infinity, and nearly
    rho where that is small. With sigma_max below sigma_min the levels increase, for a run from data to noise.

    Args:
        schedule: the map u.
        sigma_max: first noise level.
        sigma_min: last noise level.
        steps: number of intervals.

    Returns:
        (steps + 1,) float64 on the CPU, strictly monotone.

    Raises:
        InputError: unless both ends are at least 0, different and the last one finite, steps >= 1 and the levels are
            finite and distinct.
    """
    if not (sigma_min >= 0 and sigma_max >= 0 and sigma_min != sigma_max and sigma_min < math.inf):
        raise InputError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}: choose 0 <= sigma_min < sigma_max <= inf"
        )
    if steps < 1:
        raise InputError(f"steps={steps}: a grid needs at least one step; ask for a larger nfe")
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
    if sigma_max == math.inf and not bool(schedule.on(sigma_max, sigma_min)(ends[:1]).isfinite()):
        levels = _expanded(grid(schedule, HIGHEST, sigma_min, steps))
    else:
        schedule = schedule.on(sigma_max, sigma_min)
        first, last = schedule(ends)
        levels = schedule.inverse(torch.lerp(first, last, torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    levels[0], levels[-1] = ends
    steps_down = levels.diff() * math.copysign(1, sigma_min - sigma_max)
    if not bool(levels[1:].isfinite().all() & (steps_down > 0).all()):
        raise InputError(
            f"{schedule} gives no strictly decreasing grid of {steps} steps from sigma_max={sigma_max:g} to "
            f"sigma_min={sigma_min:g}; choose fewer steps, another range or another schedule"
        )
    return levels
