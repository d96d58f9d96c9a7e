"""Finished runs of a sweep as a grid: rows are solvers on schedules with the options that vary, columns NFE."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from scoreline import run_config, run_results
from scoreline.errors import InputError, did_you_mean
from scoreline.run_results import Result
from scoreline.seeds import spans
from scoreline.tables import options
from scoreline.tables.grid import Entry, Grid, gathered
from scoreline.tables.protocol import PROTOCOL, decided, fingerprint, merged


@dataclass(frozen=True)
class Run:
    """A finished run; `config` is None where the directory has no config.yaml."""

    directory: Path
    result: Result
    config: dict[str, Any] | None = None

    def options(self) -> options.Options:
        """Of its config; none without it."""
        return {} if self.config is None else options.of_config(self.config, self.result)

    def row(self) -> str:
        """Everything that two runs must share to be one figure: the whole config but the seeds.

        Without a config it is what metrics.json tells.
        """
        told = [self.result.get(key) for key in (*PROTOCOL, "solver", "schedule", "recommended")]
        nfe = self.result["nfe"] if self.config is None else self.config.get("nfe")
        return json.dumps([told, nfe, self.config is None, options.key(self.options())], sort_keys=True, default=str)


def collect(root: Path) -> list[Run]:
    """Every finished run below `root`, in order of their directories.

    Raises:
        InputError: if there is none, or a metrics.json or config.yaml is not as sample.py writes it.
    """
    folders = sorted(path.parent for path in root.rglob(run_results.NAME))
    found = [(folder, run_results.read(folder)) for folder in folders]
    runs = [Run(folder, result, run_config.read(folder)) for folder, result in found if result is not None]
    if not runs:
        raise InputError(f"{root}: no finished run (metrics.json) below it; run python sample.py -m ... first")
    return runs


def over_seed_ranges(runs: Sequence[Run]) -> list[Run]:
    """Runs that differ in nothing but disjoint seeds, each group as one figure; a copy of a run counts once.

    Raises:
        InputError: if runs of one configuration share seeds and are no copies.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.row(), []).append(run)
    return [replace(group[0], result=merged([run.result for run in _disjoint(group)])) for group in groups.values()]


def _disjoint(group: Sequence[Run]) -> list[Run]:
    """The runs of a group without copies."""
    kept: dict[str, Run] = {}
    for run in group:
        former = kept.setdefault(_seeds(run), run)
        if former.result["metrics"] != run.result["metrics"]:
            _refuse(former, run, "their numbers differ; keep one of them")
    ends = sorted((first, last, text) for text, run in kept.items() for first, last in spans(run.result["seeds"]))
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
    """Equal for equal seeds, however they are written."""
    whole: list[list[int]] = []
    for first, last in sorted(spans(run.result["seeds"])):
        if whole and first == whole[-1][1] + 1:
            whole[-1][1] = last
        else:
            whole.append([first, last])
    return str(whole)


def grid(figures: Sequence[Run], metric: str) -> Grid:
    """The grid of what `over_seed_ranges` returns.

    What the protocols of rows differ in because their names say so does not part them.

    Raises:
        InputError: if no result has the metric.
    """
    known = {name for figure in figures for name in figure.result["metrics"]}
    if metric not in known:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, known)}")
    columns = [_column(nfe) for nfe in sorted({figure.result["nfe"] for figure in figures})]
    names, compared = named(figures)
    entries = [Entry(name, _column(it.result["nfe"]), it.result) for name, it in zip(names, figures, strict=True)]
    return Grid("sweep", "", metric, "NFE", list(dict.fromkeys(names)), columns, gathered(entries, compared))


def _column(nfe: float) -> str:
    return str(int(nfe) if nfe == int(nfe) else nfe)


def named(figures: Sequence[Run]) -> tuple[list[str], frozenset[str]]:
    """A name for the row of each figure, and the parts of the protocol that the names tell.

    Where two figures would stand in one place still, the NFE that was asked for tells them apart, else where they lie.
    """
    told = [figure for figure in figures if figure.config is not None]
    vary = options.varied([(figure.options(), figure.result) for figure in told])
    words = dict(zip(map(id, told), options.told(vary), strict=True))
    names = [f"{it.result['solver']} / {it.result['schedule']}{words.get(id(it), '')}" for it in figures]
    compared = decided({name for row in vary for name in row if name.partition(".")[0] not in ("solver", "schedule")})
    for more in (_asked, _lies):
        places = [_place(name, it, compared) for name, it in zip(names, figures, strict=True)]
        taken = Counter(places)
        names = [
            name + more(it) if taken[place] > 1 else name
            for name, it, place in zip(names, figures, places, strict=True)
        ]
    return names, compared


def _asked(figure: Run) -> str:
    return "" if figure.config is None else f", nfe={figure.config.get('nfe')}"


def _lies(figure: Run) -> str:
    return f" ({figure.directory})"


def _place(name: str, figure: Run, free: frozenset[str]) -> str:
    return json.dumps([name, figure.result["nfe"], fingerprint(figure.result, free)], sort_keys=True)
