"""`seeds=0-63`: the images asked for."""

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
    parts = str(text).split(",") if isinstance(text, str | int) else [str(part) for part in text]
    seeds: list[int] = []
    for part in parts:
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise InputError(f"{key}={text}: '{part}' is neither a number nor a range such as 0-63")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**63:
            raise InputError(
                f"{key}={text}: the range {part} runs backwards or past 2^63; write the smaller seed first"
            )
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{key}={text}: a seed occurs twice; every image needs its own")
    return seeds
