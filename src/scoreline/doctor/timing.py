"""Seconds and memory of one call of a network."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from scoreline.generation.memory import peak_bytes

SECONDS = 1.5
"""What the timed call may take, about; the whole measurement takes about three times as long."""


class Cost(NamedTuple):
    """One call on `images` images took `seconds` and held `bytes`; other sizes are taken as proportional to it."""

    images: int
    seconds: float
    bytes: int

    def seconds_for(self, images: float) -> float:
        return self.seconds * images / self.images

    def bytes_for(self, images: float) -> float:
        return self.bytes * images / self.images


def timed_call(call: Callable[[int], object], wanted: int, device: torch.device) -> Cost:
    """Time one `call(n)`, n up to `wanted` and such that it takes about `SECONDS`.

    The first call of a size is not timed, because the libraries choose and load their kernels in it.
    """
    call(1)
    size = max(1, min(wanted, int(SECONDS / max(_seconds(call, 1, device), 1e-9))))
    call(size)
    return Cost(size, _seconds(call, size, device), peak_bytes(lambda: call(size), device))


def _seconds(call: Callable[[int], object], size: int, device: torch.device) -> float:
    began = time.perf_counter()
    call(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
