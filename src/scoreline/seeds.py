"""`seeds=0-63`: the images asked for."""

import itertools
import re
from collections.abc import Iterable

from scoreline.errors import InputError


def parse_seeds(text: str | int | Iterable[int], key: str = "seeds") -> list[int]:
    """Image seeds from `7`, `0-63`, `0-9,20,30-39` or a list; order kept.

    Args:
        key: how errors name it.

    Raises:
        InputError: if a part is not a number or a range, a range runs backwards, or a seed occurs twice.
    """
    seeds = [seed for first, last in spans(text, key) for seed in range(first, last + 1)]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{key}={text}: a seed occurs twice; every image needs its own")
    return seeds


def spans(text: str | int | Iterable[int], key: str = "seeds") -> list[tuple[int, int]]:
    """First and last seed of each part, as `parse_seeds` reads them: no memory but for the text.

    Raises:
        InputError: if a part is not a number or a range, or a range runs backwards.
    """
    parts = str(text).split(",") if isinstance(text, str | int) else [str(part) for part in text]
    found = []
    for part in parts:
        match = re.fullmatch(r"\s*(\d{1,20})(?:-(\d{1,20}))?\s*", part)
        if not match:
            raise InputError(f"{key}={text}: '{part}' is neither a number nor a range such as 0-63")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**63:
            raise InputError(
                f"{key}={text}: the range {part} runs backwards or past 2^63; write the smaller seed first"
            )
        found.append((first, last))
    return found


def count(text: str) -> int:
    """How many seeds a text asks for."""
    return sum(last - first + 1 for first, last in spans(text))


def shared(spans: Iterable[tuple[int, int]]) -> bool:
    """Whether a seed is in two of these spans."""
    ordered = sorted(spans)
    return any(later[0] <= former[1] for former, later in itertools.pairwise(ordered))
