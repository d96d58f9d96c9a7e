"""Pruning: end a training whose validation loss is worse than the median of the finished runs of the same sweep."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.storage.run_history import records
from scoreline.training.module import DiffusionModule
from scoreline.training.training_log import write_record
from scoreline.values import images_of_kimg, real_number, whole_number

FILE = "metrics.jsonl"

SWEEP = "multirun.yaml"
"""File of a sweep's directory."""

PRUNED = "pruned"
"""Key of the record that ends a pruned training."""

Curve = dict[int, float]
"""Number of the measurement, from 1 on, to the lowest `fixed_loss` up to there."""


class Pruning(Callback):
    """Stop a training at a `fixed_loss` whose lowest value so far exceeds the median of other runs' there.

    The other runs are the folders beside this run directory that trained to `duration_kimg`: the jobs of one sweep,
    whichever sweeper began them, so no database is read. The state is saved, the last record of metrics.jsonl says
    `pruned`, and the last loss remains the value of the run. A resumed run that was pruned stays so. Runs are compared
    at equal numbers of images; use it for keys that leave the loss comparable (learning rate, batch size, network), not
    for data sets or objectives.

    The published rule compares the best value so far with the median of the others' running averages, which a falling
    curve keeps far above its last value, so it would stop hardly any training; here both sides are best values so far.

    Args:
        every_kimg: interval of the validation loss.
        duration_kimg: length of the training.
        least_runs: finished runs without which none is stopped.
        least_kimg: images without which none is stopped.

    Source: Golovin et al., *Google Vizier: A Service for Black-Box Optimization*, KDD 2017 (section 3.2.2).
    """

    monitor = "fixed_loss"

    def __init__(self, every_kimg: float, duration_kimg: float, least_runs: int = 4, least_kimg: float = 0) -> None:
        self.every = images_of_kimg("fixed_loss_kimg", every_kimg)
        self.total = images_of_kimg("duration_kimg", duration_kimg)
        self.least_runs = whole_number("callbacks.pruning.least_runs", least_runs)
        self.least = 1000 * real_number("callbacks.pruning.least_kimg", least_kimg, zero=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the loss that was measured last; `measurements.publish` calls this."""
        assert isinstance(pl_module, DiffusionModule)
        worse = trainer.is_global_zero and self._is_worse(Path(trainer.default_root_dir), pl_module.images_seen)
        if trainer.strategy.reduce_boolean_decision(worse, all=False):
            write_record(trainer, {"step": pl_module.global_step, "kimg": pl_module.images_seen / 1000, PRUNED: True})
            trainer.should_stop = True

    def _is_worse(self, folder: Path, images: int) -> bool:
        """Return whether the run in a folder is worse than the finished ones beside it, after this many images."""
        number, last = images // self.every, self.total // self.every
        others = [curve(path, self.every) for path in beside(folder) if pruned_at(path) is None]
        there = [other[number] for other in others if last in other and number in other]
        own = curve(folder, self.every).get(number, 0.0)
        return images >= self.least and len(there) >= self.least_runs and own > median(there)


def beside(folder: Path) -> list[Path]:
    """Return the other run directories of the sweep that a run directory belongs to; none outside a sweep."""
    if not (folder.parent / SWEEP).is_file():
        return []
    return [path.parent for path in sorted(folder.parent.glob(f"*/{FILE}")) if path.parent.name != folder.name]


def curve(folder: Path, every: int) -> Curve:
    """Return the lowest validation losses so far of a run directory, by the number of their measurement.

    Args:
        folder: the run directory.
        every: interval of the validation loss in images; measurements come at the first step after each multiple.
    """
    losses = [(record, float(record["fixed_loss"])) for record in records(folder / FILE) if "fixed_loss" in record]
    lowest, points = float("inf"), Curve()
    for record, loss in losses:
        lowest = min(lowest, loss)
        points[_images(record) // every] = lowest
    return points


def pruned_at(folder: Path) -> float | None:
    """Return the kimg at which the run in a folder was pruned, or None."""
    return next((float(record["kimg"]) for record in records(folder / FILE) if record.get(PRUNED)), None)


def _images(record: Mapping[str, Any]) -> int:
    return round(1000 * float(record["kimg"]))
