"""Ways in which networks can be run, by name; without torch, so that a mistake is told at once."""

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


def check_precision(value: object) -> str:
    """Raises: InputError unless it is one of `PRECISION`."""
    return _one_of("precision", value, PRECISION)


def check_compile(value: object) -> str:
    """Raises: InputError unless it is one of `COMPILE`."""
    return _one_of("compile", value, COMPILE)


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
