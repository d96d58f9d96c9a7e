"""Syntax of `labels=`, checked without torch so that a mistake is reported at once."""

import re
from pathlib import Path

from scoreline import reading
from scoreline.errors import InputError

SUFFIXES = (".txt", ".csv", ".npy", ".json")
"""File suffixes of label files; see `labels.read_label_file`."""


def is_label_file(rule: str) -> bool:
    """Return whether a rule is the name of a label file."""
    return Path(rule).suffix.lower() in SUFFIXES


def fixed_class(rule: str) -> int | None:
    """Return k of `fixed:k`, or None for any other rule."""
    found = re.fullmatch(r"fixed:([0-9]{1,18})", rule.lower())
    return int(found[1]) if found else None


def label_file(rule: str) -> Path:
    """Return the path of a label file.

    Raises:
        InputError: if it does not exist.
    """
    path = reading.place(rule, "labels")
    if not path.is_file():
        raise InputError(f"labels={rule}: no such file; give one with a class for each seed")
    return path


def check_rule(rule: object) -> str:
    """Return the rule in its normal form: a file name as given, anything else in lower case.

    Raises:
        InputError: if it is neither `random`, `balanced`, `none`, `fixed:k` nor the name of an existing label file.
    """
    given = str(rule)
    plain = given.lower()
    if is_label_file(given):
        label_file(given)
        return given
    if re.fullmatch(r"fixed:[0-9]{19,}", plain):
        raise InputError(f"labels={rule}: no model has so many classes; give one of the checkpoint's, from 0")
    if fixed_class(plain) is None and plain not in ("random", "balanced", "none"):
        raise InputError(f"labels={rule}: choose random, balanced, fixed:K, none or a file of classes (.txt, .csv, ..)")
    return plain
