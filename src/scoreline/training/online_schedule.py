"""A score-optimal schedule learnt while the model trains (OnlineSchedule)."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scoreline.calibration.online_length import KEY, Adaptation, LengthDensity, OnlineLength, step_costs
from scoreline.calibration.score_optimal import spread_of
from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import foreign_packages, rebuild
from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.runtime.device import to_device
from scoreline.runtime.seeded_noise import seed_generator
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.score_optimal import ScoreOptimal
from scoreline.storage.figures import figure, plain_ticks
from scoreline.storage.files import code_version, sha256, write_atomically
from scoreline.storage.pictures import to_unit
from scoreline.storage.run_history import row
from scoreline.training.callbacks import dispensable
from scoreline.training.data import EndlessBatches
from scoreline.training.ema_callback import ema_of
from scoreline.training.module import DiffusionModule, step_key
from scoreline.training.training_log import append, keep_until
from scoreline.values import whole_number


class OnlineSchedule(Callback):
    """Measure the corrector's costs on a few images of every batch, and move the noise levels (Algorithm 2).

    After the burn-in every step evaluates the averaged model twice on `images_per_step` images, noised to the upper
    ends of that many intervals; the intervals pass by in shuffled rounds, so each is visited as often. Two forward
    passes on n images of a batch of B cost about 2 n / (3 B) of a step, a backward pass counting as two forward ones:
    8 % for 8 of 64, and the fixed cost of a call; 11 % fewer images a second for the digits' small network on one core
    of a CPU. All processes hold the same numbers, so a file of any of them resumes a run to the bit.

    An untrained score costs most at the noisy end and pulls the levels there, so a burn-in comes first.

    With `as_density` the noise levels of training are drawn evenly in length from the first update on; the weight
    stays as configured. A density p in place of q acts like the weight lambda p / q: the minimiser of a network that
    can fit every level stays, the order and quality of learning change, and losses before and after do not compare.

    It writes online_schedule.jsonl and .png into the run directory, and at the end `model.score_optimal.safetensors`
    for the model, unless calibrate.py has measured this very model already. Use it for `schedule=score_optimal`
    without a calibration.

    Attributes:
        burn_in_kimg: nothing is measured before so many thousand images of training.
        images_per_step: measured at every step, over all processes.
        as_density: train on levels of this schedule.
        adaptation: the fields of `online_length.Adaptation`.

    Source: Williams et al. (2024), arXiv:2412.07877, Algorithm 2; evaluating the averaged weights is our choice.

    Raises:
        InputError: for a negative burn-in, no image per step, or what `Adaptation` refuses; when training starts, for
            more images per step than a batch has, or a number that its processes cannot share.
    """

    def __init__(self, burn_in_kimg: float, images_per_step: int, as_density: bool = False, **adaptation: Any) -> None:
        if not burn_in_kimg >= 0:
            raise InputError(f"{KEY}.burn_in_kimg={burn_in_kimg}: must be 0 or more thousand images")
        whole_number(f"{KEY}.images_per_step", images_per_step)
        if not isinstance(as_density, bool):
            raise InputError(f"{KEY}.as_density={as_density}: must be true or false")
        self.burn_in, self.images_per_step, self.as_density = burn_in_kimg * 1000, images_per_step, as_density
        self.rule = Adaptation(**adaptation)
        self.written: str | None = None
        self._length: OnlineLength | None = None
        self._restored: dict[str, Any] = {}
        self._averaged: Denoiser | None = None

    @property
    def length(self) -> OnlineLength:
        """The measured length, once the training has started."""
        assert self._length is not None
        return self._length

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.device_mesh is not None:
            raise InputError("callbacks=online_schedule: not with trainer=fsdp; use trainer=ddp")
        self._check_images(pl_module.batch_size, trainer.world_size)
        process = pl_module.card.model["noise_schedule"]
        native: NoiseSchedule = rebuild(process, NoiseSchedule, foreign_packages(process))  # named by the config
        self._length = OnlineLength.even(self.rule, native.finite_sigma_max, native.sigma_min)
        if self._restored:
            self._length.load_state_dict(self._restored)
        self._averaged = None
        self._use(pl_module)

    def _check_images(self, batch_size: int, world: int) -> None:
        setting = f"{KEY}.images_per_step={self.images_per_step}"
        if self.images_per_step > batch_size:
            raise InputError(f"{setting}: a batch has {batch_size} images; choose at most batch_size={batch_size}")
        if self.images_per_step % world:
            raise InputError(f"{setting}: must be a multiple of the {world} processes")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines of updates to be repeated: a checkpoint of step k is older than the update at step k."""
        if trainer.is_global_zero:
            keep_until(_lines(trainer), int(trainer.global_step) - 1)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.images_seen < self.burn_in:
            return
        self._measure(trainer, pl_module, *batch)
        if self.length.update():
            self._use(pl_module)
            self._record(trainer, pl_module)

    @torch.no_grad()
    def _measure(self, trainer: Trainer, module: DiffusionModule, images: Tensor, labels: Tensor) -> None:
        places = _places(module, self.length.intervals, self.images_per_step)
        share = self.images_per_step // trainer.world_size
        at = slice(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        key = step_key(module.seed, module.global_step, trainer.global_rank, "online_schedule")
        generator = seed_generator(torch.Generator(images.device), key)
        clean, label = to_unit(images[:share]), module.condition(labels[:share])
        fresh = torch.randn(clean.shape, device=clean.device, generator=generator)
        low, high = (to_device(self.length.rho[places[at] + end], clean.device) for end in (0, 1))
        costs = torch.zeros(len(places), dtype=torch.float64, device=clean.device)
        costs[at] = step_costs(self._shadow(trainer, module), clean, fresh, high, low, label)
        self.length.add(places, trainer.strategy.reduce(costs, reduce_op="sum"))

    def _shadow(self, trainer: Trainer, module: DiffusionModule) -> Denoiser:
        """Return the averaged model. It shares the memory that `EMA.update` writes to, so nothing is copied."""
        if self._averaged is None:
            self._averaged = deepcopy(module.denoiser).eval().requires_grad_(False)
            self._averaged.network.load_state_dict(ema_of(trainer).ema.weights, assign=True)
        return self._averaged

    def _use(self, module: DiffusionModule) -> None:
        if self.as_density and self.length.updates:
            module.objective = replace(module.objective, density=LengthDensity(self.length.schedule()))

    def _record(self, trainer: Trainer, module: DiffusionModule) -> None:
        line = {"step": module.global_step, "kimg": module.images_seen / 1000, **_figures(self.length)}
        if trainer.is_global_zero:
            append(_lines(trainer), line)
        for logger in trainer.loggers:
            logger.log_metrics(row({"online_schedule": line}), step=module.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After every callback's end of training, so the model file is the last one."""
        assert isinstance(pl_module, DiffusionModule)
        model = Path(trainer.default_root_dir) / "model.safetensors"
        if trainer.is_global_zero and self.length.updates and model.is_file():
            self.written = self._write(model, pl_module)
            with dispensable(_lines(trainer).with_suffix(".png")):
                _plot(_lines(trainer))

    def _write(self, model: Path, module: DiffusionModule) -> str:
        digest, path = sha256(model), model.with_name("model.score_optimal.safetensors")
        if _measured_by_others(path, digest):
            return f"{path.name} was measured by calibrate.py and is kept"
        provenance = {
            "checkpoint": digest,
            "data": module.card.data,
            "estimator": type(self).__name__,
            **asdict(self.rule),
            "burn_in_kimg": self.burn_in / 1000,
            "images_per_step": self.images_per_step,
            "as_density": self.as_density,
            "kimg": module.images_seen / 1000,
            "updates": self.length.updates,
            "initial_share": self.length.initial,
            "images": self.length.images,
            "dropped": self.length.dropped,
            "code_version": code_version(),
        }
        Record("score_optimal", self.length.values(), provenance).save(path)
        return f"{path.name}: for sample.py schedule=score_optimal"

    def summary(self) -> str:
        """Return one line: how far the levels have come, and the record."""
        if not self.length.updates:
            need = self.length.intervals * self.rule.visits
            return (
                f"online schedule: no update, hence no record: {self.length.drawn} of {need} images measured since the "
                f"burn-in, {self.length.dropped} dropped; lower {KEY}.burn_in_kimg, levels or visits, or train longer"
            )
        shown = _figures(self.length)
        return (
            f"online schedule: {shown['updates']} updates, length {shown['length']:.4g}, spread of the steps' lengths "
            f"{100 * shown['spread']:.2g} %, {100 * shown['initial_share']:.2g} % of the way from even levels left, "
            f"{shown['dropped']} of {self.length.images} images dropped -> {self.written}"
        )

    def state_dict(self) -> dict[str, Any]:
        return self.length.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def online_schedule_of(trainer: Trainer) -> ScoreOptimal | None:
    """Return the current schedule of the trainer's OnlineSchedule; None without one or before its first update."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OnlineSchedule) and callback.length.updates:
            return callback.length.schedule()
    return None


def _places(module: DiffusionModule, intervals: int, count: int) -> Tensor:
    """Return the intervals that a step measures: shuffled rounds, a pure function of (seed, step)."""
    key = step_key(module.seed, 0, 0, "intervals")
    return torch.tensor(next(iter(EndlessBatches(intervals, count, key, module.global_step))))


def _figures(length: OnlineLength) -> dict[str, Any]:
    """Return the record of an update; sigma are the levels at 0, 10, .. 100 % of the length."""
    sigma = length.schedule().inverse(torch.linspace(0, 1, 11, dtype=torch.float64)).tolist()
    return {
        "updates": length.updates,
        "length": float(length.steps.sum()),
        "spread": float(spread_of(length.steps)),
        "lowest": float(length.rho[1] / length.rho[0]),
        "initial_share": length.initial,
        "dropped": length.dropped,
        "sigma": sigma,
    }


def _measured_by_others(path: Path, digest: str) -> bool:
    """Return whether a record of this very model exists that another estimator wrote."""
    try:
        return bool(load_record(path, "score_optimal", digest).provenance.get("estimator") != OnlineSchedule.__name__)
    except InputError:
        return False


def _lines(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "online_schedule.jsonl"


def _plot(lines: Path) -> None:
    """Plot online_schedule.png: levels at every tenth of the length, against thousands of images."""
    write_atomically(
        lines.with_suffix(".png"), partial(_draw, [json.loads(line) for line in lines.read_text().splitlines()])
    )


def _draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    with figure(path) as (_, axes):
        axes.semilogy([r["kimg"] for r in records], [r["sigma"] for r in records], color="C0", marker=".")
        axes.set(xlabel="thousand images", ylabel="noise level at each tenth of the length")
        plain_ticks(axes.yaxis)
