"""Ratios of the rows of a table to one of them, paired by seed range."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from scoreline.errors import InputError, did_you_mean
from scoreline.tables.grid import Grid
from scoreline.tables.plan import Plan, grid, result
from scoreline.tables.render import with_error

Values = Mapping[str, float]
"""A figure for each seed range."""


class Ratio(NamedTuple):
    """Mean of the ratios of `n` seed ranges, and its standard error, nan for a single one."""

    mean: float
    error: float
    n: int


def paired_ratio(above: Values, below: Values) -> Ratio | None:
    """Return the mean of above / below over the common seed ranges; None without one, or if a ratio is not finite.

    Both sides start from the same noise, so the luck of a range divides out: the error of the ratio is far below that
    of two independent figures. Use it to compare two solvers on the seeds that they share.
    """
    common = [seeds for seeds in above if seeds in below]
    if not common or any(below[seeds] == 0 for seeds in common):
        return None
    ratios = [above[seeds] / below[seeds] for seeds in common]
    if not all(map(math.isfinite, ratios)):
        return None
    error = stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    return Ratio(mean(ratios), error, len(ratios))


def markdown(plan: Plan, root: Path, base: str) -> str:
    """Return the ratios of every other row to row `base` of a table as Markdown.

    Raises:
        InputError: if the table has no such row.
    """
    table = grid(plan, root)
    if base not in table.rows:
        raise InputError(f"over={base}: the table has no such row{did_you_mean(base, table.rows)}")
    values = _values(plan, root, table)
    heading = [table.metric, *(f"{table.label} {column}" for column in table.columns)]
    lines = [heading, ["--"] * len(heading)]
    for row in table.rows:
        fields = [_field(table, values, row, base, column) for column in table.columns]
        if row != base and any(fields):
            lines.append([f"{row} / {base}", *fields])
    about = "Ratios, paired by seed range: mean +- standard error over the ranges."
    return "\n".join([about, "", *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def _values(plan: Plan, root: Path, table: Grid) -> dict[tuple[str, str], dict[str, float]]:
    """Return the metric of every finished figure of the table, by row, column and seed range."""
    whole = {(entry.row, entry.column) for entry in table.entries() if entry.score(table.metric)}
    values: dict[tuple[str, str], dict[str, float]] = {}
    for cell in plan.cells:
        place = (cell.row, cell.column)
        if place in whole:
            values.setdefault(place, {})[cell.seeds] = result(cell, root)["metrics"][table.metric]["value"]
    return values


def _field(table: Grid, values: Mapping[tuple[str, str], Values], row: str, base: str, column: str) -> str:
    """Empty where one of both has no figure, or where their protocols differ."""
    above, below = (row, column), (base, column)
    alike = any(above in part.entries and below in part.entries for part in table.parts)
    if not alike or above not in values or below not in values:
        return ""
    ratio = paired_ratio(values[above], values[below])
    return "" if ratio is None else " +- ".join(with_error(ratio.mean, ratio.error))
