"""How networks are run: precision, compiler, memory layout. None of it changes what a network is."""

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
"""What convolutions and matrix products are computed in, None for the network's own precision."""


@dataclass(frozen=True)
class Execution:
    """How every network of a denoiser is run while sampling; states stay float32 in each case.

    Images move by the rounding of what is chosen, the compiler and the layout by that of float32.

    Noise and labels are drawn on the CPU, so that devices differ in the network's arithmetic alone. What that moves is
    the distance between the shipped model's images (NFE 10, in [-1, 1]) and those of its network in float64: float32
    rms 8e-7, at most 4e-5, no uint8 value in 16,000 changed; float16 rms 2e-3, at most 0.05 (TF32 has as short a
    mantissa); bfloat16 rms 1e-2, at most 0.3, where an image falls towards another mode.

    Attributes:
        precision: one of `PRECISION`; weights keep their own, convolutions and matrix products are cast (autocast).
        compile: one of `COMPILE`; the first call then takes long. `max-autotune` chooses kernels by timing them, so its
            bits may differ between processes and starts.
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
        check_switch("channels_last", self.channels_last)

    def apply(self, denoisers: nn.Module) -> None:
        """Run the networks of all `Denoiser`s in `denoisers` in this way from now on."""
        found = [module for module in denoisers.modules() if isinstance(module, Denoiser)]
        for denoiser in found:
            denoiser.autocast = DTYPES[self.precision]
        for network in {denoiser.network for denoiser in found}:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compile != "none":
                # not network.compile(): it compiles hooks too, and network calls are counted by hooks
                network.forward = first_alone(torch.compile(network.forward, **_options(self.compile, network)))


def _options(name: str, network: nn.Module) -> dict[str, Any]:
    """Of torch.compile. On a CPU kernels are called from C++, without Python's lock, for which threads would wait."""
    options = dict(COMPILE[name] or {})
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device.type != "cpu":
        return options
    mode = torch._inductor.list_mode_options(options.pop("mode", "default"), options["dynamic"])
    return {**options, "options": {**mode, "cpp_wrapper": True}}


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
