"""Seconds and memory of one call, from a few calls of a size that this machine does quickly."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

import torch

from scoreline.doctor.live import peak_bytes

SECONDS = 3.0
"""What measuring may take, about."""

CALLS = 4, 20
"""The least and the most calls that are timed."""


@dataclass(frozen=True)
class Cost:
    """What a call on n images takes: linear in n, from calls on `images` of them.

    Attributes:
        seconds, error: mean of the timed calls and its standard error.
        fixed, each: bytes that do not depend on n, and bytes for every image.
    """

    images: int
    calls: int
    seconds: float
    error: float
    fixed: float
    each: float

    def bytes_for(self, count: int) -> float:
        """Activations of a call on `count` images."""
        return max(0.0, self.fixed + self.each * count)

    def seconds_for(self, images: float) -> tuple[float, float]:
        """Time of calls on so many images altogether, and its standard error."""
        share = images / self.images
        return share * self.seconds, share * self.error


def measure(call: Callable[[int], object], wanted: int, device: torch.device, seconds: float = SECONDS) -> Cost:
    """Time `call(n)` for an n up to `wanted` of which a few calls fit in `seconds`, and count its memory.

    The first call of a size is not timed: kernels are chosen and loaded in it.
    """
    call(1)
    one = _timed(call, 1, device)
    size = max(1, min(wanted, int(seconds / (CALLS[0] + 2) / max(one, 1e-9))))
    call(size)
    spent = [_timed(call, size, device)]
    while len(spent) < CALLS[0] or (sum(spent) < seconds / 2 and len(spent) < CALLS[1]):
        spent.append(_timed(call, size, device))
    low, high = max(1, size // 2), max(2, size)
    least, most = (peak_bytes(lambda n=n: call(n), device) for n in (low, high))  # type: ignore[misc]
    each = (most - least) / (high - low)
    error = stdev(spent) / math.sqrt(len(spent))
    return Cost(size, len(spent), mean(spent), error, most - each * high, each)


def _timed(call: Callable[[int], object], size: int, device: torch.device) -> float:
    began = time.perf_counter()
    call(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
