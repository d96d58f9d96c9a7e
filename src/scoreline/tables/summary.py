"""A table as one run of W&B: its figures over the columns, then the table and the figure themselves."""

from pathlib import Path

from scoreline.history import Row
from scoreline.tables import plan
from scoreline.tables.grid import Grid
from scoreline.tables.render import pages
from scoreline.wandb_runs import Sheet

AXIS = "column"


def finished(root: Path) -> list[Path]:
    """Directories of the finished cells of a table."""
    cells = plan.load(root).cells
    return [root / cell.directory for cell in cells if plan.outcome(cell, root).state == "finished"]


def rows(root: Path) -> list[Row]:
    """One for each column, at its number or else its place, `METRIC/ROW` to value; the last with table and figure."""
    grid = plan.grid(plan.load(root), root)
    found = [{AXIS: place, **_column(grid, column)} for place, column in zip(_places(grid), grid.columns, strict=True)]
    picture = {"figure": root / "table.png"} if (root / "table.png").is_file() else {}
    sheets = {f"table_{number}" if number > 1 else "table": it for number, it in enumerate(_sheets(grid), 1)}
    return [*found, {AXIS: found[-1][AXIS], **sheets, **picture}]


def _places(grid: Grid) -> list[float]:
    try:
        return [float(column) for column in grid.columns]
    except ValueError:
        return [float(k) for k in range(len(grid.columns))]


def _column(grid: Grid, column: str) -> Row:
    entries = [entry for entry in grid.entries() if entry.column == column]
    scores = {entry.row: entry.score(grid.metric) for entry in entries}
    measured = {row: score for row, score in scores.items() if score is not None}
    values = {f"{grid.metric}/{row}": score["value"] for row, score in measured.items()}
    return values | {f"{grid.metric}_error/{row}": score["error"] for row, score in measured.items()}


def _sheets(grid: Grid) -> list[Sheet]:
    """The printed tables, as text."""
    found = []
    for page in pages(grid):
        lines = tuple((line.name, *(text.plain() for text in line.fields)) for line in page.lines)
        found.append(Sheet(tuple(page.heading), lines))
    return found
