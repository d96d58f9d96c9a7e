"""A table or sweep as one HTML file: table, figure, pictures, and the runs behind each cell.

The file needs no other one and no network, and its Content-Security-Policy forbids any. Everything that comes from a
file is escaped.
"""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from scoreline import __version__
from scoreline.config.run_names import NEVER
from scoreline.generation import run_results
from scoreline.metrics.base import higher_is_better
from scoreline.tables import page_pictures
from scoreline.tables.figure import drawn_parts, figure
from scoreline.tables.fine_run import FineRun
from scoreline.tables.grid import Entry, Grid, difference
from scoreline.tables.page_pictures import Picture, Pictures
from scoreline.tables.page_runs import FINISHED, CellRun, Runs
from scoreline.tables.protocol import code_versions
from scoreline.tables.render import Line, Page, Text, as_published, pages, sentence, with_error
from scoreline.tables.table_files import write_text

NAME = "report.html"

IMAGES = 8
"""Images of a cell."""

COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)"}
"""Colours of the figure that follow the page: light or dark."""

FINE = "fine"
"""The key of the picture of the fine run."""


@dataclass(frozen=True)
class Cell:
    """A cell of the page.

    Attributes:
        key: `P-I-J`, the numbers of its part, row and column.
        title: `ddim / karras, NFE 5`.
        text: its figure, as in the other renderings.
        published: the published figure; None if there is none.
        value: by which its column is sorted; None without a figure.
        lines: what appears on hovering.
        scores: name, value, error and images of every metric.
        facts: name and text of what is known of its runs.
        overrides: of its first run.
        differs: keys of its config in which the cells differ, with their values.
        warnings: notes of its runs.
        has_runs: whether there is anything to show of it.
    """

    key: str
    title: str
    text: Text
    published: Text | None = None
    value: float | None = None
    lines: Sequence[str] = ()
    scores: Sequence[tuple[str, str, str, int]] = ()
    facts: Sequence[tuple[str, str]] = ()
    overrides: Sequence[str] = ()
    differs: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    has_runs: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the page, and its number in the grid."""

    number: int
    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Section:
    """A part of the grid: its layout as in the other renderings, and its rows."""

    layout: Page
    rows: Sequence[Row]


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
    shown = {_key(*place): runs.of(entry) for place, entry in _places(grid)}
    if fine is not None:
        shown[FINE] = [CellRun(fine.directory, (), FINISHED, fine.result)]
    drawn = page_pictures.draw({key: found for key, found in shown.items() if found}, images)
    write_text(root / NAME, text(root, grid, runs, drawn, fine))
    return root / NAME


def text(root: Path, grid: Grid, runs: Runs, drawn: Pictures, fine: FineRun | None = None) -> str:
    """Return the page; see `write`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("scoreline.tables", "")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script, style = (loader.get_source(page, f"page.{kind}")[0] for kind in ("js", "css"))
    return page.get_template("page.html").render(
        head=_head(root, grid, runs),
        version=__version__,
        sentence=sentence,
        grid=grid,
        sections=_sections(root, grid, runs),
        svg=Markup(_svg(grid)),
        drawn_parts=drawn_parts(grid),
        pictures=drawn,
        fine=fine and (FINE, fine.title()),
        problems=[_problem(root, run) for run in runs.all if run.outcome.state != "finished"],
        common=_common_config([config for config in map(_config, runs.all) if config]),
        higher=higher_is_better(grid.metric),
        script=Markup(script),
        style=Markup(style),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _key(part: int, row: int, column: int) -> str:
    return f"{part}-{row}-{column}"


def _places(grid: Grid) -> Iterator[tuple[tuple[int, int, int], Entry]]:
    for number, part in enumerate(grid.parts):
        for (row, column), entry in part.entries.items():
            yield (number, grid.rows.index(row), grid.columns.index(column)), entry


def _head(root: Path, grid: Grid, runs: Runs) -> Head:
    results = [run.result for run in runs.all if run.result is not None]
    states = Counter(run.outcome.state for run in runs.all)
    state = [f"{states.pop('finished', 0)} of {len(runs.all)} runs finished"]
    state += [f"{count} {name}" for name, count in states.items()]
    models = dict.fromkeys(f"{it['checkpoint']['name']} {it['checkpoint']['sha256'][:8]}" for it in results)
    versions = dict.fromkeys(version for result in results for version in code_versions(result))
    sentences = [sentence(grid.paper.citation()) if grid.paper else "", grid.note]
    title = grid.title or f"Sweep {root.resolve().name}"
    return Head(
        *(title, ", ".join(state), len(runs.all), list(models), _date(runs), list(versions), runs.command),
        [*filter(None, sentences)],
    )


def _date(runs: Runs) -> str:
    """Return the time of the last result, so that a report of the same runs is the same file."""
    files = [run.directory / run_results.NAME for run in runs.all if run.result is not None]
    times = [path.stat().st_mtime for path in files if path.is_file()]
    return f"{datetime.fromtimestamp(max(times)).astimezone():%Y-%m-%d %H:%M %Z}" if times else ""


def _sections(root: Path, grid: Grid, runs: Runs) -> list[Section]:
    common = set(dict(_common_config([config for config in map(_config, runs.all) if config])))
    sections = []
    for number, layout in enumerate(pages(grid)):
        part, rows, lines = grid.parts[number], list[Row](), _with_published(layout.lines)
        columns = part.columns(grid)
        for name, ours, quoted in lines:
            places = [_key(number, grid.rows.index(name), grid.columns.index(column)) for column in columns]
            entries = [part.entries.get((name, column)) for column in columns]
            titles = [f"{name}, {grid.label} {column}" for column in columns]
            fields = zip(places, titles, ours.fields, quoted, entries, strict=True)
            cells = [_cell(root, grid, layout, runs, common, *one) for one in fields]
            rows.append(Row(grid.rows.index(name), name, cells))
        sections.append(Section(layout, rows))
    return sections


def _with_published(lines: Sequence[Line]) -> list[tuple[str, Line, list[Text | None]]]:
    """Return the lines of our figures, each with the published ones below it."""
    found: list[tuple[str, Line, list[Text | None]]] = []
    for line in lines:
        if line.published:
            found[-1] = (*found[-1][:2], [text if text.value else None for text in line.fields])
        else:
            found.append((line.name, line, [None] * len(line.fields)))
    return found


def _cell(
    root: Path,
    grid: Grid,
    layout: Page,
    runs: Runs,
    common: set[str],
    key: str,
    title: str,
    ours: Text,
    quoted: Text | None,
    entry: Entry | None,
) -> Cell:
    score, found = entry.score(grid.metric) if entry else None, runs.of(entry)
    value, lines = score["value"] if score else None, [title, *_lines(grid, layout, ours, entry)]
    if entry is None or not found:
        return Cell(key, title, ours, quoted, value, lines)
    config = _config(found[0])
    return Cell(
        *(key, title, ours, quoted, value, lines, _scores(entry), _facts(root, entry, found)),
        overrides=found[0].words,
        differs=[(name, text) for name, text in config.items() if name not in common],
        warnings=list(dict.fromkeys(it for run in found for it in (run.result or {}).get("warnings", ()))),
        has_runs=True,
    )


def _lines(grid: Grid, layout: Page, ours: Text, entry: Entry | None) -> Iterator[str]:
    """Return what is said of a cell on hovering."""
    if entry is None:
        yield "no finished run"
        return
    if score := entry.score(grid.metric):
        yield f"{grid.metric} {ours.value} ± {ours.error}, n = {score['n']}"
        result = entry.result or {}
        calls = result.get("network_calls", result["nfe"])
        yield f"NFE {result['nfe']:g}" + ("" if calls == result["nfe"] else f", {calls:g} network calls")
    elif entry.reason:
        yield sentence(entry.reason)
    if entry.published:
        error = "" if entry.published.error is None else f" ± {entry.published.error:.10g}"
        yield f"published {as_published(entry.published.value)}{error}, {entry.published.status}"
        yield entry.published.source
        less = difference(entry, grid.metric, grid.paper)
        if less:
            yield f"ours less the published one: {less:+.2g}" if isinstance(less, float) else f"not compared: {less}"


def _scores(entry: Entry) -> list[tuple[str, str, str, int]]:
    metrics = (entry.result or {}).get("metrics", {})
    return [(name, *with_error(it["value"], it["error"]), it["n"]) for name, it in metrics.items()]


def _facts(root: Path, entry: Entry, runs: Sequence[CellRun]) -> list[tuple[str, str]]:
    result = entry.result
    folders = [("run directory", _relative(run.directory, root)) for run in runs]
    if result is None:
        return [("state", sentence(entry.reason or "")), *folders]
    seconds = sum(run.result.get("seconds", 0) for run in runs if run.result)
    protocol = [f"{name.replace('_', ' ')} {text}" for name, text in result["protocol"].items()]
    chosen = [f"{name} {result[name]}" for name in ("guidance", "threshold", "final", "labels") if name in result]
    facts = {
        "solver": result["solver"],
        "schedule": result["schedule"],
        "NFE": f"{result['nfe']:g}",
        "network calls": f"{result.get('network_calls', result['nfe']):g} an image",
        "images": f"{result['images']:,}" + (f" in each of {result['ranges']} ranges" if "ranges" in result else ""),
        "seeds": result["seeds"],
        "noise levels": _levels(result),
        "sampling": ", ".join(chosen),
        "metrics": ", ".join(protocol),
        "time": f"{seconds:.3g} s" if seconds else "",
        "checkpoint": f"{result['checkpoint']['name']}, SHA-256 {result['checkpoint']['sha256']}",
        "code": ", ".join(code_versions(result)),
    }
    return [*((name, text) for name, text in facts.items() if text), *folders]


def _levels(result: Mapping[str, Any]) -> str:
    first, last = result.get("sigma_max"), result.get("sigma_end")
    return f"{first:.4g} to {last:.4g}" if first is not None and last is not None else ""


def _problem(root: Path, run: CellRun) -> Problem:
    end = run.outcome
    return Problem(_relative(run.directory, root), end.state, sentence(end.sentence), " ".join(run.words), run.log())


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _config(run: CellRun) -> dict[str, str]:
    """Return the leaves of a config as text, without what follows from the rest."""
    return {name: text for name, text in _leaves(run.config or {}) if name.partition(".")[0] not in NEVER}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _common_config(configs: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return the keys of equal values in all configs."""
    first = configs[0] if configs else {}
    return [(name, text) for name, text in first.items() if all(it.get(name) == text for it in configs)]


def _svg(grid: Grid) -> str:
    """Draw the figure as SVG that takes the colour of the page's text; empty without a measured figure."""
    if not any(entry.score(grid.metric) for entry in grid.entries()):
        return ""
    file = io.BytesIO()
    figure(grid, file, "svg")
    drawing = file.getvalue().decode()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    for colour, name in COLOURS.items():
        drawing = drawing.replace(colour, name)
    return drawing
