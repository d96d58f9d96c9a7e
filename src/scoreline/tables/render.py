"""Print a grid as Markdown and CSV.

`pages` lays a grid out as lines of texts, marks and notes, to which Markdown and LaTeX add their markup.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from scoreline.generation.run_results import Result
from scoreline.tables.best import best, rule
from scoreline.tables.grid import Entry, Grid, Part, difference, statistic_of
from scoreline.tables.protocol import code_versions, digest, fingerprint
from scoreline.tables.statistic import Statistic, minimum_deviation

SIGNS = {"verified": "", "second-hand": "\u2020", "unverified": "\u2021"}
"""Marks of published figures: none, dagger, double dagger."""

NOTHING = "-"
NOT_COMPARED = "n/a"
OF_MEAN = "no minimum, as far as its source says: the difference is that of our mean"

MEANING = {
    "second-hand": "quoted from another work than the paper itself",
    "unverified": "not yet found in a text that we read",
}


@dataclass(frozen=True)
class Text:
    """A field of a printed table.

    Attributes:
        value: the figure, or a word.
        error: its standard error.
        bold: whether it is the best of its column, or equal to it.
        mark: a sign behind the value.
        nfe: the evaluations, where the heading has others.
        mean: the mean beside a minimum, with its error.
        aside: what else stands in brackets.
        note: the letter of a note.
    """

    value: str = ""
    error: str = ""
    bold: bool = False
    mark: str = ""
    nfe: str = ""
    mean: "Text | None" = None
    aside: str = ""
    note: str = ""

    def plain(self) -> str:
        """Return `4.17 +- 0.03 (NFE 9; mean 4.19 +- 0.02; 4.17, 4.18, 4.22) [a]`."""
        text = f"{self.value}{self.mark}" + (f" +- {self.error}" if self.error else "")
        asides = [f"NFE {self.nfe}" if self.nfe else "", f"mean {self.mean.plain()}" if self.mean else "", self.aside]
        aside = "; ".join(filter(None, asides))
        return text + (f" ({aside})" if aside else "") + (f" [{self.note}]" if self.note else "")


@dataclass(frozen=True)
class Line:
    """A row of a printed table."""

    name: str
    fields: list[Text]
    published: bool = False


@dataclass(frozen=True)
class Page:
    """A printed table: `about` are sentences below it, `notes` the reasons behind its letters."""

    heading: list[str]
    lines: list[Line]
    differs: list[str]
    about: list[str]
    notes: dict[str, str] = field(default_factory=dict)


def sentence(text: str) -> str:
    """Add a full stop, and a capital unless the text begins with a key, as in budget=small."""
    text = text if "=" in text.partition(" ")[0] else text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def pages(grid: Grid) -> list[Page]:
    """Lay a grid out, a page for each part."""
    return [_page(grid, part) for part in grid.parts]


def _page(grid: Grid, part: Part) -> Page:
    columns, lines, notes = part.columns(grid), list[Line](), dict[str, str]()
    bold = {column: best(part, grid.metric, column) for column in columns}
    for row in part.rows(grid):
        cells = [part.entries.get((row, column)) for column in columns]
        ours = [
            _measured(grid, entry, row in bold[column], notes) for entry, column in zip(cells, columns, strict=True)
        ]
        lines.append(Line(row, ours))
        if any(entry and entry.published for entry in cells):
            texts = [_quoted(grid, entry, text, notes) for entry, text in zip(cells, ours, strict=True)]
            lines.append(Line("published", texts, published=True))
    heading = [grid.metric, *(f"{grid.label} {column}" for column in columns)]
    return Page(heading, lines, part.differs, _about(grid, part), {letter: reason for reason, letter in notes.items()})


def letter(reason: str, notes: dict[str, str]) -> str:
    """Return the letter of a reason; equal reasons share one."""
    k = len(notes)
    return notes.setdefault(reason, chr(97 + k % 26) * (1 + k // 26))


def _measured(grid: Grid, entry: Entry | None, bold: bool, notes: dict[str, str]) -> Text:
    shown = statistic_of(entry, grid.metric, grid.paper) if entry else None
    if entry is None or shown is None or entry.result is None:
        return Text(NOTHING, note=letter(entry.reason, notes) if entry and entry.reason else "")
    value, error = with_error(shown.value, shown.error)
    nfe = _whole_or_tenth(entry.result["nfe"])
    nfe = nfe if grid.label == "NFE" and nfe != entry.column else ""
    return Text(value, error, bold, nfe=nfe, **_of_ranges(shown))


def _of_ranges(shown: Statistic) -> dict[str, Any]:
    """Return what stands beside a minimum: `mean 1.985 +- 0.010; 1.970, 1.981, 2.004`."""
    if shown.minimum_of == 1:
        return {}
    mean = Text(*with_error(shown.mean["value"], shown.mean["error"]))
    places = len(mean.value.partition(".")[2])
    return {"mean": mean, "aside": ", ".join(f"{value:.{places}f}" for value in shown.by_range)}


def _quoted(grid: Grid, entry: Entry | None, ours: Text, notes: dict[str, str]) -> Text:
    if entry is None or entry.published is None:
        return Text()
    text = as_published(entry.published.value)
    error = "" if entry.published.error is None else f"{entry.published.error:.10g}"
    mark, less = SIGNS[entry.published.status], difference(entry, grid.metric, grid.paper)
    if isinstance(less, float):
        note = letter(OF_MEAN, notes) if ours.mean and entry.published.minimum_of == 1 else ""
        return Text(text, error, mark=mark, aside=_signed(less, ours.value), note=note)
    aside = NOT_COMPARED if less else ""
    return Text(text, error, mark=mark, aside=aside, note=letter(f"no difference: {less}", notes) if less else "")


def _about(grid: Grid, part: Part) -> list[str]:
    results = part.results()
    if not results:
        return ["no run is finished"]
    sentences = [_images(results), _below(results), *circumstances(grid, part, "in brackets, before all ranges,")]
    marks = [f"{SIGNS[status]} {MEANING[status]}" for status in MEANING if status in statuses(part)]
    less = "; in brackets ours less the published one"
    return [it for it in [*sentences, sources(part) and sources(part) + less, *marks, code(results)] if it]


def circumstances(grid: Grid, part: Part, beside: str) -> list[str]:
    """Return what is said of minima, noise levels and evaluations; `beside` is the place of the means."""
    return [it for it in (_minima(grid, part, beside), _levels(part, grid), _calls(part, grid)) if it]


def _images(results: list[Result]) -> str:
    first = results[0]
    seeds = f"{first['images']} images (seeds {first['seeds']})"
    if first.get("ranges", 1) > 1:
        seeds = f"{first['ranges']} x {first['images']} images (seeds {first['seeds']})"
    models = dict.fromkeys(f"{it['checkpoint']['name']} {it['checkpoint']['sha256'][:8]}" for it in results)
    return ", ".join([seeds, f"checkpoint{'s' * (len(models) > 1)} {', '.join(models)}", *common(results)])


def common(results: list[Result]) -> list[str]:
    """Guidance and threshold, unless there is none or rows differ in it."""
    choices = [{it.get(key, "none") for it in results} for key in ("guidance", "threshold")]
    return [one for values in choices if len(values) == 1 for one in values if one != "none"]


def _below(results: list[Result]) -> str:
    ranges = results[0].get("ranges", 1)
    error = f"of the mean over {ranges} seed ranges" if ranges > 1 else "over images"
    bold = rule(ranges)
    protocol = ", ".join(f"{key} {value}" for key, value in results[0]["protocol"].items())
    return "; ".join(filter(None, [f"+- is the standard error {error}", bold, protocol]))


def _minima(grid: Grid, part: Part, beside: str) -> str:
    """Say how minima are printed, if a cell shows one."""
    shown = [statistic_of(entry, grid.metric, grid.paper) for entry in part.entries.values()]
    counts = sorted({it.minimum_of for it in shown if it and it.minimum_of > 1})
    if not counts:
        return ""
    names = " or ".join(map(str, counts))
    factors = " or ".join(f"{minimum_deviation(k):.2f}" for k in counts)
    return (
        f"a figure with a mean {beside} is the minimum of {names} seed ranges, as in the paper; its +- is "
        f"roughly {factors} times the standard deviation over them, as for normal values; the mean, with its standard "
        "error, decides what is bold"
    )


def code(results: list[Result]) -> str:
    """Name the versions of the code, if they are several."""
    versions = list(dict.fromkeys(version for result in results for version in code_versions(result)))
    return f"the rows were made by code versions {', '.join(versions)}" if len(versions) > 1 else ""


def _levels(part: Part, grid: Grid) -> str:
    """Return the first and last noise levels of rows, if they differ."""
    ends = {row: dict.fromkeys(_ends(it) for it in _of_row(part, grid, row)) for row in part.rows(grid)}
    if len({end for found in ends.values() for end in found}) < 2:
        return ""
    return "noise levels: " + "; ".join(f"{row} {' and '.join(found)}" for row, found in ends.items() if found)


def _ends(result: Result) -> str:
    first, last = result.get("sigma_max"), result.get("sigma_end")
    return f"{first:.4g} to {last:.4g}" if isinstance(first, float) and isinstance(last, int | float) else "unknown"


def _of_row(part: Part, grid: Grid, row: str) -> list[Result]:
    cells = [part.entries.get((row, column)) for column in grid.columns]
    return [entry.result for entry in cells if entry is not None and entry.result is not None]


def _calls(part: Part, grid: Grid) -> str:
    """Return the NFE of rows if the columns are something else, and network calls if guidance makes them more."""
    sentences = []
    if grid.label != "NFE":
        nfe = {row: _span([it["nfe"] for it in _of_row(part, grid, row)]) for row in part.rows(grid)}
        sentences.append("NFE: " + "; ".join(f"{row} {calls}" for row, calls in nfe.items() if calls))
    if any(_network_calls(it) != it["nfe"] for it in part.results()):
        cells = []
        for column in part.columns(grid):
            entries = [entry.result for place, entry in part.entries.items() if place[1] == column and entry.result]
            cells.append(f"{_span([_network_calls(it) for it in entries])} at {grid.label} {column}")
        sentences.append(f"network calls per image: {', '.join(cells)}")
    return "; ".join(sentences)


def _network_calls(result: Result) -> float:
    return float(result["network_calls"] if "network_calls" in result else result["nfe"])


def _span(values: list[float]) -> str:
    return "-".join(_whole_or_tenth(value) for value in sorted({min(values), max(values)})) if values else ""


def statuses(part: Part) -> list[str]:
    """Return the statuses of the published figures of a part."""
    return list(dict.fromkeys(entry.published.status for entry in part.entries.values() if entry.published))


def sources(part: Part) -> str:
    """Return the sources of the published figures of a part; empty without any."""
    found = dict.fromkeys(entry.published.source for entry in part.entries.values() if entry.published)
    return f"published: {'; '.join(found)}" if found else ""


def with_error(value: float, error: float) -> tuple[str, str]:
    """Print a value and its error with two significant digits of the error: 4.1732, 0.0412 as 4.173, 0.041."""
    if not math.isfinite(error) or error <= 0:
        return (f"{value:.4g}", f"{error:.2g}")
    places = max(0, 1 - math.floor(math.log10(float(f"{error:.1e}"))))
    return f"{value:.{places}f}", f"{error:.{places}f}"


def as_published(value: float) -> str:
    """Print at least two decimals, as papers do: 4.1 as 4.10."""
    text = f"{value:.10g}"
    return text if len(text.partition(".")[2]) >= 2 or "e" in text else f"{value:.2f}"


def _signed(value: float, like: str) -> str:
    """Print a difference with a sign, and with the decimals of another number's text."""
    return f"{value:+.{len(like.partition('.')[2])}f}"


