"""How networks run while sampling: precision, compiler and memory layout."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.choices import COMPILE, PRECISION, check_compile, check_precision, check_switch
from scoreline.denoiser import Denoiser

DTYPES: dict[str, torch.dtype | None] = {
    name: None if dtype is None else getattr(torch, dtype) for name, dtype in PRECISION.items()
}
"""The dtype of convolutions and matrix products; None is the network's own precision."""


@dataclass(frozen=True)
class Execution:
    """How every network of a denoiser runs while sampling; states stay float32 in each case.

    Images change by rounding: the compiler and the layout by float32's, a lower precision by its own. Use
    `channels_last` on most devices and `compile` for many images, to sample faster.

    Attributes:
        precision: one of `PRECISION`; weights keep their type, autocast casts convolutions and matrix products.
        compile: one of `COMPILE`; the first call then takes long. `max-autotune` chooses kernels by timing them, so its
            bits may differ between processes and starts.
        channels_last: whether the channels of a pixel are adjacent in the memory of weights and activations.

    Raises:
        InputError: for an unknown choice, naming the key.
    """

    precision: str = "32-true"
    compile: str = "none"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_compile(self.compile)
        check_switch("channels_last", self.channels_last)

    def apply(self, denoisers: nn.Module) -> None:
        """Change the networks of all `Denoiser`s in `denoisers` so that they run in this way."""
        parts = [module for module in denoisers.modules() if isinstance(module, Denoiser)]
        for denoiser in parts:
            denoiser.autocast = DTYPES[self.precision]
        for network in {denoiser.network for denoiser in parts}:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compile != "none":
                # not network.compile(): it compiles hooks too, and network calls are counted by hooks
                network.forward = first_alone(torch.compile(network.forward, **_options(self.compile, network)))


def _options(name: str, network: nn.Module) -> dict[str, Any]:
    """Return torch.compile's options. On a CPU, C++ calls the kernels, so that threads need no Python lock."""
    options = dict(COMPILE[name] or {})
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device.type != "cpu":
        return options
    mode = MODES[options.pop("mode", "default")]  # torch.compile takes either a mode or options
    return {**options, "options": {**mode, "cpp_wrapper": True}}


def first_alone(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a function so that other threads wait for its first call: it is compiled once, not by each thread."""
    lock, done = threading.Lock(), threading.Event()

    def call(*arguments: Any, **options: Any) -> Tensor:
        if done.is_set():
            return function(*arguments, **options)
        with lock:
            output = function(*arguments, **options)
            done.set()
        return output

    return call


def execute(network: nn.Module, compile: str, channels_last: bool) -> None:
    """Compile a network for training and lay its weights out, in place; names and shapes of its state stay.

    Args:
        network: the network to train; its hooks are compiled too.
        compile: one of `COMPILE`.
        channels_last: whether the channels of a pixel lie side by side.

    Raises:
        InputError: for an unknown choice, naming the key.
    """
    check_switch("channels_last", channels_last)
    options = COMPILE[check_compile(compile)]
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options is not None:
        mode = {"mode": WITHOUT_GRAPHS[options["mode"]]} if "mode" in options else {}
        network.compile(**{**options, **mode})
