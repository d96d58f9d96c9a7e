"""`keep_best=`: the model file of the best measurement of a training."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.checkpoints import save_model
from scoreline.metrics.base import higher_is_better
from scoreline.training.callbacks import WRITING_FAILED, say_not_written
from scoreline.training.ema_callback import EMACallback, ema_of
from scoreline.training.module import DiffusionModule

NAME = "best.safetensors"


class KeepBest(Callback):
    """Write the averaged model to best.safetensors whenever a measurement of it is the best so far.

    Its card says when and how good, under `training`: `kimg`, and `best` with name, value and standard error. The best
    of many measurements is the luckiest, too: its value is optimistic by about an error. A resumed training knows the
    best value from its checkpoint, so the file is that of a training which never stopped. Use it as
    `keep_best=heldout_loss`.

    Attributes:
        value: the best value so far, None before the first measurement.

    Args:
        monitor: the name of the measurement, such as `fixed_loss`, `heldout_loss` or `frechet_distance`.
    """

    key = "keep_best"

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.value: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew if the file is gone, or in the directory of another run."""
        if not trainer.strategy.broadcast((Path(trainer.default_root_dir) / NAME).is_file()):
            self.value = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        value = float(trainer.callback_metrics[self.monitor])
        if not self._is_better(value):
            return
        error = trainer.callback_metrics.get(f"{self.monitor}_error")
        best = {"name": self.monitor, "value": value, "error": None if error is None else float(error)}
        averages = ema_of(trainer).whole()
        failed = trainer.is_global_zero and self._fails(Path(trainer.default_root_dir), averages, pl_module, best)
        if not trainer.strategy.reduce_boolean_decision(failed, all=False):
            self.value = value

    def _is_better(self, value: float) -> bool:
        if self.value is None or math.isnan(value):
            return not math.isnan(value)
        return value > self.value if higher_is_better(self.monitor) else value < self.value

    @staticmethod
    def _fails(root: Path, averages: EMACallback, module: DiffusionModule, best: dict[str, Any]) -> bool:
        """Write the file, and return whether that failed."""
        about = {"kimg": module.images_seen / 1000, "ema_half_life_kimg": averages.ema.half_life_kimg, "best": best}
        card = replace(module.card, training={**module.card.training, **about})
        try:
            save_model(root / NAME, averages.ema.weights, card)
        except WRITING_FAILED as error:
            say_not_written(root / NAME, error, "training continues")
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor:
            self.value = state_dict["value"]
