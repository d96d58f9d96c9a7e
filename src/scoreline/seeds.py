"""`seeds=0-63`: the images asked for."""

import re
from collections.abc import Iterable, Sequence
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
    if not isinstance(text, Iterable):
        text = str(text)
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    if not parts:
        raise InputError(f"{key}={text}: no seed is given; give a number or a range such as 0-63")
    ranges = [_range(f"{key}={text}", part) for part in parts]
    count = sum(map(len, ranges))
    if count > MOST:
        raise InputError(
            f"{key}={text}: {count:,} seeds, a run has at most {MOST:,}; ask for the others in runs of their own"
        )
    _refuse_twice(f"{key}={text}", ranges)
    return [seed for one in ranges for seed in one]


def _range(given: str, part: str) -> range:
    match = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
    if not match:
        beyond = "past 2^63" if re.fullmatch(r"[\s0-9-]{20,}", part) else "neither a number nor a range such as 0-63"
        raise InputError(f"{given}: '{part}' is {beyond}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last >= 2**63:
        raise InputError(f"{given}: the range {part} runs backwards or past 2^63; write the smaller seed first")
    return range(first, last + 1)


def _refuse_twice(given: str, ranges: Sequence[range]) -> None:
    if any(after.start < before.stop for before, after in pairwise(sorted(ranges, key=lambda one: one.start))):
        raise InputError(f"{given}: a seed occurs twice; every image needs its own")
