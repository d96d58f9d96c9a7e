"""The average of the weights as a callback with its own named state."""

from copy import deepcopy
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.denoiser import Denoiser
from scoreline.ema import EMA
from scoreline.training.module import DiffusionModule


class EMACallback(Callback):
    """Keeps an `EMA` of the network; saved under its own key, never mixed with the weights that resume loads."""

    def __init__(self, half_life_kimg: float, rampup: float) -> None:
        self.ema = EMA(half_life_kimg, rampup)
        self.step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not self.ema.weights:
            self.ema.start(pl_module.denoiser.network)
        self.ema.weights = {name: value.to(pl_module.device) for name, value in self.ema.weights.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.global_step > self.step:
            images = pl_module.images_seen - pl_module.batch_size
            self.ema.update(pl_module.denoiser.network, images, pl_module.batch_size)
            self.step = pl_module.global_step

    def averaged(self, module: DiffusionModule) -> Denoiser:
        """A copy of the denoiser with the averaged weights, in evaluation mode."""
        denoiser = deepcopy(module.denoiser).eval().requires_grad_(False)
        denoiser.network.load_state_dict(self.ema.weights)
        return denoiser

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.ema.weights, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ema.weights, self.step = state_dict["weights"], state_dict["step"]


def ema_of(trainer: Trainer) -> EMACallback:
    """The trainer's EMA callback.

    Raises:
        ValueError: if it has none.
    """
    found = [callback for callback in trainer.callbacks if isinstance(callback, EMACallback)]  # type: ignore[attr-defined]
    if len(found) != 1:
        raise ValueError(f"one EMACallback is needed, found {len(found)}")
    return found[0]
