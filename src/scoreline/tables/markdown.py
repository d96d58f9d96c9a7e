"""A grid as Markdown."""

from dataclasses import replace

from scoreline.tables.grid import Grid
from scoreline.tables.layout import Line, Page, Text, pages, sentence


def markdown(grid: Grid) -> str:
    """Title, where the figures come from, one table for each part with its notes."""
    head = [f"# {grid.title}" if grid.title else "", grid.watermark and f"**{grid.watermark}**"]
    head += [sentence(grid.paper.citation()) if grid.paper else "", grid.note]
    blocks = [block for block in head if block]
    for number, page in enumerate(pages(grid), 1):
        if page.differs:
            blocks.append(f"Table {number}, not to be compared with the first: {'; '.join(page.differs)}.")
        blocks += _blocks(page)
    return "\n\n".join(blocks) + "\n"


def _blocks(page: Page) -> list[str]:
    lines = [_row(page.heading), "|--" * len(page.heading) + "|", *map(_line, page.lines)]
    notes = [f"[{letter}] {reason}" for letter, reason in page.notes.items()]
    return ["\n".join(lines), " ".join(map(sentence, page.about)), *map(sentence, notes)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _line(line: Line) -> str:
    return _row([f"*{line.name}*" if line.published else line.name, *map(_field, line.fields)])


def _field(text: Text) -> str:
    if not text.bold:
        return text.plain()
    figure, rest = replace(text, aside="", note="").plain(), replace(text, value="", mark="", error="").plain()
    return f"**{figure}**{rest}"
