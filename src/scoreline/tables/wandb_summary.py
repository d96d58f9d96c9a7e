"""Run directories and tables as rows for W&B: a table is a run for each finished cell and one of its values."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scoreline.generation import run_results
from scoreline.storage import run_config, wandb_runs
from scoreline.storage.run_history import Row, history
from scoreline.storage.wandb_runs import Recorded
from scoreline.tables import plan
from scoreline.tables.grid import Grid, statistic_of

NUMBERS = ("images", "network_calls", "seconds", "images_per_second")
"""Keys of metrics.json that become values of a row; its metrics do too, the others belong to the config."""

PICTURES = ("grid.png", "trajectories.png")


def read_run(root: Path) -> Recorded | None:
    """Read a run directory of train.py, calibrate.py or sample.py, or that of a table; None without results.

    Raises:
        InputError: if a file is damaged.
    """
    config = run_config.read(root) or {}
    if (root / plan.PLAN).is_file():
        return Recorded("table", config, {"*": "column"}, _table_rows(root))
    if rows := history(root):
        return Recorded("train", config, {"*": "kimg"}, rows)
    if result := run_results.read(root):
        return Recorded("sample", config | {"sample": _choices(result)}, {"*": "nfe"}, [_sampled(root, result)])
    for plot in root.glob("*.png"):
        if (record := plot.with_suffix(".safetensors")).is_file():
            return _calibrated(record, plot, config)
    return None


def directories(root: Path) -> list[Path]:
    """Return the directories of the finished cells of a table, then its own."""
    cells = plan.load(root).cells
    return [*(root / cell.directory for cell in cells if plan.outcome(cell, root).state == "finished"), root]


def publish(roots: Iterable[Path], mode: str, quiet: bool = False) -> None:
    """Send finished run directories to W&B; an error becomes one warning, and ends the sending.

    Args:
        roots: the directories.
        mode: off, which sends nothing, offline or online.
        quiet: prints no line for each of them.
    """
    for root in roots if mode != "off" else ():
        try:
            with _silent_logging():
                recorded = read_run(root)
                line = wandb_runs.upload(root, recorded, offline=mode == "offline") if recorded else ""
        except Exception as error:
            wandb_runs.warn(error, root, "the results are complete")
            break
        if line and not quiet:
            print(line)


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Print no traceback for a line of wandb's own log that a full disk does not take; there are hundreds."""
    former, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = former


def _table_rows(root: Path) -> list[Row]:
    """Return one row per column, at its number or else its place, of `METRIC/ROW` to value; the last has the figure."""
    grid = plan.grid(plan.load(root), root)
    try:
        places = [float(column) for column in grid.columns]
    except ValueError:
        places = [float(k) for k in range(len(grid.columns))]
    rows = [{"column": place, **_values(grid, column)} for place, column in zip(places, grid.columns, strict=True)]
    if (root / "table.png").is_file():
        rows[-1]["figure"] = root / "table.png"
    return rows


def _values(grid: Grid, column: str) -> Row:
    values: Row = {}
    for entry in grid.entries():
        if entry.column == column and (shown := statistic_of(entry, grid.metric, grid.paper)) is not None:
            values[f"{grid.metric}/{entry.row}"] = shown.mean["value"]
            values[f"{grid.metric}_error/{entry.row}"] = shown.mean["error"]
            if shown.minimum_of > 1:
                values[f"{grid.metric}_minimum/{entry.row}"] = shown.value
    return values


def _sampled(root: Path, result: run_results.Result) -> Row:
    """Return the numbers of metrics.json at its `nfe`, with the pictures beside it."""
    row = {"nfe": result["nfe"], **{f"sample/{key}": result[key] for key in NUMBERS if result.get(key)}}
    for name, score in result["metrics"].items():
        row |= {f"sample/{name}": score["value"], f"sample/{name}_error": score["error"]}
    return row | {Path(name).stem: root / name for name in PICTURES if (root / name).is_file()}


def _choices(result: run_results.Result) -> dict[str, Any]:
    """Return what metrics.json says beside numbers: names of solver and schedule, checkpoint, protocol, warnings."""
    return {key: value for key, value in result.items() if key not in (*NUMBERS, "metrics", "files", "nfe")}


def _calibrated(path: Path, plot: Path, config: dict[str, Any]) -> Recorded:
    """Return the curves of a record with its plot, and its provenance as config.

    Raises:
        InputError: if the file is no record.
    """
    from scoreline.calibration import record_rows
    from scoreline.records import read_record

    record = read_record(path, (path.stem,), None)
    axes, rows = record_rows.rows(record)
    rows[-1]["plot"] = plot
    source = {key: value for key, value in record.provenance.items() if not isinstance(value, list)}
    return Recorded("calibrate", config | {"provenance": {"kind": record.kind, **source}}, axes, rows)
