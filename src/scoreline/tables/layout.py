"""A grid as lines of texts, marks and notes: what Markdown and LaTeX only dress."""

from dataclasses import dataclass, field

from scoreline.run_results import Result
from scoreline.tables import numbers
from scoreline.tables.grid import Entry, Grid, Part, best, difference
from scoreline.tables.protocol import code_versions

NOTHING = "-"
NOT_COMPARED = "n/a"

MEANING = {
    "second-hand": "quoted from another work than the paper itself",
    "unverified": "not yet found in a text that we read",
}


@dataclass(frozen=True)
class Text:
    """One field: `value` alone, or with its error; `aside` stands in brackets behind; `note` is a letter."""

    value: str = ""
    error: str = ""
    bold: bool = False
    mark: str = ""
    aside: str = ""
    note: str = ""

    def plain(self) -> str:
        """`4.17 +- 0.03 (NFE 9) [a]`."""
        shown = f"{self.value}{self.mark}" + (f" +- {self.error}" if self.error else "")
        return shown + (f" ({self.aside})" if self.aside else "") + (f" [{self.note}]" if self.note else "")


@dataclass(frozen=True)
class Line:
    """A row of a printed table."""

    name: str
    fields: list[Text]
    published: bool = False


@dataclass(frozen=True)
class Page:
    """A printed table: `about` are sentences below it, `notes` what its letters stand for."""

    heading: list[str]
    lines: list[Line]
    differs: list[str]
    about: list[str]
    notes: dict[str, str] = field(default_factory=dict)


def sentence(text: str) -> str:
    """With a full stop, and a capital unless it begins with a key, as in budget=small."""
    text = text if "=" in text.partition(" ")[0] else text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def pages(grid: Grid) -> list[Page]:
    """One for each part."""
    return [_page(grid, part) for part in grid.parts]


def _page(grid: Grid, part: Part) -> Page:
    columns, lines, notes = part.columns(grid), list[Line](), dict[str, str]()
    bold = {column: best(part, grid.metric, column) for column in columns}
    for row in part.rows(grid):
        found = [part.entries.get((row, column)) for column in columns]
        ours = [_ours(grid, entry, row in bold[column], notes) for entry, column in zip(found, columns, strict=True)]
        lines.append(Line(row, ours))
        if any(entry and entry.published for entry in found):
            texts = [_published(grid, entry, text, notes) for entry, text in zip(found, ours, strict=True)]
            lines.append(Line("published", texts, published=True))
    heading = [grid.metric, *(f"{grid.label} {column}" for column in columns)]
    return Page(heading, lines, part.differs, _about(grid, part), {letter: reason for reason, letter in notes.items()})


