"""The scale of DEIS-SN as its released code computes it, quirks included."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scoreline.calibration.score_scale import ScoreScale
from scoreline.errors import InputError
from scoreline.records import load_record
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.deis_sn_times import native_time, relative_time

ENTRIES = 1000
"""Number of measurements in the released files: one for each training index, tau = 0.001, 0.002, .. 1."""


@dataclass(frozen=True)
class PublishedScale:
    """w(rho) = R(tau(rho)), linear in tau = (t - t(0)) / (t_max - t(0)) between 1000 entries, constant outside.

    Entry k is the mean |eps| that the record has at tau = (k + 1) / 1000. Use this to reproduce DEIS-SN's tables;
    `ScoreScale` uses a record without the changes that the released code makes.

    Attributes:
        levels: the increasing noise levels of the record.
        values: mean |eps| at these levels.
        noise_schedule: the process, for tau.
        clip: number of entries at the smallest tau that the next one overwrites ("empirically helps"): published 5 for
            CIFAR-10, 1 for LSUN-Church; 0 keeps all.
        stretched_knots: True puts entry k at tau = k / 999, as the released code does, 0.7 % off at tau = 0.01; False
            puts it where it was measured, at (k + 1) / 1000.

    Source: Xia et al. (2023), arXiv:2311.00157, and its released code.

    Raises:
        InputError: for a clip outside 0 .. 999, or levels and values that `ScoreScale` refuses.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]
    noise_schedule: NoiseSchedule
    clip: int = 5
    stretched_knots: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.clip, bool) or self.clip not in range(ENTRIES):
            raise InputError(f"solver.scale.clip={self.clip}: choose a whole number from 0 (keep all) to {ENTRIES - 1}")
        ScoreScale(self.levels, self.values)

    @cached_property
    def entries(self) -> Tensor:
        """R_k after clipping, (1000,) float64."""
        measured = (torch.arange(ENTRIES, dtype=torch.float64) + 1) / ENTRIES
        entries = ScoreScale(self.levels, self.values)(self._rho(measured))
        entries[: self.clip] = entries[self.clip].clone()
        return entries

    def __call__(self, rho: Tensor) -> Tensor:
        tau, table = relative_time(self.noise_schedule, rho), self.entries.to(rho)
        position = tau * (ENTRIES - 1) if self.stretched_knots else tau * ENTRIES - 1
        left = position.floor().clamp(0, ENTRIES - 2).to(torch.int64)
        return torch.lerp(table[left], table[left + 1], (position - left).clamp(0, 1))

    def knots(self) -> Tensor:
        k = torch.arange(ENTRIES, dtype=torch.float64)
        return self._rho(k / (ENTRIES - 1) if self.stretched_knots else (k + 1) / ENTRIES)

    def _rho(self, tau: Tensor) -> Tensor:
        return self.noise_schedule.inverse(native_time(self.noise_schedule, tau))


def load_published_scale(
    path: str | Path, checkpoint: str, noise_schedule: NoiseSchedule, clip: int = 5, stretched_knots: bool = True
) -> PublishedScale:
    """Load the scale in a `score_norm` record with the released code's quirks.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.
        noise_schedule: as in `PublishedScale`.
        clip: as in `PublishedScale`.
        stretched_knots: as in `PublishedScale`.

    Raises:
        InputError: as `load_record` and `PublishedScale`.
    """
    values = load_record(path, "score_norm", checkpoint).values
    levels, means = (tuple(values[name].tolist()) for name in ("rho", "mean_abs_eps"))
    return PublishedScale(levels, means, noise_schedule, clip, stretched_knots)
