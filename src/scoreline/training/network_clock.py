"""How much of a training's time its network takes."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser


class NetworkClock:
    """Seconds that passed within `running()`.

    On the CPU by the process's clock. On a GPU between two events of the stream, so gaps in which the GPU waits for the
    process count as well; events are looked at when they have passed, and nothing waits for them.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._passing: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """The time between the beginning and the end of a block counts."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._passing.append((begin, end))
            self._settle()
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def _settle(self) -> None:
        while self._passing and self._passing[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._passing.popleft()
            self._seconds += begin.elapsed_time(end) / 1000

    def take(self) -> float:
        """Seconds since the last call, as far as they are known; the clock begins anew."""
        self._settle()
        found, self._seconds = self._seconds, 0.0
        return found


class _Timed(nn.Module):
    """A network whose calls are timed, from outside of what is compiled."""

    def __init__(self, network: nn.Module, clock: NetworkClock) -> None:
        super().__init__()
        self.network, self.clock = network, clock

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        with self.clock.running(x.device):
            return self.network(x, *arguments, **keywords)


def timed(denoiser: Denoiser, clock: NetworkClock) -> Denoiser:
    """The denoiser, of the same network, whose calls of the network count on a clock."""
    found = Denoiser(_Timed(denoiser.network, clock), denoiser.parameterisation)
    found.autocast = denoiser.autocast
    return found
