"""Checks of plain values without PyTorch, in this order: numbers, switches and choices, seeds, label rules."""

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from scoreline.errors import InputError, did_you_mean
from scoreline.storage import bounded_reading

LARGEST_SEED = 2**63 - 1
"""Largest seed: it fits an int64 tensor."""

MOST_THREADS = 1024
"""Largest number of threads of a process."""

LARGEST_BATCH = 2**20
"""Most images in a training step; the index of a larger one alone would fill the memory."""

LARGEST_KIMG = 10**9
"""Most thousands of images of a training."""

LIMITS = {
    **{"nfe": 10_000, "trajectory_nfe": 10_000, "network_batch": 65_536, "jobs": 1024, "threads": MOST_THREADS},
    **{"workers": 1024, "seed": LARGEST_SEED},
}
"""Upper limits of keys on which time or memory depend."""

LIMIT_ELSE = 2**31 - 1
"""Upper limit of all other whole numbers."""


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object, least: int = 1) -> TypeGuard[int]:
    """Return whether a value is a whole number, at least `least`; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole_number(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number from the config.

    Args:
        key: its name in messages.
        value: the value of the key.
        least: lower limit.
        most: upper limit; None takes that of `LIMITS`, else `LIMIT_ELSE`.

    Raises:
        InputError: if the value is no integer within the limits.
    """
    most = LIMITS.get(key, LIMIT_ELSE) if most is None else most
    if not is_whole(value, least):
        raise InputError(f"{key}={value}: must be a whole number, at least {least}")
    if value > most:
        raise InputError(f"{key}={value}: must be a whole number, at most {most}")
    return value


def real_number(key: str, value: Any, above: float = 0.0, zero: bool = False) -> float:
    """Return a finite number from the config.

    Args:
        key: its name in messages.
        value: the value of the key.
        above: lower limit, itself not allowed.
        zero: whether 0 is allowed too.

    Raises:
        InputError: if the value is no finite number greater than `above`.
    """
    if not is_number(value) or not (above < value <= sys.float_info.max or (zero and value == 0)):
        raise InputError(f"{key}={value}: must be a number greater than {above:g}{', or 0' if zero else ''}")
    return float(value)


def images_of_kimg(key: str, kimg: Any) -> int:
    """Return thousands of images from the config as a whole number of images, at least 1.

    Args:
        key: its name in messages.
        kimg: the value of the key.

    Raises:
        InputError: if the value is no such number, or above `LARGEST_KIMG`.
    """
    images = round(real_number(key, kimg) * 1000)
    if kimg > LARGEST_KIMG:
        raise InputError(f"{key}={kimg}: must be at most {LARGEST_KIMG}, in thousands of images")
    if not images:
        raise InputError(f"{key}={kimg}: less than one image; give 0.001 at least, in thousands of images")
    return images


LARGEST_SIDE = 2**16
"""Most pixels along a side of an image."""


def image_size(key: str, value: Any) -> tuple[int, int] | None:
    """Return (H, W) of `64`, of `[64, 96]`, height first, or None.

    Args:
        key: its name in messages.
        value: the value of the key.

    Raises:
        InputError: if the value is neither of these.
    """
    if value is None:
        return None
    sides = value if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(is_whole(side) and side <= LARGEST_SIDE for side in sides):
        raise InputError(f"{key}={value}: give the side of square images, as 64, or [height,width], as [64,96]")
    return sides[0], sides[1]


def check_switch(key: str, value: object) -> bool:
    """Return the value if it is true or false.

    Raises:
        InputError: naming the key.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false")
    return value


CARD = "card"
"""Value of a key that leaves the decision to the model's card."""


def check_layout(key: str, value: object) -> bool | None:
    """Return the value if it is true or false, None for `CARD`.

    Raises:
        InputError: naming the key.
    """
    if value == CARD:
        return None
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be {CARD}, true or false")
    return value


PRECISION: dict[str, str | None] = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Lightning's name -> torch's type of matrix products and convolutions; None keeps the network's own."""

COMPILE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"dynamic": False},
    "max-autotune": {"dynamic": False, "mode": "max-autotune"},
}
"""Options of torch.compile by the name of the choice; None runs the network without it."""

FINAL = ("none", "denoise")
"""Final denoising step: none (stop at sigma_min), or one more evaluation, to clean data."""

FORMAT = ("npz", "png", "zip", "webdataset", "npy", "none")
"""Output formats of images; `npy` keeps float samples, `none` writes the manifest alone."""

ON_ERROR = ("continue", "stop", "retry")
"""Reactions of a table to a failed cell: continue with the others, stop, or retry the cell once at the end."""

LOCK = ("refuse", "wait")
TABLE_LOCK = (*LOCK, "share")
"""Reactions of a job to another process in its run directory."""

WANDB = ("off", "offline", "online")
"""Modes of the W&B runs of a table and its cells."""


def check_choice(key: str, choices: Collection[str], value: object) -> str:
    """Return the value if it is one of the choices.

    Args:
        key: its name in messages.
        choices: the allowed values.
        value: the value of the key.

    Raises:
        InputError: naming the key and the choices, or the nearest of them.
    """
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), list(choices)) or f"; choose from {', '.join(choices)}"
        raise InputError(f"{key}={value}: there is no such choice{hint}")
    return value


