"""`labels=FILE`: the class of each image, read from a list or from the manifest of another run."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scoreline.errors import InputError
from scoreline.files import sha256
from scoreline.label_rules import label_file


def file_mark(rule: str) -> str:
    """`classes.txt:0123456789abcdef`: how a file of labels stands in results, by its content and no path."""
    return f"{Path(rule).name}:{sha256(Path(rule))[:16]}"


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
    except (ValueError, TypeError, KeyError, EOFError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise InputError(f"labels={rule}: {error}") from error
        raise InputError(f"labels={rule}: not a list of whole numbers ({error}); write one for each seed") from error
    if len(found) != len(seeds):
        raise InputError(f"labels={rule}: holds {len(found)} classes for {len(seeds)} seeds; give one for each seed")
    for seed, label in zip(seeds, found, strict=True):
        if not 0 <= label < num_classes:
            raise InputError(
                f"labels={rule}: class {label} of seed {seed} is out of range; this checkpoint has the classes 0 to "
                f"{num_classes - 1}"
            )
    return found


def _words(path: Path, seeds: Sequence[int]) -> list[int]:
    return [int(word) for word in path.read_text().split()]


def _json(path: Path, seeds: Sequence[int]) -> list[int]:
    found = json.loads(path.read_text())
    if not isinstance(found, list) or any(type(label) is not int for label in found):
        raise ValueError("it must be a list of integers")
    return found


def _array(path: Path, seeds: Sequence[int]) -> list[int]:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError("it must be a one-dimensional array of integers")
    return [int(label) for label in found]


def _table(path: Path, seeds: Sequence[int]) -> list[int]:
    with open(path, newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines or "label" not in lines[0]:
        if any(len(line) != 1 for line in lines):
            raise ValueError("several columns need a header with seed and label")
        return [int(line[0]) for line in lines]
    table = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    if "seed" not in lines[0]:
        return [int(line["label"]) for line in table]
    classes = {int(line["seed"]): line["label"] for line in table}
    without = [seed for seed in seeds if not classes.get(seed)]
    if without:
        raise InputError(f"gives no class for seed {without[0]}; add it, or leave the seed out")
    return [int(classes[seed]) for seed in seeds]


_READERS = {".txt": _words, ".json": _json, ".npy": _array, ".csv": _table}
