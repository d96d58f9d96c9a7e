"""Class labels of the images of a run: by a rule, or from a file."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.runtime import seeded_noise
from scoreline.storage import bounded_reading, npy
from scoreline.storage.files import sha256
from scoreline.values import check_label_rule, fixed_class, is_label_file, label_file

LONGEST = 2**25
"""Largest .txt or .json file in bytes, some ten million labels; .npy holds more."""

LONGEST_TABLE, LONGEST_LINE = 2**28, 2**16
"""Largest .csv file in bytes, and its longest line in characters; a line holds one image."""

ROWS = 2**22
"""Rows of a table, or values of a list, that a file may hold beyond the requested seeds."""

WHOLE = re.compile("-?[0-9]{1,18}")


def plan_labels(
    rule: str | None, seeds: Sequence[int], num_classes: int, counts: Sequence[int] | None = None
) -> Tensor | None:
    """Return class labels (len(seeds),) int64, or None for an unconditional run.

    Args:
        rule: `random` draws from the image's own seed, in proportion to `counts`, `balanced` is seed modulo classes,
            `fixed:k` is class k, `none` leaves the condition out, a name with one of `values.LABEL_SUFFIXES` is a
            label file (`_read_label_file`). An unconditional model ignores `random`.
        seeds: the seeds of the images.
        num_classes: number of classes of the model; 0 if it is unconditional.
        counts: number of training images of each class (`class_counts` of the card); None for equal ones.

    Raises:
        InputError: for an unknown rule, an unusable file, a class out of range, or a class for an unconditional model.
    """
    rule = check_label_rule(rule)
    if num_classes == 0:
        if rule not in ("random", "none"):
            raise InputError(f"labels={rule}: this checkpoint is unconditional; drop the key")
        return None
    if is_label_file(rule):
        return torch.tensor(_read_label_file(rule, seeds, num_classes))
    fixed = fixed_class(rule)
    if fixed is not None:
        if fixed >= num_classes:
            raise InputError(f"labels={rule}: this checkpoint has the classes 0 to {num_classes - 1}")
        return torch.full((len(seeds),), fixed)
    if rule == "balanced":
        return torch.tensor([seed % num_classes for seed in seeds])
    return _random(seeds, counts or [1] * num_classes) if rule == "random" else None


def _random(seeds: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Draw the class of a training image chosen uniformly: with equal counts floor(classes u), u the seed's number."""
    ends = torch.tensor(counts).cumsum(0)
    return torch.searchsorted(ends, seeded_noise.integers(seeds, int(ends[-1]), "label"), right=True)


def describe_labels(rule: str | None, labels: Tensor | None) -> str:
    """Return the rule as results record it: `none` if no image has a label, a file by name and digest."""
    if labels is None:
        return "none"
    return _file_mark(str(rule)) if is_label_file(str(rule)) else str(rule)


def _file_mark(rule: str) -> str:
    """Return `classes.txt:0123456789abcdef`, which identifies a label file by its content, without its folder."""
    return f"{Path(rule).name}:{sha256(label_file(rule))[:16]}"


def _read_label_file(rule: str, seeds: Sequence[int], num_classes: int) -> list[int]:
    """Read the class of each seed from a file of one of these kinds.

    .txt   whole numbers separated by blanks or line ends, one for each seed in the order of the seeds
    .json  a list of them
    .npy   a one-dimensional array of integers
    .csv   a column of them; or columns `seed` and `label` under a header, further columns are ignored: each class then
           belongs to its seed, and the file may hold further seeds, as the manifest.csv of another run does

    Raises:
        InputError: for a missing or damaged file, a number of classes that is not the number of seeds, a seed without
            a class, or a class out of range.
    """
    path = label_file(rule)
    try:
        labels = _READERS[path.suffix.lower()](path, seeds)
    except InputError as error:
        raise InputError(f"labels={rule}: {error}") from error
    except (*bounded_reading.DAMAGE, csv.Error) as error:
        reason = f"not a list of whole numbers ({error!s:.160})"
        raise InputError(f"labels={rule}: {reason}; write one for each seed") from error
    _check_count(rule, len(labels), seeds)
    for seed, label in zip(seeds, labels, strict=True):
        if not 0 <= label < num_classes:
            raise InputError(
                f"labels={rule}: class {label} of seed {seed} is out of range; this checkpoint has the classes 0 to "
                f"{num_classes - 1}"
            )
    return labels