def _letter(reason: str, notes: dict[str, str]) -> str:
    """The letter of a reason; equal reasons share one."""
    k = len(notes)
    return notes.setdefault(reason, chr(97 + k % 26) * (1 + k // 26))


def _ours(grid: Grid, entry: Entry | None, bold: bool, notes: dict[str, str]) -> Text:
    score = entry.score(grid.metric) if entry else None
    if entry is None or score is None or entry.result is None:
        return Text(NOTHING, note=_letter(entry.reason, notes) if entry and entry.reason else "")
    value, error = numbers.with_error(score["value"], score["error"])
    nfe = numbers.count(entry.result["nfe"])
    aside = f"NFE {nfe}" if grid.label == "NFE" and nfe != entry.column else ""
    return Text(value, error, bold, aside=aside)


def _published(grid: Grid, entry: Entry | None, ours: Text, notes: dict[str, str]) -> Text:
    if entry is None or entry.published is None:
        return Text()
    text = numbers.as_published(entry.published.value)
    error = "" if entry.published.error is None else f"{entry.published.error:.10g}"
    mark, less = numbers.SIGNS[entry.published.status], difference(entry, grid.metric, grid.paper)
    if isinstance(less, float):
        return Text(text, error, mark=mark, aside=numbers.signed(less, ours.value))
    aside = NOT_COMPARED if less else ""
    return Text(text, error, mark=mark, aside=aside, note=_letter(f"no difference: {less}", notes) if less else "")


def _about(grid: Grid, part: Part) -> list[str]:
    results = part.results()
    if not results:
        return ["no run is finished"]
    found = [_images(results), _below(results), _levels(part, grid), _calls(part, grid), *_marks(grid, part)]
    found.append(_code(results))
    return [sentence for sentence in found if sentence]


def _images(results: list[Result]) -> str:
    first = results[0]
    seeds = f"{first['images']} images (seeds {first['seeds']})"
    if first.get("ranges", 1) > 1:
        seeds = f"{first['ranges']} x {first['images']} images (seeds {first['seeds']})"
    models = dict.fromkeys(f"{it['checkpoint']['name']} {it['checkpoint']['sha256'][:8]}" for it in results)
    return ", ".join([seeds, f"checkpoint{'s' * (len(models) > 1)} {', '.join(models)}", *_common(results)])


def _common(results: list[Result]) -> list[str]:
    """Guidance and threshold, unless there is none or rows differ in it."""
    found = [{it.get(key, "none") for it in results} for key in ("guidance", "threshold")]
    return [one for values in found if len(values) == 1 for one in values if one != "none"]


def _below(results: list[Result]) -> str:
    ranges = results[0].get("ranges", 1)
    error = f"of the mean over {ranges} seed ranges" if ranges > 1 else "over images"
    bold = "bold: the best of a column and all within one standard error of the difference from it"
    protocol = ", ".join(f"{key} {value}" for key, value in results[0]["protocol"].items())
    return "; ".join(filter(None, [f"+- is the standard error {error}", bold, protocol]))


def _code(results: list[Result]) -> str:
    versions = list(dict.fromkeys(version for result in results for version in code_versions(result)))
    return f"the rows were made by code versions {', '.join(versions)}" if len(versions) > 1 else ""


def _levels(part: Part, grid: Grid) -> str:
    """Where the rows begin and end, if not all alike."""
    ends = {row: dict.fromkeys(_ends(it) for it in _of_row(part, grid, row)) for row in part.rows(grid)}
    if len({end for found in ends.values() for end in found}) < 2:
        return ""
    return "noise levels: " + "; ".join(f"{row} {' and '.join(found)}" for row, found in ends.items() if found)


def _ends(result: Result) -> str:
    first, last = result.get("sigma_max"), result.get("sigma_end")
    return f"{first:.4g} to {last:.4g}" if isinstance(first, float) and isinstance(last, int | float) else "unknown"


def _of_row(part: Part, grid: Grid, row: str) -> list[Result]:
    found = [part.entries.get((row, column)) for column in grid.columns]
    return [entry.result for entry in found if entry is not None and entry.result is not None]


def _calls(part: Part, grid: Grid) -> str:
    """Evaluations where the columns do not tell them, and network calls where guidance makes them more."""
    sentences = []
    if grid.label != "NFE":
        nfe = {row: _span([it["nfe"] for it in _of_row(part, grid, row)]) for row in part.rows(grid)}
        sentences.append("NFE: " + "; ".join(f"{row} {found}" for row, found in nfe.items() if found))
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
    return "-".join(numbers.count(value) for value in sorted({min(values), max(values)})) if values else ""


def _marks(grid: Grid, part: Part) -> list[str]:
    shown = [entry.published for entry in part.entries.values() if entry.published is not None]
    if not shown:
        return []
    statuses = dict.fromkeys(it.status for it in shown)
    marks = [f"{numbers.SIGNS[status]} {MEANING[status]}" for status in MEANING if status in statuses]
    sources = "; ".join(dict.fromkeys(it.source for it in shown))
    return [f"published: {sources}; in brackets ours less the published one", *marks]
