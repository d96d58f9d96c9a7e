"""The benchmark of training steps, at tiny sizes; EDM's loop where SCORELINE_EDM names a clone of it."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/train.py, which must not be mistaken for train.py."""
    spec = importlib.util.spec_from_file_location("benchmark_of_training", BENCHMARKS / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[1:]}


def test_a_table_of_all_that_take_part(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick"])
    said = capsys.readouterr().out
    assert "no clone of EDM was given; 2 turns of 1 step(s)" in said
    found = cells(said)
    assert list(found) == ["network alone", "scoreline, dsm", "scoreline, stf n = 8"]
    for precision, compiled, rate, alone, edm, outside, _ in found.values():
        assert (precision, compiled, edm) == ("32-true", "none", "-")
        assert float(rate.replace(",", "")) > 0
        assert 0 < float(alone) <= 2
        assert 0 < float(outside.removesuffix(" %")) < 100
    assert found["network alone"][3] == "1.000"


@pytest.mark.skipif("SCORELINE_EDM" not in os.environ, reason="no clone of EDM")
@pytest.mark.parametrize("device", ["cpu"])
def test_the_loop_of_edm_takes_its_turns(bench: ModuleType, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.Tensor.backward, torch.nn.parallel.DistributedDataParallel, "training" in sys.modules
    bench.main(["--quick", "--device", device, "--edm", os.environ["SCORELINE_EDM"]])
    found = cells(capsys.readouterr().out)
    assert found["EDM"][4] == "1.000"
    assert all(float(row[4]) > 0 for row in found.values())
    assert before == (torch.Tensor.backward, torch.nn.parallel.DistributedDataParallel, "training" in sys.modules)


def tiny(bench: ModuleType, **more: Any) -> Any:
    plan = {"batch": 4, "turns": 3, "steps": 2, "images": 8, "references": 8, "warm": 1, **more}
    return bench.Plan(bench.TINY | {"width": 8}, torch.device("cpu"), **plan)


def test_one_run_at_a_time_counts_steps(bench: ModuleType) -> None:
    plan = tiny(bench)
    turns, order, running = bench.Turns(plan), [], []

    def work(lane: Any) -> None:
        for _ in range(plan.total):
            lane.step()
            running.append(lane.name)
            order.append(lane.name)
            with lane.clock.running(plan.device):
                time.sleep(0.002)
            assert running == [lane.name]
            running.remove(lane.name)
        lane.step()

    for name in "abc":
        turns.add(name, work)
    lanes = turns.run()
    assert order == [name for _ in range(4) for name in "aabbcc"]
    for lane in lanes:
        assert len(lane.seconds) == len(lane.network) == 4
        assert all(0.004 <= inside <= whole for inside, whole in zip(lane.network, lane.seconds, strict=True))


def test_what_fails_in_one_ends_all(bench: ModuleType) -> None:
    turns = bench.Turns(tiny(bench))

    def fails(lane: Any) -> None:
        lane.step()
        raise ZeroDivisionError("in the first turn")

    def works(lane: Any) -> None:
        while True:
            lane.step()

    turns.add("works", works)
    turns.add("fails", fails)
    with pytest.raises(ZeroDivisionError, match="in the first turn"):
        turns.run()


def test_ratios_are_of_the_same_round(bench: ModuleType) -> None:
    assert bench.ratio([2.0, 4.0, 8.0], [1.0, 2.0, 2.0]) == "2.000"


def test_work_is_counted_without_numbers(bench: ModuleType) -> None:
    whole = tiny(bench)
    assert bench.gflop(bench.replace(whole, network=bench.DDPMPP)) == pytest.approx(127.1, abs=0.2)


def test_gpu_default_is_ddpmpp_in_every_mode(bench: ModuleType) -> None:
    options = bench.argparse.Namespace(device="cuda", batch=None, turns=15, quick=False, self_check=False)
    plan, modes = bench.plan_of(options)
    assert (plan.network, plan.batch, plan.references, plan.device) == (bench.DDPMPP, 64, 1024, torch.device("cuda:0"))
    assert [(mode.precision, mode.compile) for mode in modes] == [
        ("32-true", "none"),
        ("32-true", "default"),
        ("bf16-mixed", "none"),
        ("bf16-mixed", "default"),
    ]
