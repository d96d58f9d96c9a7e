"""How networks run: precision, compiler and memory layout; none of them changes what a network computes."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.values import COMPILE, PRECISION, check_compile, check_precision, check_switch

DTYPES: dict[str, torch.dtype | None] = {
    name: None if dtype is None else getattr(torch, dtype) for name, dtype in PRECISION.items()
}
"""Types of convolutions and matrix products; None keeps the network's own precision."""

U_NETS = {
    f"scoreline.networks.{name}"
    for name in ("unet.UNet", "song_unet.SongUNet", "ddpm_unet.DDPMUNet", "adm.DhariwalUNet")
}
"""Networks of pixels that are faster with channels last: 1.04 to 1.18 times on a core of a CPU, small ones measured."""

MODES = {"default": {}, "max-autotune": {"max_autotune": True, "coordinate_descent_tuning": True}}
"""Modes of torch.compile as the options that they set on a CPU."""

WITHOUT_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs"}
"""Modes of torch.compile whose CUDA graphs would write over the gradients of an earlier micro-batch."""


def is_u_net(model: Mapping[str, Any]) -> bool:
    """Return whether the description of a model, that of its card, has one of `U_NETS` as its network.

    Use it to choose how a network runs. The choice is the model's, never the machine's: images belong to their seeds.
    """
    return model["network"].get("_target_") in U_NETS


@dataclass(frozen=True)
class Execution:
    """How the networks of a denoiser run while sampling; states stay float32 in each case.

    Images change by rounding only: the compiler and the layout by that of float32, a precision by its own.
    Use it for sampling; a training uses `execute`.

    Noise and labels are drawn on the CPU, so that devices differ in the network's arithmetic alone. What that moves is
    the distance between the shipped model's images (NFE 10, in [-1, 1]) and those of its network in float64: float32
    rms 8e-7, at most 4e-5, no uint8 value in 16,000 changed; float16 rms 2e-3, at most 0.05 (TF32 has as short a
    mantissa); bfloat16 rms 1e-2, at most 0.3, where an image falls towards another mode.

    Attributes:
        precision: one of `PRECISION`; weights keep their type, autocast casts convolutions and matrix products.
        compile: one of `COMPILE`; the first call then takes long. `max-autotune` chooses kernels by timing them, so its
            bits may differ between processes and starts.
        channels_last: whether weights and activations lie in memory channel by channel for each pixel.

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
        """Change all `Denoiser`s in `denoisers` in place."""
        modules = [module for module in denoisers.modules() if isinstance(module, Denoiser)]
        for denoiser in modules:
            denoiser.autocast = DTYPES[self.precision]
        for network in {denoiser.network for denoiser in modules}:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compile != "none":
                # not network.compile(): it compiles hooks too, and network calls are counted by hooks
                network.forward = _first_alone(torch.compile(network.forward, **_options(self.compile, network)))


def _options(name: str, network: nn.Module) -> dict[str, Any]:
    """Return torch.compile's options. On a CPU, C++ calls the kernels, since threads would wait for Python's lock."""
    options = dict(COMPILE[name] or {})
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device.type != "cpu":
        return options
    mode = MODES[options.pop("mode", "default")]  # torch.compile takes either a mode or options
    return {**options, "options": {**mode, "cpp_wrapper": True}}


def _first_alone(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function with a lock: threads wait for its first call, so that only one of them compiles it."""
    lock, compiled = threading.Lock(), threading.Event()

    def call(*arguments: Any, **options: Any) -> Tensor:
        if compiled.is_set():
            return function(*arguments, **options)
        with lock:
            result = function(*arguments, **options)
            compiled.set()
        return result

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
