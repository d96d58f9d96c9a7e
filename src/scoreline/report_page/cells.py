"""What a page says of each cell: its figure, the published one, and the runs behind it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoreline.report_page.cell_runs import CellRun, Runs
from scoreline.runs.comparison import leaves
from scoreline.tables.grid import Entry, Grid, difference, statistic_of
from scoreline.tables.latex import protocol_in_words
from scoreline.tables.protocol import code_versions
from scoreline.tables.render import Line, Page, Text, as_published, pages, sentence, with_error


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
class Report:
    """What a page is of: the directory, the grid, and the runs behind it."""

    root: Path
    grid: Grid
    runs: Runs

    def places(self) -> Iterator[tuple[str, Entry]]:
        """Return the key of each cell, `P-I-J`, with its entry."""
        for number, part in enumerate(self.grid.parts):
            for (row, column), entry in part.entries.items():
                yield self.key(number, row, column), entry

    def key(self, part: int, row: str, column: str) -> str:
        """Return the key of a cell: the numbers of its part, row and column."""
        return f"{part}-{self.grid.rows.index(row)}-{self.grid.columns.index(column)}"

    def common_config(self) -> dict[str, str]:
        """Return the keys of the config that have the same value in all runs."""
        first, *others = [config for config in map(_config, self.runs.all) if config] or [{}]
        return {name: text for name, text in first.items() if all(it.get(name) == text for it in others)}


def sections(report: Report) -> list[Section]:
    """Lay out the parts of the grid."""
    common, grid = report.common_config(), report.grid
    found = []
    for number, layout in enumerate(pages(grid)):
        part, rows = grid.parts[number], list[Row]()
        columns = part.columns(grid)
        for name, ours, published in _with_published(layout.lines):
            cells = []
            for column, text, quoted in zip(columns, ours, published, strict=True):
                cell = Cell(report.key(number, name, column), f"{name}, {grid.label} {column}", text, quoted)
                cells.append(_filled(report, cell, part.entries.get((name, column)), common))
            rows.append(Row(grid.rows.index(name), name, cells))
        found.append(Section(layout, rows))
    return found


def _with_published(lines: Sequence[Line]) -> list[tuple[str, list[Text], list[Text | None]]]:
    """Return the name and figures of each of our lines, with the published figures below it."""
    found: list[tuple[str, list[Text], list[Text | None]]] = []
    for line in lines:
        if line.published:
            found[-1] = (*found[-1][:2], [text if text.value else None for text in line.fields])
        else:
            found.append((line.name, line.fields, [None] * len(line.fields)))
    return found


def _filled(report: Report, cell: Cell, entry: Entry | None, common: Mapping[str, str]) -> Cell:
    """Add what is known of the runs of a cell."""
    if entry is None:
        return replace(cell, lines=[cell.title, "no finished run"])
    runs, shown = report.runs.of(entry), statistic_of(entry, report.grid.metric, report.grid.paper)
    lines = [cell.title, *_lines(report.grid, cell.text, entry)]
    cell = replace(cell, value=shown.value if shown else None, lines=lines)
    if not runs:
        return cell
    warnings = [text for run in runs for text in (run.result or {}).get("warnings", ())]
    return replace(
        cell,
        scores=_scores(entry),
        facts=_facts(report, entry, runs),
        overrides=runs[0].words,
        differs=[(name, text) for name, text in _config(runs[0]).items() if name not in common],
        warnings=list(dict.fromkeys(warnings)),
        has_runs=True,
    )


def _lines(grid: Grid, ours: Text, entry: Entry) -> Iterator[str]:
    """Return what is said of a cell on hovering."""
    if score := entry.score(grid.metric):
        yield f"{grid.metric} {ours.value} ± {ours.error}, n = {score['n']}"
        if ours.mean:
            yield f"the minimum of {ours.aside}; their mean {ours.mean.value} ± {ours.mean.error}"
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


def _facts(report: Report, entry: Entry, runs: Sequence[CellRun]) -> list[tuple[str, str]]:
    result = entry.result
    folders = [("run directory", relative(run.directory, report.root)) for run in runs]
    if result is None:
        return [("state", sentence(entry.reason or "")), *folders]
    seconds = sum(run.result.get("seconds", 0) for run in runs if run.result)
    protocol = protocol_in_words(report.grid.metric, result.get("ranges", 1), result["protocol"])
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
        "protocol": "; ".join(protocol),
        "time": f"{seconds:.3g} s" if seconds else "",
        "checkpoint": f"{result['checkpoint']['name']}, SHA-256 {result['checkpoint']['sha256']}",
        "code": ", ".join(code_versions(result)),
    }
    return [*((name, text) for name, text in facts.items() if text), *folders]


def _levels(result: Mapping[str, Any]) -> str:
    first, last = result.get("sigma_max"), result.get("sigma_end")
    return f"{first:.4g} to {last:.4g}" if first is not None and last is not None else ""


def relative(path: Path, root: Path) -> str:
    """Return a path as seen from the directory of the page, else its name: the page may be sent to anyone."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _config(run: CellRun) -> dict[str, str]:
    """Return the leaves of a config as text, without what follows from the rest."""
    return {name: it if isinstance(it, str) else json.dumps(it, default=str) for name, it in leaves(run.config or {})}
