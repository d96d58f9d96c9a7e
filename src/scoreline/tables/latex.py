r"""Print a grid as LaTeX, with booktabs and columns of siunitx.

A figure is printed as 0.182(16), the error in units of the last digits, which both versions of siunitx align at the
point of the decimals, bold or not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from scoreline.generation.run_results import Result
from scoreline.metrics.base import higher_is_better
from scoreline.tables.best import rule
from scoreline.tables.figure import in_words
from scoreline.tables.grid import Grid, Part, statistic_of
from scoreline.tables.protocol import ranges_of
from scoreline.tables.render import (
    MEANING,
    NOTHING,
    SIGNS,
    Line,
    Page,
    Text,
    circumstances,
    code,
    common,
    letter,
    pages,
    sentence,
    sources,
    statuses,
)

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2013": "--",
    "\u2020": r"\textsuperscript{$\dagger$}",
    "\u2021": r"\textsuperscript{$\ddagger$}",
}

NUMBER = re.compile(r"-?\d+(\.\d+)?")

MANY = 3
"""Checkpoints; more of them are named below the table."""

LETTERS, BETWEEN = 86, 2
"""Of a line of 5.5 inches in small type, and of the space between two columns."""

ONLY = {
    "neighbours": {"precision", "recall", "density", "coverage"},
    "projections": {"sliced_wasserstein"},
    "splits": {"inception_score"},
}
"""Parts of a protocol that concern no other metrics."""

WORDS = {
    "extractor": "features: {}",
    "reference": "reference: {}",
    "reference_count": "{} reference images",
    "resize": "resize: {}",
    "neighbours": "{} nearest neighbours",
    "projections": "projections: {}",
    "jackknife_groups": "errors by a jackknife over {} groups of images",
}


def latex(grid: Grid) -> str:
    """Print a table environment for each part, with its notes below it."""
    found = enumerate(zip(grid.parts, pages(grid), strict=True), 1)
    return "\n".join(_of_part(grid, part, page, number) for number, (part, page) in found)


def latex_page(name: str, title: str, page: Page) -> str:
    """Print a page of other rows than a grid's as a table environment."""
    heading = [" & ".join(map(_braced, page.heading)) + r" \\"]
    return _environment(f"tab:{_label(name)}", [title], heading, page.lines, [*page.about, *_reasons(page.notes)])


def _of_part(grid: Grid, part: Part, page: Page, number: int) -> str:
    columns, label = part.columns(grid), f"tab:{_label(grid.name)}" + (f"-{number}" if number > 1 else "")
    arrow = "$\\uparrow$" if higher_is_better(grid.metric) else "$\\downarrow$"
    names = columns if len(columns) > 1 else [f"{grid.label} {column}" for column in columns]
    heading = [" & ".join([f"{_escaped(in_words(grid.metric))} {arrow}", *map(_braced, names)]) + r" \\"]
    if len(columns) > 1:
        over = rf" & \multicolumn{{{len(columns)}}}{{c}}{{{_escaped(grid.label)}}} \\"
        heading = [over, rf"\cmidrule(lr){{2-{len(columns) + 1}}}", *heading]
    caption = [grid.title, _measured(grid, part), grid.paper.citation() if grid.paper else "", grid.watermark]
    caption += [f"Not to be compared with the first table: {'; '.join(page.differs)}"] if page.differs else []
    notes = {reason: letter for letter, reason in page.notes.items()}
    lines = [shown for line in page.lines for shown in _with_mean(line, notes)]
    about = [*_protocol(grid, part), *_reasons({letter: reason for reason, letter in notes.items()})]
    return _environment(label, caption, heading, lines, about)


