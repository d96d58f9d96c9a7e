"""The plan of a table: its runs of sample.py, their directories and their outcomes."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scoreline.errors import InputError
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.storage import bounded_reading, run_config
from scoreline.storage.files import write_atomically
from scoreline.tables.grid import Entry, Grid, of_table
from scoreline.tables.protocol import merge
from scoreline.tables.schema import Column, Row, Table, parse

PLAN = "plan.json"
OUTCOME = "outcome.json"

State = Literal["finished", "refused", "failed", "changed", "missing"]
"""`changed`: the run used other code or files than the plan."""

KEPT = ("refused", "failed", "changed")
"""States that outcome.json holds."""

LARGEST = 2**24
"""Bytes of the largest plan that is read."""

KEYS = {"table", "budget", "overrides", "data", "cells"}
CELL_KEYS = {"row", "column", "seeds", "overrides", "identity", "directory"}

Identify = Callable[[Sequence[str], Sequence[str]], list[str]]
"""(overrides, seed ranges) to the identity that sample.py gives each run."""


@dataclass(frozen=True)
class Cell:
    """One run: a row and a column at one seed range. `directory` is relative to the table's."""

    row: str
    column: str
    seeds: str
    overrides: tuple[str, ...]
    identity: str
    directory: str

    def title(self) -> str:
        """Return `DEIS-tAB3, 10, seeds 0-999`."""
        return f"{self.row}, {self.column}, seeds {self.seeds}"


@dataclass(frozen=True)
class Outcome:
    """The state of a run, with the reason if it has no result."""

    state: State
    sentence: str = ""


NOT_RUN = Outcome("missing", "not run yet")


@dataclass(frozen=True)
class Plan:
    """A table at one budget, with overrides of the user's; `data` is the plain content of its file."""

    table: Table
    data: Any
    budget: str
    overrides: tuple[str, ...]
    cells: tuple[Cell, ...]


def make_plan(table: Table, data: Any, budget: str, overrides: Sequence[str], identify: Identify) -> Plan:
    """Plan all runs that are not ruled out, row by row.

    Raises:
        InputError: if the user's overrides set what the table varies.
    """
    refuse_varied(table, overrides)
    ranges = table.ranges(budget)
    cells: list[Cell] = []
    for row in table.rows:
        for column in table.columns:
            if column.name in row.cannot:
                continue
            chosen = (*table.base, *row.overrides, *column.overrides, *overrides)
            for seeds, identity in zip(ranges, identify(chosen, ranges), strict=True):
                place = "/".join(["cells", *map(safe, (row.name, column.name, f"{seeds}-{identity}"))])
                cells.append(Cell(row.name, column.name, seeds, (*chosen, f"seeds='{seeds}'"), identity, place))
    return Plan(table, data, budget, tuple(overrides), tuple(cells))


def refuse_varied(table: Table, overrides: Iterable[str]) -> None:
    """Raise InputError where the user would make cells equal that the table tells apart."""
    varied: dict[str, str] = {}
    axes: list[Row | Column] = [*table.rows, *table.columns]
    for it in axes:
        for word in it.overrides:
            varied.setdefault(word.partition("=")[0], it.name)
    for override in overrides:
        key = override.partition("=")[0]
        if key == "seeds":
            raise InputError(f"{override}: the budgets of table={table.name} choose the seeds; give budget=...")
        if key in varied:
            raise InputError(f"{override}: '{varied[key]}' of table={table.name} sets {key}; leave it out")


