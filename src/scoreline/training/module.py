"""The Lightning module of a score model."""

import hashlib
from collections.abc import Callable, Iterable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scoreline.checkpoints import Card
from scoreline.denoiser import Denoiser
from scoreline.objective import DenoisingObjective
from scoreline.pixels import to_unit


class DiffusionModule(LightningModule):
    """Minimises an objective over images, counting progress in images.

    All randomness of a step (noise levels, noise, dropout) is seeded by (seed, step, rank) alone, so a resumed run
    repeats an uninterrupted one bit for bit and no two ranks share noise.

    Args:
        optimiser: parameters -> optimiser.
        batch_size: images per optimiser step over all processes.
        lr_rampup_kimg: the learning rate grows linearly over the first so many thousand images.
        card: what the model files written from this module say of themselves.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: DenoisingObjective,
        optimiser: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
        batch_size: int,
        lr_rampup_kimg: float,
        seed: int,
        card: Card,
    ) -> None:
        super().__init__()
        self.denoiser, self.objective, self.optimiser = denoiser, objective, optimiser
        self.batch_size, self.lr_rampup_kimg, self.seed, self.card = batch_size, lr_rampup_kimg, seed, card

    @property
    def images_seen(self) -> int:
        """Images trained on so far, over all processes."""
        return int(self.global_step) * self.batch_size

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        key = step_key(self.seed, self.global_step, self.global_rank)
        torch.manual_seed(key + 1)
        generator = torch.Generator(images.device).manual_seed(key)
        loss, _rho = self.objective(self.denoiser, to_unit(images), self.condition(labels), generator)
        return loss.mean()

    def condition(self, labels: Tensor) -> Tensor | None:
        """The labels, for a conditional network."""
        return labels if self.card.num_classes else None

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimiser = self.optimiser(self.denoiser.parameters())
        ramp = max(self.lr_rampup_kimg * 1000, 1e-9)
        schedule = LambdaLR(optimiser, lambda step: min((step + 1) * self.batch_size / ramp, 1.0))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def step_key(seed: int, step: int, rank: int) -> int:
    """62 bits that name the random numbers of one step on one process."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2
