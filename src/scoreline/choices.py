"""Named choices of the config; without torch, so that a mistake is told at once."""

from collections.abc import Collection
from typing import Any

from scoreline.errors import InputError, did_you_mean

PRECISION: dict[str, str | None] = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""torch's name of what matrix products and convolutions are computed in, None for the network's own; as Lightning's."""

COMPILE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"dynamic": False},
    "max-autotune": {"dynamic": False, "mode": "max-autotune"},
}
"""Options of torch.compile; None for a network that is run as it is written."""

FINAL = ("none", "denoise")
"""How a run ends: at sigma_min, or with a last evaluation, to clean data."""

FORMAT = ("npz", "png", "zip", "webdataset", "none")
"""What the images of a run end in; `none` keeps the manifest alone."""

ON_ERROR = ("continue", "stop", "retry")
"""What a table does after a cell that failed: go on with the others, stop, or try it once more at the end."""

LOCK = ("refuse", "wait")
"""What a job does where another process works in its run directory."""

WANDB = ("off", "offline", "online")


def check_precision(value: object) -> str:
    """Raises: InputError unless it is one of `PRECISION`."""
    return _one_of("precision", value, PRECISION)


def check_compile(value: object) -> str:
    """Raises: InputError unless it is one of `COMPILE`."""
    return _one_of("compile", value, COMPILE)


def check_final(value: object) -> str:
    """Raises: InputError unless it is one of `FINAL`."""
    if value not in FINAL:
        raise InputError(f"final={value}: choose none (stop at sigma_min) or denoise (one more call, to clean data)")
    return str(value)


def check_format(value: object) -> str:
    """Raises: InputError unless it is one of `FORMAT`."""
    return _one_of("format", value, FORMAT)


def check_lock(value: object) -> str:
    """Raises: InputError unless it is one of `LOCK`."""
    return _one_of("lock", value, LOCK)


def check_on_error(value: object) -> str:
    """Raises: InputError unless it is one of `ON_ERROR`."""
    return _one_of("sweep.on_error", value, ON_ERROR)


def check_wandb(value: object) -> str:
    """Raises: InputError unless it is one of `WANDB`."""
    return _one_of("wandb", value, WANDB)


def check_switch(key: str, value: object) -> bool:
    """Raises: InputError naming the key unless it is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false")
    return value


def _one_of(key: str, value: object, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), list(choices)) or f"; choose from {', '.join(choices)}"
        raise InputError(f"{key}={value}: there is no such choice{hint}")
    return value
