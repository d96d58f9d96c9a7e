"""A grid as LaTeX; needs the package booktabs."""

from scoreline.tables.grid import Grid
from scoreline.tables.layout import Line, Page, Text, pages, sentence

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2020": r"\textsuperscript{$\dagger$}",
    "\u2021": r"\textsuperscript{$\ddagger$}",
}


def latex(grid: Grid) -> str:
    """One table environment for each part, its notes below it."""
    return "\n".join(_environment(grid, page, number) for number, page in enumerate(pages(grid), 1))


def escaped(text: str) -> str:
    """Text with what LaTeX reads as commands written out."""
    return "".join(SPECIAL.get(letter, letter) for letter in text).replace("+-", r"$\pm$")


def _environment(grid: Grid, page: Page, number: int) -> str:
    caption = [grid.title, grid.paper.citation() if grid.paper else "", grid.watermark, grid.note]
    caption += [f"Not to be compared with the first table: {'; '.join(page.differs)}"] if page.differs else []
    below = [*page.about, *(f"[{letter}] {reason}" for letter, reason in page.notes.items())]
    label = (
        "tab:"
        + "".join(letter if letter.isalnum() else "-" for letter in grid.name)
        + ("" if number == 1 else f"-{number}")
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_sentences(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(page.heading) - 1)}}}",
        r"\toprule",
        " & ".join(map(escaped, page.heading)) + r" \\",
        r"\midrule",
        *map(_line, page.lines),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        rf"\footnotesize {_sentences(below)}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _sentences(parts: list[str]) -> str:
    return " ".join(escaped(sentence(part)) for part in parts if part)


def _line(line: Line) -> str:
    name = rf"\quad\textit{{{escaped(line.name)}}}" if line.published else escaped(line.name)
    return " & ".join([name, *map(_field, line.fields)]) + r" \\"


def _field(text: Text) -> str:
    value = "--" if text.value == "-" else text.value
    shown = escaped(value + text.mark)
    if text.error:
        shown += rf" $\pm$ {text.error}"
    shown = rf"\textbf{{{shown}}}" if text.bold else shown
    shown += f" ({_minus(escaped(text.aside))})" if text.aside else ""
    return shown + (rf"\textsuperscript{{{text.note}}}" if text.note else "")


def _minus(text: str) -> str:
    return f"${text}$" if text[:1] in ("+", "-") else text