def _label(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _environment(
    label: str, caption: Sequence[str], heading: Sequence[str], lines: Sequence[Line], below: Sequence[str]
) -> str:
    columns = [[line.fields[k] for line in lines] for k in range(len(lines[0].fields))] if lines else []
    printed = [
        r"% \usepackage{booktabs, etoolbox, siunitx}",
        r"\begin{table}",
        rf"\centering{_size(lines, columns)}\setlength{{\tabcolsep}}{{4pt}}",
        rf"\caption{{{_sentences(caption)}}}",
        rf"\label{{{label}}}",
        r"\smallskip",
        r"\robustify\bfseries",
        r"\sisetup{detect-weight=true, mode=text, group-separator={}, table-align-text-post=false}",
        rf"\begin{{tabular}}{{l{''.join(map(_column, columns))}}}",
        r"\toprule",
        *heading,
        r"\midrule",
        *_rows(lines),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip",
        r"\begin{minipage}{\linewidth}\footnotesize",
        _sentences(below),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(printed) + "\n"


def _size(lines: Sequence[Line], columns: Sequence[Sequence[Text]]) -> str:
    """Return the size of type in which a table fits a text of 5.5 inches."""
    name = max((len(line.name) for line in lines), default=0)
    widths = [max(len(_number(field) or field.value) for field in fields) for fields in columns]
    return r"\small" if name + sum(widths) + BETWEEN * len(widths) <= LETTERS else r"\footnotesize"


def _column(fields: Sequence[Text]) -> str:
    """Return the type of a column: S with room for its longest parts, or l if it has words."""
    numbers = [_number(field) for field in fields if field.value not in ("", NOTHING)]
    if not numbers or not all(numbers):
        return "l"
    parts = [re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?(?:\((\d+)\))?", number) for number in numbers]
    groups = [[it[k] or "" for it in parts if it] for k in (1, 2, 3, 4)]
    sign, (whole, decimals, error) = max(groups[0]), (max(map(len, group)) for group in groups[1:])
    return f" S[table-format={sign}{whole}.{decimals}{f'({error})' if error else ''}]"


def _number(field: Text) -> str:
    """Return a figure as siunitx reads it: 0.182(16); empty if the field is no plain number."""
    if not NUMBER.fullmatch(field.value):
        return ""
    if not NUMBER.fullmatch(field.error) or not float(field.error):
        return field.value
    places = max(len(text.partition(".")[2]) for text in (field.value, field.error))
    error = f"{float(field.error):.{places}f}".replace(".", "").lstrip("0")
    return f"{float(field.value):.{places}f}({error})" if error else field.value


def _rows(lines: Sequence[Line]) -> Iterator[str]:
    """Print rows, with a space before each if a row has others below it."""
    several = any(line.published for line in lines)
    for number, line in enumerate(lines):
        yield (r"\addlinespace[2pt]" if several and number and not line.published else "") + _row(line)


def _row(line: Line) -> str:
    name = rf"\quad\textit{{{_escaped(line.name)}}}" if line.published else _escaped(line.name)
    return " & ".join([name, *map(_field, line.fields)]) + r" \\"


def _field(text: Text) -> str:
    number, after = _number(text), _escaped(text.mark) + _mark(text.note)
    if not number:
        word = "--" if text.value == NOTHING else _escaped(text.value)
        after = rf"\rlap{{{after}}}" if after else ""
        return f"{{{word}{after}}}" if word else ""
    return (r"\bfseries " if text.bold else "") + number + (rf"{{\rlap{{{after}}}}}" if after else "")


def _with_mean(line: Line, notes: dict[str, str]) -> list[Line]:
    """Return a line whose fields say in notes how many evaluations they take, and one of the means beside minima."""
    fields = [_with_note(text, f"{text.nfe} evaluations", notes) if text.nfe else text for text in line.fields]
    means = [text.mean or Text() for text in line.fields]
    below = [Line("mean", means, published=True)] if any(text.value for text in means) else []
    return [Line(line.name, fields, line.published), *below]


def _with_note(text: Text, reason: str, notes: dict[str, str]) -> Text:
    return replace(text, note=letter(reason, notes))


def _measured(grid: Grid, part: Part) -> str:
    """Say of a table what its figures are: metric, images, checkpoint, reference and features."""
    results = part.results()
    if not results:
        return ""
    first, better = results[0], "higher" if higher_is_better(grid.metric) else "lower"
    protocol, models = first["protocol"], list(dict.fromkeys(it["checkpoint"]["name"] for it in results))
    models = [model.removesuffix(".safetensors") for model in models]
    of = ", ".join(models) if len(models) <= MANY else f"{len(models)} checkpoints"
    reference = f"against {_undigested(protocol['reference'])}" if "reference" in protocol else ""
    features = f"in features of {_undigested(protocol['extractor'])}" if "extractor" in protocol else ""
    words = [_images(grid, part, first), f"of {of}", reference, features]
    by = f" by {grid.label}" if len(part.columns(grid)) > 1 else ""
    return f"{in_words(grid.metric)} ({better} is better){by}: {' '.join(filter(None, words))}"


def _images(grid: Grid, part: Part, result: Result) -> str:
    ranges, images = result.get("ranges", 1), f"{result['images']:,} images"
    shown = [statistic_of(entry, grid.metric, grid.paper) for entry in part.entries.values()]
    name = "minimum" if any(it and it.minimum_of > 1 for it in shown) else "mean"
    return f"{name} over {ranges} seed ranges of {images} each" if ranges > 1 else images


def _undigested(name: object) -> str:
    return str(name).partition(":")[0]


def _protocol(grid: Grid, part: Part) -> list[str]:
    """Return the sentences below a table."""
    results = part.results()
    if not results:
        return ["no run is finished"]
    ranges, seeds = results[0].get("ranges", 1), ranges_of(results[0])
    models = dict.fromkeys(f"{it['checkpoint']['name']} ({it['checkpoint']['sha256'][:8]})" for it in results)
    of_models = f"checkpoint{'s' * (len(models) > 1)} {', '.join(models)}"
    of = f"the mean over {ranges} seed ranges" if ranges > 1 else "the figure over images"
    marks = [f"{SIGNS[status]} {MEANING[status]}" for status in MEANING if status in statuses(part)]
    return [
        grid.note,
        f"in parentheses the standard error of {of}, in units of the last digits",
        rule(ranges),
        ", ".join([f"seeds {_listed(seeds)}", of_models, *common(results)]),
        "; ".join(protocol_in_words(grid.metric, ranges, results[0]["protocol"])),
        *circumstances(grid, part, "below"),
        *(sources(part), *marks, code(results)),
    ]


def _listed(seeds: Sequence[str]) -> str:
    """Return `0-999, 1000-1999 and 2000-2999` with dashes of ranges."""
    *first, last = [re.sub(r"(\d)-(\d)", "\\1\u2013\\2", one) for one in seeds]
    return f"{', '.join(first)} and {last}" if first else last


def protocol_in_words(metric: str, ranges: int, protocol: Mapping[str, object]) -> list[str]:
    """Return the parts of a protocol that concern a metric, as words."""
    name = metric.rpartition("/")[2]
    kept = {key: value for key, value in protocol.items() if name in ONLY.get(key, {name})}
    if ranges > 1:
        kept.pop("jackknife_groups", None)
    words = {**WORDS, "resize": "not resized"} if kept.get("resize") == "none" else WORDS
    return [words.get(key, key.replace("_", " ") + ": {}").format(value) for key, value in kept.items()]


def _reasons(notes: Mapping[str, str]) -> list[str]:
    return [f"[{letter}] {reason}" for letter, reason in notes.items()]


def _braced(text: str) -> str:
    return f"{{{_escaped(text)}}}"


def _escaped(text: str) -> str:
    """Escape the characters that LaTeX reads as commands."""
    escaped = "".join(SPECIAL.get(letter, letter) for letter in text).replace("+-", r"$\pm$")
    return re.sub(r"(?<=\d) x (?=\d)", r" $\\times$ ", escaped)


def _sentences(parts: Sequence[str]) -> str:
    """Join sentences; that of a note begins with its letter."""
    found = (re.fullmatch(r"(?:\[([a-z]+)\] )?(.*)", part, re.DOTALL) for part in parts if part)
    return " ".join(_mark(it[1]) + _escaped(it[2] if it[2].endswith(".") else sentence(it[2])) for it in found if it)


def _mark(letter: str | None) -> str:
    return rf"\textsuperscript{{{letter}}}" if letter else ""
