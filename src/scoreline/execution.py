"""How networks are run: precision, compiler, memory layout. None of it changes what a network is."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError, did_you_mean

PRECISION: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What matrix products and convolutions are computed in, None for the network's own; names as Lightning's."""

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


def _one_of(key: str, value: object, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), list(choices)) or f"; choose from {', '.join(choices)}"
        raise InputError(f"{key}={value}: there is no such choice{hint}")
    return value


@dataclass(frozen=True)
class Execution:
    """How every network of a denoiser is run while sampling; states stay float32 in each case.

    Images move by the rounding of what is chosen: the compiler and the layout by that of float32, the precisions by
    what `generation.making.make` says.

    Attributes:
        precision: one of `PRECISION`; weights keep their own, convolutions and matrix products are cast (autocast).
        compile: one of `COMPILE`; the first call then takes long.
        channels_last: weights and activations lie in memory channel by channel for each pixel.

    Raises:
        InputError: for an unknown choice, naming the key.
    """

    precision: str = "32-true"
    compile: str = "none"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_compile(self.compile)
        if not isinstance(self.channels_last, bool):
            raise InputError(f"channels_last={self.channels_last}: must be true or false")

    def apply(self, denoisers: nn.Module) -> None:
        """Run the networks of all `Denoiser`s in `denoisers` in this way from now on."""
        found = [module for module in denoisers.modules() if isinstance(module, Denoiser)]
        for denoiser in found:
            denoiser.autocast = PRECISION[self.precision]
        for network in {denoiser.network for denoiser in found}:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            options = COMPILE[self.compile]
            if options is not None:
                # not network.compile(): it compiles hooks too, and network calls are counted by hooks
                network.forward = first_alone(torch.compile(network.forward, **options))


def first_alone(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, other threads waiting until its first call is done: it is compiled once, not by each."""
    lock, done = threading.Lock(), threading.Event()

    def call(*arguments: Any, **options: Any) -> Tensor:
        if done.is_set():
            return function(*arguments, **options)
        with lock:
            found = function(*arguments, **options)
            done.set()
        return found

    return call
