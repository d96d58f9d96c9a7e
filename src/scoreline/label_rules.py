"""Rules of `labels=`, without the arrays that they make."""

import re
from pathlib import Path

from scoreline import reading
from scoreline.errors import InputError

SUFFIXES = (".txt", ".csv", ".npy", ".json")
"""Of a file of classes; see `labels.read_label_file`."""


def is_label_file(rule: str) -> bool:
    """Whether a rule for labels is the name of a file."""
    return Path(rule).suffix.lower() in SUFFIXES


def fixed_class(rule: str) -> int | None:
    """k of `fixed:k`, None for another rule."""
    found = re.fullmatch(r"fixed:([0-9]{1,18})", rule.lower())
    return int(found[1]) if found else None


def _too_large(rule: str) -> bool:
    return bool(re.fullmatch(r"fixed:[0-9]{19,}", rule))


def label_file(rule: str) -> Path:
    """Raises: InputError if no file of this name is there."""
    path = reading.place(rule, "labels")
    if not path.is_file():
        raise InputError(f"labels={rule}: no such file; give one with a class for each seed")
    return path


def check_rule(rule: object) -> str:
    """The rule as it is understood: a file's name as given, else in lower case.

    Raises:
        InputError: if it is neither `random`, `balanced`, `none`, `fixed:k` nor the name of a file of classes that is
            there.
    """
    given = str(rule)
    plain = given.lower()
    if is_label_file(given):
        label_file(given)
        return given
    if _too_large(plain):
        raise InputError(f"labels={rule}: no model has so many classes; give one of the checkpoint's, from 0")
    if fixed_class(plain) is None and plain not in ("random", "balanced", "none"):
        raise InputError(f"labels={rule}: choose random, balanced, fixed:K, none or a file of classes (.txt, .csv, ..)")
    return plain
