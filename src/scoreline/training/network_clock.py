"""A clock of the time that a training spends in the network."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser


class NetworkClock:
    """Count the seconds that pass within `running()`.

    On the CPU the process's clock measures them. On a GPU they lie between two events of the stream, so the gaps in
    which the GPU waits for the process count as well; an event is read once it has passed, without a synchronisation.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._passing: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count the time of a block on a device."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._passing.append((begin, end))
            self._settle()
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def _settle(self) -> None:
        while self._passing and self._passing[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._passing.popleft()
            self._seconds += begin.elapsed_time(end) / 1000

    def take(self) -> float:
        """Return the seconds counted since the last call, and start again from 0."""
        self._settle()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _Timed(nn.Module):
    """Time the calls of a network, from outside its compiled part."""

    def __init__(self, network: nn.Module, clock: NetworkClock) -> None:
        super().__init__()
        self.network, self.clock = network, clock

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        with self.clock.running(x.device):
            return self.network(x, *arguments, **keywords)


def with_clock(denoiser: Denoiser, clock: NetworkClock) -> Denoiser:
    """Return a denoiser of the same network whose network calls count on a clock."""
    copy = Denoiser(_Timed(denoiser.network, clock), denoiser.parameterisation)
    copy.autocast = denoiser.autocast
    return copy
