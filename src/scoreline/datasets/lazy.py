"""Data sets that decode an image when it is read, and keep it if the set fits into memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.decode import CONVERSION
from scoreline.errors import InputError

MIB = 2**20


class Source(Protocol):
    """Numbered images in a folder, an archive or a table; it must survive pickling and forking."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """Return the name of image `index` in errors."""

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index` to uint8 (C, H, W)."""


MOST_CLASSES = 2**16
"""Number of classes that any data set may have; more only with as many images."""


def count_classes(largest: int, images: int, where: str) -> int:
    """Count the classes 0 .. largest. A few images of many classes may leave gaps, up to a limit.

    Args:
        largest: the largest label.
        images: number of images.
        where: the name of the labels in errors.

    Raises:
        InputError: for more than `MOST_CLASSES` classes and than images; a network keeps weights for each class.
    """
    if largest >= max(MOST_CLASSES, images):
        raise InputError(
            f"{where}: class {largest} makes {largest + 1} classes of {images} images; number the classes 0, 1, 2, .."
        )
    return largest + 1


class Classes(NamedTuple):
    """The class of each image, int64 (N,), -1 for none, and the number of classes."""

    labels: Tensor
    number: int

    @classmethod
    def none(cls, images: int) -> "Classes":
        """Return classes of `images` images that have none."""
        return cls(torch.full((images,), -1), 0)


class LazyDataset(ImageDataset):
    """Images of a `Source`, all of the shape of the first one.

    If the decoded set takes at most `cache_mib` MiB, each process keeps the images that it has decoded; a process
    forked later (a worker of a loader) shares those of its parent. `digest` reads every image, so that it checks all
    shapes and fills that cache.

    When to use it: derive from it for images in files of a format of your own.

    Raises:
        InputError: for an empty source, and on reading an image whose shape differs from the first one's.
    """

    def __init__(self, name: str, source: Source, classes: Classes, cache_mib: float = 1024) -> None:
        if not len(source):
            raise InputError(f"{name}: the data set holds no image")
        first = source.decode(0)
        self.name, self.source, self.labels, self.num_classes = name, source, classes.labels, classes.number
        self.shape = (first.shape[0], first.shape[1], first.shape[2])
        self._keeps = len(source) * first.size <= cache_mib * MIB
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for row, index in enumerate(indices):
            images[row] = self._image(int(index))
        return images, self.labels[torch.as_tensor(indices, dtype=torch.int64)]

    def require_size(self, resolution: int | None) -> None:
        """Check that the images are `resolution` pixels high and wide; None accepts any size.

        Raises:
            InputError: if they are not. Nothing is resized here, since the filter of a resize changes FID.
        """
        _, height, width = self.shape
        if resolution is not None and (height, width) != (resolution, resolution):
            raise InputError(
                f"dataset.resolution={resolution}: the images of {self.name} are {height}x{width}; drop the key, "
                f"or scoreline dataset SRC DEST.zip resolution={resolution} resizes them"
            )

    def _image(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        image = torch.from_numpy(self.source.decode(index))
        if image.shape != self.shape:
            first = self.source.where(0).partition(": ")[2]
            raise InputError(
                f"{self.source.where(index)} is {_shape(image.shape)}, but {first} is {_shape(self.shape)}: "
                f"{CONVERSION} brings all images to one size and one colour mode"
            )
        if self._keeps:
            self._kept[index] = image
        return image


def _shape(shape: Sequence[int]) -> str:
    colour = "grey" if shape[0] == 1 else "RGB"
    return f"{shape[1]}x{shape[2]} {colour}"
