"""Figures by row and column, ours beside the published ones; every form of a table is printed from a grid.

A grid is that of a paper's table (`of_table`), or of the finished runs of a sweep (`of_sweep`), whose rows are solvers
on schedules with the options that vary and whose columns are NFE.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from scoreline.errors import InputError, did_you_mean
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.metrics.base import Score
from scoreline.storage import run_config
from scoreline.tables import options
from scoreline.tables.protocol import PROTOCOL, differences, fingerprint, merge, parts, parts_of_overrides
from scoreline.tables.schema import PAPER, Paper, Published, Table
from scoreline.tables.statistic import Statistic, statistic
from scoreline.values import count_seeds, seed_ranges


@dataclass(frozen=True)
class Entry:
    """One cell: a result, or the reason for its absence."""

    row: str
    column: str
    result: Result | None = None
    reason: str | None = None
    published: Published | None = None

    def score(self, metric: str) -> Score | None:
        """Return the score of that name, None if it was not measured."""
        score: Score | None = (self.result or {}).get("metrics", {}).get(metric)
        return score

    def by_range(self, metric: str) -> list[float]:
        """Return the values of that metric, one for each seed range; none if it was not measured."""
        score, values = self.score(metric), (self.result or {}).get("by_range", {}).get(metric)
        return values or ([] if score is None else [score["value"]])


@dataclass(frozen=True)
class Part:
    """Cells of equal protocol, and the differences from the protocol of the first part."""

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
        """Return all cells, part by part, in order of rows and columns."""
        order = [(row, column) for row in self.rows for column in self.columns]
        return [part.entries[place] for part in self.parts for place in order if place in part.entries]


def _by_protocol(
    entries: Sequence[Entry], by_row: frozenset[str] = frozenset(), by_column: frozenset[str] = frozenset()
) -> list[Part]:
    """Divide cells by protocol; one without a result joins the first part that has its row, else the first."""
    results = [entry for entry in entries if entry.result is not None]
    groups = parts([(entry.column, entry.result or {}) for entry in results], by_row, by_column) or [[]]
    cells = [{(results[k].row, results[k].column): results[k] for k in sorted(group)} for group in groups]
    homes = {row: k for k, group in reversed(list(enumerate(cells))) for row, _ in group}
    for entry in entries:
        if entry.result is None:
            cells[homes.get(entry.row, 0)][entry.row, entry.column] = entry
    return [Part(group, _differs(group, cells[0], by_row | by_column)) for group in cells]


def _differs(
    group: dict[tuple[str, str], Entry], first: dict[tuple[str, str], Entry], free: frozenset[str]
) -> list[str]:
    mine, theirs = (next((it.result for it in cells.values() if it.result), {}) for cells in (group, first))
    return [] if group is first else differences(mine or {}, theirs or {}, free)


def of_table(table: Table, budget: str, entries: Sequence[Entry]) -> Grid:
    """Lay out the table of a paper."""
    row_keys = parts_of_overrides([override for row in table.rows for override in row.overrides])
    column_keys = parts_of_overrides([override for column in table.columns for override in column.overrides])
    return Grid(
        table.name,
        table.title,
        table.metric,
        table.label,
        [row.name for row in table.rows],
        [column.name for column in table.columns],
        _by_protocol(entries, row_keys, column_keys),
        table.note,
        table.paper,
        watermark(budget, table.ranges(budget)),
        budget,
    )


def watermark(budget: str, ranges: Sequence[str]) -> str:
    """Return the text `budget=small: n = 3 x 1000, not the paper's`; empty for the budget of the paper."""
    sizes = [count_seeds(one) for one in ranges]
    equal = len(set(sizes)) == 1
    n = str(sizes[0]) if len(sizes) == 1 else f"{len(sizes)} x {sizes[0]}" if equal else " + ".join(map(str, sizes))
    return "" if budget == PAPER else f"budget={budget}: n = {n}, not the paper's"


def statistic_of(entry: Entry, metric: str, paper: Paper | None) -> Statistic | None:
    """Return what a cell shows: the minimum of its seed ranges if the paper prints such figures, else the mean.

    All cells of a table follow the same rule, so that a column compares. The mean stands where a cell has fewer or more
    ranges than the paper, and for another metric than the paper's. None if the metric was not measured.
    """
    score, by_range = entry.score(metric), entry.by_range(metric)
    if score is None:
        return None
    minimum_of = paper.minimum_of if paper and paper.metric == metric else 1
    return statistic(score, by_range, minimum_of if minimum_of == len(by_range) else 1)


def difference(entry: Entry, metric: str, paper: Paper | None) -> float | str:
    """Return ours less the published figure, or the reason why the two cannot be compared.

    Ours is the minimum where the published figure is one, else the mean.
    """
    shown, published = statistic_of(entry, metric, paper), entry.published
    if shown is None or published is None or entry.result is None:
        return ""
    if paper is not None and paper.metric != metric:
        return f"ours is {metric}, the paper's {paper.metric}"
    if paper is not None and paper.images is not None and paper.images != entry.result["images"]:
        return f"ours is of {entry.result['images']} images, the paper's of {paper.images}"
    if paper is not None and paper.dataset is not None and not _measured_on(paper.dataset, entry.result["protocol"]):
        reference = entry.result["protocol"].get("reference", "unnamed")
        return f"ours refers to {reference}, the paper's to {paper.dataset}"
    ranges = len(shown.by_range)
    if published.minimum_of not in (1, ranges):
        return f"ours is of {ranges} seed range{'s' * (ranges > 1)}, the paper's the minimum of {published.minimum_of}"
    return statistic(shown.mean, shown.by_range, published.minimum_of).value - published.value


def _measured_on(dataset: str, protocol: dict[str, Any]) -> bool:
    """Return whether a protocol names a data set: `CIFAR-10` is the reference `cifar10-train:1234abcd`."""
    names = " ".join(str(protocol.get(key, "")) for key in ("reference", "dataset"))
    return _letters(dataset) in _letters(names)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


@dataclass(frozen=True)
class Run:
    """A finished run; `config` is None without a config.yaml."""

    directory: Path
    result: Result
    config: dict[str, Any] | None = None

    def options(self) -> options.Options:
        """Return the options of its config; none without one."""
        return {} if self.config is None else options.of_config(self.config, self.result)

    def row(self) -> str:
        """Return a text that is equal for runs of one figure: the whole config but the seeds.

        Without a config, metrics.json gives it.
        """
        method = [self.result.get(key) for key in (*PROTOCOL, "solver", "schedule", "recommended")]
        nfe = self.result["nfe"] if self.config is None else self.config.get("nfe")
        return json.dumps([method, nfe, self.config is None, options.key(self.options())], sort_keys=True, default=str)


def collect(root: Path) -> list[Run]:
    """Read every finished run below `root`, in order of their directories.

    Raises:
        InputError: if there is none, or a metrics.json or config.yaml is not as sample.py writes it.
    """
    folders = sorted(path.parent for path in root.rglob(run_results.NAME))
    results = [(folder, run_results.read(folder)) for folder in folders]
    runs = [Run(folder, result, run_config.read(folder)) for folder, result in results if result is not None]
    if not runs:
        raise InputError(f"{root}: no finished run (metrics.json) below it; run python sample.py -m ... first")
    return runs


def over_seed_ranges(runs: Sequence[Run]) -> list[Run]:
    """Average runs that differ in disjoint seeds alone; a copy of a run counts once.

    Raises:
        InputError: if runs of one configuration share seeds and are no copies.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.row(), []).append(run)
    return [replace(group[0], result=merge([run.result for run in _disjoint(group)])) for group in groups.values()]


