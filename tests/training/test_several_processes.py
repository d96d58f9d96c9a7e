"""Two processes (gloo) train what one trains, and neither a kill nor a sweep parts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import SMALL, assert_same_run, command, environment, group, records, script, start, state, train, wait_for
from safetensors.torch import load_file

from scoreline.training.training_state import list_checkpoints, loadable

TWO = ["trainer=ddp_cpu", "model.network.dropout=0"]

OBJECTIVES = {
    "vp": ["experiment=digits_vp"],
    "edm with STF": ["experiment=digits_edm", "target=stf", "target.references=96"],
    "flow": ["experiment=digits_flow"],
    "flow with STF": ["experiment=digits_flow", "target=stf", "target.references=96"],
    "flow with StableVM": ["experiment=digits_flow", "target=stablevm", "target.references=24"],
    "min-SNR": ["experiment=digits_vp", "objective=vp_min_snr"],
    "learned weighting": ["experiment=digits_edm", "objective=edm_learned", "target=stablevm", "target.references=64"],
}
"""Every kind of objective and target; a reference of StableVM may be smaller than the batch."""

TRAIN = str(Path(__file__).parents[2] / "train.py")
IN_TURN = """\
import json, runpy, sys
train = sys.argv[1]
for words in json.loads(sys.argv[2]):
    sys.argv = [train, *words]
    runpy.run_path(train, run_name="__main__")
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("processes") / "one"
    train(out, "duration_kimg=1.92", "model.network.dropout=0", "target=stf", "target.references=96")
    return out


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    """Two processes, each in micro-batches of 5 of its 16 images."""
    out = one.parent / "two"
    stf = ["micro_batch=5", "target=stf", "target.references=96"]
    output = train(out, "duration_kimg=1.92", *TWO, *stf, size=2)
    assert output.count("kimg ->") == 1
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


def test_stopped_and_killed_processes_end_equal(two: Path) -> None:
    """A signal to the first process stops both with a checkpoint; SIGKILL leaves the last one loadable."""
    out = two.parent / "stopped"
    arguments = ["duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96"]
    process = group(out, *arguments)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 75
    assert "SIGUSR1: stopped at" in said
    stopped = state(out)["global_step"]
    process = group(out, *arguments)
    wait_for(lambda: state(out)["global_step"] > stopped, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert all(loadable(path) for path in list_checkpoints(out))
    assert stopped < state(out)["global_step"] < 60
    train(out, *arguments, size=2)
    assert_same_run(two, out)


def test_gpus_agree_a_step_later(two: Path) -> None:
    """Nothing is read from the device in a step; the CPU stands in for one."""
    out = two.parent / "late"
    arguments = ["duration_kimg=1.92", *TWO, "micro_batch=5", "target=stf", "target.references=96"]
    arguments.append("+callbacks.late._target_=witness.AsOnGPU")
    process = start(out, *arguments, size=2)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    code, output = process.end(signal.SIGUSR1)
    assert code == 75, output
    assert "SIGUSR1: stopped at" in output
    train(out, *arguments, size=2)
    assert_same_run(two, out)


@pytest.mark.parametrize("scope", ["all", "process"])
def test_processes_share_weights_but_no_noise(scope: str, tmp_path: Path) -> None:
    """As released, references are drawn by every process for itself; by default all have the same."""
    out = tmp_path / "ranks"
    stf = ["target=stf", "target.references=96", f"target.scope={scope}"]
    train(out, "duration_kimg=0.16", *TWO, *stf, "+callbacks.witness._target_=witness.Witness", size=2)
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert torch.equal(first["reference"], second["reference"]) == (scope == "all")
    assert not torch.equal(first["images"], second["images"])
    assert not torch.isin(first["levels"], second["levels"]).any()
    for rank in (first, second):
        assert rank["ddp"] == {"gradient_as_bucket_view": True, "find_unused_parameters": False, "static_graph": False}
        assert len(set(rank["memory"])) < len(rank["memory"]) / 10


def test_sweep_of_processes_stays_in_its_directories(tmp_path: Path) -> None:
    """Lightning's own launcher would run the whole sweep in the second process, elsewhere."""
    words = ["-m", *SMALL, *TWO, "duration_kimg=0.16", f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1"]
    output = script("train.py", tmp_path, *words)
    models = sorted(tmp_path.rglob("model.safetensors"))
    assert len(models) == 2
    assert all(path.is_relative_to(tmp_path / "sweep") for path in models)
    first, second = (load_file(path) for path in models)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert output.count("kimg ->") == 2


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All objectives, one after another, in one process and in a pair of processes."""
    where = tmp_path_factory.mktemp("objectives")
    (where / "in_turn.py").write_text(IN_TURN)
    common = [*SMALL, "model.network.dropout=0", "model.network.blocks=1", "duration_kimg=0.32", "lr_rampup_kimg=0.1"]
    halfway = [*common, *OBJECTIVES["learned weighting"], f"hydra.run.dir={where}/resumed"]
    more = [[*halfway, "duration_kimg=0.16"], halfway]
    for name, size, trainer, rest in (("one", 1, [], more), ("two", 2, ["trainer=ddp_cpu"], [])):
        runs = [[*common, *trainer, *own, f"hydra.run.dir={where / name / kind}"] for kind, own in OBJECTIVES.items()]
        runs += rest
        script(str(where / "in_turn.py"), where, TRAIN, json.dumps(runs), size=size)
    return where


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_is_that_of_one_process(in_turn: Path, kind: str) -> None:
    one, two = in_turn / "one" / kind, in_turn / "two" / kind
    first, one_end, two_end = (torch.load(path, weights_only=True)["state_dict"] for path in checkpoints(one, two))
    parts = {"denoiser", "uncertainty"} if kind == "learned weighting" else {"denoiser"}
    assert {name.partition(".")[0] for name in one_end} == parts
    for part in parts:
        moved, apart = (
            sum(float((one_end[name] - other[name]).square().sum()) for name in one_end if name.startswith(part))
            for other in (first, two_end)
        )
        assert moved > 0
        assert apart < 1e-6 * moved, part
    for a, b in zip(records(one), records(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b.get("uncertainty", {}) == pytest.approx(a.get("uncertainty", {}), abs=1e-4)
        assert ("uncertainty" in a) == (kind == "learned weighting")


def test_a_learned_weighting_resumes(in_turn: Path) -> None:
    """Its weights and Adam's moments of them are in the state to resume from, and in no model file."""
    assert_same_run(in_turn / "one" / "learned weighting", in_turn / "resumed")
    assert float(state(in_turn / "resumed")["state_dict"]["uncertainty.weight"].abs().max()) > 0
    assert not [name for name in load_file(in_turn / "resumed" / "model.safetensors") if "uncertainty" in name]


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
    output = train(tmp_path / "odd", "duration_kimg=0.64", "trainer=ddp_cpu", "batch_size=33", code=2)
    assert "train.py: batch_size=33: must be a multiple of the 2 processes" in output
