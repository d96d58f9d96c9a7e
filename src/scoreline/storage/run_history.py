"""Flat rows of a run directory's records, equal during training and when the directory is read later."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scoreline.errors import InputError

Row = dict[str, Any]
"""Flat names to numbers, words, the path of a picture, or a table as a list of lines with equal keys."""


def row(metrics: Mapping[str, Any], axis: str = "kimg") -> Row:
    """Flatten nested metrics; the value of the axis stands under its bare name.

    {"train": {"kimg": 1.6, "loss": 0.3, "bins": {"low": 0.1}}} becomes {"kimg": 1.6, "train/loss": 0.3,
    "train/bins/low": 0.1}. A list of numbers counts as values at even places, named by the percent of the way:
    sigma_0 .. sigma_100. None and other lists are left out. A row stays as it is.
    """
    leaves = dict(_leaves("", metrics))
    places = [name for name in leaves if name in (axis, f"{name.partition('/')[0]}/{axis}")]
    rest = {name: value for name, value in leaves.items() if name not in places}
    return {axis: leaves[places[0]], **rest} if places else rest


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}/{key}" if name else str(key), inner)
    elif isinstance(value, list):
        if all(isinstance(number, int | float) for number in value):
            last = max(len(value) - 1, 1)
            yield from ((f"{name}_{100 * k / last:g}", number) for k, number in enumerate(value))
    elif value is not None:
        yield name, value


def picture_row(path: Path) -> Row:
    """Return previews/000064kimg.png as a row; empty for a file of another name."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)kimg", path.stem)
    return {"kimg": float(match[1]), path.parent.name: path} if match else {}


def history(root: Path) -> list[Row]:
    """Read metrics.jsonl, the previews and online_schedule.jsonl, as far as they exist, in order of kimg.

    Raises:
        InputError: for a line that is no record, unless it is a last one that a kill cut short.
    """
    rows = [row({"train": record}) for record in records(root / "metrics.jsonl")]
    rows += filter(None, map(picture_row, sorted((root / "previews").glob("*.png"))))
    rows += [row({"online_schedule": record}) for record in records(root / "online_schedule.jsonl")]
    return sorted(rows, key=lambda it: float(it["kimg"]))


def records(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines that each have a kimg; no record if there is no file.

    Raises:
        InputError: as `history`.
    """
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_record(path, number, text) for number, text in enumerate(lines, 1)]


def _record(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        if isinstance(record["kimg"], int | float):
            return dict(record)
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path}: line {number} is no record with a kimg; delete that line")
