"""Images in one array of an npz file, as ADM and many other projects write samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.lazy import count_classes
from scoreline.errors import InputError
from scoreline.storage import bounded_reading, npy

IMAGES, LABELS = "arr_0", "arr_1"


class NpzArchive(ImageDataset):
    """`arr_0` uint8 (N, H, W, C) and, if it is there, `arr_1` int (N,), the classes.

    Images of an uncompressed file (`np.savez`) are mapped from the disk; those of a compressed one are unpacked into
    memory, unless they are many times larger than the file.

    When to use it: for samples; training reads image files and zip archives.

    Args:
        path: the file.

    Source: layout of Dhariwal & Nichol (2021), arXiv:2105.05233, reference code.

    Raises:
        InputError: for a missing or damaged file, or arrays of other types or shapes. Only numbers are read.
    """

    def __init__(self, path: str) -> None:
        file = bounded_reading.place(path, "dataset.path")
        if not file.is_file():
            raise InputError(f"dataset.path={path}: no such file; give an npz file of images (arr_0)")
        try:
            self._images, labels = npy.member(file, IMAGES), npy.member(file, LABELS)
        except bounded_reading.DAMAGE as error:
            raise InputError(f"dataset.path={path}: cannot be read as an npz file ({error}); make it again") from error
        self.name, images = file.stem, self._images
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
            content = "no arr_0" if images is None else f"arr_0 of {images.dtype} {images.shape}"
            raise InputError(f"dataset.path={path}: holds {content}; images are arr_0, uint8 (N, H, W, C)")
        if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
            raise InputError(f"dataset.path={path}: arr_0 is {images.shape}: put the channels last, (N, H, W, C)")
        self.labels = _labels(path, labels, len(images))
        self.num_classes = int(self.labels.max()) + 1
        self.shape = (images.shape[3], images.shape[1], images.shape[2])
        self._file = file

    def __len__(self) -> int:
        assert self._images is not None
        return len(self._images)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        assert self._images is not None
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        rows = np.ascontiguousarray(self._images[chosen.numpy()].transpose(0, 3, 1, 2))
        return torch.from_numpy(rows), self.labels[chosen]


def _labels(path: str, labels: NDArray[Any] | None, count: int) -> Tensor:
    if labels is None:
        return torch.full((count,), -1)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"dataset.path={path}: arr_1 of {labels.dtype} {labels.shape} does not give one class to each of {count} "
            "images; make the file again"
        )
    if int(labels.min()) < -1:
        raise InputError(f"dataset.path={path}: arr_1 holds class {labels.min()}; classes are 0, 1, .., and -1 is none")
    count_classes(int(labels.max()), count, f"dataset.path={path}: arr_1")
    return torch.from_numpy(np.array(labels, dtype=np.int64))
