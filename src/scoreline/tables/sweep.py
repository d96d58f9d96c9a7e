"""Finished runs of a Hydra sweep as a grid: rows are solvers on schedules, columns NFE."""

import json
from collections.abc import Sequence
from pathlib import Path

from scoreline.errors import InputError, did_you_mean
from scoreline.tables.grid import Entry, Grid, gathered
from scoreline.tables.protocol import PROTOCOL, Result, merged


def collect(root: Path) -> list[Result]:
    """The metrics.json of every finished run below `root`, in order of their directories.

    Raises:
        InputError: if there is none.
    """
    rows = [json.loads(path.read_text()) for path in sorted(root.rglob("metrics.json"))]
    if not rows:
        raise InputError(f"{root}: no finished run (metrics.json) below it; run python sample.py -m ... first")
    return rows


def over_seed_ranges(rows: Sequence[Result]) -> list[Result]:
    """Runs that differ in nothing but disjoint seeds, each group as one result.

    Raises:
        InputError: if runs of one cell share seeds.
    """
    groups: dict[str, list[Result]] = {}
    for row in rows:
        key = json.dumps({key: row.get(key) for key in (*PROTOCOL, "solver", "schedule", "nfe")}, sort_keys=True)
        groups.setdefault(key, []).append(row)
    return [merged(group) for group in groups.values()]


def grid(rows: Sequence[Result], metric: str) -> Grid:
    """The grid of results, of which each has its own seeds or its own choices.

    Raises:
        InputError: if no result has the metric.
    """
    known = {name for row in rows for name in row["metrics"]}
    if metric not in known:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, known)}")
    columns = [str(nfe) for nfe in sorted({row["nfe"] for row in rows})]
    names = list(dict.fromkeys(_name(row) for row in rows))
    entries = [Entry(_name(row), str(row["nfe"]), row) for row in rows]
    return Grid("sweep", "", metric, "NFE", names, columns, gathered(entries))


def _name(row: Result) -> str:
    return f"{row['solver']} / {row['schedule']}"
