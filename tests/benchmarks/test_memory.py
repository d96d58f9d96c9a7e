"""The benchmark of memory while sampling, on something small."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import memory


def cells(text: str) -> list[list[str]]:
    """The rows of all tables but their heads and rules."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] not in ("solver", "work", "images")]


def test_the_table_of_states(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["states", "--self-check"])
    assert [row[0] for row in cells(capsys.readouterr().out)] == ["ddim", "dpmpp_3m"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sampling_holds_few_states_beyond_forward(capsys: pytest.CaptureFixture[str]) -> None:
    """The allocator's count is exact: at most order + 2 states of the batch beside the network's own."""
    memory.main(["network", "--self-check", "--batch", "8"])
    (alone, _, ratio, none, _), (sampling, *_, more, process) = cells(capsys.readouterr().out)
    assert (alone, ratio, none) == (memory.FORWARD, "1.0000", "0.00")
    assert sampling.startswith("sampling")
    assert 1 < float(more) <= 6
    assert float(process) > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["images", "--images", "1000", "6000"])
    (_, _, first, _), (count, _, second, _) = cells(capsys.readouterr().out)
    assert count == "6,000"
    assert float(second) - float(first) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_is_watched_once_ready() -> None:
    program = """
import sys
first = bytearray(40_000_000)
print('ready', flush=True)
sys.stdin.readline()
second = bytearray(70_000_000)
import time
time.sleep(0.5)
"""
    peak = memory.watched([sys.executable, "-c", program])
    assert 65e6 < peak.most - peak.before < 85e6
    assert peak.before >= 40e6
    assert peak.resident >= peak.most
    with pytest.raises(RuntimeError, match="failed with exit code 3"):
        memory.watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_what_the_allocator_was_asked_for() -> None:
    assert 40_000 <= memory.asked(lambda: float(torch.ones(10_000).sum()), "cpu") < 50_000


def test_it_runs_as_one_command(tmp_path: Path) -> None:
    command = [sys.executable, memory.__file__, "states", "--self-check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "| ddim | 1 |" in done.stdout
