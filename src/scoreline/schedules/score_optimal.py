"""Score-optimal steps: the cumulative length that `calibration=score_optimal` measured for a checkpoint, as a map."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.schedules.base import Schedule
from scoreline.schedules.tabulated import SAME


@dataclass(frozen=True)
class ScoreOptimal(Schedule):
    """u = Lambda(rho), piecewise linear in ln rho through the measured levels, so its inverse is exact.

    Evenly spaced u are steps of equal incremental cost (Theorem 3.1), for any number of steps, also on a part of the
    measured range. The levels should be dense: between two of them steps are even in ln rho. Use this with `heun` from
    NFE 8 on; with DEIS, `Polynomial` of power 2 in the native time ends closer on the models measured. The cost does
    not depend on the solver.

    Attributes:
        levels: noise levels, strictly increasing, the lowest above 0.
        lengths: Lambda at these levels, strictly increasing, any origin and scale.

    Source: Williams et al. (2024), arXiv:2412.07877, Theorem 3.1 and Algorithm 1.

    Raises:
        InputError: for fewer than two levels, or if either is not increasing.
    """

    levels: tuple[float, ...]
    lengths: tuple[float, ...]

    def __post_init__(self) -> None:
        alike = len(self.levels) == len(self.lengths) >= 2
        rising = all(math.isfinite(b) and a < b for part in (self.levels, self.lengths) for a, b in pairwise(part))
        if not (alike and rising and self.levels[0] > 0):
            raise InputError("schedule: a score-optimal one needs increasing noise levels > 0 and increasing lengths")

    def on(self, sigma_max: float, sigma_min: float) -> "ScoreOptimal":
        """Return the map itself.

        Raises:
            InputError: if the run leaves the measured range by more than rounding.
        """
        low, high = self.levels[0], self.levels[-1]
        if sigma_max > high * (1 + SAME) or sigma_min < low * (1 - SAME):
            raise InputError(
                f"sigma_max={sigma_max:.6g} sigma_min={sigma_min:.6g}: this score-optimal record was measured from "
                f"{high:.9g} to {low:.9g} only; stay within, or make one for this range with: "
                f"python calibrate.py calibration=score_optimal sigma_max={sigma_max:.6g} sigma_min=..."
            )
        return self

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        levels, lengths = (torch.tensor(part, dtype=torch.float64) for part in (self.levels, self.lengths))
        return levels.log(), lengths

    def __call__(self, rho: Tensor) -> Tensor:
        return _between(*self._table, rho.double().log()).to(rho.dtype)

    def inverse(self, u: Tensor) -> Tensor:
        logs, lengths = self._table
        return _between(lengths, logs, u.double()).exp().to(u.dtype)

    def knots(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)


def _between(xs: Tensor, ys: Tensor, at: Tensor) -> Tensor:
    """Interpolate linearly through (xs, ys), extending the first and last piece."""
    right = torch.searchsorted(xs, at.contiguous()).clamp(1, len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * ((at - xs[left]) / (xs[right] - xs[left]))


def load_schedule(path: str | Path, checkpoint: str) -> ScoreOptimal:
    """Load the schedule in a `score_optimal` record. Use it where a solver takes a schedule.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.

    Raises:
        InputError: as `load_record`.
    """
    return schedule_in(load_record(path, "score_optimal", checkpoint, "schedule.path"))


def schedule_in(record: Record) -> ScoreOptimal:
    """Return the schedule in a `score_optimal` record."""
    return ScoreOptimal(tuple(record.values["rho"].tolist()), tuple(record.values["length"].tolist()))
