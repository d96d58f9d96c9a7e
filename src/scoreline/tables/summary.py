"""A table as W&B runs: one for each finished cell, and one with its values over the columns, its table and figure."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline import run_config, wandb_runs
from scoreline.errors import InputError
from scoreline.history import Row, history, sampled
from scoreline.tables import plan
from scoreline.tables.grid import Grid
from scoreline.tables.render import pages


@dataclass(frozen=True)
class Source:
    """The rows of a run directory, over an axis, and its config."""

    root: Path
    config: dict[str, Any]
    axis: str
    rows: list[Row]

    def upload(self, offline: bool, **given: Any) -> str:
        """Send the rows as `wandb_runs.upload`, under the names given, trained with, or derived."""
        chosen = wandb_runs.names_in(self.config) | {key: value for key, value in given.items() if value}
        names = wandb_runs.names(self.root, str(self.config.get("identity", "")), **chosen)
        return wandb_runs.upload(self.root, names, self.config, self.axis, self.rows, offline)


def source(root: Path) -> Source:
    """Read a run directory of train.py or sample.py, or that of a table.

    Raises:
        InputError: if a file is damaged, or there is no record yet.
    """
    config = run_config.read(root) or {}
    if (root / plan.PLAN).is_file():
        return Source(root, config, "column", rows(root))
    if found := history(root):
        return Source(root, config, "kimg", found)
    if found := sampled(root):
        return Source(root, config, "nfe", found)
    raise InputError(f"{root}: neither metrics.jsonl nor metrics.json holds a record; upload it when it has begun")


def directories(root: Path) -> list[Path]:
    """The directories of the finished cells of a table, then its own."""
    cells = plan.load(root).cells
    return [*(root / cell.directory for cell in cells if plan.outcome(cell, root).state == "finished"), root]


def upload_new(root: Path, offline: bool) -> Iterator[str]:
    """Upload a table that has just run, except for the cells that were uploaded before; yields a line for each run."""
    for it in [source(path) for path in directories(root) if not _is_uploaded(path)]:
        yield it.upload(offline)


def _is_uploaded(root: Path) -> bool:
    sent = [path.stat().st_mtime for path in root.glob("wandb/*run-*")]
    results = [path for name in ("metrics.json", "table.csv") if (path := root / name).is_file()]
    return bool(sent) and all(path.stat().st_mtime < max(sent) for path in results)


def rows(root: Path) -> list[Row]:
    """One row per column, at its number or else its place, `METRIC/ROW` to value; the last holds table and figure."""
    grid = plan.grid(plan.load(root), root)
    try:
        places = [float(column) for column in grid.columns]
    except ValueError:
        places = [float(k) for k in range(len(grid.columns))]
    found = [{"column": place, **_column(grid, column)} for place, column in zip(places, grid.columns, strict=True)]
    figure = {"figure": root / "table.png"} if (root / "table.png").is_file() else {}
    return [*found, {"column": places[-1], **_tables(grid), **figure}]


def _column(grid: Grid, column: str) -> Row:
    found: Row = {}
    for entry in grid.entries():
        if entry.column == column and (score := entry.score(grid.metric)) is not None:
            found[f"{grid.metric}/{entry.row}"] = score["value"]
            found[f"{grid.metric}_error/{entry.row}"] = score["error"]
    return found


def _tables(grid: Grid) -> Row:
    """The printed tables, as text: `table`, `table_2`, .."""
    found: Row = {}
    for number, page in enumerate(pages(grid), 1):
        lines = [[line.name, *(text.plain() for text in line.fields)] for line in page.lines]
        name = f"table_{number}" if number > 1 else "table"
        found[name] = wandb_runs.imported().Table(columns=list(page.heading), data=lines)
    return found
