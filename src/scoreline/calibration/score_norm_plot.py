"""The figure of a score_norm record."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.score_norm_published import ENTRIES, PublishedScale
from scoreline.records import Record
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.deis_sn_times import relative_ends
from scoreline.storage.figures import PAGE, figure, plain_ticks

TICKS = torch.tensor([0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0])
"""Ticks of the axis of times, as shares of the longest time."""


class Curves(NamedTuple):
    """The curves, each (K,) float64: noise level, native time, sigma of the native state, mean |eps|, its error."""

    rho: Tensor
    t: Tensor
    sigma: Tensor
    mean: Tensor
    error: Tensor


def plot(record: Record, path: Path, noise_schedule: NoiseSchedule) -> None:
    """Plot mean |eps| (top) and K = sigma / mean |eps| (bottom) against rho (left) and native time t (right).

    Dashed is K = sigma, plain DEIS; bands are standard errors, where known; pure noise has mean |eps| = sqrt(2/pi).
    Times are spaced as their square roots. The shaded levels are those that the released code of DEIS-SN overwrites for
    CIFAR-10 (`PublishedScale.clip`), for processes that have a time of clean data.
    """
    curves, clipped = _curves(record, noise_schedule), _clipped(noise_schedule)
    with figure(path, 2, 2, sharex="col", sharey="row", figsize=(PAGE, 4.6)) as (canvas, axes):
        for column, x in enumerate((curves.rho, curves.t)):
            _draw_mean(axes[0, column], x, curves)
            _draw_k(axes[1, column], x, curves)
            for axis in axes[:, column]:
                _shade(axis, x, None if clipped is None else clipped[column])
                axis.grid()
        axes[0, 0].set(ylabel="mean |eps|", xscale="log")
        axes[1, 0].set(ylabel="K = sigma / mean |eps|", xlabel="noise level rho", yscale="log")
        axes[1, 1].set_xscale("function", functions=(_root, torch.square))
        ticks = TICKS * float(curves.t[-1])
        axes[1, 1].set(xlabel="native time t (spaced as its square root)", xlim=(0, 1.02 * float(curves.t[-1])))
        axes[1, 1].set_xticks(ticks, [f"{tick:.3g}" for tick in ticks.tolist()])
        for axis in axes[:, 0]:
            axis.legend(loc="lower right")
        for log in (axes[1, 0].xaxis, axes[1, 0].yaxis):
            plain_ticks(log)
        canvas.suptitle(_title(record))


def _root(t: Any) -> Tensor:
    return torch.as_tensor(t).clamp(min=0).sqrt()


def _curves(record: Record, noise_schedule: NoiseSchedule) -> Curves:
    rho, mean, error = (record.values[name] for name in ("rho", "mean_abs_eps", "standard_error"))
    t = noise_schedule(rho)
    return Curves(rho, t, rho * noise_schedule.alpha(t), mean, error)


def _draw_mean(axis: Any, x: Tensor, curves: Curves) -> None:
    if bool(curves.error.isfinite().any()):
        axis.fill_between(x, curves.mean - curves.error, curves.mean + curves.error, alpha=0.3, label="standard error")
    axis.plot(x, curves.mean, label="mean |eps|")
    axis.axhline((2 / torch.pi) ** 0.5, color="grey", linestyle=":", label="pure noise, sqrt(2/pi)")


def _draw_k(axis: Any, x: Tensor, curves: Curves) -> None:
    if bool(curves.error.isfinite().any()):
        low, high = (curves.sigma / (curves.mean + sign * curves.error) for sign in (1, -1))
        axis.fill_between(x, low, high, alpha=0.3, label="standard error")
    axis.plot(x, curves.sigma / curves.mean, label="DEIS-SN, sigma / mean |eps|")
    axis.plot(x, curves.sigma, color="black", linestyle="--", label="plain DEIS, K = sigma")


def _clipped(noise_schedule: NoiseSchedule) -> tuple[float, float] | None:
    """Return (rho, t) of the entry that the released code copies to all below it, if there is one."""
    first, last = relative_ends(noise_schedule)
    t = first + (last - first) * (PublishedScale.clip + 1) / ENTRIES
    rho = float(noise_schedule.inverse(torch.tensor(t, dtype=torch.float64)))
    return (rho, t) if torch.tensor([rho, t]).isfinite().all() else None


def _shade(axis: Any, x: Tensor, clipped: float | None) -> None:
    if clipped is not None and clipped > float(x[0]):
        axis.axvspan(float(x[0]), clipped, color="C1", alpha=0.15, label="clipped by deis_sn_published")


def _title(record: Record) -> str:
    """Return the number of images, unknown for imported statistics, and the kind of states."""
    images, states = record.provenance["images"], record.provenance.get("states", "trajectory")
    of = f" of {record.provenance['dataset']['name']}, noised" if states == "noised" else ", the model's own trajectory"
    return f"{'an unknown number of' if images is None else images} images{of}"
