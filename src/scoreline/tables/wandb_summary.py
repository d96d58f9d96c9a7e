"""Run directories and tables as rows for W&B: a table is a run for each finished cell and one of its values."""

from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.generation import run_results
from scoreline.storage import run_config
from scoreline.storage.run_history import Row, history, row
from scoreline.tables import plan
from scoreline.tables.grid import Grid

Recorded = tuple[dict[str, Any], str, list[Row]]
"""The config of a run directory, the axis of its rows, and the rows."""


def read_run(root: Path) -> Recorded:
    """Read a run directory of train.py or sample.py, or that of a table.

    Raises:
        InputError: if a file is damaged, or there is no record yet.
    """
    config = run_config.read(root) or {}
    if (root / plan.PLAN).is_file():
        return config, "column", _table_rows(root)
    for axis, rows in (("kimg", history(root)), ("nfe", _sampled(root))):
        if rows:
            return config, axis, rows
    raise InputError(f"{root}: neither metrics.jsonl nor metrics.json holds a record; upload it when it has begun")


def directories(root: Path) -> list[Path]:
    """Return the directories of the finished cells of a table, then its own."""
    cells = plan.load(root).cells
    return [*(root / cell.directory for cell in cells if plan.outcome(cell, root).state == "finished"), root]


def _table_rows(root: Path) -> list[Row]:
    """Return one row per column, at its number or else its place, of `METRIC/ROW` to value; the last has the figure."""
    grid = plan.grid(plan.load(root), root)
    try:
        places = [float(column) for column in grid.columns]
    except ValueError:
        places = [float(k) for k in range(len(grid.columns))]
    rows = [{"column": place, **_values(grid, column)} for place, column in zip(places, grid.columns, strict=True)]
    if (root / "table.png").is_file():
        rows[-1]["figure"] = root / "table.png"
    return rows


def _values(grid: Grid, column: str) -> Row:
    values: Row = {}
    for entry in grid.entries():
        if entry.column == column and (score := entry.score(grid.metric)) is not None:
            values[f"{grid.metric}/{entry.row}"] = score["value"]
            values[f"{grid.metric}_error/{entry.row}"] = score["error"]
    return values


def _sampled(root: Path) -> list[Row]:
    """Read metrics.json of sample.py as one row over `nfe`, with grid.png; no row if there is none.

    Raises:
        InputError: if it is damaged.
    """
    result, grid = run_results.read(root), root / "grid.png"
    if result is None:
        return []
    kept = {key: value for key, value in result.items() if key != "files"}
    return [row({"sample": kept}, axis="nfe") | ({"grid": grid} if grid.is_file() else {})]
