"""Named choices of the config, checked without torch so that a mistake is reported at once."""

from collections.abc import Collection
from functools import partial
from typing import Any, TypeGuard

from scoreline.errors import InputError, did_you_mean

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

FORMAT = ("npz", "png", "zip", "webdataset", "none")
"""Output formats of images; `none` writes the manifest alone."""

ON_ERROR = ("continue", "stop", "retry")
"""Reactions of a table to a failed cell: continue with the others, stop, or retry the cell once at the end."""

LOCK = ("refuse", "wait")
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


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object, least: int = 1) -> TypeGuard[int]:
    """Return whether a value is a whole number, at least `least`; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_switch(key: str, value: object) -> bool:
    """Return the value if it is true or false.

    Raises:
        InputError: naming the key.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false")
    return value
