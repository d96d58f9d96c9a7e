"""Calibration records as rows of numbers, for dashboards."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from scoreline.records import RECORDS, Record
from scoreline.storage.run_history import Row

Curves = dict[str, list[float]]
"""Values by name, at the places of an axis in order; NaN where one is unknown."""


def rows(record: Record) -> tuple[dict[str, str], list[Row]]:
    """Return the curves of a record as rows, each with the number that it is plotted against.

    That is `rho`, the noise level, or `nfe` where the record has budgets, or `pass` for values of each measurement of
    score_optimal. Names are KIND/TENSOR, with `_n64` for 64 references and `_0` and so on for channels. The last row
    has a table: the ranking of a search, the levels of learned tableaus. Moments and unknown numbers are left out.

    Args:
        record: any record; of a kind that `RECORDS` does not list, only the axis is known.

    Returns:
        the axis of each beginning of a name, and the rows, at least one.
    """
    kind, values = record.kind, record.values
    axis, places = ("rho", values.get("rho")) if "rho" in values else ("nfe", values.get("budgets"))
    passes = _by_pass(record)
    found = _at(axis, [] if places is None else places.tolist(), kind, dict(_curves(record)))
    found += _at("pass", range(1, max(map(len, passes.values()), default=0) + 1), f"{kind}_passes", passes)
    found = found or [{}]
    if kind in TABLES:
        found[-1] |= TABLES[kind](record)
    return {f"{kind}/*": axis, **({f"{kind}_passes/*": "pass"} if passes else {})}, found


def _at(axis: str, places: Any, prefix: str, curves: Curves) -> list[Row]:
    """Return a row for each place, with the known values of the curves that have one there."""
    found = []
    for k, place in enumerate(places):
        values = {f"{prefix}/{name}": each[k] for name, each in curves.items() if k < len(each)}
        found.append({axis: place, **{name: value for name, value in values.items() if math.isfinite(value)}})
    return found


def _named(record: Record, *sizes: int | str) -> list[str]:
    """Return the tensors of a record that have these sizes by the rules of its kind."""
    rules = RECORDS.get(record.kind, {})
    return [name for name in record.values if name in rules and rules[name].sizes == sizes]


def _by_pass(record: Record) -> Curves:
    """Return values of each measurement, and those of what changed since the one before, which the first lacks."""
    found = {name: record.values[name].tolist() for name in _named(record, "P")}
    return found | {name: [math.nan, *record.values[name].tolist()] for name in _named(record, "Q")}


def _curves(record: Record) -> Iterator[tuple[str, list[float]]]:
    """Yield the curves over rho or the budgets, with their names."""
    values = record.values
    for name in (*_named(record, "K"), *_named(record, "B")):
        if name not in ("rho", "budgets"):
            yield name, values[name].tolist()
    for name in _named(record, "K-1"):
        yield name, [math.nan, *values[name].tolist()]
    for name in _named(record, "J", "K"):
        for n, curve in zip(values["references"].tolist(), values[name].tolist(), strict=True):
            yield f"{name}_n{n}", curve
    for name in _named(record, "K", "C"):
        for place, column in enumerate(values[name].T.tolist()):
            yield f"{name}_{place}", column
    for name in _named(record, "B", "F"):
        yield f"best_{name}", values[name][:, 0].tolist()


def _ranking(record: Record) -> Row:
    """Return the finalists of a search, a line for each budget and place."""
    names = ("budgets", "mean", "standard_error")
    columns = (record.provenance["candidates"], *(record.values[name].tolist() for name in names))
    lines = []
    for candidates, nfe, means, errors in zip(*columns, strict=True):
        for place, (pairs, mean, error) in enumerate(zip(candidates, means, errors, strict=False), 1):
            solver, schedule = pairs[0]
            lines.append({"nfe": nfe, "place": place, "solver": solver, "schedule": schedule})
            lines[-1] |= {"mean": mean, "standard_error": error}
    return {"search/ranking": lines}


def _levels(record: Record) -> Row:
    """Return the noise levels of learned tableaus, a line for each budget and step."""
    levels = {nfe: record.values[f"rho_{nfe}"].tolist() for nfe in record.values["budgets"].tolist()}
    lines = [{"nfe": nfe, "step": step, "rho": rho} for nfe, each in levels.items() for step, rho in enumerate(each)]
    return {"tableau/levels": lines}


TABLES: dict[str, Callable[[Record], Row]] = {"search": _ranking, "tableau": _levels}
"""The table of a kind of record."""
