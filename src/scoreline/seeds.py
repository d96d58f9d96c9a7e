"""`seeds=0-63`: the images asked for."""

import re
from collections.abc import Iterable
from itertools import pairwise

from scoreline.errors import InputError

MOST = 10_000_000
"""Images of a run; more of them are several runs, each with seeds of its own."""


def parse_seeds(text: str | int | Iterable[int], key: str = "seeds") -> list[int]:
    """Image seeds from `7`, `0-63`, `0-9,20,30-39` or a list; order kept.

    Args:
        key: how errors name it.

    Raises:
        InputError: if there is none, a part is not a number or a range, a range runs backwards, a seed occurs twice, or
            there are more than `MOST`.
    """
    found = spans(text, key)
    total = sum(last - first + 1 for first, last in found)
    if total > MOST:
        raise InputError(
            f"{key}={text}: {total:,} seeds, a run has at most {MOST:,}; ask for the others in runs of their own"
        )
    if shared(found):
        raise InputError(f"{key}={text}: a seed occurs twice; every image needs its own")
    return [seed for first, last in found for seed in range(first, last + 1)]


def spans(text: str | int | Iterable[int], key: str = "seeds") -> list[tuple[int, int]]:
    """First and last seed of each part, as `parse_seeds` reads them: no memory but for the text.

    Raises:
        InputError: if there is none, a part is not a number or a range, or a range runs backwards.
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
    """How many seeds a text asks for."""
    return sum(last - first + 1 for first, last in spans(text))


def shared(found: Iterable[tuple[int, int]]) -> bool:
    """Whether a seed is in two of these spans."""
    return any(later[0] <= former[1] for former, later in pairwise(sorted(found)))
