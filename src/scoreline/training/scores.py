"""Scores of the averaged model while it trains: samples of it, compared with real images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import foreign_packages, rebuild
from scoreline.errors import InputError
from scoreline.generation.auto_batch import card_batch
from scoreline.generation.batches import generate
from scoreline.generation.labels import plan_labels
from scoreline.interface.named_choices import schedule_named, solver_named
from scoreline.metrics.base import Metrics
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.schedules.base import NoiseSchedule
from scoreline.solvers.tableau import build
from scoreline.storage.pictures import to_uint8
from scoreline.training.ema_callback import ema_of
from scoreline.training.measurements import Measuring, Record, publish
from scoreline.training.module import DiffusionModule
from scoreline.values import images_of_kimg

SOLVER, SCHEDULE = "velocity_abm2_open", "linear_vp_quadratic"
"""The defaults of sample.py."""

FIRST_SEED = 2**32
"""First of the seeds, which neither previews nor usual runs of sample.py have."""


class Scores(Measuring):
    """Sample and score the averaged model every `every_kimg`, with the same seeds every time.

    The images are those of `sample.py seeds=4294967296-..` with its default solver, and classes of conditional models
    are drawn as there. The first process does the work and the others wait, so the scores do not depend on their
    number. Use it to see when samples stop getting better, which no loss shows, and to choose the best model
    (`keep_best`). With a few hundred images, distances are biased upwards, equally every time.

    Args:
        metrics: the scores.
        every_kimg: thousands of images between two measurements.
        images: number of images to sample.
        nfe: evaluations of the denoiser for each.
    """

    key = "metrics_every_kimg"

    def __init__(self, metrics: Metrics, every_kimg: float, images: int, nfe: int) -> None:
        self.metrics, self.every = metrics, images_of_kimg(self.key, every_kimg)
        self.seeds, self.nfe = range(FIRST_SEED, FIRST_SEED + images), nfe

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check, before the training, that images of a shape can be scored.

        Raises:
            InputError: if they cannot, or if the metrics measure nothing.
        """
        if isinstance(self.metrics, NoMetrics):
            reason = self.metrics.note or "metrics=none measures nothing; choose others"
            raise InputError(f"{self.key}={self.every / 1000:g}: {reason}")
        self.metrics.check(shape, len(self.seeds))

    def names(self, data: ImageDataset, heldout: ImageDataset | None) -> list[str]:
        """Return the names of scores, which metrics tell only by measuring: here, images of noise."""
        noise = torch.randint(0, 256, (len(self.seeds), *data.shape), generator=torch.Generator().manual_seed(0))
        return list(_record(self.metrics, noise.to(torch.uint8)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not pl_module.passed(self.every):
            return
        denoiser = ema_of(trainer).averaged(pl_module)
        found = None if denoiser is None else _record(self.metrics, self.sample(denoiser, pl_module))
        publish(trainer, pl_module, found)

    @torch.no_grad()
    def sample(self, denoiser: Denoiser, module: DiffusionModule) -> Tensor:
        """Sample the images uint8 (N, C, H, W)."""
        card = module.card
        description = card.model["noise_schedule"]
        process: NoiseSchedule = rebuild(description, NoiseSchedule, foreign_packages(description))
        solver, steps = solver_named(SOLVER, process, card.data.get("sigma_data", 0.5)), schedule_named(SCHEDULE)
        tableau = build(solver, steps, (process.sigma_max, process.sigma_min), self.nfe, "none")
        labels = plan_labels("random", self.seeds, card.num_classes, card.class_counts)
        size = card_batch(card, module.device)
        batches = generate(denoiser, tableau, card.shape, self.seeds, size, labels, size)
        return torch.cat([to_uint8(batch.x).cpu() for batch in batches])


def _record(metrics: Metrics, images: Tensor) -> Record:
    """Measure every score with its error."""
    found = metrics(ArrayDataset("samples", images))
    scores = {name: {name: float(it["value"]), f"{name}_error": float(it["error"])} for name, it in found.items()}
    return {key: value for score in scores.values() for key, value in score.items()} | {"metrics_images": len(images)}
