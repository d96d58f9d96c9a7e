"""The files of a table: table.md, table.tex, table.csv and its figure."""

from collections.abc import Callable
from pathlib import Path

from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.tables import plan
from scoreline.tables.figure import figure
from scoreline.tables.grid import Grid
from scoreline.tables.ratios import markdown as markdown_of_ratios
from scoreline.tables.render import latex, long_csv, markdown


def write(made: plan.Plan, root: Path) -> str:
    """The table of a plan from what is finished of it; its Markdown."""
    return files(plan.grid(made, root), root)


def files(grid: Grid, root: Path) -> str:
    """All forms of a grid into a directory; its Markdown.

    Raises:
        InputError: if nothing can be written there.
    """
    text = markdown(grid)
    for name, content in (("table.md", text), ("table.tex", latex(grid)), ("table.csv", long_csv(grid))):
        _write_changed(root / name, content)
    if any(entry.score(grid.metric) for entry in grid.entries()):
        _write(root / "table.png", lambda path: figure(grid, path))
    return text


def ratios(made: plan.Plan, root: Path, base: str) -> str:
    """ratios.md: the rows of a plan over one of them; its text.

    Raises:
        InputError: if there is no such row.
    """
    text = markdown_of_ratios(made, root, base)
    _write_changed(root / "ratios.md", text)
    return text


def _write_changed(path: Path, text: str) -> None:
    """A file that says the same is not touched."""
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        _write(path, lambda temporary: temporary.write_bytes(content))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); report on a copy of {path.parent} in a folder of yours"
        ) from error
