"""The best figure of a column, and those that cannot be told from it."""

import math
from statistics import mean, stdev

from scoreline.metrics.base import Score, higher_is_better
from scoreline.tables.grid import Entry, Part

ERRORS = 2.0
"""Standard errors of a difference within which two figures are equal."""


def rule(ranges: int) -> str:
    """Return the words for figures over so many seed ranges."""
    pairs = ", paired by seed range" if ranges > 1 else ""
    return f"bold: the best of a column and all within two standard errors of the difference from it{pairs}"


def best(part: Part, metric: str, column: str) -> set[str]:
    """Return the rows whose figure is the best of a column, or equal to it.

    Figures are equal if their difference is at most two of its standard errors: of the mean of the paired differences
    where both are of the same seed ranges, which share their noise, else sqrt(error_a^2 + error_b^2).
    """
    leader, found = top(part, metric, column), _column(part, metric, column)
    return {row for row, it in found.items() if row == leader or equal(it, found[leader], metric)} if leader else set()


def top(part: Part, metric: str, column: str) -> str | None:
    """Return the row with the best figure of a column, None if it has none."""
    values = {row: _score(it, metric)["value"] for row, it in _column(part, metric, column).items()}
    better = max if higher_is_better(metric) else min
    return better(values, key=lambda row: values[row]) if values else None


def _column(part: Part, metric: str, column: str) -> dict[str, Entry]:
    """Return the entries of a column with a finite figure, by row."""
    entries = {row: it for (row, name), it in part.entries.items() if name == column}
    return {row: it for row, it in entries.items() if math.isfinite(_score(it, metric)["value"])}


def _score(entry: Entry, metric: str) -> Score:
    return entry.score(metric) or Score(value=math.nan, error=math.nan, n=0)


def equal(one: Entry, other: Entry, metric: str) -> bool:
    """Return whether two measured figures are equal, as `best` has it."""
    pairs = _paired(one, other, metric)
    if pairs:
        return within(mean(pairs), stdev(pairs) / math.sqrt(len(pairs)))
    first, second = _score(one, metric), _score(other, metric)
    return within(first["value"] - second["value"], math.hypot(first["error"], second["error"]))


def within(difference: float, error: float) -> bool:
    """Return whether a difference is at most two of its standard errors; one that is not finite counts as 0."""
    return abs(difference) <= (ERRORS * error if math.isfinite(error) else 0.0)


def _paired(one: Entry, other: Entry, metric: str) -> list[float]:
    """Return the differences over seed ranges; none unless both are of the same two or more."""
    seeds = {str((entry.result or {}).get("seeds")) for entry in (one, other)}
    first, second = one.by_range(metric), other.by_range(metric)
    return [a - b for a, b in zip(first, second, strict=True)] if len(seeds) == 1 and len(first) > 1 else []
