"""The loss on fixed images, noise and noise levels: of the averaged model during training, of a model on other data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Generator

from scoreline.datasets.base import ImageDataset
from scoreline.denoiser import Denoiser
from scoreline.objective import Batch, DenoisingObjective
from scoreline.runtime.seeded_noise import seed_generator
from scoreline.storage.pictures import to_unit
from scoreline.targets import Denoising
from scoreline.training.ema_callback import ema_of
from scoreline.training.loss_by_level import LossByLevel
from scoreline.training.module import DiffusionModule, step_key
from scoreline.training.training_log import write_record
from scoreline.values import images_of_kimg

SEED = 0
"""Seeds images, noise and levels in every run, whatever its own seed, so that validation losses compare."""

PARTS = 64
"""Number of images per evaluation of the network."""

DRAWS = 8
"""Number of draws of noise for each image of `data_loss`."""


class Loss(NamedTuple):
    """The mean of a loss over images, its standard error, and the number of images."""

    loss: float
    error: float
    images: int


def fixed_batch(dataset: ImageDataset, chosen: Sequence[int], conditional: bool, draw: int = 0) -> Batch:
    """Return images of a data set with noise and levels that are the same in every call.

    The levels are the quantiles (i + 1/2) / n of the training density, paired with images and noise by a fixed shuffle.

    Args:
        dataset: the images.
        chosen: n numbers of images.
        conditional: whether the network takes their labels.
        draw: chooses the noise and the shuffle.
    """
    images, labels = dataset.read(chosen)
    generator = seed_generator(Generator(), step_key(SEED, draw, 0, "fixed_loss"))
    order = torch.randperm(len(images), generator=generator)
    u = (order.double() + 0.5) / len(images)
    eps = torch.randn(images.shape, generator=generator)
    return Batch(to_unit(images), u, eps, labels if conditional else None)


@torch.inference_mode()
def data_loss(denoiser: Denoiser, objective: DenoisingObjective, dataset: ImageDataset, conditional: bool) -> Loss:
    """Measure the loss on every image of a data set, a mean over `DRAWS` draws each, against the clean images.

    Use it with held-out images, to choose when to stop and to compare models of one data set.

    Args:
        denoiser: the model.
        objective: the training objective; its target is not used.
        dataset: at least two images.
        conditional: whether the network takes their labels.
    """
    objective = replace(objective, target=Denoising())
    means = torch.zeros(len(dataset), dtype=torch.float64)
    for draw in range(DRAWS):
        batch = fixed_batch(dataset, range(len(dataset)), conditional, draw)
        means += torch.cat([objective(denoiser, part)[0].double() for part in batch.split(PARTS)]) / DRAWS
    return Loss(float(means.mean()), float(means.std() / len(means) ** 0.5), len(means))


class FixedLoss(Callback):
    """Log the validation loss of the averaged weights on `images` fixed images every `every_kimg`, as `fixed_loss`.

    Noise and levels are those of `fixed_batch`. The target is the clean image whatever training regresses on, without
    augmentation or dropped labels, so curves of DSM and STF compare. Use it to compare runs and, in a sweep, to
    choose among them.
    """

    def __init__(self, every_kimg: float, images: int = 256) -> None:
        self.every, self.images = images_of_kimg("fixed_loss_kimg", every_kimg), images
        self._batch: Batch | None = None
        self._objective: DenoisingObjective | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self._objective = replace(pl_module.objective, target=Denoising())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not pl_module.passed(self.every):
            return
        denoiser = ema_of(trainer).averaged(pl_module)
        if denoiser is not None:
            record = {"step": pl_module.global_step, "kimg": pl_module.images_seen / 1000}
            losses = self.measure(denoiser, self.batch(trainer, pl_module))
            write_record(trainer, record | losses.summary("fixed_"))

    def batch(self, trainer: Trainer, module: DiffusionModule) -> Batch:
        """Read the images and draw their noise, once."""
        if self._batch is None:
            dataset = trainer.datamodule.dataset  # type: ignore[attr-defined]
            count = min(self.images, len(dataset))
            chosen = np.random.Generator(np.random.PCG64(SEED)).choice(len(dataset), count, replace=False)
            batch = fixed_batch(dataset, chosen.tolist(), bool(module.card.num_classes))
            clean, u, eps = (part.to(module.device) for part in (batch.clean, batch.u, batch.eps))
            self._batch = Batch(clean, u, eps, None if batch.label is None else batch.label.to(module.device))
        return self._batch

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, batch: Batch) -> LossByLevel:
        """Return the losses, which are the same on every process."""
        assert self._objective is not None
        losses = LossByLevel(sync_on_compute=False).to(batch.clean.device)
        for part in batch.split(PARTS):
            losses.update(*self._objective(denoiser, part))
        return losses