def safe(name: str) -> str:
    """Turn a name into the name of a directory."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip(".") or "_"


def save(plan: Plan, root: Path) -> None:
    """Write config.yaml, the command; and plan.json, from which `load` and the cells' files give the table again."""
    import yaml

    text = json.dumps([plan.table.name, plan.data, plan.budget, plan.overrides], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    choices = {"table": plan.table.name, "budget": plan.budget, "overrides": list(plan.overrides), "data": plan.data}
    config = yaml.safe_dump({"identity": digest, **choices}, sort_keys=False, allow_unicode=True)
    content = json.dumps({**choices, "cells": [asdict(cell) for cell in plan.cells]}, indent=1) + "\n"
    write_atomically(root / "config.yaml", lambda path: path.write_text(config))
    write_atomically(root / PLAN, lambda path: path.write_text(content))


def load(root: Path) -> Plan:
    """Read the plan of a table's directory, to report from. It may come from a stranger: none of it is run.

    Raises:
        InputError: if it is damaged, or names a directory outside the table's.
    """
    path = root / PLAN
    try:
        content = _checked(json.loads(bounded_reading.content(path, LARGEST)))
        table = parse(content["table"], content["data"])
    except (OSError, ValueError, RecursionError, InputError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not the plan of a table ({reason}); run the command of the table again") from error
    cells = tuple(Cell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in content["cells"])
    return Plan(table, content["data"], content["budget"], tuple(content["overrides"]), cells)


def _checked(content: Any) -> dict[str, Any]:
    """Raise ValueError unless keys and types are those that `save` writes, and every run lies below the table."""
    if not isinstance(content, dict) or set(content) != KEYS:
        raise ValueError(f"no mapping of the keys {', '.join(sorted(KEYS))}")
    if not all(map(_text, (content["table"], content["budget"]))) or not _texts(content["overrides"]):
        raise ValueError("table, budget or overrides is no text")
    if not _printable(content["data"]) or not isinstance(content["cells"], list):
        raise ValueError("data holds what cannot be printed, or cells is no list")
    for cell in content["cells"]:
        if (
            not isinstance(cell, dict)
            or set(cell) != CELL_KEYS
            or not all((_texts if key == "overrides" else _text)(value) for key, value in cell.items())
        ):
            raise ValueError(f"cells holds {cell!r:.60}")
        if not inside(cell["directory"]):
            raise ValueError(f"{cell['directory']!r:.60} is no directory of a run of this table")
    return content


def _text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _printable(data: object) -> bool:
    """Return whether all texts are letters and white space: a terminal obeys other characters."""
    if isinstance(data, dict):
        return all(map(_printable, [*data.keys(), *data.values()]))
    if isinstance(data, list):
        return all(map(_printable, data))
    return not isinstance(data, str) or "".join(data.split()).isprintable()


def inside(directory: str) -> bool:
    """Return whether these are names as `safe` makes them, so that nothing above or beside the table is meant."""
    return all(safe(part) == part and len(part.encode()) < 256 for part in directory.split("/"))


def outcome(cell: Cell, root: Path) -> Outcome:
    """Read the outcome of a run from its directory.

    Raises:
        InputError: if its config.yaml is damaged.
    """
    folder = root / cell.directory
    if (folder / run_results.NAME).is_file():
        identity = run_config.identity(folder)
        if identity == cell.identity:
            return Outcome("finished")
        why = f"the code or a file that it reads was changed meanwhile ({identity}, not {cell.identity})"
        return Outcome("changed", why)
    try:  # what `record` kept; anything else counts as absent
        content = json.loads(bounded_reading.content(folder / OUTCOME, LARGEST))
        state, sentence = content["state"], content["sentence"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return NOT_RUN
    return Outcome(state, " ".join(sentence.split())) if state in KEPT and isinstance(sentence, str) else NOT_RUN


def record(cell: Cell, root: Path, outcome: Outcome) -> None:
    """Keep in outcome.json why a run has no result."""
    text = json.dumps(asdict(outcome)) + "\n"
    write_atomically(root / cell.directory / OUTCOME, lambda path: path.write_text(text))


def result(cell: Cell, root: Path) -> Result:
    """Read metrics.json of a finished run.

    Raises:
        InputError: if it is damaged.
    """
    folder = root / cell.directory
    result = run_results.read(folder)
    if result is None:
        raise InputError(f"{folder / run_results.NAME}: is gone; run the command of the table again")
    return result


def grid(plan: Plan, root: Path, read: Callable[[Cell, Path], Result] = result) -> Grid:
    """Lay out the table as far as its runs are finished; `read` gives the result of one."""
    return of_table(plan.table, plan.budget, entries(plan, root, read))


def entries(plan: Plan, root: Path, read: Callable[[Cell, Path], Result] = result) -> list[Entry]:
    """Return the entries of every row and column, seed ranges merged."""
    by_place: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        by_place.setdefault((cell.row, cell.column), []).append(cell)
    entries = []
    for row in plan.table.rows:
        for column in plan.table.columns:
            published, reason = row.published.get(column.name), row.cannot.get(column.name)
            cells = by_place.get((row.name, column.name), [])
            if reason is None:
                reason = _unfinished(cells, root)
            whole = None if reason else merge([read(cell, root) for cell in cells])
            if whole is not None and plan.table.metric not in whole["metrics"]:
                reason = f"{plan.table.metric} was not measured"
            entries.append(Entry(row.name, column.name, whole, reason, published))
    return entries


def _unfinished(cells: Sequence[Cell], root: Path) -> str | None:
    """Return the reason why a cell has no figure: that of its first run without a result, a refusal first of all."""
    missing = [end for cell in cells if (end := outcome(cell, root)).state != "finished"]
    if not missing:
        return None if cells else "not planned"
    first = next((end for end in missing if end.state == "refused"), missing[0])
    many = f"{len(missing)} of {len(cells)} seed ranges: " if len(cells) > 1 and first.state != "refused" else ""
    return f"{many}{'failed: ' if first.state == 'failed' else ''}{first.sentence}"
