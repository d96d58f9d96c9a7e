"""The table of a target_variance record."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

LEAST = 1e-20
"""A variance below is shown as its order only: squares of such numbers are of the size of rounding."""


def table(values: dict[str, Any]) -> Iterator[str]:
    """A line for each level of a record, noise first; standard errors are percentages, rounded up.

    Of a variance that is known to less than a half only the order is shown, and no ratio.
    """
    sizes = values["references"].tolist()
    yield "Tr Cov(target | x), units of x_0; STF n: stable target of n images; ESS: effective images of the posterior"
    heads = ["DSM", *(f"STF {n}" for n in sizes), *(f"DSM/STF {n}" for n in sizes)]
    yield f"{'rho':>8}{'ESS':>11}{''.join(f'{head:>15}' for head in heads)}{'DSM/rho^2':>11}"
    for k in reversed(range(len(values["rho"]))):
        rho, size, dsm = (float(values[name][k]) for name in ("rho", "effective_size", "dsm"))
        cells = [_cell(values, "dsm", k), *(_cell(values, "stf", j, k) for j in range(len(sizes)))]
        known = surely(values)[:, k].tolist()
        cells += [_cell(values, "ratio", j, k) if known[j] else "-" for j in range(len(sizes))]
        yield f"{rho:8.4g}{size:11.4g}{''.join(f'{cell:>15}' for cell in cells)}{dsm / rho**2:11.3g}"


def surely(values: dict[str, Any]) -> Tensor:
    """Which ratios (J, K) are of variances that are both known."""
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
