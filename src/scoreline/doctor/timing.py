"""Time and memory of one network call."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from scoreline.runtime.memory import peak_bytes

SECONDS = 1.5
"""Approximate duration of the timed call; the whole measurement takes about three times as long."""


class Cost(NamedTuple):
    """Time and memory of a call on `images` images; other sizes are proportional."""

    images: int
    seconds: float
    bytes: int

    def seconds_for(self, images: float) -> float:
        """Return the seconds of a number of images."""
        return self.seconds * images / self.images

    def bytes_for(self, images: float) -> float:
        """Return the memory of a call on a number of images."""
        return self.bytes * images / self.images


def timed_call(call: Callable[[int], object], largest: int, device: torch.device) -> Cost:
    """Time one `call(n)` that takes about `SECONDS`.

    The first call of a size is not timed, because libraries choose and load their kernels in it.

    Args:
        call: evaluates a number of images.
        largest: upper limit of n.
        device: the device of the network.
    """
    call(1)
    size = max(1, min(largest, int(SECONDS / max(_seconds(call, 1, device), 1e-9))))
    call(size)
    return Cost(size, _seconds(call, size, device), peak_bytes(lambda: call(size), device))


def _seconds(call: Callable[[int], object], size: int, device: torch.device) -> float:
    began = time.perf_counter()
    call(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
