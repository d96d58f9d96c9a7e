"""The reference of a step, over which stable targets average (STF, StableVM)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.runtime.device import to_device
from scoreline.targets import StableTarget
from scoreline.training.data import DeviceData, EndlessBatches, share_of

Indices = Sequence[int]


class ReferenceDraw(NamedTuple):
    """Images uint8 (n, C, H, W), labels (n,), and the rows of the images that this process trains on."""

    images: Tensor
    labels: Tensor
    source: Tensor


class References:
    """Draw the reference of a step, a function of (seed, step), of images without replacement.

    For `StableTarget` it is the step's batch, then other images. For `StableVM` it is any images of the data, and the
    batch is drawn from it with replacement.

    With `scope="all"` the reference is the same on every process, and none has to be gathered, since each process knows
    the indices of the whole batch. With `scope="process"` a process takes its share of the batch and its own other
    images. The generator is PCG64 with key (seed, "reference", step, rank of the scope); no other generator shares the
    key, so the noise is that of plain training.

    Raises:
        InputError: if the reference is smaller than the batch inside it, or larger than the data set.
    """

    def __init__(self, data: DeviceData, target: StableTarget, batch_size: int, seed: int) -> None:
        self.data, self.target, self.batch_size, self.seed = data, target, batch_size, seed
        dataset = self.dataset = data.dataset
        self.batches = EndlessBatches(len(dataset), batch_size, seed)
        if target.references > len(dataset):
            raise InputError(
                f"target.references={target.references}: {dataset.name} has {len(dataset)} images; use at most as many"
            )

    def draw(self, step: int, rank: int, world: int, device: torch.device) -> ReferenceDraw:
        """Draw the reference of a step on one of `world` processes."""
        mine, everyone = share_of(self.batch_size, rank, world), self.target.scope == "all"
        key = [self.seed, int.from_bytes(b"reference"[:6], "little"), step, 0 if everyone else rank]
        generator = np.random.Generator(np.random.PCG64(key))
        indices, source = (self._mixture if self.target.mixture else self._around)(step, mine, generator)
        return ReferenceDraw(*self.data.read(indices, device), to_device(source, device))

    def _around(self, step: int, mine: slice, generator: np.random.Generator) -> tuple[Indices, Tensor]:
        """Return the batch, or this process's share of it, with other images, and the places of the share."""
        batch, everyone = self.batches.at(step), self.target.scope == "all"
        inside = batch if everyone else batch[mine]
        self._check(len(inside))
        first = mine.start if everyone else 0
        return [*inside, *self._others(inside, generator)], torch.arange(first, first + mine.stop - mine.start)

    def _mixture(self, step: int, mine: slice, generator: np.random.Generator) -> tuple[Indices, Tensor]:
        """Return images of the data and the places among them, even and independent, of this process's sources."""
        drawn = generator.choice(len(self.dataset), self.target.references, replace=False)
        source = generator.integers(len(drawn), size=self.batch_size)[mine]
        return drawn.tolist(), torch.from_numpy(source)

    def _check(self, inside: int) -> None:
        if self.target.references < inside:
            raise InputError(
                f"target.references={self.target.references}: every source must be inside; use at least {inside} "
                f"(batch_size={self.batch_size})"
            )

    def _others(self, inside: Indices, generator: np.random.Generator) -> list[int]:
        drawn = generator.choice(len(self.dataset), self.target.references, replace=False)
        return [int(i) for i in drawn[~np.isin(drawn, inside)][: self.target.references - len(inside)]]
