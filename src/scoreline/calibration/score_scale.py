"""The scale of DEIS-SN: mean |eps| as a function of the noise level."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.records import Record, load_record


@dataclass(frozen=True)
class ScoreScale:
    """w(rho) = mean |eps| at noise level rho, linear in ln rho between the measured levels, constant outside.

    Use this as the `scale` of `DEIS`, which makes it DEIS-SN.

    Attributes:
        levels: increasing noise levels.
        values: mean |eps| at these levels, positive.

    Source: Xia et al. (2023), arXiv:2311.00157, where K_t = sigma_t / w.

    Raises:
        InputError: for fewer than two levels, levels that do not increase, or values that are not positive.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        alike = len(self.levels) == len(self.values) >= 2
        if not alike or min(self.values) <= 0 or not all(map(float.__lt__, self.levels, self.levels[1:])):
            raise InputError("calibration: a score scale needs increasing noise levels and positive values")

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        levels, values = (torch.tensor(part, dtype=torch.float64) for part in (self.levels, self.values))
        return levels, levels.log(), values

    def __call__(self, rho: Tensor) -> Tensor:
        log, value = (part.to(rho.dtype) for part in self._table[1:])
        at = rho.clamp(self.levels[0], self.levels[-1]).log()
        right = torch.searchsorted(log, at.contiguous()).clamp(1, len(log) - 1)
        return torch.lerp(value[right - 1], value[right], (at - log[right - 1]) / (log[right] - log[right - 1]))

    def knots(self) -> Tensor:
        return self._table[0]


def load_scale(path: str | Path, checkpoint: str) -> ScoreScale:
    """Load the scale in a `score_norm` record. Use it as the `scale` of `DEIS`.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.

    Raises:
        InputError: as `load_record`.
    """
    return scale_in(load_record(path, "score_norm", checkpoint))


def scale_in(record: Record) -> ScoreScale:
    """Return the scale in a `score_norm` record."""
    return ScoreScale(tuple(record.values["rho"].tolist()), tuple(record.values["mean_abs_eps"].tolist()))
