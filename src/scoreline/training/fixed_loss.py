"""The loss on fixed images, noise and noise levels: of the averaged model during training, of a model on other data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Generator

from scoreline.datasets.base import ImageDataset
from scoreline.denoiser import Denoiser
from scoreline.objective import Batch, DenoisingObjective
from scoreline.runtime.seeded_noise import seed_generator
from scoreline.storage.pictures import to_unit
from scoreline.targets import Denoising
from scoreline.training.data import ImageDataModule
from scoreline.training.ema_callback import ema_of
from scoreline.training.loss_by_level import LossByLevel
from scoreline.training.measurements import Measuring, Record, publish
from scoreline.training.module import DiffusionModule, step_key
from scoreline.training.sharding import assemble
from scoreline.values import images_of_kimg
from scoreline.verification.optimal_loss import optimal_losses

SEED = 0
"""Seeds images, noise and levels in every run, whatever its own seed, so that validation losses compare."""

PARTS = 64
"""Number of images per evaluation of the network."""

DRAWS = 8
"""Number of draws of noise for each image of `data_loss`."""

LARGEST = 2**24
"""Most values of a training set whose optimal loss is measured; it takes a few seconds of one core, once."""


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


FIXED, HELDOUT, RAW = "fixed_", "heldout_", "heldout_raw_"
"""Beginnings of the names of validation losses."""


class FixedLoss(Measuring):
    """Log the validation losses of the averaged weights every `every_kimg`, on the same images and noise every time.

    - `fixed_loss`: of `images` training images.
    - `heldout_loss`: of held-out images, where the data module has them; `heldout_raw_loss` is that of the weights
      before averaging.
    - `optimal_loss`: the least possible `fixed_loss`, that of the exact denoiser of the training images
      (`verification.optimal_loss`), where these have at most `LARGEST` values and are not augmented.

    Noise and levels are those of `fixed_batch`. The target is the clean image whatever training regresses on, without
    augmentation or dropped labels, so curves of DSM and STF compare. Use it to compare runs, to see when a model begins
    to memorise its images, to stop or to choose the best model, and in a sweep to choose among runs.
    """

    key = "fixed_loss_kimg"

    def __init__(self, every_kimg: float, images: int = 256) -> None:
        self.every, self.images = images_of_kimg("fixed_loss_kimg", every_kimg), images
        self._batches: dict[str, Batch] = {}
        self._optimal: Record | None = None

    def names(self, data: ImageDataset, heldout: ImageDataset | None) -> list[str]:
        """Return `fixed_loss`, the held-out ones where there are such images, and their errors."""
        kinds = [FIXED, *([HELDOUT, RAW] if heldout else [])]
        return [f"{kind}loss{what}" for kind in kinds for what in ("", "_error")]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not pl_module.passed(self.every):
            return
        kinds = (FIXED, HELDOUT) if _heldout(trainer) else (FIXED,)
        found = self._losses(trainer, pl_module, ema_of(trainer).averaged(pl_module), *kinds)
        if _heldout(trainer):
            weights = assemble(pl_module.denoiser.network.state_dict())
            raw = pl_module.copy_with(weights) if trainer.is_global_zero else None
            found |= self._losses(trainer, pl_module, raw, RAW)
        publish(trainer, pl_module, (found | self._optimum(trainer, pl_module)) if trainer.is_global_zero else None)

    def _losses(self, trainer: Trainer, module: DiffusionModule, denoiser: Denoiser | None, *kinds: str) -> Record:
        """Measure a model on the batches of these kinds; nothing without a model, as on all processes but the first."""
        found: Record = {}
        for kind in kinds if denoiser is not None else ():
            assert denoiser is not None
            found |= self.measure(denoiser, self.batch(trainer, module, kind), module).summary(kind)
        return found

    def batch(self, trainer: Trainer, module: DiffusionModule, kind: str = FIXED) -> Batch:
        """Read the images and draw their noise, once."""
        source = FIXED if kind == FIXED else HELDOUT
        if source not in self._batches:
            data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
            dataset, images = (data.dataset, self.images) if kind == FIXED else (data.heldout, data.heldout_images)
            assert dataset is not None
            count = min(images, len(dataset))
            chosen = np.random.Generator(np.random.PCG64(SEED)).choice(len(dataset), count, replace=False)
            batch = fixed_batch(dataset, chosen.tolist(), bool(module.card.num_classes))
            clean, u, eps = (part.to(module.device) for part in (batch.clean, batch.u, batch.eps))
            label = None if batch.label is None else batch.label.to(module.device)
            self._batches[source] = Batch(clean, u, eps, label)
        return self._batches[source]

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, batch: Batch, module: DiffusionModule) -> LossByLevel:
        """Return the losses of a batch, which this process alone measures."""
        losses, objective = _losses(module), _clean_target(module)
        for part in batch.split(PARTS):
            losses.update(*objective(denoiser, part))
        return losses

    def _optimum(self, trainer: Trainer, module: DiffusionModule) -> Record:
        """Measure `optimal_loss` on the first call; empty where it is not known exactly or takes long."""
        if self._optimal is None:
            dataset: ImageDataset = trainer.datamodule.dataset  # type: ignore[attr-defined]
            known = module.augmentation is None and dataset.nbytes <= LARGEST
            self._optimal = self._exact(dataset, module, self.batch(trainer, module)) if known else {}
        return self._optimal

    def _exact(self, dataset: ImageDataset, module: DiffusionModule, batch: Batch) -> Record:
        images, labels = (part.to(module.device) for part in dataset.read(range(len(dataset))))
        losses = _losses(module)
        losses.update(*optimal_losses(_clean_target(module), batch, images, labels))
        return losses.summary("optimal_")


def _losses(module: DiffusionModule) -> LossByLevel:
    return LossByLevel(sync_on_compute=False).to(module.device)


def _clean_target(module: DiffusionModule) -> DenoisingObjective:
    return replace(module.objective, target=Denoising())


def _heldout(trainer: Trainer) -> ImageDataset | None:
    heldout: ImageDataset | None = trainer.datamodule.heldout  # type: ignore[attr-defined]
    return heldout
