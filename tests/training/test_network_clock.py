import time

import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.parameterisations import VarianceExploding
from scoreline.training import network_clock
from scoreline.training.network_clock import NetworkClock, with_clock

CPU = torch.device("cpu")


class Ticks:
    """A clock that tells a second more every time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return x * self.weight


def test_time_within_counts_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = NetworkClock(), Ticks()
    monkeypatch.setattr(network_clock, "time", ticks)
    for _ in range(3):
        with clock.running(CPU):
            ticks.now += 10
        ticks.now += 100
    assert clock.take() == 3 * 11
    assert clock.take() == 0


def test_network_calls_count_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = NetworkClock(), Ticks()
    monkeypatch.setattr(network_clock, "time", ticks)
    denoiser = Denoiser(Slow(), VarianceExploding())
    denoiser.autocast = torch.bfloat16
    x = torch.randn(2, 1, 2, 2)
    watched = with_clock(denoiser, clock)
    assert torch.equal(watched(x, 1.5), denoiser(x, 1.5))
    assert watched.autocast is torch.bfloat16
    assert clock.take() == 1
    assert [id(p) for p in watched.parameters()] == [id(p) for p in denoiser.parameters()]
    assert list(denoiser.state_dict()) == ["network.weight"]


class Event:
    """A GPU's event that passes when the test says so."""

    passed: float = 0
    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.recorded += 1
        self.at = Event.recorded

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, end: "Event") -> float:
        assert end.query()
        return 1000.0 * (end.at - self.at)

    def synchronize(self) -> None:
        raise AssertionError("nothing may wait")


def test_gpu_events_are_read_once_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = NetworkClock()
    for _ in range(3):
        with clock.running(torch.device("cuda")):
            pass
    assert clock.take() == 0
    Event.passed = 4
    assert clock.take() == 2
    Event.passed = 6
    assert clock.take() == 1
    assert clock.take() == 0


def test_the_clock_runs_at_the_speed_of_time() -> None:
    clock = NetworkClock()
    with clock.running(CPU):
        time.sleep(0.02)
    assert clock.take() >= 0.02
