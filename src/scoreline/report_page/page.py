"""A table or sweep as one HTML file: table, figure, pictures, and the runs behind each cell.

The file needs no other one and no network, and its Content-Security-Policy forbids any. Everything that comes from a
file is escaped.
"""

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from scoreline import __version__
from scoreline.config import script
from scoreline.generation import run_results
from scoreline.metrics.base import higher_is_better
from scoreline.report_page import picture_grid
from scoreline.report_page.cell_runs import DONE, CellRun, Runs
from scoreline.report_page.cells import Report, relative, sections
from scoreline.report_page.picture_grid import Pictures
from scoreline.storage.figures import in_style, save
from scoreline.tables.figure import drawn_parts, figure, in_words
from scoreline.tables.fine_run import FineRun
from scoreline.tables.grid import Grid
from scoreline.tables.protocol import code_versions
from scoreline.tables.render import sentence
from scoreline.tables.table_files import write_text

NAME = "report.html"

IMAGES = 8
"""Images of a cell."""

COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)"}
"""Colours of the figure that follow the page: light or dark."""

WIDE_FONT = "DejaVu Sans"
"""For the measures of the figure: hardly any font is wider, so that names have room in those of a browser."""

FINE = "fine"
"""The key of the picture of the fine run."""


@dataclass(frozen=True)
class Problem:
    """A run without a result: its directory, its state, the reason, and the last lines of its log."""

    place: str
    state: str
    reason: str
    words: str
    log: Sequence[str]


@dataclass(frozen=True)
class Head:
    """The head of a page: its title, the runs' state, checkpoints, end and code versions, and their command."""

    title: str
    state: str
    total: int
    checkpoints: Sequence[str]
    date: str
    versions: Sequence[str]
    command: str
    sentences: Sequence[str] = field(default_factory=tuple)


def write(root: Path, grid: Grid, runs: Runs, fine: FineRun | None = None, images: int = IMAGES) -> Path:
    """Write report.html into a directory, and return its path.

    Args:
        root: the directory of the table or sweep.
        grid: the table.
        runs: the runs behind it.
        fine: a run of many evaluations whose images are shown too.
        images: pictures of each cell.

    Raises:
        InputError: if nothing can be written there.
    """
    report = Report(root, grid, runs)
    shown = {key: runs.of(entry) for key, entry in report.places()}
    if fine is not None:
        shown[FINE] = [CellRun(fine.directory, (), DONE, fine.result)]
    drawn = picture_grid.draw({key: found for key, found in shown.items() if found}, images, len(grid.columns))
    write_text(root / NAME, text(report, drawn, fine))
    return root / NAME


def text(report: Report, drawn: Pictures, fine: FineRun | None = None) -> str:
    """Return the page; see `write`."""
    grid, runs = report.grid, report.runs
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("scoreline.report_page", "")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    code, style = (loader.get_source(page, f"page.{kind}")[0] for kind in ("js", "css"))
    return page.get_template("page.html").render(
        head=_head(report),
        version=__version__,
        sentence=sentence,
        grid=grid,
        sections=sections(report),
        svg=_svg(grid),
        drawn_parts=drawn_parts(grid),
        pictures=drawn,
        fine=fine and (FINE, fine.title()),
        problems=[_problem(report.root, run) for run in runs.all if run.state != DONE],
        common=report.common_config(),
        metric=in_words(grid.metric),
        higher=higher_is_better(grid.metric),
        script=code,
        style=style,
        digest=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
    )


def _head(report: Report) -> Head:
    grid, runs = report.grid, report.runs
    results = [run.result for run in runs.all if run.result is not None]
    states = Counter(run.state.word for run in runs.all)
    state = [f"{states.pop('done', 0)} of {len(runs.all)} runs done"]
    state += [f"{count} {name}" for name, count in sorted(states.items())]
    models = dict.fromkeys(f"{it['checkpoint']['name']} {it['checkpoint']['sha256'][:8]}" for it in results)
    versions = dict.fromkeys(version for result in results for version in code_versions(result))
    sentences = [sentence(grid.paper.citation()) if grid.paper else "", grid.note]
    title = grid.title or f"Sweep {report.root.resolve().name}"
    return Head(
        *(title, ", ".join(state), len(runs.all), list(models), _date(runs), list(versions)),
        script.command("sample", *runs.command) if runs.command else "",
        [*filter(None, sentences)],
    )


def _date(runs: Runs) -> str:
    """Return the time of the last result, so that a report of the same runs is the same file."""
    files = [run.directory / run_results.NAME for run in runs.all if run.result is not None]
    times = [path.stat().st_mtime for path in files if path.is_file()]
    return f"{datetime.fromtimestamp(max(times)).astimezone():%Y-%m-%d %H:%M %Z}" if times else ""


def _problem(root: Path, run: CellRun) -> Problem:
    reason = sentence(run.state.detail) if run.state.detail else ""
    return Problem(relative(run.directory, root), run.state.word, reason, " ".join(run.words), run.log())


def _svg(grid: Grid) -> str:
    """Draw the figure as SVG that takes the colour of the page's text; empty without a measured figure."""
    if not any(entry.score(grid.metric) for entry in grid.entries()):
        return ""
    from matplotlib import rc_context

    file = io.BytesIO()
    with in_style(), rc_context({"font.family": WIDE_FONT, "savefig.transparent": True}):
        save(figure(grid), file, "svg")
    drawing = file.getvalue().decode()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    for colour, name in COLOURS.items():
        drawing = drawing.replace(colour, name)
    return drawing
