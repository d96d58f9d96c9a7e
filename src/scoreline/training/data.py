"""Training batches: an endless, seeded, resumable stream, kept on the device where the data set fits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.errors import InputError
from scoreline.runtime.device import to_device
from scoreline.values import whole_number


class DeviceData:
    """Read a data set, which stays on the device as uint8 from its first use if it takes at most `limit_mib`.

    Batches and references are then rows of one tensor, selected on the device. A larger data set is read again for
    every batch. On the CPU, a data set in memory is not copied. Share one reader between batches and references.

    Args:
        dataset: the images and labels.
        limit_mib: size of the images in MiB; 0 keeps nothing.
    """

    def __init__(self, dataset: ImageDataset, limit_mib: float = 4096) -> None:
        self.dataset, self.limit_mib = dataset, limit_mib
        self.fits = dataset.nbytes <= limit_mib * 2**20
        self._kept: tuple[Tensor, Tensor] | None = None

    def read(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Read images uint8 (B, C, H, W) and labels int64 (B,) onto a device, in the order of the indices.

        Raises:
            InputError: if the data set should stay on the device, which has no room for it.
        """
        if not self.fits:
            images, labels = self.dataset.read(indices)
            return to_device(images, device), to_device(labels, device)
        images, labels = self._on(device)
        chosen = to_device(torch.as_tensor(indices, dtype=torch.int64), device)
        return images.index_select(0, chosen), labels.index_select(0, chosen)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._kept is None or self._kept[0].device != device:
            try:
                self._kept = tuple(part.to(device) for part in self._whole())  # type: ignore[assignment]
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"device_mib={self.limit_mib:g}: {self.dataset.name} does not fit on the device beside the rest; "
                    "use device_mib=0"
                ) from error
        assert self._kept is not None
        return self._kept

    def _whole(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.dataset, ArrayDataset):
            return self.dataset.images, self.dataset.labels
        return self.dataset.read(range(len(self.dataset)))


class EndlessBatches(Sampler[list[int]]):
    """Batch k is positions k B .. (k + 1) B of an endless stream of shuffled passes over the data.

    Pass e is the permutation drawn by PCG64 with key (seed, e); rank r of W takes the r-th of W equal parts of every
    batch. The stream is a pure function of (seed, k), so a resumed training starts it anywhere.

    Args:
        count: number of images in the data set.
        batch_size: B, over all ranks.
        seed: of the permutations.
        start: number k of the first batch.
        rank: r, the share of the batch.
        world: W, the number of processes.
        offset: added to all positions; not 0 where earlier batches had another size.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1, offset: int = 0
    ) -> None:
        self.count, self.batch_size, self.seed, self.start = count, batch_size, seed, start
        self.offset = offset
        self.mine = share_of(batch_size, rank, world)
        self._passes: dict[int, NDArray[np.int64]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        for number in count(self.start):
            yield self.at(number)[self.mine]

    def at(self, number: int) -> list[int]:
        """Batch `number` of all ranks, (B,)."""
        first = self.offset + number * self.batch_size
        positions = range(first, first + self.batch_size)
        needed = range(positions[0] // self.count, positions[-1] // self.count + 1)
        self._passes = {e: self._passes[e] if e in self._passes else self._permutation(e) for e in needed}
        return [index for e in needed for index in self._part(e, positions).tolist()]

    def _part(self, number: int, positions: range) -> NDArray[np.int64]:
        """Return the part of a pass in a range of positions."""
        start = number * self.count
        return self._passes[number][max(0, positions.start - start) : positions.stop - start]

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, number])).permutation(self.count)


def share_of(batch_size: int, rank: int, world: int) -> slice:
    """Select the rows of a global batch that a process trains on.

    Raises:
        InputError: if the processes do not divide the batch.
    """
    if batch_size % world:
        raise InputError(f"batch_size={batch_size}: must be a multiple of the {world} processes")
    return slice(rank * batch_size // world, (rank + 1) * batch_size // world)


class _Reader(Dataset[tuple[Tensor, Tensor]]):
    """Read whole batches, which `_as_read` passes through unchanged."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.dataset.read(indices)


def _as_read(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class DeviceBatches:
    """Batches of a data set that stays on a device, selected there."""

    data: DeviceData
    batches: EndlessBatches
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.batches:
            yield self.data.read(rows, self.device)


class ImageDataModule(LightningDataModule):
    """Batches (images uint8 (B / W, C, H, W), labels int64 (B / W,)) from the trainer's step on.

    If the data set fits on the device, batches are selected there; else a loader reads them, into pinned memory for a
    GPU, from which Lightning copies asynchronously. Either way a step sees the same images.

    Args:
        data: a data set, or its shared reader.
        batch_size: images per step over all processes.
        seed: of the order of the images.
        workers: processes that read ahead if the data do not fit on the device; 0 reads in the training process.
        heldout: images outside the training, on which `FixedLoss` measures; None for none.
        heldout_images: number of these to measure on.

    Raises:
        InputError: if `workers` is not a whole number of at least 0.
    """

    def __init__(
        self,
        data: ImageDataset | DeviceData,
        batch_size: int,
        seed: int,
        workers: int = 0,
        heldout: ImageDataset | None = None,
        heldout_images: int = 256,
    ) -> None:
        super().__init__()
        self.heldout, self.heldout_images = heldout, heldout_images
        self.data = data if isinstance(data, DeviceData) else DeviceData(data)
        self.batch_size, self.seed, self.workers = batch_size, seed, whole_number("workers", workers, least=0)

    @property
    def dataset(self) -> ImageDataset:
        """The data set."""
        return self.data.dataset

    def train_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        trainer = self.trainer
        assert trainer is not None
        offset = int(getattr(trainer.lightning_module, "offset", 0))
        step, rank, world = trainer.global_step, trainer.global_rank, trainer.world_size
        batches = EndlessBatches(len(self.dataset), self.batch_size, self.seed, step, rank, world, offset)
        device = trainer.strategy.root_device
        if self.data.fits:
            return DeviceBatches(self.data, batches, device)
        return DataLoader(
            _Reader(self.dataset),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_as_read,
            pin_memory=device.type == "cuda",
        )
