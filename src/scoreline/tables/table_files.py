"""The files of a table: table.md, table.tex, table.csv, its figure as PDF, SVG and PNG, and ratios.md."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.storage.figures import UNDATED, in_style, save
from scoreline.storage.files import write_atomically
from scoreline.tables.figure import figure
from scoreline.tables.grid import Grid
from scoreline.tables.latex import latex
from scoreline.tables.render import long_csv, markdown


def write(grid: Grid, root: Path) -> str:
    """Write all forms of a grid into a directory, and return its Markdown.

    Raises:
        InputError: if nothing can be written there.
    """
    text = markdown(grid)
    for name, content in (("table.md", text), ("table.tex", latex(grid)), ("table.csv", long_csv(grid))):
        write_text(root / name, content)
    if any(entry.score(grid.metric) for entry in grid.entries()):
        write_figure(root / "table", lambda: figure(grid))
    return text


def write_figure(stem: Path, draw: Callable[[], Any]) -> None:
    """Write a figure as PDF, SVG and PNG.

    Args:
        stem: the path without its ending.
        draw: draws it, in the style of the package.

    Raises:
        InputError: if nothing can be written there.
    """
    with in_style():
        chart = draw()
        chart.draw_without_rendering()
        chart.set_layout_engine("none")  # one layout for all formats
        for form in UNDATED:
            write_file(stem.with_name(f"{stem.name}.{form}"), partial(save, chart, form=form))


def write_text(path: Path, text: str) -> None:
    """Write a file, unless it holds this text already.

    Raises:
        InputError: if it cannot be written.
    """
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, lambda temporary: temporary.write_bytes(content))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by a function of its temporary path.

    Raises:
        InputError: if it cannot be written.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); report on a copy of {path.parent} in a folder of yours"
        ) from error
