"""The table and the figure of a target_variance record."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.records import Record
from scoreline.storage.figures import PAGE, figure, plain_ticks

LEAST = 1e-20
"""Of a smaller variance only the order of magnitude is shown: squares of such numbers are of the size of rounding."""


def plot(record: Record, path: Path) -> None:
    """Plot V / rho^2 (the variance of the eps that a target stands for), DSM / STF and the ESS against rho.

    Bands are standard errors; ratios end where a variance is not known (`_known_ratios`), at their limit as rho grows.
    """
    values, provenance = record.values, record.provenance
    rho, sizes, known = values["rho"], values["references"].tolist(), _known_ratios(values)
    with figure(path, 3, sharex=True, figsize=(PAGE, 6)) as (canvas, (top, middle, bottom)):
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
            axis.grid()
        for log in (bottom.xaxis, middle.yaxis, bottom.yaxis):
            plain_ticks(log)
        name = provenance["dataset"]["name"]
        canvas.suptitle(f"{name}: variance of training targets, {provenance['images']} noisy images")


def _band(axis: Any, rho: Tensor, value: Tensor, error: Tensor, colour: str, label: str) -> None:
    axis.fill_between(rho, value - error, value + error, alpha=0.25, color=colour, linewidth=0)
    axis.plot(rho, value, color=colour, label=label)


def table(values: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each level of a record, noise first; standard errors are percentages, rounded up.

    A variance that is not known to a half is shown as its order of magnitude, without a ratio.
    """
    sizes = values["references"].tolist()
    yield "Tr Cov(target | x), units of x_0; STF n: stable target or StableVM, n images; ESS: effective posterior size"
    heads = ["DSM", *(f"STF {n}" for n in sizes), *(f"DSM/STF {n}" for n in sizes)]
    yield f"{'rho':>8}{'ESS':>11}{''.join(f'{head:>15}' for head in heads)}{'DSM/rho^2':>11}"
    for k in reversed(range(len(values["rho"]))):
        rho, size, dsm = (float(values[name][k]) for name in ("rho", "effective_size", "dsm"))
        cells = [_cell(values, "dsm", k), *(_cell(values, "stf", j, k) for j in range(len(sizes)))]
        known = _known_ratios(values)[:, k].tolist()
        cells += [_cell(values, "ratio", j, k) if known[j] else "-" for j in range(len(sizes))]
        yield f"{rho:8.4g}{size:11.4g}{''.join(f'{cell:>15}' for cell in cells)}{dsm / rho**2:11.3g}"


def _known_ratios(values: dict[str, Any]) -> Tensor:
    """Return which ratios (J, K) are of variances that are both known."""
    dsm, stf = (_known(values[name], values[f"{name}_error"]) for name in ("dsm", "stf"))
    return dsm & stf


def _known(value: Tensor, error: Tensor) -> Tensor:
    known: Tensor = (value > LEAST) & (error <= value / 2)
    return known


def _cell(values: dict[str, Any], name: str, *where: int) -> str:
    value, error = values[name][where], values[f"{name}_error"][where]
    if float(value) == 0:
        return "0"
    percent = math.ceil(100 * float(error / value)) if bool(_known(value, error)) else None
    return f"~{float(value):.0e}" if percent is None else f"{float(value):.3g} +-{percent}%"
