"""Which class each image is asked to be."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from scoreline import noise, npy, reading
from scoreline.errors import InputError
from scoreline.files import sha256
from scoreline.label_rules import check_rule, fixed_class, is_label_file, label_file

LONGEST = 2**25
"""Bytes of a list in .txt or .json: some ten million labels; .npy holds more."""

LONGEST_TABLE, LONGEST_LINE = 2**28, 2**16
"""Bytes of a .csv file, and characters of a line, which holds one image."""

ROWS = 2**22
"""Rows of a table, or values of a list, beyond the seeds that are asked for."""

WHOLE = re.compile("-?[0-9]{1,18}")


def plan_labels(rule: str | None, seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Class labels (len(seeds),) int64, or None for an unconditional run.

    Args:
        rule: `random` draws from the image's own seed, `balanced` is seed modulo classes, `fixed:k` is class k,
            `none` leaves the condition out, a name that ends as in `label_rules.SUFFIXES` is a file of classes
            (`read_label_file`). An unconditional model ignores `random`.

    Raises:
        InputError: for an unknown rule, a file that does not serve, a class out of range, or a class asked of an
            unconditional model.
    """
    rule = check_rule(rule)
    if num_classes == 0:
        if rule not in ("random", "none"):
            raise InputError(f"labels={rule}: this checkpoint is unconditional; drop the key")
        return None
    if is_label_file(rule):
        return torch.tensor(read_label_file(rule, seeds, num_classes))
    fixed = fixed_class(rule)
    if fixed is not None:
        if fixed >= num_classes:
            raise InputError(f"labels={rule}: this checkpoint has the classes 0 to {num_classes - 1}")
        return torch.full((len(seeds),), fixed)
    if rule == "balanced":
        return torch.tensor([seed % num_classes for seed in seeds])
    return noise.integers(seeds, num_classes, "label") if rule == "random" else None


def describe_labels(rule: str | None, labels: Tensor | None) -> str:
    """How the rule stands in results: `none` where no image has a label, a file by name and digest."""
    if labels is None:
        return "none"
    return file_mark(str(rule)) if is_label_file(str(rule)) else str(rule)


def file_mark(rule: str) -> str:
    """`classes.txt:0123456789abcdef`: how a file of labels stands in results, by its content and no path."""
    return f"{Path(rule).name}:{sha256(label_file(rule))[:16]}"


def read_label_file(rule: str, seeds: Sequence[int], num_classes: int) -> list[int]:
    """The class of each seed, from a file of one of these kinds:

    .txt   whole numbers set apart by blanks or line ends, one for each seed in the order of the seeds
    .json  a list of them
    .npy   a one-dimensional array of integers
    .csv   a column of them; or columns under the header `seed,label`, others are not read: a class then belongs to
           its seed, and there may be more seeds than are asked for, as in the manifest.csv of another run

    Raises:
        InputError: for a missing or damaged file, a number of classes that is not the number of seeds, a seed without
            a class, or a class out of range.
    """
    path = label_file(rule)
    try:
        found = _READERS[path.suffix.lower()](path, seeds)
    except InputError as error:
        raise InputError(f"labels={rule}: {error}") from error
    except (*reading.DAMAGE, csv.Error) as error:
        reason = f"not a list of whole numbers ({error!s:.160})"
        raise InputError(f"labels={rule}: {reason}; write one for each seed") from error
    _check_count(rule, len(found), seeds)
    for seed, label in zip(seeds, found, strict=True):
        if not 0 <= label < num_classes:
            raise InputError(
                f"labels={rule}: class {label} of seed {seed} is out of range; this checkpoint has the classes 0 to "
                f"{num_classes - 1}"
            )
    return found


def _check_count(rule: str | Path, count: int, seeds: Sequence[int]) -> None:
    if count != len(seeds):
        raise InputError(f"labels={rule}: holds {count} classes for {len(seeds)} seeds; give one for each seed")


def _whole(text: str) -> int:
    """A number in plain digits; `int` would take 1_000 and the digits of every script, too."""
    if not WHOLE.fullmatch(text.strip()):
        raise ValueError(f"{text!r:.40} is no whole number")
    return int(text)


def _words(path: Path, seeds: Sequence[int]) -> list[int]:
    text = reading.content(path, LONGEST).decode("utf-8-sig")
    return [_whole(word[0]) for word in re.finditer(r"\S+", text)]


def _json(path: Path, seeds: Sequence[int]) -> list[int]:
    found = reading.json_value(reading.content(path, LONGEST), ROWS + len(seeds))
    if not isinstance(found, list) or any(type(label) is not int for label in found):
        raise ValueError("it must be a list of integers")
    return found


def _array(path: Path, seeds: Sequence[int]) -> list[int]:
    found = npy.read(path)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError("it must be a one-dimensional array of integers")
    _check_count(path, len(found), seeds)
    return [int(label) for label in found]


def _table(path: Path, seeds: Sequence[int]) -> list[int]:
    with reading.regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        if reading.size(file) > LONGEST_TABLE:
            raise ValueError(f"it has more than {LONGEST_TABLE:,} bytes")
        rows = _rows(text, ROWS + len(seeds))
        header = next(rows, [])
        if "label" not in header:
            return [_alone(row) for row in [header] * bool(header) + list(rows)]
        if len(set(header)) < len(header):
            raise ValueError("its header names a column twice")
        label = header.index("label")
        if "seed" not in header:
            return [_whole(_fitting(row, header)[label]) for row in rows]
        return _by_seed(rows, header, seeds)


def _rows(text: IO[str], most: int) -> Iterator[list[str]]:
    """The rows of a table, a line each; empty lines are skipped."""
    while line := text.readline(LONGEST_LINE):
        most -= 1
        if most < 0 or len(line) == LONGEST_LINE:
            raise ValueError("it has too many lines, or one that is too long")
        yield from filter(None, csv.reader([line], strict=True))


def _alone(row: list[str]) -> int:
    if len(row) != 1:
        raise ValueError("several columns need a header with seed and label")
    return _whole(row[0])


def _fitting(row: list[str], header: list[str]) -> list[str]:
    if len(row) != len(header):
        raise ValueError(f"a line has {len(row)} columns, its header {len(header)}")
    return row


def _by_seed(rows: Iterable[list[str]], header: list[str], seeds: Sequence[int]) -> list[int]:
    wanted, classes = set(seeds), dict[int, str]()
    seed_at, label_at = header.index("seed"), header.index("label")
    for row in rows:
        seed, label = _whole(_fitting(row, header)[seed_at]), row[label_at].strip()
        if seed in wanted and label and classes.setdefault(seed, label) != label:
            raise InputError(f"gives seed {seed} the classes {classes[seed]:.20} and {label:.20}; keep the right one")
    without = [seed for seed in seeds if seed not in classes]
    if without:
        raise InputError(f"gives no class for seed {without[0]}; add it, or leave the seed out")
    return [_whole(classes[seed]) for seed in seeds]


_READERS = {".txt": _words, ".json": _json, ".npy": _array, ".csv": _table}
