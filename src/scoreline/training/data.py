"""Endless, seeded, resumable loading of a data set."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError


class EndlessBatches(Sampler[list[int]]):
    """Batch k takes positions k B .. (k + 1) B of an endless stream of shuffled passes over the data.

    Pass e is the permutation drawn by PCG64 with key (seed, e); rank r of W takes the r-th of W equal parts of every
    batch. The stream is a pure function of (seed, k), so it can begin anywhere.

    Args:
        count: images in the data set.
        batch_size: B, over all ranks.
        start: number k of the first batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed, self.start = count, batch_size, seed, start
        self.mine = share_of(batch_size, rank, world)
        self._passes: dict[int, NDArray[np.int64]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        for number in count(self.start):
            yield self.at(number)[self.mine]

    def at(self, number: int) -> list[int]:
        """Batch `number` of all ranks, (B,)."""
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        needed = range(positions[0] // self.count, positions[-1] // self.count + 1)
        self._passes = {e: self._passes[e] if e in self._passes else self._permutation(e) for e in needed}
        return [int(self._passes[p // self.count][p % self.count]) for p in positions]

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, number])).permutation(self.count)


def share_of(batch_size: int, rank: int, world: int) -> slice:
    """The rows of a global batch that a process trains on.

    Raises:
        InputError: if the batch cannot be shared evenly.
    """
    if batch_size % world:
        raise InputError(f"batch_size={batch_size}: must be a multiple of the {world} processes")
    return slice(rank * batch_size // world, (rank + 1) * batch_size // world)


class _Reader(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.dataset.read(indices)


def _as_read(batch: Any) -> Any:
    return batch


class ImageDataModule(LightningDataModule):
    """Batches (images uint8 (B / W, C, H, W), labels int64 (B / W,)) that go on where the trainer's step says.

    Args:
        batch_size: images per step over all processes.
        workers: processes that read ahead; 0 reads in the training process, best for data in memory.
    """

    def __init__(self, dataset: ImageDataset, batch_size: int, seed: int, workers: int = 0) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.seed, self.workers = dataset, batch_size, seed, workers

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        trainer = self.trainer
        assert trainer is not None
        batches = EndlessBatches(
            len(self.dataset), self.batch_size, self.seed, trainer.global_step, trainer.global_rank, trainer.world_size
        )
        return DataLoader(_Reader(self.dataset), batch_sampler=batches, num_workers=self.workers, collate_fn=_as_read)
