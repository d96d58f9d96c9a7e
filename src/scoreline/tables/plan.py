"""Which runs of sample.py a table is made of, where each lies, and what became of it."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scoreline import reading, run_config, run_results
from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.run_results import Result
from scoreline.tables.grid import Entry, Grid, of_table
from scoreline.tables.protocol import merged
from scoreline.tables.schema import Table, parse

PLAN = "plan.json"
OUTCOME = "outcome.json"

State = Literal["finished", "refused", "failed", "changed", "missing"]
"""`changed`: it was made by other code than the plan is of."""

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
        """`DEIS-tAB3, 10, seeds 0-999`."""
        return f"{self.row}, {self.column}, seeds {self.seeds}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run, and the line that says why where it has no result."""

    state: State
    sentence: str = ""


NOT_RUN = Outcome("missing", "not run yet")


@dataclass(frozen=True)
class Plan:
    """A table under one budget with overrides of the user's; `data` is the plain content of its file."""

    table: Table
    data: Any
    budget: str
    overrides: tuple[str, ...]
    cells: tuple[Cell, ...]


def planned(table: Table, data: Any, budget: str, overrides: Sequence[str], identify: Identify) -> Plan:
    """All runs that are not ruled out, row by row.

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
    """Raises InputError where the user would make cells equal that the table tells apart."""
    varied: dict[str, str] = {}
    for name, chosen in [(it.name, it.overrides) for it in table.rows] + [
        (it.name, it.overrides) for it in table.columns
    ]:
        for word in chosen:
            varied.setdefault(word.partition("=")[0], name)
    for override in overrides:
        key = override.partition("=")[0]
        if key == "seeds":
            raise InputError(f"{override}: the budgets of table={table.name} choose the seeds; give budget=...")
        if key in varied:
            raise InputError(f"{override}: '{varied[key]}' of table={table.name} sets {key}; leave it out")


def safe(name: str) -> str:
    """A name as the name of a directory."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip(".") or "_"


def save(plan: Plan, root: Path) -> None:
    """config.yaml, what was asked for; plan.json, from which with the cells' files the table can be made again."""
    import yaml

    cells = [asdict(cell) for cell in plan.cells]
    found = {
        "table": plan.table.name,
        "budget": plan.budget,
        "overrides": list(plan.overrides),
        "data": plan.data,
        "cells": cells,
    }
    config = {"identity": _digest(plan), **{key: found[key] for key in ("table", "budget", "overrides", "data")}}
    text, described = json.dumps(found, indent=1) + "\n", yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    write_atomically(root / "config.yaml", lambda path: path.write_text(described))
    write_atomically(root / PLAN, lambda path: path.write_text(text))


