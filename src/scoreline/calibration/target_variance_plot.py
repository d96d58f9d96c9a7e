"""The picture of a target_variance record."""

from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.calibration.record import Record
from scoreline.calibration.target_variance_table import surely


def plot(record: Record, path: Path) -> None:
    """Against rho, as a PNG: V / rho^2, the variance of the eps that a target stands for; DSM / STF; the ESS.

    Bands are standard errors; ratios end where the variances are not known (`surely`), at their limit as rho grows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values, made = record.values, record.provenance
    rho, sizes, known = values["rho"], values["references"].tolist(), surely(values)
    figure, (top, middle, bottom) = pyplot.subplots(3, sharex=True, figsize=(7, 9), layout="constrained")
    _band(top, rho, values["dsm"] / rho**2, values["dsm_error"] / rho**2, "black", "denoising score matching")
    for row, n in enumerate(sizes):
        colour = f"C{row}"
        stf, error = (values[name][row] / rho**2 for name in ("stf", "stf_error"))
        _band(top, rho, stf, error, colour, f"stable target, n = {n}")
        ratio, error = (values[name][row][known[row]] for name in ("ratio", "ratio_error"))
        _band(middle, rho[known[row]], ratio, error, colour, f"n = {n}")
        if float(values["limit"][row]) < float("inf"):
            middle.axhline(float(values["limit"][row]), color=colour, linestyle=":")
    _band(bottom, rho, values["effective_size"], values["effective_size_error"], "black", "posterior")
    middle.axhline(1, color="black")
    top.set(ylabel="Tr Cov / rho^2, units of eps", xscale="log", ylim=(0, None))
    middle.set(ylabel="DSM / STF; dotted: limit", yscale="log")
    bottom.set(ylabel="effective sample size", yscale="log", xlabel="noise level rho")
    for axis in (top, middle):
        axis.legend()
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.3)
    figure.suptitle(f"{made['dataset']['name']}: variance of training targets, {made['images']} noisy images")
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _band(axis: Any, rho: Tensor, value: Tensor, error: Tensor, colour: str, label: str) -> None:
    axis.fill_between(rho, value - error, value + error, alpha=0.25, color=colour, linewidth=0)
    axis.plot(rho, value, color=colour, label=label)
