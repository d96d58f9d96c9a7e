"""A run that stops and goes on is the run that never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scoreline.checkpoints import load_model
from scoreline.errors import InputError
from scoreline.training.checkpoint import list_checkpoints, loadable, resume_from

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.network.width=8",
    "model.network.dropout=0.1",
    "batch_size=32",
    "checkpoint_kimg=0.64",
    "log_kimg=0.32",
    "preview_kimg=1000",
    "lr_rampup_kimg=0.5",
]


def command(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SMALL, f"hydra.run.dir={out}", *arguments]


def train(out: Path, *arguments: str) -> None:
    done = subprocess.run(command(out, *arguments), capture_output=True, text=True, cwd=out.parent, timeout=200)
    assert done.returncode == 0, done.stderr


def state(out: Path) -> dict:
    return torch.load(list_checkpoints(out)[0], weights_only=True)


def flat(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, part in enumerate(value) for k, v in flat(part, f"{name}/{key}").items()}
    return {name: value}


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, EMA, optimiser, learning rate, step: bit for bit."""
    one, two = (flat({k: state(run)[k] for k in PARTS}) for run in (a, b))
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        assert same, name
    model_a, model_b = (load_file(run / "model.safetensors") for run in (a, b))
    assert all(torch.equal(value, model_b[name]) for name, value in model_a.items())


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, "duration_kimg=3.2")
    return out


def test_n_and_n_steps_equal_2n_steps(uninterrupted: Path) -> None:
    out = uninterrupted.parent / "halves"
    train(out, "duration_kimg=1.6")
    assert state(out)["global_step"] == 50
    assert float(load_model(out / "model.safetensors").card.training["kimg"]) == 1.6
    train(out, "duration_kimg=3.2")
    assert state(out)["global_step"] == 100
    assert_same_run(uninterrupted, out)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"], r["lr"]) for r in records] == [(r["step"], r["loss"], r["lr"]) for r in whole]


def test_another_seed_is_another_run(uninterrupted: Path) -> None:
    out = uninterrupted.parent / "seed"
    train(out, "duration_kimg=0.64", "seed=1")
    first = load_file(out / "model.safetensors")
    assert any(not torch.equal(value, load_file(uninterrupted / "model.safetensors")[k]) for k, value in first.items())


def test_kill_9_leaves_loadable_files_and_the_same_end(uninterrupted: Path) -> None:
    """Killed at three moments, once at least after a checkpoint was written; every file found is whole."""
    out, choose = uninterrupted.parent / "killed", random.Random(0)
    for attempt in range(3):
        before = list_checkpoints(out)[:1]
        process = subprocess.Popen(
            command(out, "duration_kimg=3.2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=out.parent
        )
        limit = time.monotonic() + 100
        while attempt and list_checkpoints(out)[:1] == before and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.005)
        time.sleep(choose.uniform(0, 0.3) if attempt else choose.uniform(2, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(loadable(path) for path in list_checkpoints(out))
        if (out / "model.safetensors").exists():
            load_model(out / "model.safetensors")
    assert list_checkpoints(out)
    train(out, "duration_kimg=3.2")
    assert_same_run(uninterrupted, out)


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path: Path, uninterrupted: Path) -> None:
    newest, former = list_checkpoints(uninterrupted)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / newest.name).write_bytes(newest.read_bytes()[:1000])
    (root / former.name).write_bytes(former.read_bytes())
    assert resume_from(tmp_path, "auto") == root / former.name
    with pytest.raises(InputError, match="no loadable checkpoint"):
        resume_from(tmp_path, str(root / newest.name))
    with pytest.raises(InputError, match="resume=never"):
        resume_from(tmp_path, "never")
    assert resume_from(tmp_path / "empty", "auto") is None
    assert resume_from(tmp_path / "empty", "never") is None


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'marker'}",))

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, path)
    assert not loadable(path)
    assert not (tmp_path / "marker").exists()