def _digest(plan: Plan) -> str:
    """Eight digits that name a table with its choices, whatever code runs it."""
    text = json.dumps([plan.table.name, plan.data, plan.budget, plan.overrides], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load(root: Path) -> Plan:
    """The plan of a table's directory, to report from: it is data of whoever wrote it, none of it is run.

    Raises:
        InputError: if it is damaged, or names a directory outside the table's.
    """
    path = root / PLAN
    try:
        found = _checked(json.loads(reading.content(path, LARGEST)))
        table = parse(found["table"], found["data"])
    except (OSError, ValueError, RecursionError, InputError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not the plan of a table ({reason}); run the command of the table again") from error
    cells = tuple(Cell(**{**cell, "overrides": tuple(cell["overrides"])}) for cell in found["cells"])
    return Plan(table, found["data"], found["budget"], tuple(found["overrides"]), cells)


def _checked(found: Any) -> dict[str, Any]:
    """Raises ValueError unless keys and types are those that `save` writes, and every run lies below the table."""
    if not isinstance(found, dict) or set(found) != KEYS:
        raise ValueError(f"no mapping of the keys {', '.join(sorted(KEYS))}")
    if not all(map(_text, (found["table"], found["budget"]))) or not _texts(found["overrides"]):
        raise ValueError("table, budget or overrides is no text")
    if not _printable(found["data"]) or not isinstance(found["cells"], list):
        raise ValueError("data holds what cannot be printed, or cells is no list")
    for cell in found["cells"]:
        if not isinstance(cell, dict) or set(cell) != CELL_KEYS or not _texts(cell["overrides"]):
            raise ValueError(f"cells holds {cell!r:.60}")
        if not all(_text(value) for key, value in cell.items() if key != "overrides"):
            raise ValueError(f"cells holds {cell!r:.60}")
        if not inside(cell["directory"]):
            raise ValueError(f"{cell['directory']!r:.60} is no directory of a run of this table")
    return found


def _text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _printable(data: object) -> bool:
    """Whether all texts are letters and white space: a terminal obeys other characters."""
    if isinstance(data, dict):
        return all(map(_printable, [*data.keys(), *data.values()]))
    if isinstance(data, list):
        return all(map(_printable, data))
    return not isinstance(data, str) or "".join(data.split()).isprintable()


def inside(directory: str) -> bool:
    """Whether these are names as `safe` makes them, so that nothing above or beside the table is meant."""
    return all(safe(part) == part and len(part.encode()) < 256 for part in directory.split("/"))


def outcome(cell: Cell, root: Path) -> Outcome:
    """What a run's directory says.

    Raises:
        InputError: if its config.yaml is damaged.
    """
    folder = root / cell.directory
    if (folder / run_results.NAME).is_file():
        found = identity_of(folder)
        if found == cell.identity:
            return Outcome("finished")
        return Outcome(
            "changed", f"the code or a file that it reads was changed meanwhile ({found}, not {cell.identity})"
        )
    return _without_result(folder)


def _without_result(folder: Path) -> Outcome:
    """What `record` kept; anything else counts as not there."""
    try:
        found = json.loads(reading.content(folder / OUTCOME, LARGEST))
        state, sentence = found["state"], found["sentence"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return NOT_RUN
    return Outcome(state, " ".join(sentence.split())) if state in KEPT and isinstance(sentence, str) else NOT_RUN


def record(cell: Cell, root: Path, found: Outcome) -> None:
    """Keep why a run has no result."""
    text = json.dumps(asdict(found)) + "\n"
    write_atomically(root / cell.directory / OUTCOME, lambda path: path.write_text(text))


def identity_of(folder: Path) -> str | None:
    """`identity` in the config.yaml of a run.

    Raises:
        InputError: if that is damaged.
    """
    found = (run_config.read(folder) or {}).get("identity")
    return None if found is None else str(found)


def result(cell: Cell, root: Path) -> Result:
    """metrics.json of a finished run.

    Raises:
        InputError: if it is damaged.
    """
    folder = root / cell.directory
    found = run_results.read(folder)
    if found is None:
        raise InputError(f"{folder / run_results.NAME}: is gone; run the command of the table again")
    return found


def grid(plan: Plan, root: Path) -> Grid:
    """The table as far as its runs are finished."""
    return of_table(plan.table, plan.budget, entries(plan, root))


def entries(plan: Plan, root: Path) -> list[Entry]:
    """Every cell of rows times columns."""
    by_place: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        by_place.setdefault((cell.row, cell.column), []).append(cell)
    found = []
    for row in plan.table.rows:
        for column in plan.table.columns:
            published, reason = row.published.get(column.name), row.cannot.get(column.name)
            cells = by_place.get((row.name, column.name), [])
            if reason is None:
                reason = _unfinished(cells, root)
            whole = None if reason else merged([result(cell, root) for cell in cells])
            if whole is not None and plan.table.metric not in whole["metrics"]:
                reason = f"{plan.table.metric} was not measured"
            found.append(Entry(row.name, column.name, whole, reason, published))
    return found


def _unfinished(cells: Sequence[Cell], root: Path) -> str | None:
    """Why a cell has no figure: the first of its runs that has none says it."""
    open_ = [found for cell in cells if (found := outcome(cell, root)).state != "finished"]
    if not open_:
        return None if cells else "not planned"
    refused = [found for found in open_ if found.state == "refused"]
    if refused:
        return refused[0].sentence
    many = f"{len(open_)} of {len(cells)} seed ranges: " if len(cells) > 1 else ""
    first = open_[0]
    return f"{many}{first.state}: {first.sentence}" if first.state == "failed" else f"{many}{first.sentence}"