def _whole_or_tenth(value: float) -> str:
    """Print a whole number without decimals, a mean over images with one."""
    return str(int(value)) if value == int(value) else f"{value:.1f}"


def markdown(grid: Grid) -> str:
    """Print title, source, and a table for each part with its notes."""
    head = [f"# {grid.title}" if grid.title else "", grid.watermark and f"**{grid.watermark}**"]
    head += [sentence(grid.paper.citation()) if grid.paper else "", grid.note]
    blocks = [block for block in head if block]
    for number, page in enumerate(pages(grid), 1):
        if page.differs:
            blocks.append(f"Table {number}, not to be compared with the first: {'; '.join(page.differs)}.")
        blocks += _markdown_blocks(page)
    return "\n\n".join(blocks) + "\n"


def markdown_page(title: str, page: Page) -> str:
    """Print a page of other rows than a grid's, under a title."""
    return "\n\n".join([f"# {title}", *_markdown_blocks(page)]) + "\n"


def _markdown_blocks(page: Page) -> list[str]:
    lines = [_markdown_row(page.heading), "|--" * len(page.heading) + "|", *map(_markdown_line, page.lines)]
    notes = [f"[{letter}] {reason}" for letter, reason in page.notes.items()]
    return ["\n".join(lines), " ".join(map(sentence, page.about)), *map(sentence, notes)]


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_line(line: Line) -> str:
    return _markdown_row([f"*{line.name}*" if line.published else line.name, *map(_markdown_field, line.fields)])


