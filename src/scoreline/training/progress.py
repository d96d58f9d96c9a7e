"""What a person watching a run sees, and what is left in metrics.jsonl."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scoreline.files import write_atomically
from scoreline.progress import ImageProgress
from scoreline.training.module import DiffusionModule


class TrainingProgress(Callback):
    """A bar in images and, every `log_kimg` thousand images, one record to metrics.jsonl and to the logger.

    A record holds step, kimg, mean loss since the last one, learning rate, images per second. On resuming, records
    of steps that will be repeated are dropped, so the file reads as if the run had never stopped.
    """

    def __init__(self, duration_kimg: float, log_kimg: float) -> None:
        self.total, self.log_images = round(duration_kimg * 1000), max(1, round(log_kimg * 1000))
        self.losses: list[Tensor] = []
        self.bar: ImageProgress | None = None
        self.last = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self.bar = ImageProgress(self.total, "training", pl_module.images_seen, trainer.is_global_zero)
        self.last = time.perf_counter()
        if trainer.is_global_zero:
            keep_until(self._path(trainer), pl_module.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        assert self.bar is not None
        self.losses.append(outputs["loss"].detach())
        seen, batch = pl_module.images_seen, pl_module.batch_size
        note = f"loss {self.mean_loss():.4f}" if seen // self.log_images > (seen - batch) // self.log_images else ""
        if note:
            self._record(trainer, pl_module)
        self.bar.update(batch, note or self.bar.note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def mean_loss(self) -> float:
        """Mean loss of the steps since the last record, on this process."""
        return float(torch.stack(self.losses).mean())

    def _record(self, trainer: Trainer, module: DiffusionModule) -> None:
        now = time.perf_counter()
        record = {
            "step": module.global_step,
            "kimg": module.images_seen / 1000,
            "loss": self.mean_loss(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": round(len(self.losses) * module.batch_size / (now - self.last), 1),
        }
        self.losses, self.last = [], now
        if trainer.is_global_zero:
            with open(self._path(trainer), "a") as file:
                file.write(json.dumps(record) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{key}": value for key, value in record.items()}, step=module.global_step)

    @staticmethod
    def _path(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "metrics.jsonl"


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
