"""Rules for the text and the tensors of model files, records and snapshots.

Everything in such a file is data, which is checked against the rules of its kind before anything is built from it.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

LONGEST = 2**22
"""Largest number of characters of JSON in one entry of the metadata."""

DEEPEST = 32
"""Deepest nesting of lists and objects."""

MOST_NUMBERS = 2**24
"""Largest number of values in one tensor of a record."""


class Rule(Protocol):
    """A check of a JSON value."""

    def __call__(self, name: str, value: Any) -> None:
        """Check a value.

        Raises:
            ValueError: saying what `name` is and must be.
        """


def excerpt(value: Any) -> str:
    """Return a value as messages quote it."""
    return reprlib.repr(value)[:60]


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def __call__(self, name: str, value: Any) -> None:
        return


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`, which is an integer if `whole` and greater than `least` if `above`."""

    least: float = -1e12
    most: float = 1e12
    whole: bool = False
    above: bool = False

    def __call__(self, name: str, value: Any) -> None:
        kind = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        if not kind or not self.least <= value <= self.most or (self.above and value == self.least):
            what = "a whole number" if self.whole else "a number"
            least = f"above {self.least:.9g} and up" if self.above else f"from {self.least:.9g}"
            raise ValueError(f"{name} is {excerpt(value)}, not {what} {least} to {self.most:.9g}")


def integer(least: float, most: float) -> Number:
    """Return the rule of an integer from `least` to `most`."""
    return Number(least, most, whole=True)


@dataclass(frozen=True)
class Text:
    """A string that matches the whole pattern; `what` names it in messages."""

    pattern: str = r"(?s:.*)"
    what: str = "a string"

    def __call__(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"{name} is {excerpt(value)}, not {self.what}")


@dataclass(frozen=True)
class ListOf:
    """A list of `least` to `most` values that obey the same rule."""

    item: Rule
    least: int = 0
    most: int = 10**6

    def __call__(self, name: str, value: Any) -> None:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
            raise ValueError(f"{name} is {excerpt(value)}, not a list of {count}")
        for place, item in enumerate(value):
            self.item(f"{name}[{place}]", item)


@dataclass(frozen=True)
class Either:
    """A list that obeys `listed`, or another value that obeys `single`."""

    single: Rule
    listed: Rule

    def __call__(self, name: str, value: Any) -> None:
        (self.listed if isinstance(value, list) else self.single)(name, value)


