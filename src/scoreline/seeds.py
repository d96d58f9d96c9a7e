"""Parse `seeds=0-63`."""

import re
from collections.abc import Iterable
from itertools import pairwise

from scoreline.errors import InputError

MOST = 10_000_000
"""Largest number of images of a run."""


def parse_seeds(text: str | int | Iterable[int], key: str = "seeds") -> list[int]:
    """Return the image seeds of `7`, `0-63`, `0-9,20,30-39` or a list, in the given order.

    Args:
        text: the seeds as the user wrote them.
        key: the name of the key in messages.

    Raises:
        InputError: if there is no seed, a part is not a number or a range, a range runs backwards, a seed occurs twice,
            or there are more than `MOST` seeds.
    """
    found = spans(text, key)
    total = sum(last - first + 1 for first, last in found)
    if total > MOST:
        raise InputError(
            f"{key}={text}: {total:,} seeds are more than the {MOST:,} of a run; split them into several runs"
        )
    if shared(found):
        raise InputError(f"{key}={text}: a seed occurs twice; every image needs its own")
    return [seed for first, last in found for seed in range(first, last + 1)]


def spans(text: str | int | Iterable[int], key: str = "seeds") -> list[tuple[int, int]]:
    """Return the first and last seed of each part, without expanding the ranges.

    Raises:
        InputError: if there is no seed, a part is not a number or a range, or a range runs backwards.
    """
    if not isinstance(text, Iterable):
        text = str(text)
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    if not parts:
        raise InputError(f"{key}={text}: no seed is given; give a number or a range such as 0-63")
    return [_span(f"{key}={text}", part) for part in parts]


def _span(given: str, part: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
    if not match:
        beyond = "past 2^63" if re.fullmatch(r"[\s0-9-]{20,}", part) else "neither a number nor a range such as 0-63"
        raise InputError(f"{given}: '{part}' is {beyond}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last >= 2**63:
        raise InputError(f"{given}: the range {part} runs backwards or past 2^63; write the smaller seed first")
    return first, last


def count(text: str) -> int:
    """Return the number of seeds that a text asks for."""
    return sum(last - first + 1 for first, last in spans(text))


def shared(found: Iterable[tuple[int, int]]) -> bool:
    """Return whether two of these spans overlap."""
    return any(later[0] <= former[1] for former, later in pairwise(sorted(found)))
