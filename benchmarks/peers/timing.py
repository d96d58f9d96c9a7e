"""Times of contestants that take turns."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from peers.pairs import called
from scoreline.denoiser import Denoiser

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Seconds until the work and all that it started on a GPU is done."""
    _wait()
    began = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Spread(NamedTuple):
    """Median, half of the interquartile range, and the greatest of some numbers."""

    median: float
    error: float
    most: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ± {self.error:{spec}}"


def spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], 0.0, values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, (high - low) / 2, max(values))


@torch.inference_mode()
def forward(denoiser: Denoiser, x: Tensor, count: int) -> None:
    """The bare network, `count` times on the same batch."""
    label = denoiser.parameterisation(torch.tensor([1.0], dtype=torch.float64)).noise.float().to(x.device)
    for _ in range(count):
        called(denoiser, x, label)
