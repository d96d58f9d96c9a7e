"""Short trainings of a tiny network, by train.py or in this process, and how two of them are compared."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import torch
from lightning import Callback, Trainer
from safetensors.torch import load_file

from scoreline.checkpoints import Card
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.networks.unet import UNet
from scoreline.objective import DenoisingObjective, InverseVariance, UniformTime
from scoreline.parameterisations import NoisePrediction
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising
from scoreline.training.data import ImageDataModule
from scoreline.training.module import DiffusionModule
from scoreline.training.training_state import AtomicCheckpointIO, list_checkpoints

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


def group(out: Path, *arguments: str) -> "subprocess.Popen[str]":
    """train.py at work, in a process group of its own."""
    return subprocess.Popen(
        command(out, *arguments),
        cwd=out.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


class Child:
    """A script of ours at work in processes that fork from this one, which spares the imports."""

    def __init__(self, script: str, where: Path, *arguments: str, size: int = 1) -> None:
        self.codes: dict[int, int | None] = dict.fromkeys(forks.start(str(ROOT / script), where, *arguments, size=size))
        self.output = where / "said-0"

    def poll(self) -> int | None:
        """The exit code once all have ended, of one that failed if there is one."""
        for child in [child for child, code in self.codes.items() if code is None]:
            number, status = os.waitpid(child, os.WNOHANG)
            self.codes[child] = os.waitstatus_to_exitcode(status) if number else None
        codes = [code for code in self.codes.values() if code is not None]
        return max(codes, key=abs) if len(codes) == len(self.codes) else None

    def end(self, by: signal.Signals | None = None, patience: float = 240) -> tuple[int, str]:
        """Exit code and output, after a signal to the first process; one that hangs fails the test."""
        if by is not None and self.poll() is None:
            os.kill(next(iter(self.codes)), by)
        limit = time.monotonic() + patience
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                forks.killed([child for child, code in self.codes.items() if code is None], signal.SIGABRT)
                raise AssertionError(f"a process hangs\n{self.output.read_text()}")
            time.sleep(0.01)
        return code, self.output.read_text()


def start(out: Path, *arguments: str, size: int = 1) -> Child:
    """train.py at work, in so many processes."""
    return Child("train.py", out.parent, *SMALL, f"hydra.run.dir={out}", *arguments, size=size)


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str] | Child") -> None:
    """Until `what()` is true, while the process lives."""
    limit = time.monotonic() + 240
    while not what() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)


def train(out: Path, *arguments: str, code: int = 0, size: int = 1) -> str:
    """Everything that train.py prints."""
    return script("train.py", out.parent, *SMALL, f"hydra.run.dir={out}", *arguments, code=code, size=size)


def script(name: str, where: Path, *arguments: str, code: int = 0, size: int = 1) -> str:
    """Everything that a script prints in a directory."""
    found, output = Child(name, where, *arguments, size=size).end()
    assert found == code, output
    assert "Traceback" not in output
    return output


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


def tiny_module(
    kind: type[DiffusionModule] = DiffusionModule,
    batch_size: int = 16,
    rampup_kimg: float = 0.25,
    classes: int = 0,
    dropout: float = 0.0,
) -> DiffusionModule:
    """A module for the digits, with noise prediction under the linear VP process."""
    torch.manual_seed(0)
    process = {"_target_": "scoreline.schedules.vp.LinearVP"}
    sizes = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1, "dropout": dropout, "num_classes": classes}
    model = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **sizes},
        "noise_schedule": process,
        "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": process},
    }
    denoiser = Denoiser(UNet(**sizes), NoisePrediction(LinearVP()))  # type: ignore[arg-type]
    objective = DenoisingObjective(UniformTime(LinearVP()), InverseVariance(), Denoising())
    card = Card(model, (1, 8, 8), classes, {"name": "digits-train"}, {})
    return kind(denoiser, objective, lambda p: torch.optim.Adam(p, 2e-3), batch_size, rampup_kimg, 0, card)


def tiny_fit(root: Path, steps: int, module: DiffusionModule, callbacks: list[Callback]) -> Trainer:
    """Train in this process from the newest checkpoint of `root` on, if there is one."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
    )
    data = ImageDataModule(Digits("train"), module.batch_size, seed=0)
    trainer.fit(module, data, ckpt_path=next(iter(list_checkpoints(root)), None), weights_only=True)
    return trainer