def _check_count(rule: str | Path, count: int, seeds: Sequence[int]) -> None:
    if count != len(seeds):
        raise InputError(f"labels={rule}: holds {count} classes for {len(seeds)} seeds; give one for each seed")


def _whole(text: str) -> int:
    """Parse plain digits; `int` would accept 1_000 and the digits of other scripts, too."""
    if not WHOLE.fullmatch(text.strip()):
        raise ValueError(f"{text!r:.40} is no whole number")
    return int(text)


def _words(path: Path, seeds: Sequence[int]) -> list[int]:
    text = bounded_reading.content(path, LONGEST).decode("utf-8-sig")
    return [_whole(word[0]) for word in re.finditer(r"\S+", text)]


def _json(path: Path, seeds: Sequence[int]) -> list[int]:
    labels = bounded_reading.json_value(bounded_reading.content(path, LONGEST), ROWS + len(seeds))
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("it must be a list of integers")
    return labels


def _array(path: Path, seeds: Sequence[int]) -> list[int]:
    labels = npy.read(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError("it must be a one-dimensional array of integers")
    _check_count(path, len(labels), seeds)
    return [int(label) for label in labels]


def _table(path: Path, seeds: Sequence[int]) -> list[int]:
    with bounded_reading.regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        if bounded_reading.size(file) > LONGEST_TABLE:
            raise ValueError(f"it has more than {LONGEST_TABLE:,} bytes")
        rows = _rows(text, ROWS + len(seeds))
        header = next(rows, [])
        if "label" not in header:
            return [_only_column(row) for row in [header] * bool(header) + list(rows)]
        if len(set(header)) < len(header):
            raise ValueError("its header names a column twice")
        label = header.index("label")
        if "seed" not in header:
            return [_whole(_full_row(row, header)[label]) for row in rows]
        return _by_seed(rows, header, seeds)


def _rows(text: IO[str], most: int) -> Iterator[list[str]]:
    """Yield the rows of a table, one for each line; empty lines are skipped."""
    while line := text.readline(LONGEST_LINE):
        most -= 1
        if most < 0 or len(line) == LONGEST_LINE:
            raise ValueError("it has too many lines, or one that is too long")
        yield from filter(None, csv.reader([line], strict=True))


def _only_column(row: list[str]) -> int:
    if len(row) != 1:
        raise ValueError("several columns need a header with seed and label")
    return _whole(row[0])


def _full_row(row: list[str], header: list[str]) -> list[str]:
    if len(row) != len(header):
        raise ValueError(f"a line has {len(row)} columns, its header {len(header)}")
    return row


def _by_seed(rows: Iterable[list[str]], header: list[str], seeds: Sequence[int]) -> list[int]:
    own, classes = set(seeds), dict[int, str]()
    seed_at, label_at = header.index("seed"), header.index("label")
    for row in rows:
        seed, label = _whole(_full_row(row, header)[seed_at]), row[label_at].strip()
        if seed in own and label and classes.setdefault(seed, label) != label:
            raise InputError(f"gives seed {seed} the classes {classes[seed]:.20} and {label:.20}; keep the right one")
    without = [seed for seed in seeds if seed not in classes]
    if without:
        raise InputError(f"gives no class for seed {without[0]}; add it, or leave the seed out")
    return [_whole(classes[seed]) for seed in seeds]


_READERS = {".txt": _words, ".json": _json, ".npy": _array, ".csv": _table}
