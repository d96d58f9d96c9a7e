"""Noise levels that the user lists, in the config or in a file."""

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.errors import InputError, printable
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.storage import schemas
from scoreline.values import check_choice, is_number

SOFTNESS = 1e-3
"""Between two levels the map is linear in asinh(rho / 1e-3): in ln rho above this level, in rho below it."""

LARGEST = 2**22
"""Largest number of bytes of a file of levels."""

SAME = 1e-5
"""Relative difference up to which two noise levels count as equal: files give six digits."""


@dataclass(frozen=True)
class Tabulated(Schedule):
    """Listed levels: u = number of the level, counted from the lowest, and between levels linear in asinh(rho / 1e-3).

    Use this for steps of your own. As many steps as the table has intervals meet the levels to the bit; other numbers
    of steps interpolate them. The map covers its own range only: outside, u saturates. Below an infinite level it is
    linear in 1 / rho.

    Attributes:
        levels: noise levels, strictly increasing or strictly decreasing; the lowest may be 0, the highest infinite.

    Raises:
        InputError: for fewer than two levels, or levels that are negative, not a number or not monotone.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        levels = [float(level) for level in self.levels]
        if len(levels) < 2:
            raise InputError(f"schedule.levels: {len(levels)} noise levels; a schedule needs two or more")
        for level in levels:
            if not level >= 0:
                raise InputError(f"schedule.levels: {level:g} is not a noise level; give numbers, 0 or greater")
        falling = levels[0] > levels[-1]
        for place, (a, b) in enumerate(pairwise(levels), start=2):
            if a == b or (a > b) != falling:
                raise InputError(
                    f"schedule.levels: number {place} is {b:g} after {a:g}; give strictly decreasing noise levels"
                )
        object.__setattr__(self, "levels", tuple(reversed(levels) if falling else levels))

    def on(self, sigma_max: float, sigma_min: float) -> "Tabulated":
        """Return the table with its ends at those of the run, from which they may differ by rounding.

        Args:
            sigma_max: first level of the run, the table's lowest for a run from data to noise.
            sigma_min: last level of the run.

        Raises:
            InputError: if they differ by more; the message names the range to use.
        """
        low, high = self.levels[0], self.levels[-1]
        first, last = (high, low) if sigma_max > sigma_min else (low, high)
        for name, end, has in (("sigma_max", sigma_max, first), ("sigma_min", sigma_min, last)):
            if not math.isclose(end, has, rel_tol=SAME):
                raise InputError(
                    f"{name}={end:.6g}: the levels of this schedule go from {first:.9g} to {last:.9g}; "
                    f"use sigma_max={first:.9g} sigma_min={last:.9g}"
                )
        return replace(self, levels=(min(sigma_max, sigma_min), *self.levels[1:-1], max(sigma_max, sigma_min)))

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)

    def __call__(self, rho: Tensor) -> Tensor:
        position, v = torch.asinh(self._table / SOFTNESS), torch.asinh(rho.double() / SOFTNESS)
        right = torch.searchsorted(position, v.contiguous()).clamp(1, len(position) - 1)
        left = right - 1
        fraction = (v - position[left]) / (position[right] - position[left])
        fraction = torch.where(position[right].isinf(), 1 - self._table[left] / rho.double(), fraction)
        return (left + fraction.clamp(0, 1)).to(rho.dtype)

    def inverse(self, u: Tensor) -> Tensor:
        position, at = torch.asinh(self._table / SOFTNESS), u.double().clamp(0, len(self.levels) - 1)
        left = at.floor().clamp(max=len(position) - 2).to(torch.int64)
        between = SOFTNESS * torch.sinh(torch.lerp(position[left], position[left + 1], at - left))
        between = torch.where(position[left + 1].isinf(), self._table[left] / (1 - (at - left)), between)
        nearest = at.round()
        rho = torch.where((at - nearest).abs() < 1e-9, self._table[nearest.to(torch.int64)], between)
        return rho.to(u.dtype)

    def knots(self) -> Tensor:
        return self._table


def from_file(path: str | Path, values: str = "sigma", noise_schedule: NoiseSchedule | None = None) -> Tabulated:
    """Read levels from a file: .txt or .csv (one number a line, # for comments), .json (a list) or .npy.

    Args:
        path: the file; numbers strictly increasing or strictly decreasing. Nothing in it is executed.
        values: `sigma` for noise levels rho, `time` for native times of `noise_schedule`.
        noise_schedule: the process whose times they are.

    Raises:
        InputError: for a file that is missing, unreadable, of another kind or not such a list of numbers, and for times
            that have no noise level.
    """
    path = Path(path)
    check_choice("schedule.values", ("sigma", "time"), values)
    numbers = _read(path)
    if values == "time":
        numbers = _levels_of(numbers, noise_schedule)
    try:
        return Tabulated(tuple(numbers))
    except InputError as error:
        what = " (its times as noise levels)" if values == "time" else ""
        raise InputError(str(error).replace("schedule.levels", f"schedule.path={path}{what}")) from error


def _read(path: Path) -> list[float]:
    readers = {".txt": _lines, ".csv": _lines, ".json": _json, ".npy": _npy}
    if path.suffix.lower() not in readers:
        raise InputError(f"schedule.path={path}: unknown kind of file; use one of {', '.join(sorted(readers))}")
    if not os.path.isfile(path):
        raise InputError(f"schedule.path={path}: no such file; give a file with the levels of the steps")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        return readers[path.suffix.lower()](path)
    except Exception as error:  # numpy's header reader raises nearly anything
        reason = printable(f"{error!s:.200}") or type(error).__name__
        raise InputError(f"schedule.path={path}: not a list of numbers ({reason})") from error


def _lines(path: Path) -> list[float]:
    stripped = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    return [float(line) for line in stripped if line]


def _json(path: Path) -> list[float]:
    numbers = schemas.parse(path.read_text(encoding="utf-8-sig"))
    if not isinstance(numbers, list):
        raise ValueError(f"it holds a {type(numbers).__name__}")
    return _numbers(numbers)


def _npy(path: Path) -> list[float]:
    from numpy.lib.format import open_memmap

    array = open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(f"it holds an array of {array.dtype} with shape {array.shape}")
    return _numbers(array.tolist())


def _numbers(values: list[Any]) -> list[float]:
    for value in values:
        if not is_number(value):
            raise ValueError(f"{str(value)[:40]!r} is not a number")
    return [float(value) for value in values]


def _levels_of(times: list[float], noise_schedule: NoiseSchedule | None) -> list[float]:
    if noise_schedule is None:
        raise InputError("schedule.values=time: times need schedule.noise_schedule; give it, or use values=sigma")
    t = torch.tensor(times, dtype=torch.float64)
    levels = noise_schedule.inverse(t)
    for time, reached in zip(times, noise_schedule(levels).tolist(), strict=True):
        if not math.isclose(time, reached, rel_tol=SAME, abs_tol=SAME):
            raise InputError(
                f"schedule.path: {type(noise_schedule).__name__} has no noise level at time {time:g}; "
                "give native times of the process"
            )
    return [float(level) for level in levels.tolist()]
