"""Check values of a config or a file against the type annotations of the code that receives them."""

import collections.abc
import dataclasses
import importlib
import math
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.values import is_number, is_whole

OWN = "scoreline."
"""Prefix of the targets that are checked."""

PLAIN = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
"""Annotations of plain values, as messages name them."""

LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


def refuse_wrong_types(config: Any, key: str = "") -> None:
    """Check every value below a `_target_` of this package against its annotation.

    A number must be one, and not NaN. Whatever annotations do not express, such as a range, the called code checks.

    Args:
        config: plain dictionaries and lists; interpolations in them are still text and are not checked.
        key: of `config` itself.

    Raises:
        InputError: naming the key.
    """
    if isinstance(config, list):
        for place, value in enumerate(config):
            refuse_wrong_types(value, f"{key}[{place}]")
    if not isinstance(config, dict):
        return
    hints = _hints(config.get("_target_"))
    for name, value in config.items():
        inner = f"{key}.{name}" if key else str(name)
        if name in hints and not _open(value) and not fits(value, hints[name]):
            raise InputError(f"{inner}={value}: must be {' or '.join(_words(hints[name]))}")
        refuse_wrong_types(value, inner)


def _hints(target: object) -> dict[str, Any]:
    """Return the annotations of the arguments of a class or function of this package; none for others."""
    if not isinstance(target, str) or not target.startswith(OWN):
        return {}
    module, _, name = target.rpartition(".")
    try:
        receiver = getattr(importlib.import_module(module), name)
        plain_class = isinstance(receiver, type) and not dataclasses.is_dataclass(receiver)
        return typing.get_type_hints(receiver.__init__ if plain_class else receiver)
    except (ImportError, AttributeError, NameError, TypeError):  # the caller of the target reports these
        return {}


def _open(value: Any) -> bool:
    """Return whether a value, or one in a list, is still an interpolation or missing."""
    if isinstance(value, list):
        return any(map(_open, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _members(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value, whose sequences are lists, matches an annotation.

    A dictionary that describes an object matches the object's class.
    """
    return any(_fits_one(value, member) for member in _members(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    if hint in PLAIN:
        return _fits_plain(value, hint)
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in LISTS:
        return isinstance(value, list) and all(fits(part, hint) for part, hint in _elements(value, hint))
    if origin is collections.abc.Callable:
        return isinstance(value, dict | str)
    if isinstance(origin, type) and origin is not object:
        return isinstance(value, dict | list) or origin in type(value).__mro__
    return True


def _elements(value: list[Any], hint: Any) -> Iterator[tuple[Any, Any]]:
    arguments = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if len(arguments) == 1:
        yield from ((part, arguments[0]) for part in value)


def _fits_plain(value: Any, hint: Any) -> bool:
    if hint is float:
        return is_number(value) and (value in (math.inf, -math.inf) or abs(value) <= sys.float_info.max)
    if hint is int:
        return is_whole(value, 1 - 2**63) and value < 2**63
    return isinstance(value, str if hint is Path else hint)


def _words(hint: Any) -> list[str]:
    """Return the values that match an annotation, in words."""
    words = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        words.append(PLAIN.get(member) or ("a list" if origin in LISTS else "a config with a _target_"))
    return list(dict.fromkeys(words))