@dataclass(frozen=True)
class Object:
    """An object with all keys of `required`, perhaps those of `optional`; others obey `others`, None for no others."""

    required: Mapping[str, Rule] = field(default_factory=dict)
    others: Rule | None = None
    optional: Mapping[str, Rule] = field(default_factory=dict)

    def __call__(self, name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {excerpt(value)}, not an object")
        rules = {**self.optional, **self.required}
        missing, more = self.required.keys() - value.keys(), value.keys() - rules.keys()
        if missing:
            raise ValueError(f"{name} has no {min(missing)}")
        if more and self.others is None:
            raise ValueError(f"{name} has {excerpt(min(more))}, which is not part of it")
        for key, item in value.items():
            rules.get(key, self.others or Anything())(f"{name}.{key:.40}", item)


PLAIN = Object(others=Anything())
"""Any object."""


@dataclass(frozen=True)
class Values:
    """A tensor of finite float64 numbers, or of int64 if `whole`.

    Attributes:
        sizes: for each axis a number, or a letter for the size of the first tensor with that letter, or `K-1` for one
            less.
        least: smallest value.
        above: whether all values are greater than `least`.
        whole: whether the type is int64.
        order: 1 if values strictly increase, -1 if they strictly decrease.
        unknown: whether NaN or an infinity may stand for an unknown number.
        triangular: whether values above the diagonal are zero.
        fewest: smallest size of an axis.
        optional: whether a file may lack the tensor.
    """

    sizes: tuple[int | str, ...]
    least: float = -math.inf
    above: bool = False
    whole: bool = False
    order: int = 0
    unknown: bool = False
    triangular: bool = False
    fewest: int = 1
    optional: bool = False

    def check_header(self, name: str, shape: list[int], dtype: str, letters: dict[str, int]) -> None:
        """Check type and shape; `letters` are the sizes known so far, to which this adds.

        Raises:
            ValueError: for another type or shape.
        """
        type_name = "I64" if self.whole else "F64"
        if dtype != type_name:
            raise ValueError(f"tensor {name} is of type {dtype}, not {type_name}")
        sizes = [_size(size, has, letters) for size, has in zip(self.sizes, shape, strict=False)]
        if len(shape) != len(self.sizes) or sizes != shape or math.prod(shape) > MOST_NUMBERS:
            raise ValueError(f"tensor {name} has shape {excerpt(shape)}, not ({', '.join(map(str, self.sizes))})")
        if min(shape) < self.fewest:
            raise ValueError(f"tensor {name} has shape {excerpt(shape)}, fewer than {self.fewest}")

    def check_values(self, name: str, values: Tensor) -> None:
        """Check the values.

        Raises:
            ValueError: for a value that is not allowed.
        """
        numbers = values[values.isfinite()] if self.unknown else values
        inside = numbers > self.least if self.above else numbers >= self.least
        if not bool((inside & (numbers.abs() < math.inf)).all()):
            least = f" {'above' if self.above else 'from'} {self.least:g}" if self.least > -math.inf else ""
            raise ValueError(f"tensor {name} has a value that is no finite number{least}")
        if self.order and not bool((values.diff() * self.order > 0).all()):
            raise ValueError(f"tensor {name} does not strictly {'increase' if self.order > 0 else 'decrease'}")
        if self.triangular and bool(values.triu(1).any()):
            raise ValueError(f"tensor {name} has values above its diagonal")


def _size(size: int | str, has: int, letters: dict[str, int]) -> int:
    if isinstance(size, int):
        return size
    letter, less = size[0], size.endswith("-1")
    return letters.setdefault(letter, has + less) - less


def parse(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: in one line, if the text is not JSON, too long, nested too deeply, or has a key twice or an invalid
            character.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters of JSON, more than {LONGEST:,}")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    _check_nested(value, DEEPEST)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("JSON with a key that occurs twice")
    return unique


def _check_nested(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode()
    if not isinstance(value, list | dict):
        return
    if depth == 0:
        raise ValueError(f"JSON that is nested more than {DEEPEST} deep")
    inside: Iterable[Any] = value if isinstance(value, list) else (*value.keys(), *value.values())
    for item in inside:
        _check_nested(item, depth - 1)


def parse_entries(metadata: Mapping[str, str], rules: Mapping[str, Rule], plain: Iterable[str]) -> dict[str, Any]:
    """Parse the entries of a file's metadata that are JSON, and check each by its rule.

    Args:
        metadata: texts by name.
        rules: of the JSON entries.
        plain: names of further entries, which are not JSON.

    Raises:
        ValueError: in one line, if an entry is missing, unknown, not JSON or against its rule.
    """
    unknown = metadata.keys() - rules.keys() - set(plain)
    if unknown:
        raise ValueError(f"its metadata has {excerpt(min(unknown))}, which is not part of it")
    return {name: _entry(name, metadata, rule) for name, rule in rules.items()}


def _entry(name: str, metadata: Mapping[str, str], rule: Rule) -> Any:
    if name not in metadata:
        raise ValueError(f"its metadata has no {name}")
    try:
        value = parse(metadata[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    rule(name, value)
    return value


def check_tensors(rules: Mapping[str, Values], shapes: Mapping[str, list[int]], types: Mapping[str, str]) -> None:
    """Check the names, types and shapes of tensors.

    Raises:
        ValueError: in one line, for the first that violates its rule.
    """
    missing = [name for name, rule in rules.items() if name not in shapes and not rule.optional]
    if missing:
        raise ValueError(f"it has no tensor {missing[0]}")
    for name in shapes:
        if name not in rules:
            raise ValueError(f"it has a tensor {excerpt(name)}, which is not part of it")
    letters: dict[str, int] = {}
    for name, rule in rules.items():
        if name in shapes:
            rule.check_header(name, shapes[name], types[name], letters)
