"""The Lightning module of a training: its step, its random numbers, and what a checkpoint holds."""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Generator, Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from scoreline.checkpoints import Card
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.objective import Batch, DenoisingObjective
from scoreline.runtime.device import to_device
from scoreline.runtime.seeded_noise import seed_default, seed_generator
from scoreline.storage.pictures import to_unit
from scoreline.targets import Reference
from scoreline.training.augmentation import Augmentation, Parameters
from scoreline.training.data import share_of
from scoreline.training.gradients import Gradients, check_options, take_options, with_fast_step
from scoreline.training.loss_by_level import EDGES
from scoreline.training.network_clock import NetworkClock, with_clock
from scoreline.training.sharding import blank, shard
from scoreline.training.stf_references import References


class DiffusionModule(LightningModule):
    """Minimise an objective over images, counting progress in images. train.py builds it; use it with a Trainer.

    A step is a pure function of the weights and (seed, step): noise levels, noise, augmentations, dropped labels and
    references are drawn for the whole global batch, of which a process takes its rows. Another number of processes or
    another micro-batch therefore changes nothing but rounding, no two ranks share noise, and a resumed run repeats an
    uninterrupted one bit for bit on the same kind of processor or GPU. Only dropout inside the network differs: its
    masks are seeded by (seed, step, rank).

    Attributes:
        offset: images seen beyond steps * batch_size; not 0 after resuming with another batch_size.
        resumed_step: the step of the checkpoint that was loaded.
        stopped: whether a callback has ended the training because of what was measured (`measurements.publish`).
        clock: time of the network's forward passes and of backward passes, from the loss to the gradients, with the
            exchange between processes. Noise, targets, augmentation, loss, optimiser, averages, data and files are
            outside.

    Args:
        optimiser: parameters -> optimiser, whose steps take few kernels (`with_fast_step`).
        batch_size: images per optimiser step over all processes.
        lr_rampup_kimg: the learning rate grows linearly over the first so many thousand images.
        denoiser: the model.
        objective: the loss of a batch.
        seed: of all random numbers.
        card: description of the model in the files written from this module.
        gradients: repairs and clips gradients before a step.
        augmentation: changes images before they are noised, and tells the network how.
        references: the images over which stable targets average; None for an objective that needs none.
        micro_batch: images that pass through the network at a time on one process; None for its whole share.
        loss_scale: factor of the mean over pixels before the backward pass. The number of values of an image makes it
            the sum that EDM and score_sde's VE minimise; Adam hardly sees it, clipping does.
        settings: plain descriptions of model, objective and optimiser. Checkpoints keep them, so that `resume.Start`
            can name the key in which another command differs.

    Raises:
        InputError: for options that the optimiser refuses, or an augmentation that does not fit the network or target.
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
        gradients: Gradients | None = None,
        augmentation: Augmentation | None = None,
        references: References | None = None,
        micro_batch: int | None = None,
        loss_scale: float = 1.0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.denoiser, self.objective, self.optimiser = denoiser, objective, optimiser
        self.batch_size, self.lr_rampup_kimg, self.seed, self.card = batch_size, lr_rampup_kimg, seed, card
        self.gradients = gradients or Gradients()
        self.augmentation, self.references = augmentation, references
        self.micro_batch, self.loss_scale, self.settings = micro_batch, loss_scale, settings or {}
        self.offset = self.resumed_step = 0
        self.stopped = False
        self.clock = NetworkClock()
        self.uncertainty = objective.uncertainty  # registered here: moved, trained, exchanged and saved with the module
        self._blank: Callable[[], Denoiser] | None = None
        _check_augmentation(denoiser.network, augmentation, references)
        check_options(optimiser, list(denoiser.parameters()))

    def configure_model(self) -> None:
        """Divide the network's weights over processes, under a strategy that wants it (`Sharded`)."""
        if self.device_mesh is not None and self._blank is None:
            self._blank = partial(deepcopy, blank(self.denoiser))
            whole = init_device_mesh(self.device_mesh.device_type, (self.trainer.world_size,))
            shard(self.denoiser.network, whole)
            if self.uncertainty is not None:
                shard(self.uncertainty, whole)

    def copy_with(self, weights: dict[str, Tensor]) -> Denoiser:
        """Copy the denoiser with these weights of the network, whole on this process, in evaluation mode."""
        denoiser = self._blank() if self._blank else deepcopy(self.denoiser)
        denoiser.network.load_state_dict(weights, assign=self._blank is not None)
        return denoiser.to(self.device).eval().requires_grad_(False)

    @property
    def images_seen(self) -> int:
        """Images trained on so far, over all processes."""
        return self.offset + int(self.global_step) * self.batch_size

    def passed(self, images: int) -> bool:
        """Return whether the last step passed a multiple of so many images."""
        return self.images_seen // images > (self.images_seen - self.batch_size) // images

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> dict[str, Tensor]:
        """Take one optimiser step; return the losses (b,) and noise levels (b,) of this process's images."""
        examples = self.examples(*batch)
        optimiser, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimiser, LightningOptimizer)
        assert isinstance(schedule, LRScheduler)
        while (losses := self._backward(examples, optimiser)) is None:
            self._halve(len(examples.clean))
        optimiser.step()
        schedule.step()
        return losses

    def _backward(self, examples: Batch, optimiser: LightningOptimizer) -> dict[str, Tensor] | None:
        """Compute the gradient of all examples from zero; None if the device runs out of memory."""
        seed_default(step_key(self.seed, self.global_step, self.global_rank, "dropout"))
        optimiser.zero_grad()
        losses, levels = [], []
        parts = list(examples.split(self.micro_batch or len(examples.clean)))
        denoiser = with_clock(self.denoiser, self.clock)
        try:
            for part in parts:
                with self._unsynchronised(part is not parts[-1]):
                    loss, rho = self.objective(denoiser, part)
                    total = self.objective.balance(loss, rho).sum() * (self.loss_scale / len(examples.clean))
                    with self.clock.running(total.device):
                        self.manual_backward(total)
                losses.append(loss.detach())
                levels.append(rho)
        except torch.OutOfMemoryError:
            return None
        return {"losses": torch.cat(losses), "levels": torch.cat(levels)}

    def _halve(self, share: int) -> None:
        """Halve the micro-batch from now on; the step stays the same but for rounding and dropout's masks.

        Raises:
            InputError: where one image does not fit, or other processes wait for this one's gradients.
        """
        size = min(self.micro_batch or share, share)
        half = -(-size // 2)
        if size == 1 or self.trainer.world_size > 1:
            remedy = f"micro_batch={half}" if size > 1 else "precision=bf16-mixed, model.network.checkpointing=true"
            raise InputError(f"micro_batch={size}: so many images at a time do not fit in memory; use {remedy}")
        print(f"out of memory with {size} images at a time; continuing with micro_batch={half}", file=sys.stderr)
        self.micro_batch = half
        torch.cuda.empty_cache()

    def _unsynchronised(self, earlier: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients after the last micro-batch only."""
        strategy = self.trainer.strategy
        if earlier and isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return contextlib.nullcontext()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.gradients(self.parameters())

    def examples(self, images: Tensor, labels: Tensor) -> Batch:
        """Return this process's rows of the step's global batch: images uint8 (b, C, H, W), labels (b,)."""
        world = self.trainer.world_size
        mine = share_of(self.batch_size, self.global_rank, world)
        generator = seed_generator(Generator(images.device), step_key(self.seed, self.global_step, 0, "noise"))
        u, eps = self._noise(images, generator)
        clean, augment, reference = self._clean(images, mine)
        if reference is not None and reference.label is not None:
            labels = reference.label[reference.source]
        label = self._label(labels, generator, mine)
        augment_dim = int(getattr(self.denoiser.network, "augment_dim", 0))
        if augment is None and augment_dim:
            augment = torch.zeros(len(images), augment_dim, device=images.device)
        return Batch(clean, u[mine], eps[mine], label, augment, reference)

    def _noise(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        count, device = self.batch_size, images.device
        u = torch.rand(count, dtype=torch.float64, device=device, generator=generator)
        return u, torch.randn(count, *images.shape[1:], device=device, generator=generator)

    def _label(self, labels: Tensor, generator: Generator, mine: slice) -> Tensor | None:
        """Return labels for a conditional network, a random share of them dropped (-1)."""
        label = self.condition(labels)
        share = float(getattr(self.denoiser.network, "label_dropout", 0.0))
        if label is None or not share:
            return label
        dropped = torch.rand(self.batch_size, device=labels.device, generator=generator)[mine] < share
        return label.masked_fill(dropped, -1)

    def _clean(self, images: Tensor, mine: slice) -> tuple[Tensor, Tensor | None, Reference | None]:
        """Return images before noise, augmentation labels of the network, and the reference."""
        if self.references is None:
            drawn = self._augmentations(self.batch_size, 0)
            if drawn is None or self.augmentation is None:
                return to_unit(images), None, None
            rows = drawn.rows(mine)
            return self.augmentation(to_unit(images), rows), self._labels(rows), None
        world, step = self.trainer.world_size, self.global_step
        batch = self.references.draw(step, self.global_rank, world, images.device)
        own = 0 if self.references.target.scope == "all" else self.global_rank
        drawn = self._augmentations(len(batch.images), own)
        if drawn is None or self.augmentation is None:
            clean = to_unit(batch.images[batch.source])
            return clean, None, Reference(batch.images, batch.source, batch.labels)
        # the reference is augmented as a whole, so each source in it is the very image that is noised
        whole, augment = self.augmentation(to_unit(batch.images), drawn), self._labels(drawn)
        reference = Reference(whole, batch.source, batch.labels, to_device(drawn.labels, images.device))
        return whole[batch.source], None if augment is None else augment[batch.source], reference

    def _augmentations(self, count: int, rank: int) -> Parameters | None:
        if self.augmentation is None:
            return None
        key = step_key(self.seed, self.global_step, rank, "augmentation")
        return self.augmentation.draw(count, seed_generator(Generator(), key), "cpu")

    def _labels(self, drawn: Parameters) -> Tensor | None:
        """Augmentation labels of the network, (n, A)."""
        labelled = self.augmentation is not None and self.augmentation.told
        return to_device(drawn.labels, self.device) if labelled else None

    @torch.no_grad()
    def uncertainty_curve(self) -> dict[str, float]:
        """Return u of the objective's `Uncertainty` at the levels `EDGES`; empty without one. All processes call it."""
        if self.uncertainty is None:
            return {}
        u = self.uncertainty(torch.tensor(EDGES, dtype=torch.float64, device=self.device))
        return dict(zip(map("{:g}".format, EDGES), u.tolist(), strict=True))

    def condition(self, labels: Tensor) -> Tensor | None:
        """Return the labels, for a conditional network."""
        return labels if self.card.num_classes else None

    def _optimiser(self) -> Optimizer:
        device, sharded = self.trainer.strategy.root_device, self.device_mesh is not None
        make = with_fast_step(self.optimiser, device, self.trainer.precision, sharded)
        return make(self.parameters())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimiser = self._optimiser()
        schedule = LambdaLR(optimiser, self._ramp)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _ramp(self, step: int) -> float:
        """Return the factor of the learning rate at step number `step`."""
        return min((self.offset + (step + 1) * self.batch_size) / max(self.lr_rampup_kimg * 1000, 1e-9), 1.0)

    def description(self) -> dict[str, Any]:
        """Return the description of the run in a checkpoint, as plain values."""
        return {"settings": self.settings, "data": self.card.data, "training": self.card.training}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gradients"] = self.gradients.state_dict()
        checkpoint["images_seen"] = self.images_seen
        checkpoint["run"] = self.description()
        checkpoint["stopped"] = self.stopped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the optimiser's options from this module; weights, averages and moments are the file's."""
        step = int(checkpoint["global_step"])
        self.resumed_step = step
        self.offset = int(checkpoint.get("images_seen", step * self.batch_size)) - step * self.batch_size
        if self.references is not None:
            self.references.batches.offset = self.offset
        self.gradients.load_state_dict(checkpoint.get("gradients", {"bad_steps": 0, "in_a_row": 0}))
        take_options(checkpoint, self._optimiser(), self._ramp(step))


def _check_augmentation(
    network: torch.nn.Module, augmentation: Augmentation | None, references: References | None
) -> None:
    dim = int(getattr(network, "augment_dim", 0))
    if augmentation is not None and dim != augmentation.dim:
        raise InputError(
            f"model.network.augment_dim={dim}: augmentation tells the network {augmentation.dim} numbers; set the key "
            "to that, or use augmentation=none"
        )
    if augmentation is not None and references is not None and references.target.augmented == "none":
        raise InputError("target.augmented=none: forbids augmented images; use augmentation=none, or independent")


def step_key(seed: int, step: int, rank: int, purpose: str) -> int:
    """Return 64 bits that name the random numbers of one step on one process, for `seeded_noise.seed_generator`."""
    digest = hashlib.sha256(f"{seed} {step} {rank} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
