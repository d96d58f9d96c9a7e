"""How the network of a training is run."""

from typing import Any

import torch
from torch import nn

from scoreline.choices import COMPILE, check_compile
from scoreline.errors import InputError

WITHOUT_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs"}
"""Modes of torch.compile whose CUDA graphs would write over the gradients of an earlier micro-batch."""


def execute(network: nn.Module, compile: str, channels_last: bool) -> None:
    """Compile a network in place, and lay its weights out; names and shapes of its state stay.

    Args:
        compile: a name of `scoreline.execution.COMPILE`.
        channels_last: whether the channels of a pixel lie side by side.

    Raises:
        InputError: for another name, or a layout that is neither true nor false.
    """
    if not isinstance(channels_last, bool):
        raise InputError(f"channels_last={channels_last}: must be true or false")
    options = _options(compile)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options is not None:
        network.compile(**options)


def _options(compile: str) -> dict[str, Any] | None:
    named = COMPILE[check_compile(compile)]
    if named is None or named.get("mode") not in WITHOUT_GRAPHS:
        return named
    return {**named, "mode": WITHOUT_GRAPHS[named["mode"]]}
