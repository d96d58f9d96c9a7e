"""Figures by row and column, ours beside the published ones: what every form of a table is printed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scoreline.metrics.base import HIGHER_IS_BETTER, Score
from scoreline.run_results import Result
from scoreline.seeds import count
from scoreline.tables.protocol import decided, differences, parts
from scoreline.tables.schema import Paper, Published, Table


@dataclass(frozen=True)
class Entry:
    """One cell: a result, or the reason why there is none."""

    row: str
    column: str
    result: Result | None = None
    reason: str | None = None
    published: Published | None = None

    def score(self, metric: str) -> Score | None:
        """What was measured by that name."""
        found: Score | None = (self.result or {}).get("metrics", {}).get(metric)
        return found


@dataclass(frozen=True)
class Part:
    """Cells of equal protocol, and in what it differs from the first part's."""

    entries: dict[tuple[str, str], Entry]
    differs: list[str] = field(default_factory=list)

    def rows(self, grid: "Grid") -> list[str]:
        return [row for row in grid.rows if any((row, column) in self.entries for column in grid.columns)]

    def columns(self, grid: "Grid") -> list[str]:
        return [column for column in grid.columns if any((row, column) in self.entries for row in grid.rows)]

    def results(self) -> list[Result]:
        return [entry.result for entry in self.entries.values() if entry.result is not None]


@dataclass(frozen=True)
class Grid:
    """A whole table; `label` is what its columns vary."""

    name: str
    title: str
    metric: str
    label: str
    rows: list[str]
    columns: list[str]
    parts: list[Part]
    note: str = ""
    paper: Paper | None = None
    watermark: str = ""
    budget: str = ""

    def entries(self) -> list[Entry]:
        """All cells, part by part, in order of rows and columns."""
        order = [(row, column) for row in self.rows for column in self.columns]
        return [part.entries[place] for part in self.parts for place in order if place in part.entries]


def gathered(
    entries: Sequence[Entry], by_row: frozenset[str] = frozenset(), by_column: frozenset[str] = frozenset()
) -> list[Part]:
    """Cells divided by protocol; one without a result stands in the first part that has its row, else in the first."""
    measured = [entry for entry in entries if entry.result is not None]
    groups = parts([(entry.column, entry.result or {}) for entry in measured], by_row, by_column) or [[]]
    found = [{(measured[k].row, measured[k].column): measured[k] for k in sorted(group)} for group in groups]
    homes = {row: k for k, group in reversed(list(enumerate(found))) for row, _ in group}
    for entry in entries:
        if entry.result is None:
            found[homes.get(entry.row, 0)][entry.row, entry.column] = entry
    return [Part(group, _differs(group, found[0], by_row | by_column)) for group in found]


def _differs(
    group: dict[tuple[str, str], Entry], first: dict[tuple[str, str], Entry], free: frozenset[str]
) -> list[str]:
    mine, theirs = (next((it.result for it in cells.values() if it.result), {}) for cells in (group, first))
    return [] if group is first else differences(mine or {}, theirs or {}, free)


def of_table(table: Table, budget: str, entries: Sequence[Entry]) -> Grid:
    """The grid of a table of a paper."""
    row_keys = decided([override for row in table.rows for override in row.overrides])
    column_keys = decided([override for column in table.columns for override in column.overrides])
    return Grid(
        table.name,
        table.title,
        table.metric,
        table.label,
        [row.name for row in table.rows],
        [column.name for column in table.columns],
        gathered(entries, row_keys, column_keys),
        table.note,
        table.paper,
        watermark(budget, table.ranges(budget)),
        budget,
    )


def watermark(budget: str, ranges: Sequence[str]) -> str:
    """`budget=small: n = 3 x 1000, not the paper's`; nothing for the paper's own budget."""
    from scoreline.tables.schema import PAPER

    sizes = [count(one) for one in ranges]
    equal = len(set(sizes)) == 1
    n = str(sizes[0]) if len(sizes) == 1 else f"{len(sizes)} x {sizes[0]}" if equal else " + ".join(map(str, sizes))
    return "" if budget == PAPER else f"budget={budget}: n = {n}, not the paper's"


def best(part: Part, metric: str, column: str) -> set[str]:
    """Rows whose figure is the best of a column, or within one standard error of the difference from the best.

    The standard error of a difference a - b is sqrt(error_a^2 + error_b^2).
    """
    scores = {row: score for (row, name), it in part.entries.items() if name == column and (score := it.score(metric))}
    scores = {row: score for row, score in scores.items() if math.isfinite(score["value"])}
    if not scores:
        return set()
    better = max if metric in HIGHER_IS_BETTER else min
    top = better(scores.values(), key=lambda score: score["value"])
    return {row for row, it in scores.items() if abs(it["value"] - top["value"]) <= _spread(it, top)}


def _spread(one: Score, other: Score) -> float:
    found = 0.0 if one is other else math.hypot(one["error"], other["error"])
    return found if math.isfinite(found) else 0.0


def difference(entry: Entry, metric: str, paper: Paper | None) -> float | str:
    """Ours less the published figure, or why they are not to be subtracted."""
    score, published = entry.score(metric), entry.published
    if score is None or published is None or entry.result is None:
        return ""
    if paper is not None and paper.metric != metric:
        return f"ours is {metric}, the paper's {paper.metric}"
    if paper is not None and paper.images is not None and paper.images != entry.result["images"]:
        return f"ours is of {entry.result['images']} images, the paper's of {paper.images}"
    if paper is not None and paper.dataset is not None and not _measured_on(paper.dataset, entry.result["protocol"]):
        reference = entry.result["protocol"].get("reference", "unnamed")
        return f"ours refers to {reference}, the paper's to {paper.dataset}"
    return score["value"] - published.value


def _measured_on(dataset: str, protocol: dict[str, Any]) -> bool:
    """`CIFAR-10` is the reference `cifar10-train:1234abcd`."""
    told = " ".join(str(protocol.get(key, "")) for key in ("reference", "dataset"))
    return _letters(dataset) in _letters(told)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())
