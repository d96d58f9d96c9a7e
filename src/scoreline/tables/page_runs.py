"""The runs behind the cells of a grid: their command, directory and log, and how they ended."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scoreline.config import sweep_jobs
from scoreline.config.run_directory import ERROR_LOG
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.storage import bounded_reading, run_config
from scoreline.tables import plan
from scoreline.tables.grid import Entry, Grid, Run
from scoreline.tables.plan import Outcome, Plan
from scoreline.tables.pool import LOG

TAIL, LINES, WIDTH = 2**14, 12, 300
"""What is read of the end of a log, in bytes; the most lines of it that are shown; the most characters of a line."""

FINISHED = Outcome("finished")
UNFINISHED = Outcome("missing", "begun and not finished; the same command goes on with it")
NO_DIRECTORY = Outcome("missing", "no run directory; the same command runs what is missing")


@dataclass(frozen=True)
class CellRun:
    """A run of sample.py, finished or not.

    Attributes:
        directory: its directory.
        words: the overrides of its command line, as far as they are known.
        outcome: how it ended.
        result: of a finished run.
        config: its config.yaml; None if it has none.
    """

    directory: Path
    words: Sequence[str]
    outcome: Outcome
    result: Result | None = None
    config: Mapping[str, Any] | None = None

    def log(self) -> list[str]:
        """Return the last lines of its log; none if it has no log."""
        return next(filter(None, (_last_lines(self.directory / name) for name in (LOG, ERROR_LOG))), [])


@dataclass(frozen=True)
class Runs:
    """All runs of a report.

    Attributes:
        command: the command line that made them; empty if it is not known.
        all: in order.
        by_entry: those of each cell, by the identity of its `Entry`.
    """

    command: str
    all: Sequence[CellRun]
    by_entry: Mapping[int, Sequence[CellRun]] = field(default_factory=dict)

    def of(self, entry: Entry | None) -> Sequence[CellRun]:
        """Return the runs of a cell."""
        return self.by_entry.get(id(entry), ())


def of_plan(draft: Plan, root: Path, grid: Grid) -> Runs:
    """Find the runs of a table."""
    places: dict[tuple[str, str], list[CellRun]] = {}
    for cell in draft.cells:
        folder, end = root / cell.directory, plan.outcome(cell, root)
        result = plan.result(cell, root) if end.state == "finished" else None
        run = CellRun(folder, cell.overrides, end, result, run_config.read(folder))
        places.setdefault((cell.row, cell.column), []).append(run)
    words = [f"table={draft.table.name}", f"budget={draft.budget}", *draft.overrides]
    by_entry = {id(entry): places.get((entry.row, entry.column), ()) for entry in grid.entries()}
    runs = [run for found in places.values() for run in found]
    return Runs(f"python sample.py {' '.join(words)}", runs, by_entry)


def of_sweep(root: Path, grid: Grid, runs: Sequence[Run], figures: Sequence[Run]) -> Runs:
    """Find the runs of a sweep, or of any folder of runs.

    Args:
        root: the directory.
        grid: of `figures`.
        runs: its finished runs.
        figures: the same over their seed ranges.
    """
    jobs = sweep_jobs.jobs(root)
    finished = {run.directory: run for run in runs}
    groups: dict[str, list[CellRun]] = {}
    for run in finished.values():
        groups.setdefault(run.row(), []).append(_finished(run, jobs))
    rows = {id(figure.result): groups.get(figure.row(), [_finished(figure, jobs)]) for figure in figures}
    by_entry = {id(entry): rows[id(entry.result)] for entry in grid.entries() if id(entry.result) in rows}
    whole = [run for group in groups.values() for run in group]
    whole += [_unfinished(folder, jobs) for folder in _begun(root, jobs) if folder not in finished]
    words = sweep_jobs.words(root)
    return Runs(f"python sample.py -m {' '.join(words)}" if words else "", whole, by_entry)


def _finished(run: Run, jobs: Mapping[Path, Sequence[str]]) -> CellRun:
    return CellRun(run.directory, jobs.get(run.directory, ()), FINISHED, run.result, run.config)


def _begun(root: Path, jobs: Collection[Path]) -> list[Path]:
    """Return the directories of the jobs, and all others below `root` that have no result of sample.py."""
    marked = [path.parent for name in (run_config.NAME, ERROR_LOG) for path in sorted(root.rglob(name))]
    others = [folder for folder in marked if not (folder / run_results.NAME).exists() and _is_of_sample(folder)]
    return list(dict.fromkeys([*jobs, *others]))


def _is_of_sample(folder: Path) -> bool:
    return "nfe" in (run_config.read(folder) or {"nfe": None})


def _unfinished(folder: Path, jobs: Mapping[Path, Sequence[str]]) -> CellRun:
    config = run_config.read(folder)
    run = CellRun(folder, jobs.get(folder, ()), UNFINISHED if config else NO_DIRECTORY, None, config)
    lines = run.log()
    return replace(run, outcome=Outcome("failed", _reason(lines[-1]))) if lines else run


def _reason(line: str) -> str:
    """Return the last line of a traceback without the name of our own exception."""
    return line.removeprefix("scoreline.errors.InputError: ")


def _last_lines(path: Path) -> list[str]:
    """Return the last lines of a log that are not blank, without what a terminal obeys."""
    try:
        with bounded_reading.regular(path) as file:
            file.seek(max(0, bounded_reading.size(file) - TAIL))
            text = file.read(TAIL).decode(errors="replace")
    except (OSError, ValueError):  # no log
        return []
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = ["".join(letter for letter in line if letter.isprintable()).rstrip() for line in plain.splitlines()]
    return [line[:WIDTH] for line in lines if line][-LINES:]
