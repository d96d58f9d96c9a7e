"""A list of runs: filters, order and columns."""

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from scoreline.doctor.findings import amount
from scoreline.errors import InputError, printable
from scoreline.runs import summary
from scoreline.runs.summary import GROUPS, Summary

FILTERS = ("job", "checkpoint", "solver", "schedule", "nfe", "state")
"""Columns that a line is chosen by, beside the keys of its configuration."""

COLUMNS = ("date", "job", "checkpoint", "solver", "schedule", "nfe", "metric", "size", "state", "path")


LONGEST = 60
"""Most characters of a state in a list; `show` prints the whole reason of a failure."""


def chosen(found: Sequence[Summary], keys: dict[str, str], every: bool) -> list[Summary]:
    """Return the lines that pass all filters; those filters that ask for runs reach into sweeps and tables.

    Raises:
        InputError: for a key that no run has, or a date that is none.
    """
    asked = {key: value for key, value in keys.items() if value and key not in ("sort", "metric", "since")}
    of_groups = bool(asked.get("job")) and any(_matches(group, asked["job"]) for group in GROUPS)
    apart = not of_groups and (every or bool(asked))
    kept = [run for group in found for run in ((group.runs if group.job in GROUPS and apart else ()) or (group,))]
    if keys["since"]:
        moment = _moment(keys["since"])
        kept = [one for one in kept if one.date >= moment]
    for key in (key for key in FILTERS if key in asked):
        kept = [one for one in kept if _matches(_field(one, key), asked[key])]
    return _by_config(kept, {key: value for key, value in asked.items() if key not in FILTERS})


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise InputError(f"since={text}: no date; give 2026-11-01 or 2026-11-01T12:00") from error


def _matches(value: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(value, pattern.strip()) for pattern in patterns.split(","))


def _field(one: Summary, key: str) -> str:
    return one.state.word if key == "state" else str(getattr(one, key))


def _by_config(runs: Sequence[Summary], asked: dict[str, str]) -> list[Summary]:
    """Return the runs whose configuration has these values.

    Raises:
        InputError: for a key that no run has.
    """
    configs = [_texts(run.path) for run in runs] if asked else []
    known = {key for config in configs for key in config}
    for key in asked:
        if runs and key not in known:
            near = difflib.get_close_matches(key, [*known, *FILTERS], n=1, cutoff=0.6)
            hint = f"did you mean '{near[0]}'?" if near else "config.yaml of a run has its keys"
            raise InputError(f"{key}: no run has such a key; {hint}")
    if not asked:
        return list(runs)
    pairs = zip(runs, configs, strict=True)
    return [run for run, own in pairs if all(_any(own.get(key, ()), value) for key, value in asked.items())]


def _any(values: Iterable[str], patterns: str) -> bool:
    return any(_matches(value, patterns) for value in values)


def _texts(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of every key of a run's config; a node has its choice, and the module and class it names."""
    found, names = summary.values(path), summary.choices(path)
    classes = {key: found.get(f"{key}._target_", "").split(".")[-2:] for key in found}
    kept = [key for key in found if not key.startswith("start")]
    return {key: (found[key], *classes[key], *([names[key]] if key in names else [])) for key in kept}


def order(column: str) -> Callable[[Summary], Any]:
    """Return the key of a column to sort by; lines without a value are last."""
    if column in ("date", "size"):
        return lambda one: getattr(one, column)
    if column == "metric":
        return lambda one: one.figure.value if one.figure and math.isfinite(one.figure.value) else math.inf
    if column == "nfe":
        return lambda one: (float(one.nfe) if one.nfe.replace(".", "", 1).isdigit() else math.inf, one.nfe)
    return lambda one: str(one.path if column in ("path", "name") else getattr(one, column)) or "\U0010ffff"


def plain(one: Summary) -> dict[str, Any]:
    """Return a line as plain data for JSON; numbers that are not finite become null."""
    figure = one.figure
    return {
        "path": str(one.path),
        **{key: getattr(one, key) for key in ("job", "checkpoint", "solver", "schedule", "nfe")},
        "metric": figure and {"name": figure.name, "value": _finite(figure.value), "error": _finite(figure.error)},
        "date": date(one, "seconds"),
        "state": one.state.word,
        "detail": one.state.detail,
        "bytes": one.size,
        "runs": [plain(run) for run in one.runs],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def date(one: Summary, spec: str = "minutes") -> str:
    """Return `2026-11-30 12:05`, on this machine's clock."""
    return datetime.fromtimestamp(one.date).isoformat(" ", spec)


def number(value: float, error: float | None) -> str:
    """Return `0.8812 +- 0.38`, the value alone without a known error."""
    known = error is not None and not math.isnan(error)
    return f"{value:.4g} +- {error:.2g}" if known else f"{value:.4g}"


def cells(runs: Sequence[Summary]) -> list[list[str]]:
    """Return the heading and the fields of a list; a metric that all lines share stands in the heading."""
    names = {run.figure.name for run in runs if run.figure}
    shared = next(iter(names)) if len(names) == 1 else ""
    head = ["NFE" if column == "nfe" else shared or column if column == "metric" else column for column in COLUMNS]
    return [head, *([printable(text) or "-" for text in _fields(run, shared)] for run in runs)]


def _fields(run: Summary, shared: str) -> list[str]:
    figure = "" if run.figure is None else number(run.figure.value, run.figure.error)
    name = f"{run.figure.name} " if run.figure and not shared else ""
    choices = [run.checkpoint, run.solver, run.schedule, run.nfe]
    state = str(run.state)
    state = state if len(state) <= LONGEST else f"{state[: LONGEST - 2]}.."
    return [date(run), run.job, *choices, name + figure, amount(run.size), state, str(run.path)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table of text, two spaces between its columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


SPARE = ("schedule", "checkpoint", "solver", "NFE", "job", "size")
"""Columns that a narrow terminal does without, in this order; names of run directories say most of them."""


def fitted(rows: Sequence[Sequence[str]], width: int | None) -> tuple[list[list[str]], list[str]]:
    """Return rows without the columns that are beyond a width in characters, and the names of these columns."""
    kept, left_out = [list(row) for row in rows], []
    for name in SPARE if width is not None else ():
        if max(map(len, aligned(kept))) <= (width or 0):
            break
        place = kept[0].index(name)
        kept = [[*row[:place], *row[place + 1 :]] for row in kept]
        left_out.append(name)
    return kept, left_out
