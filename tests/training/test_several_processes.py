"""Two processes (gloo) train what one trains, and neither a kill nor a sweep parts them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import SILENT, SMALL, assert_same_run, begun, command, environment, records, state, train, wait_for
from safetensors.torch import load_file

from scoreline.training.checkpoint import list_checkpoints, loadable

WITNESS = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))}
TWO = ["trainer=ddp_cpu", "model.network.dropout=0"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processes") / "one"
    train(out, "duration_kimg=1.92", "model.network.dropout=0", "target=stf", "target.references=96")
    return out


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    """Two processes, each in micro-batches of 5 of its 16 images."""
    out = one.parent / "two"
    done = train(out, "duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96")
    assert done.stdout.count("kimg ->") == 1
    return out


def test_the_loss_curve_is_that_of_one_process(one: Path, two: Path) -> None:
    curves = [records(out) for out in (one, two)]
    assert [r["step"] for r in curves[0]] == [r["step"] for r in curves[1]] == [10, 20, 30, 40, 50, 60]
    for a, b in zip(*curves, strict=True):
        assert a["images"] == b["images"] == 320
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["loss_error"] == pytest.approx(a["loss_error"], rel=1e-3)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-2)


def test_the_weights_are_those_of_one_process(one: Path, two: Path) -> None:
    first, one_end, two_end = (torch.load(path, weights_only=True)["state_dict"] for path in checkpoints(one, two))
    names = [name for name, value in one_end.items() if value.is_floating_point()]
    moved = sum(float((one_end[name] - first[name]).square().sum()) for name in names) ** 0.5
    apart = sum(float((one_end[name] - two_end[name]).square().sum()) for name in names) ** 0.5
    assert moved > 0
    assert apart < 2e-3 * moved


def checkpoints(one: Path, two: Path) -> tuple[Path, Path, Path]:
    """The oldest and the newest of one run, the newest of the other."""
    return list_checkpoints(one)[-1], list_checkpoints(one)[0], list_checkpoints(two)[0]


def test_stopped_and_killed_two_processes_end_in_the_same_bits(two: Path) -> None:
    """A signal to the first process stops both with a checkpoint; SIGKILL leaves the last one loadable."""
    out = two.parent / "stopped"
    arguments = ["duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96"]
    process = begun(out, *arguments)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 75
    assert "SIGUSR1: stopped at" in said
    stopped = state(out)["global_step"]
    process = begun(out, *arguments, **SILENT)
    wait_for(lambda: state(out)["global_step"] > stopped, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all(loadable(path) for path in list_checkpoints(out))
    assert stopped < state(out)["global_step"] < 60
    train(out, *arguments)
    assert_same_run(two, out)


def test_processes_with_gpus_agree_a_step_later_and_train_the_same(two: Path) -> None:
    """Nothing is read from the device in a step; the CPU stands in for one."""
    out = two.parent / "late"
    arguments = ["duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96"]
    words = command(out, *arguments, "+callbacks.late._target_=witness.AsOnGPU")
    where = environment() | WITNESS
    process = subprocess.Popen(words, cwd=out.parent, env=where, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 75
    assert "SIGUSR1: stopped at" in said
    done = subprocess.run(words, capture_output=True, text=True, cwd=out.parent, timeout=250, env=where)
    assert done.returncode == 0, done.stderr
    assert_same_run(two, out)


@pytest.mark.parametrize("scope", ["all", "process"])
def test_processes_differ_in_noise_and_agree_in_weights(scope: str, tmp_path: Path) -> None:
    """As released, references are drawn by every process for itself; by default all have the same."""
    out = tmp_path / "ranks"
    stf = ["target=stf", "target.references=96", f"target.scope={scope}"]
    words = command(out, "duration_kimg=0.16", *TWO, *stf, "+callbacks.witness._target_=witness.Witness")
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
        env=environment() | WITNESS,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert torch.equal(first["reference"], second["reference"]) == (scope == "all")
    assert not torch.equal(first["images"], second["images"])
    assert not torch.isin(first["levels"], second["levels"]).any()
    for rank in (first, second):
        assert rank["ddp"] == {"gradient_as_bucket_view": True, "find_unused_parameters": False, "static_graph": False}
        assert len(set(rank["memory"])) < len(rank["memory"]) / 10


def test_a_sweep_of_two_processes_stays_in_its_directories(tmp_path: Path) -> None:
    """Lightning's own launcher would run the whole sweep in the second process, elsewhere."""
    asked = ["-m", *SMALL, *TWO, "duration_kimg=0.64", f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1"]
    done = subprocess.run(
        [sys.executable, command(tmp_path)[1], *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    models = sorted(tmp_path.rglob("model.safetensors"))
    assert len(models) == 2
    assert all(path.is_relative_to(tmp_path / "sweep") for path in models)
    first, second = (load_file(path) for path in models)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert done.stdout.count("kimg ->") == 2


@pytest.mark.slow
def test_torchrun_starts_the_same_processes(two: Path) -> None:
    out = two.parent / "torchrun"
    words = command(out, "duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words[1:]]
    done = subprocess.run(run, capture_output=True, text=True, cwd=out.parent, timeout=250, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kimg ->") == 1
    assert_same_run(two, out)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path / "odd", "duration_kimg=0.64", "trainer=ddp_cpu", "batch_size=33", code=2)
    assert "train.py: batch_size=33: must be a multiple of the 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
