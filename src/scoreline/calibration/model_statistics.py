"""The statistics of DPM-Solver-v3, one number per noise level, from the second moments of a `score_norm` record."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scoreline.calibration.score_scale import ScoreScale
from scoreline.errors import InputError
from scoreline.records import load_record
from scoreline.schedules.base import Schedule
from scoreline.solvers.deis import DEIS
from scoreline.solvers.frames import Frame
from scoreline.solvers.measured_frame import MeasuredFrame
from scoreline.values import check_choice

LEAST = 1e-4
"""Least size of F in units of the root mean square of eps, for data whose F vanishes but for rounding."""


@dataclass(frozen=True)
class SlopeScale:
    """w(rho) = u(rho) sqrt(E F^2): the size of the slope G = u F, F = eps - l(rho) x, in a frame of gain l and unit u.

    sqrt(E F^2) is linear in ln rho between the measured levels, constant above them, and follows the gain below, where
    E eps^2 and E x^2 change little and E(x eps) is proportional to rho. Use this as the `scale` of a
    `DEIS` with the same `frame`: what DEIS-SN does in noise prediction, it does in any frame.

    It is also exp(int s drho) for the s of DPM-Solver-v3 that minimises E|dF/drho - s F|^2 along runs, since
    s = E(F dF/drho) / E F^2 = d ln sqrt(E F^2) / drho: no derivative of the network is needed. DPM-Solver-v3 fits
    dF/drho = s F + b, which puts the standard deviation of F in the place of sqrt(E F^2) and adds to a row the error
    that its polynomial makes in int (b / w) drho. This does not cancel, and a tableau has no column for a constant;
    without b, the s that fits best is the one above.

    Attributes:
        levels: increasing noise levels.
        moments: means of eps^2, x eps and x^2 at these levels; E F^2 = E eps^2 - 2 l E(x eps) + l^2 E x^2.
        frame: that of the solver.

    Source: Xia et al. (2023), arXiv:2311.00157; Zheng et al. (2023), arXiv:2310.13268, Eq. 8 and 11.

    Raises:
        InputError: for fewer than two levels, levels that do not increase, or a mean of eps^2 that is not positive.
    """

    levels: tuple[float, ...]
    moments: tuple[tuple[float, ...], ...]
    frame: Frame

    def __post_init__(self) -> None:
        assert self._size

    def _root(self, gain: Tensor, square: Tensor, product: Tensor, state: Tensor) -> Tensor:
        slope = square - 2 * gain * product + gain**2 * state
        return slope.maximum(LEAST**2 * square).sqrt()

    @cached_property
    def _size(self) -> ScoreScale:
        gain = self.frame.gain(torch.tensor(self.levels, dtype=torch.float64))
        moments = torch.tensor(self.moments, dtype=torch.float64)
        return ScoreScale(self.levels, tuple(self._root(gain, *moments.unbind(1)).tolist()))

    def __call__(self, rho: Tensor) -> Tensor:
        square, product, state = torch.tensor(self.moments[0], dtype=torch.float64)
        below = self._root(self.frame.gain(rho), square, product * rho / self.levels[0], state)
        return self.frame.unit(rho) * torch.where(rho < self.levels[0], below, self._size(rho))

    def knots(self) -> Tensor:
        return self._size.knots()


GAINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jacobian": lambda rho, moments: rho * moments[:, 0] / moments[:, 1],
    "regression": lambda rho, moments: rho * moments[:, 1] / moments[:, 2],
}
"""rho l from the levels and the means of eps^2, x eps and x^2: ratios, from which the noise of the draws cancels."""


def load_dpm_solver_v3(
    path: str | Path, checkpoint: str, order: int, variable: Schedule, gain: str = "jacobian"
) -> DEIS:
    """Load Adams-Bashforth in a frame of measured gain l and with a measured scale, from a `score_norm` record.

    The gain of DPM-Solver-v3 is l = E tr(d eps / dx) / d. With states from p_rho, whose score is -eps / rho, partial
    integration gives E div eps = E|eps|^2 / rho and E(x . eps) = rho d, so that l = E eps^2 / E(x eps) for a model
    without error and no Jacobian is needed. The published statistics, one number per pixel, took 7 hours of 8 GPUs for
    CIFAR-10. The frame's amplitude is exp(entropy of p_rho / d).

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.
        order: degree of the polynomials; DPM-Solver-v3's order 3 is degree 2.
        variable: c, in which they are polynomials; the published one is log-SNR.
        gain: `jacobian` makes F = eps - l x vary as little with x as it can, as published; `regression`,
            l = E(x eps) / E x^2, makes F as small as it can be, and is the gain of velocity prediction with the model's
            own s^2 = E x_0^2 if the model has no error. Prefer the latter.

    Raises:
        InputError: as `load_record`, `DEIS` and `MeasuredFrame`, for a record without second moments, and for another
            gain.
    """
    power = GAINS[check_choice("solver.gain", GAINS, gain)]
    values = load_record(path, "score_norm", checkpoint).values
    if "second_moments" not in values:
        raise InputError(
            f"record={path}: holds no second moments, which this solver needs; make it again with: "
            "python calibrate.py calibration=score_norm checkpoint=..."
        )
    rho, moments = values["rho"], values["second_moments"]
    levels = tuple(rho.tolist())
    frame = MeasuredFrame(levels, tuple(power(rho, moments).tolist()))
    return DEIS(order, variable, SlopeScale(levels, tuple(map(tuple, moments.tolist())), frame), frame)
