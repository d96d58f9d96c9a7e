"""What a person watching a run sees, and what is left in metrics.jsonl."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline import checks
from scoreline.files import write_atomically
from scoreline.history import row
from scoreline.progress import ImageProgress
from scoreline.training.callbacks import dispensable
from scoreline.training.levels import LossSums, described
from scoreline.training.module import DiffusionModule


class TrainingProgress(Callback):
    """A bar in images and, every `log_kimg` thousand images, one record to metrics.jsonl and to the logger.

    A record holds step, kimg, the mean loss since the last one with its standard error over images and its mean by
    noise level, over all processes; learning rate, norm of the gradient, steps so far whose gradient was not finite,
    images per second; and the share of the time since the last one that the first process spent outside the network
    (`DiffusionModule.clock`), previews and checkpoints included, which the bar tells too. On resuming, records of steps
    that will be repeated are dropped, so the file reads as if the run had never stopped.
    """

    def __init__(self, duration_kimg: float, log_kimg: float) -> None:
        self.total, self.log_images = checks.images("duration_kimg", duration_kimg), checks.images("log_kimg", log_kimg)
        self.bar: ImageProgress | None = None
        self.last, self.steps = time.perf_counter(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self.bar = ImageProgress(self.total, "training", pl_module.images_seen, trainer.is_global_zero)
        self.losses = LossSums(pl_module.device)
        self.last, self.steps = time.perf_counter(), 0
        pl_module.clock.take()
        if trainer.is_global_zero:
            keep_until(metrics_file(trainer), pl_module.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        assert self.bar is not None
        self.losses.add(outputs["losses"], outputs["levels"])
        self.steps += 1
        note = self.bar.note
        if pl_module.passed(self.log_images):
            record = self._record(trainer, pl_module)
            write_record(trainer, record)
            note = f"loss {record['loss']:.4f}, {100 * record['outside_network']:.0f}% outside the network"
        self.bar.update(pl_module.batch_size, note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _record(self, trainer: Trainer, module: DiffusionModule) -> dict[str, Any]:
        losses = described(trainer.strategy.reduce(self.losses.sums, reduce_op="sum"))  # waits for the device
        now = time.perf_counter()
        rate = round(self.steps * module.batch_size / (now - self.last), 1)
        outside = 1 - module.clock.take() / (now - self.last)
        self.losses, self.last, self.steps = LossSums(module.device), now, 0
        return {
            "step": module.global_step,
            "kimg": module.images_seen / 1000,
            **losses,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(module.gradients.norm) / module.loss_scale,
            "non_finite_steps": module.gradients.bad_steps,
            "images_per_second": rate,
            "outside_network": round(min(max(outside, 0.0), 1.0), 4),
        }


def metrics_file(trainer: Trainer) -> Path:
    """What training leaves for people and programs: a record a line."""
    return Path(trainer.default_root_dir) / "metrics.jsonl"


def write_record(trainer: Trainer, record: dict[str, Any]) -> None:
    """A line of metrics.jsonl, and the same to the loggers: the first process writes."""
    if trainer.is_global_zero:
        append(metrics_file(trainer), record)
    for logger in trainer.loggers:
        logger.log_metrics(row({"train": record}), step=record["step"])


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines. Without room for it nothing of it stays, which is said; training goes on."""
    with dispensable(path), open(path, "ab", buffering=0) as file:
        line, size = (json.dumps(record) + "\n").encode(), file.seek(0, os.SEEK_END)
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def keep_until(path: Path, step: int) -> None:
    """Drop the records of metrics.jsonl after `step`, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
