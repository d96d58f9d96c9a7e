"""A data set decoded image by image, when asked for, and kept in memory where it fits."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError

MIB = 2**20


class Source(Protocol):
    """Numbered images that lie elsewhere, in a folder, an archive or a table. Must survive pickling and forking."""

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """How an error names image `index`."""

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 (C, H, W)."""


MOST_CLASSES = 2**16
"""Classes that a data set may always have; more only with as many images."""


def count_classes(largest: int, images: int, where: str) -> int:
    """How many classes 0 .. largest are. A few images of many classes may have gaps, but not any gaps.

    Args:
        where: names the labels in an error.

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
        """Every image without a class."""
        return cls(torch.full((images,), -1), 0)


class LazyDataset(ImageDataset):
    """Images of a `Source`, all of the shape of the first one.

    When the decoded set takes at most `cache_mib` MiB, each process keeps the images it has decoded; a process
    forked later (a loader's worker) shares those of its parent. `digest` reads every image, so it checks all shapes
    and fills that cache.

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
        """Refuse images that are not `resolution` pixels high and wide; None asks for nothing.

        Raises:
            InputError: when they are not. Nothing is resized here: how an image was made small changes FID.
        """
        _, height, width = self.shape
        if resolution is not None and (height, width) != (resolution, resolution):
            raise InputError(
                f"dataset.resolution={resolution}: the images of {self.name} are {height}x{width}; resize them "
                "beforehand, or drop the key"
            )

    def _image(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        image = torch.from_numpy(self.source.decode(index))
        if image.shape != self.shape:
            raise InputError(
                f"{self.source.where(index)} is {_shape(image.shape)}, but {self.source.where(0)} is "
                f"{_shape(self.shape)}: bring all images to one size and one colour mode"
            )
        if self._keeps:
            self._kept[index] = image
        return image


def _shape(shape: Sequence[int]) -> str:
    colour = "grey" if shape[0] == 1 else "RGB"
    return f"{shape[1]}x{shape[2]} {colour}"