def _disjoint(group: Sequence[Run]) -> list[Run]:
    """Return the runs of a group without copies."""
    kept: dict[str, Run] = {}
    for run in group:
        former = kept.setdefault(_seeds(run), run)
        if former.result["metrics"] != run.result["metrics"]:
            _refuse(former, run, "their numbers differ; keep one of them")
    ends = sorted((first, last, text) for text, run in kept.items() for first, last in seed_ranges(run.result["seeds"]))
    for (_, last, one), (first, _, other) in pairwise(ends):
        if first <= last:
            _refuse(kept[one], kept[other], "only disjoint ranges can be averaged; keep one of them")
    return list(kept.values())


def _refuse(one: Run, other: Run, why: str) -> None:
    seeds = ", ".join(dict.fromkeys(run.result["seeds"] for run in (one, other)))
    raise InputError(
        f"seeds={seeds}: {one.directory} and {other.directory} are of one configuration and share seeds; {why}"
    )


def _seeds(run: Run) -> str:
    """Return a text that is equal for equal seeds, however they are written."""
    whole: list[list[int]] = []
    for first, last in sorted(seed_ranges(run.result["seeds"])):
        if whole and first == whole[-1][1] + 1:
            whole[-1][1] = last
        else:
            whole.append([first, last])
    return str(whole)


def of_sweep(figures: Sequence[Run], metric: str) -> Grid:
    """Lay out a sweep, as `over_seed_ranges` returns it.

    Rows whose names tell a difference of protocol share a part.

    Raises:
        InputError: if no result has the metric.
    """
    known = {name for figure in figures for name in figure.result["metrics"]}
    if metric not in known:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, known)}")
    columns = [_column(nfe) for nfe in sorted({figure.result["nfe"] for figure in figures})]
    names, compared = name_rows(figures)
    entries = [Entry(name, _column(it.result["nfe"]), it.result) for name, it in zip(names, figures, strict=True)]
    return Grid("sweep", "", metric, "NFE", list(dict.fromkeys(names)), columns, _by_protocol(entries, compared))


def _column(nfe: float) -> str:
    return str(int(nfe) if nfe == int(nfe) else nfe)


def name_rows(figures: Sequence[Run]) -> tuple[list[str], frozenset[str]]:
    """Name the row of each figure, and return the parts of the protocol that the names tell too.

    Two figures that would share a place still are told apart by their `nfe` key, else by their directories.
    """
    configured = [figure for figure in figures if figure.config is not None]
    vary = options.varied_options([(figure.options(), figure.result) for figure in configured])
    words = dict(zip(map(id, configured), options.suffixes(vary), strict=True))
    names = [f"{it.result['solver']} / {it.result['schedule']}{words.get(id(it), '')}" for it in figures]
    compared = parts_of_overrides(
        {name for row in vary for name in row if name.partition(".")[0] not in ("solver", "schedule")}
    )
    for more in (_nfe, _directory):
        places = [_place(name, it, compared) for name, it in zip(names, figures, strict=True)]
        counts = Counter(places)
        names = [
            name + more(it) if counts[place] > 1 else name
            for name, it, place in zip(names, figures, places, strict=True)
        ]
    return names, compared


def _nfe(figure: Run) -> str:
    return "" if figure.config is None else f", nfe={figure.config.get('nfe')}"


def _directory(figure: Run) -> str:
    return f" ({figure.directory})"


def _place(name: str, figure: Run, free: frozenset[str]) -> str:
    return json.dumps([name, figure.result["nfe"], fingerprint(figure.result, free)], sort_keys=True)
