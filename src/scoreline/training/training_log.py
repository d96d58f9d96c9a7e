"""The log of a training: the progress bar, metrics.jsonl, and metrics.csv."""

import csv
import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger

from scoreline.runtime.progress import ImageProgress
from scoreline.storage.files import write_atomically
from scoreline.storage.run_history import history, row
from scoreline.training.callbacks import dispensable
from scoreline.training.loss_by_level import LossByLevel
from scoreline.training.module import DiffusionModule
from scoreline.values import images_of_kimg


class TrainingProgress(Callback):
    """Show a progress bar, and write a record to metrics.jsonl and the loggers every `log_kimg` thousand images.

    A record holds step and kimg; the mean loss since the last record with its standard error over images and its mean
    by noise level, over all processes; learning rate, norm of the gradient, number of steps whose gradient was not
    finite, images per second; and `outside_network`, the share of the time since the last record that the first process
    spent outside the network (`DiffusionModule.clock`), previews and checkpoints included. A resumed training drops the
    records of steps that it repeats, so the file reads as if the run had never stopped.
    """

    def __init__(self, duration_kimg: float, log_kimg: float) -> None:
        self.total, self.log_images = (
            images_of_kimg("duration_kimg", duration_kimg),
            images_of_kimg("log_kimg", log_kimg),
        )
        self.bar: ImageProgress | None = None
        self.last, self.steps = time.perf_counter(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self.bar = ImageProgress(self.total, "training", pl_module.images_seen, trainer.is_global_zero)
        self.losses = LossByLevel().to(pl_module.device)
        self.last, self.steps = time.perf_counter(), 0
        pl_module.clock.take()
        if trainer.is_global_zero:
            keep_until(_metrics_file(trainer), pl_module.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        assert self.bar is not None
        self.losses.update(outputs["losses"], outputs["levels"])
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
        losses = self.losses.summary()  # waits for the device
        now = time.perf_counter()
        rate = round(self.steps * module.batch_size / (now - self.last), 1)
        outside = 1 - module.clock.take() / (now - self.last)
        curve = module.uncertainty_curve()
        self.losses.reset()
        self.last, self.steps = now, 0
        return {
            "step": module.global_step,
            "kimg": module.images_seen / 1000,
            **losses,
            **({"uncertainty": curve} if curve else {}),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(module.gradients.norm) / module.loss_scale,
            "non_finite_steps": module.gradients.bad_steps,
            "images_per_second": rate,
            "outside_network": round(min(max(outside, 0.0), 1.0), 4),
        }


def _metrics_file(trainer: Trainer) -> Path:
    """Return the path of metrics.jsonl, a record a line."""
    return Path(trainer.default_root_dir) / "metrics.jsonl"


def write_record(trainer: Trainer, record: dict[str, Any]) -> None:
    """Append a record to metrics.jsonl on the first process and pass it to the loggers."""
    if trainer.is_global_zero:
        append(_metrics_file(trainer), record)
    for logger in trainer.loggers:
        logger.log_metrics(row({"train": record}), step=record["step"])


def append(path: Path, record: dict[str, Any]) -> None:
    """Append to a file of JSON lines. If the disk is full, the whole line is left out with a warning."""
    with dispensable(path), open(path, "ab", buffering=0) as file:
        line, size = (json.dumps(record) + "\n").encode(), file.seek(0, os.SEEK_END)
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step` and a last line that a kill cut short."""
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


class CsvFile(Logger):
    """Rewrite metrics.csv from metrics.jsonl at the end of every fit, failed or not, for spreadsheets.

    It always holds the whole history, also after a resume. A row has an empty field where it has no value.
    """

    name, version, save_dir = "csv", "", ""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.save_dir = save_dir

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Do nothing: metrics.jsonl has the records already."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        root = Path(self.save_dir)
        rows = [row for row in history(root) if "previews" not in row]
        if not rows:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
        path = root / "metrics.csv"
        with dispensable(path):
            write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), newline=""))
