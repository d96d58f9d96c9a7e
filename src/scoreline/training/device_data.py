"""A data set on the device it is trained on, where it fits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.device import moved
from scoreline.errors import InputError


class DeviceData:
    """Reads a data set; one of at most `limit_mib` is put on the device as uint8 at its first use, and stays there.

    Batches and references then are rows of the same tensor, picked on the device. The images of a larger one are read
    anew every time. On the CPU, a data set that is in memory is used from where it is.

    Args:
        limit_mib: 2^20 bytes of images; 0 keeps nothing.
    """

    def __init__(self, dataset: ImageDataset, limit_mib: float = 4096) -> None:
        self.dataset, self.limit_mib = dataset, limit_mib
        self.fits = dataset.nbytes <= limit_mib * 2**20
        self._kept: tuple[Tensor, Tensor] | None = None

    def read(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, C, H, W) and labels int64 (B,) on a device, in the order asked for.

        Raises:
            InputError: if the data set is to be kept, and the device has no room for it.
        """
        if not self.fits:
            images, labels = self.dataset.read(indices)
            return moved(images, device), moved(labels, device)
        images, labels = self._on(device)
        chosen = moved(torch.as_tensor(indices, dtype=torch.int64), device)
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
