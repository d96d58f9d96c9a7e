"""The runs behind the cells of a grid: their command, directory and log, and how they ended."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoreline.config import run_names
from scoreline.errors import printable
from scoreline.generation.run_results import Result
from scoreline.runs import summary
from scoreline.runs.summary import State
from scoreline.storage import run_config
from scoreline.tables import plan
from scoreline.tables.grid import Entry, Grid, Run
from scoreline.tables.plan import Plan
from scoreline.tables.pool import LOG

LINES, WIDTH = 12, 300
"""The most lines of the end of a log that are shown, and the most characters of a line."""

DONE = State("done")
MISSING = State("missing", "not run yet; the same command runs what is missing")


@dataclass(frozen=True)
class CellRun:
    """A run of sample.py, finished or not.

    Attributes:
        directory: its directory.
        words: the overrides of its command line, as far as they are known.
        state: how far it has come; `DONE` with a result.
        result: of a finished run.
        config: its config.yaml; None if it has none.
    """

    directory: Path
    words: Sequence[str]
    state: State
    result: Result | None = None
    config: Mapping[str, Any] | None = None

    def log(self) -> list[str]:
        """Return the last lines of its log that are not blank; none if it has no log."""
        logs = (summary.tail(self.directory / name) for name in (LOG, run_config.ERROR_LOG))
        lines = [printable(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in next(filter(None, logs), [])]
        return [line[:WIDTH] for line in lines if line.strip()][-LINES:]


@dataclass(frozen=True)
class Runs:
    """All runs of a report.

    Attributes:
        command: the words of the command line that made them; none if they are not known.
        all: in order.
        by_entry: those of each cell, by the identity of its `Entry`.
    """

    command: Sequence[str]
    all: Sequence[CellRun]
    by_entry: Mapping[int, Sequence[CellRun]] = field(default_factory=dict)

    def of(self, entry: Entry | None) -> Sequence[CellRun]:
        """Return the runs of a cell."""
        return self.by_entry.get(id(entry), ())


def of_plan(draft: Plan, root: Path, grid: Grid) -> Runs:
    """Find the runs of a table."""
    states = _states(root)
    places: dict[tuple[str, str], list[CellRun]] = {}
    for cell in draft.cells:
        folder, end = root / cell.directory, plan.outcome(cell, root)
        result = plan.result(cell, root) if end.state == "finished" else None
        begun = states.get(folder, MISSING) if end.state == "missing" else State(end.state, end.sentence)
        run = CellRun(folder, cell.overrides, DONE if result else begun, result, run_config.read(folder))
        places.setdefault((cell.row, cell.column), []).append(run)
    words = [f"table={draft.table.name}", f"budget={draft.budget}", *draft.overrides]
    by_entry = {id(entry): places.get((entry.row, entry.column), ()) for entry in grid.entries()}
    return Runs(words, [run for found in places.values() for run in found], by_entry)


def of_sweep(root: Path, grid: Grid, runs: Sequence[Run], figures: Sequence[Run]) -> Runs:
    """Find the runs of a sweep, or of any folder of runs.

    Args:
        root: the directory.
        grid: of `figures`.
        runs: its finished runs.
        figures: the same over their seed ranges.
    """
    words = summary.words_of_sweep(root)
    jobs = {root / run_names.cell_name(job): job for job in run_names.sweep_jobs(words)}
    groups: dict[str, list[CellRun]] = {}
    for run in runs:
        groups.setdefault(run.row(), []).append(_finished(run, jobs))
    rows = {id(figure.result): groups.get(figure.row(), [_finished(figure, jobs)]) for figure in figures}
    by_entry = {id(entry): rows[id(entry.result)] for entry in grid.entries() if id(entry.result) in rows}
    finished, states = [run for group in groups.values() for run in group], _states(root)
    rest = dict.fromkeys([*jobs, *states]).keys() - {run.directory for run in finished}
    unfinished = [
        CellRun(folder, jobs.get(folder, ()), states.get(folder, MISSING), None, run_config.read(folder))
        for folder in sorted(rest)
    ]
    return Runs(["-m", *words] if words else [], [*finished, *unfinished], by_entry)


def _states(root: Path) -> dict[Path, State]:
    """Return the state of each run of sample.py below a directory."""
    return {run.path: run.state for run in summary.find_runs(root) if run.job == "sample"}


def _finished(run: Run, jobs: Mapping[Path, Sequence[str]]) -> CellRun:
    start = (run.config or {}).get("start")
    words = start.get("overrides", ()) if isinstance(start, dict) else jobs.get(run.directory, ())
    return CellRun(run.directory, [str(word) for word in words], DONE, run.result, run.config)
