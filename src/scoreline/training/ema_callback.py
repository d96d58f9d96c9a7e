"""The EMA callback: running averages of the weights, and their state in a checkpoint."""

import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.training.callbacks import dispensable, the_callback
from scoreline.training.ema import EMA, NARROWEST, UNIFORM, PowerFunctionEMA, RunningAverage
from scoreline.training.ema_snapshots import drop_later, save_snapshot, snapshot_path
from scoreline.training.module import DiffusionModule
from scoreline.training.sharding import assemble, divide
from scoreline.values import is_number

Average = TypeVar("Average", bound=RunningAverage)


class EMACallback(Callback):
    """Average the network's weights after every step.

    Resuming takes every average from the checkpoint by its name. A half-life that the checkpoint does not hold starts
    from the checkpoint's main average.

    Args:
        half_life_kimg: half-life of one EMA, or of several; samples are drawn from the first, the main one.
        rampup: ratio of half-lives to the images seen during the ramp.
        post_hoc: sigma_rel of the power-function averages that are saved as snapshots for `scoreline ema`.

    Attributes:
        averages: every EMA by the suffix of its model file: "" for the main one, "-ema50kimg" for another.
        powers: the power-function averages.

    Raises:
        InputError: for a half-life or ramp that is not above 0, a width out of range, or a value given twice; when
            resuming, if the checkpoint has not averaged a power function from its first step on.
    """

    def __init__(
        self,
        half_life_kimg: float | Sequence[float],
        rampup: float,
        post_hoc: float | Sequence[float] | None = None,
    ) -> None:
        half_lives = _numbers("ema.half_life_kimg", half_life_kimg, 0, math.inf)
        if not half_lives:
            raise InputError("ema.half_life_kimg=[]: give one half-life at least, in thousands of images")
        if not is_number(rampup) or not rampup > 0:
            raise InputError(f"ema.rampup={rampup}: must be a number greater than 0; inf (.inf in a file): no ramp")
        widths = [] if post_hoc is None else _numbers("ema.post_hoc", post_hoc, NARROWEST, UNIFORM)
        first, *others = (EMA(half_life, rampup) for half_life in half_lives)
        self.averages: dict[str, EMA] = {"": first, **{f"-{other.name}": other for other in others}}
        self.powers = [PowerFunctionEMA(width) for width in widths]
        self.step = self.batch = 0

    @property
    def ema(self) -> EMA:
        """The main average."""
        return self.averages[""]

    @property
    def _all(self) -> list[RunningAverage]:
        return [*self.averages.values(), *self.powers]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self.batch = pl_module.batch_size
        if self.powers and pl_module.offset:
            raise InputError(
                f"ema.post_hoc={[power.sigma_rel for power in self.powers]}: `scoreline ema` needs steps of one size, "
                f"and those of the checkpoint are not of batch_size={self.batch}; use theirs, or ema.post_hoc=null"
            )
        for ema in self.averages.values():
            ema.trained = "init" in pl_module.card.training
        network = pl_module.denoiser.network
        placed = network.state_dict(keep_vars=True)
        for average in self._all:
            if not average.weights:
                average.start(network)
            average.weights = {
                name: divide(value, placed.get(name)).to(pl_module.device) for name, value in average.weights.items()
            }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop snapshots of steps that are repeated, and save those of this step if a kill came before them."""
        assert isinstance(pl_module, DiffusionModule)
        whole = self.whole() if self.powers else self
        if self.powers and trainer.is_global_zero:
            root, seen = Path(trainer.default_root_dir), pl_module.images_seen
            drop_later(root, seen)
            if not self.has_snapshots(root, seen):
                with dispensable(root / "ema"):
                    whole.save_snapshots(root, seen)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.global_step > self.step:
            images = pl_module.images_seen - pl_module.batch_size
            for average in self._all:
                average.update(pl_module.denoiser.network, images, pl_module.batch_size)
            self.step = pl_module.global_step

    def averaged(self, module: DiffusionModule) -> Denoiser | None:
        """Copy the denoiser with the main average's weights, in evaluation mode; None but on the first process.

        All processes must call it together.
        """
        weights = assemble(self.ema.weights)
        return module.copy_with(weights) if module.trainer.is_global_zero else None

    def whole(self) -> "EMACallback":
        """Gather sharded averages on the first process; whole weights are shared. All processes must call it."""
        whole = copy(self)
        whole.averages = {suffix: _whole(average) for suffix, average in self.averages.items()}
        whole.powers = [_whole(power) for power in self.powers]
        return whole

    def save_snapshots(self, root: Path, images: int) -> None:
        """Write ema/0000064000-0.05.safetensors of every power-function average, if a step was made."""
        for power in self.powers if images else []:
            save_snapshot(root, power, images, self.batch)

    def has_snapshots(self, root: Path, images: int) -> bool:
        """Return whether `save_snapshots` wrote its files."""
        return all(snapshot_path(root, power, images).exists() for power in self.powers)

    def state_dict(self) -> dict[str, Any]:
        """Return `averages` by name; `weights` is the main one again, which takes no space in a file."""
        whole = self.whole()
        averages = {average.name: average.weights for average in whole._all}
        return {"weights": whole.ema.weights, "step": self.step, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of version 0.3 and before, which holds one average without a name."""
        self.step, saved = state_dict["step"], state_dict.get("averages", {})
        for average in self.averages.values():
            weights = saved.get(average.name, state_dict["weights"])
            average.weights = {name: value.clone() for name, value in weights.items()}
        absent = [power.sigma_rel for power in self.powers if power.name not in saved]
        if absent and self.step:
            raise InputError(
                f"ema.post_hoc={[power.sigma_rel for power in self.powers]}: the checkpoint to resume from has not "
                f"averaged with {', '.join(map(str, absent))} from its first step on; leave them out or start again"
            )
        for power in self.powers:
            power.weights = {name: value.clone() for name, value in saved.get(power.name, {}).items()}


def _whole(average: Average) -> Average:
    whole = copy(average)
    whole.weights = assemble(average.weights)
    return whole


def _numbers(key: str, setting: Any, low: float, high: float) -> list[float]:
    """Check one number or several different ones, from `low` to `high`, neither 0 nor infinity."""
    several = isinstance(setting, Sequence) and not isinstance(setting, str)
    values = list(setting) if several else [setting]
    for value in values:
        if not is_number(value) or not low <= value <= high or value in (0, math.inf):
            limits = "greater than 0" if high == math.inf else f"from {low:g} to {high:.6f}"
            raise InputError(f"{key}={setting}: {value} is no number {limits}; give one such number or a list of them")
    names = [f"{value:g}" for value in values]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{key}={setting}: {twice[0]} is there more than once; leave one out")
    return [float(value) for value in values]


def ema_of(trainer: Trainer) -> EMACallback:
    """Find the trainer's only EMA callback."""
    return the_callback(trainer, EMACallback)