def _markdown_field(text: Text) -> str:
    if not text.bold:
        return text.plain()
    rest = replace(text, value="", mark="", error="").plain()
    figure = text.plain().removesuffix(rest)
    return f"**{figure}**{rest}"


FIELDS = (
    *("table", "part", "row", "column", "metric", "value", "error", "n", "ranges", "seeds", "nfe", "network_calls"),
    *("published", "published_error", "status", "source", "difference", "reason", "budget", "fingerprint"),
    *("minimum", "by_range", "published_minimum_of"),
)


def long_csv(grid: Grid) -> str:
    """Print a line for every metric of every cell, after a header of FIELDS and the watermark as a comment.

    The metric of the table comes first in each cell and carries the published figure. `reason` says why a value or a
    difference is missing.
    """
    out = io.StringIO()
    if grid.watermark:
        out.write(f"# {grid.watermark}\n")
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for number, part in enumerate(grid.parts, 1):
        for row in part.rows(grid):
            for column in part.columns(grid):
                entry = part.entries.get((row, column))
                if entry is not None:
                    writer.writerows({"part": number, **line} for line in _csv_lines(grid, entry))
    return out.getvalue()


def _csv_lines(grid: Grid, entry: Entry) -> Iterator[dict[str, object]]:
    common: dict[str, object] = {"table": grid.name, "row": entry.row, "column": entry.column, "budget": grid.budget}
    result = entry.result
    if result is not None:
        counts = {"ranges": result.get("ranges", 1), "seeds": result["seeds"], "nfe": result["nfe"]}
        calls = {"network_calls": result.get("network_calls", result["nfe"])}
        common |= {**counts, **calls, "fingerprint": digest(fingerprint(result))}
    yield {**common, "metric": grid.metric, **_csv_score(entry, grid.metric), **_csv_published(grid, entry)}
    for name in result["metrics"] if result else ():
        if name != grid.metric:
            yield {**common, "metric": name, **_csv_score(entry, name)}


def _csv_score(entry: Entry, metric: str) -> dict[str, object]:
    score = entry.score(metric)
    if score is None:
        return {}
    numbers = {key: score[key] for key in ("value", "error") if math.isfinite(score[key])}
    values = [value for value in entry.by_range(metric) if math.isfinite(value)]
    several = {"minimum": min(values), "by_range": " ".join(map(str, values))} if len(values) > 1 else {}
    return {**numbers, **several, "n": score["n"]}


def _csv_published(grid: Grid, entry: Entry) -> dict[str, object]:
    figure, less = entry.published, difference(entry, grid.metric, grid.paper)
    fields: dict[str, object] = {"reason": entry.reason or (less if isinstance(less, str) else "")}
    if figure is not None:
        fields |= {"published": figure.value, "status": figure.status, "source": figure.source}
        fields |= {} if figure.error is None else {"published_error": figure.error}
        fields |= {"published_minimum_of": figure.minimum_of} if figure.minimum_of > 1 else {}
    return fields | ({"difference": less} if isinstance(less, float) else {})
