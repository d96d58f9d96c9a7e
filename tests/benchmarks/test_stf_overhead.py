"""The benchmark of the cost of stable targets, at tiny sizes."""

import sys
from pathlib import Path

import pytest
import torch

from scoreline import targets
from scoreline.networks.song_unet import SongUNet

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import stf_overhead


@pytest.mark.parametrize(("m", "n", "d"), [(4, 50, 12), (64, 1024, 3072)])
def test_a_target_takes_distances_and_a_mean(m: int, n: int, d: int) -> None:
    assert stf_overhead.flops(stf_overhead.target(m, n, d, "meta")) == 5 * m * n * d


def test_a_step_takes_three_forward_passes() -> None:
    network = stf_overhead.ddpmpp("meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == 55_733_891
    lines = stf_overhead.flop_rows()
    assert lines[0].startswith("DDPM++, one image: forward 42.38 GFLOP; forward and backward 3.00 times that")
    shares = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines[4:]}
    assert shares == {"| 1024": ["1.007", "1.007", "0.0124 % |"], "| 4096": ["4.027", "4.027", "0.0495 % |"]}


def test_memory_of_known_work() -> None:
    def work() -> None:
        held = torch.zeros(1000, dtype=torch.float64)
        torch.zeros(3000, dtype=torch.float64)
        del held
        torch.zeros(2000, dtype=torch.float64)

    assert stf_overhead.memory(work) == (24_000, 32_000)


def test_target_memory_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for 16 times the references, and never the pixels of all pairs."""
    monkeypatch.setattr(targets, "ELEMENTS", 2**14)
    monkeypatch.setattr(stf_overhead, "HELD", [(256, 192), (4096, 192)])
    few, many = ([float(cell) for cell in line.strip("| ").split(" | ")] for line in stf_overhead.memory_rows()[2:])
    assert few[:2] == [256, 192]
    assert many[:2] == [4096, 192]
    assert many[2:4] == few[2:4]
    assert few[4] == 12
    assert many[3] < 1


def test_times_are_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = SongUNet(3, 32, width=8, multipliers=(1,), blocks=1, attention=(), augment_dim=9)
    monkeypatch.setattr(stf_overhead, "ddpmpp", lambda device: tiny)
    for name, value in (("BATCH", 2), ("REPEATS", 1), ("REFERENCES", (4, 8))):
        monkeypatch.setattr(stf_overhead, name, value)
    rows = [line.strip("| ").split(" | ") for line in stf_overhead.time_rows("cpu")[2:]]
    assert [row[0] for row in rows] == ["4", "8"]
    for row in rows:
        own, whole = float(row[1]), float(row[2])
        assert own > 0
        assert whole > 0
        rounding = 0.005 / whole + 0.05 * own / whole**2
        assert float(row[3].rstrip(" %")) == pytest.approx(100 * own / whole, abs=100 * rounding + 0.01)
