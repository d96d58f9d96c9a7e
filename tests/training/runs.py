"""Short trainings of a tiny network by train.py itself, and how two of them are compared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import torch
from safetensors.torch import load_file

from scoreline.training.training_state import list_checkpoints

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.network.width=8",
    "model.network.dropout=0.1",
    "batch_size=32",
    "checkpoint_kimg=0.64",
    "log_kimg=0.32",
    "preview_kimg=1000",
    "fixed_loss_kimg=1000",
    "lr_rampup_kimg=0.5",
]
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "gradients")
"""What of a checkpoint has to be the same: all but Lightning's own counters and times."""


def command(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SMALL, f"hydra.run.dir={out}", *arguments]


def environment() -> dict[str, str]:
    """Without the variables of processes that started the tests."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}


def begun(out: Path, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """train.py at work, in a process group of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(command(out, *arguments), cwd=out.parent, env=environment(), **(streams | options))


SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until `what()` is true, while the process lives."""
    limit = time.monotonic() + 240
    while not what() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


def train(out: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command(out, *arguments), capture_output=True, text=True, cwd=out.parent, timeout=250, env=environment()
    )
    assert done.returncode == code, done.stderr
    return done


def forked(out: Path, *arguments: str) -> tuple[int, str]:
    """Exit code of train.py and what it says, in a process that forks from this one so as to start at once."""
    (child,) = forks.start(str(ROOT / "train.py"), out.parent, *SMALL, f"hydra.run.dir={out}", *arguments)
    return forks.ended(child), (out.parent / "said-0").read_text()


def state(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(list_checkpoints(out)[0], weights_only=True)
    return found


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


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