check_precision = partial(check_choice, "precision", PRECISION)
check_compile = partial(check_choice, "compile", COMPILE)
check_format = partial(check_choice, "format", FORMAT)
check_lock = partial(check_choice, "lock", LOCK)
check_table_lock = partial(check_choice, "lock", TABLE_LOCK)
check_on_error = partial(check_choice, "sweep.on_error", ON_ERROR)
check_wandb = partial(check_choice, "wandb", WANDB)


def check_final(value: object) -> str:
    """Return the value if it is one of `FINAL`.

    Raises:
        InputError: explaining both choices.
    """
    if value not in FINAL:
        raise InputError(f"final={value}: choose none (stop at sigma_min) or denoise (one more call, to clean data)")
    return str(value)


def list_of_names(key: str, value: Any) -> tuple[str, ...]:
    """Return a list of names from the config.

    Args:
        key: its name in messages.
        value: the value of the key.

    Raises:
        InputError: if the value is no list of names.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(part, str) for part in value):
        raise InputError(f"{key}={value}: must be a list of names, as in {key}=[mine]")
    return tuple(value)


MOST_SEEDS = 10_000_000
"""Largest number of images of a run."""


def parse_seeds(text: str | int | Iterable[int], key: str = "seeds") -> list[int]:
    """Return the image seeds of `7`, `0-63`, `0-9,20,30-39` or a list, in the given order.

    Args:
        text: the seeds as the user wrote them.
        key: the name of the key in messages.

    Raises:
        InputError: if there is no seed, a part is not a number or a range, a range runs backwards, a seed occurs twice,
            or there are more than `MOST_SEEDS` seeds.
    """
    ranges = seed_ranges(text, key)
    total = sum(last - first + 1 for first, last in ranges)
    if total > MOST_SEEDS:
        raise InputError(
            f"{key}={text}: {total:,} seeds; a run has at most {MOST_SEEDS:,}, so split them into several runs"
        )
    if overlap(ranges):
        raise InputError(f"{key}={text}: a seed occurs twice; every image needs its own")
    return [seed for first, last in ranges for seed in range(first, last + 1)]


def seed_ranges(text: str | int | Iterable[int], key: str = "seeds") -> list[tuple[int, int]]:
    """Return the first and last seed of each part, without expanding the ranges.

    Raises:
        InputError: if there is no seed, a part is not a number or a range, or a range runs backwards.
    """
    if not isinstance(text, Iterable):
        text = str(text)
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    if not parts:
        raise InputError(f"{key}={text}: no seed is given; give a number or a range such as 0-63")
    return [_seed_range(f"{key}={text}", part) for part in parts]


def _seed_range(setting: str, part: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([0-9]{1,19})(?:-([0-9]{1,19}))?\s*", part)
    if not match:
        beyond = "past 2^63" if re.fullmatch(r"[\s0-9-]{20,}", part) else "neither a number nor a range such as 0-63"
        raise InputError(f"{setting}: '{part}' is {beyond}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last >= 2**63:
        raise InputError(f"{setting}: the range {part} runs backwards or past 2^63; write the smaller seed first")
    return first, last


def count_seeds(text: str) -> int:
    """Return the number of seeds that a text asks for."""
    return sum(last - first + 1 for first, last in seed_ranges(text))


def overlap(ranges: Iterable[tuple[int, int]]) -> bool:
    """Return whether two of these ranges have a seed in common."""
    return any(later[0] <= former[1] for former, later in pairwise(sorted(ranges)))


LABEL_SUFFIXES = (".txt", ".csv", ".npy", ".json")
"""File suffixes of label files; `generation.labels` reads them."""


def is_label_file(rule: str) -> bool:
    """Return whether a rule is the name of a label file."""
    return Path(rule).suffix.lower() in LABEL_SUFFIXES


def fixed_class(rule: str) -> int | None:
    """Return k of `fixed:k`, or None for any other rule."""
    match = re.fullmatch(r"fixed:([0-9]{1,18})", rule.lower())
    return int(match[1]) if match else None


def label_file(rule: str) -> Path:
    """Return the path of a label file.

    Raises:
        InputError: if it does not exist.
    """
    path = bounded_reading.place(rule, "labels")
    if not path.is_file():
        raise InputError(f"labels={rule}: no such file; give one with a class for each seed")
    return path


def check_label_rule(rule: object) -> str:
    """Return the rule in its normal form: a file name as given, anything else in lower case.

    Raises:
        InputError: if it is neither `random`, `balanced`, `none`, `fixed:k` nor the name of an existing label file.
    """
    text = str(rule)
    plain = text.lower()
    if is_label_file(text):
        label_file(text)
        return text
    if re.fullmatch(r"fixed:[0-9]{19,}", plain):
        raise InputError(f"labels={rule}: no model has so many classes; give one of the checkpoint's, from 0")
    if fixed_class(plain) is None and plain not in ("random", "balanced", "none"):
        raise InputError(f"labels={rule}: choose random, balanced, fixed:K, none or a file of classes (.txt, .csv, ..)")
    return plain
