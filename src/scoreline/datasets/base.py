"""The interface of every data set: numbered uint8 images of one shape, labels, and a digest of the content."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from scoreline.errors import InputError, check_kind
from scoreline.values import is_whole


class ImageDataset(ABC):
    """Numbered images of one shape.

    When to use it: derive from it to add a data set, and name the class as `_target_` in conf/dataset/NAME.yaml. Images
    that fit into memory need only an `ArrayDataset`; images in files a `lazy.LazyDataset`.

    Attributes:
        name: short name used in tables and records, such as `digits-train`.
        shape: (C, H, W).
        num_classes: number of classes, 0 for unlabelled data.
        heldout_split: the value of `split` that selects images outside `train`; empty if there is no such split.
        licence: the licence of the images, recorded in the cards of models trained on them; empty if it is not known.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    heldout_split: str = ""
    licence: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read images uint8 (B, C, H, W) and labels int64 (B,), -1 for none, in the order of the indices."""

    @property
    def nbytes(self) -> int:
        """Size of all pixels in bytes."""
        return len(self) * math.prod(self.shape)

    @property
    def class_counts(self) -> list[int] | None:
        """Number of images of each class; None without classes, or if only a pass over all images would tell."""
        labels = getattr(self, "labels", None)
        if self.num_classes == 0 or not isinstance(labels, Tensor):
            return None
        counts: list[int] = torch.bincount(labels[labels >= 0], minlength=self.num_classes).tolist()
        return counts

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels in order: equal content has an equal digest in any container."""
        sha = hashlib.sha256(repr((len(self), *self.shape)).encode())
        for start in range(0, len(self), 1024):
            images, labels = checked(self, range(start, min(start + 1024, len(self))))
            sha.update(images.numpy().tobytes())
            sha.update(labels.numpy().tobytes())
        return sha.hexdigest()


def check_dataset(dataset: object, key: str = "dataset") -> ImageDataset:
    """Return a data set if its attributes and its first image are what the interface says.

    Use it before a training on a data set of your own; `digest` checks all images.

    Args:
        dataset: what the config describes.
        key: of the config.

    Raises:
        InputError: naming the attribute or the tensor, what it is, and what it must be.
    """
    data: ImageDataset = check_kind(key, dataset, ImageDataset)
    name = type(data).__name__
    for attribute in ("name", "shape", "num_classes"):
        if not hasattr(data, attribute):
            raise InputError(f"{key}: {name} has no attribute {attribute}; set it in __init__")
    if not (len(data.shape) == 3 and all(is_whole(side) for side in data.shape)):
        raise InputError(f"{key}: {name}.shape is {data.shape!r:.60}; it must be (C, H, W), three whole numbers")
    if not is_whole(data.num_classes, 0):
        raise InputError(f"{key}: {name}.num_classes is {data.num_classes!r:.60}; it must be a whole number")
    if len(data) < 1:
        raise InputError(f"{key}: {name} has no images")
    images, _ = checked(data, range(min(len(data), 64)))
    if images.max() == 1:
        raise InputError(
            f"{key}: no pixel of the first {len(images)} images of {name} is above 1 of 255; multiply images in [0, 1] "
            "by 255"
        )
    return data


def checked(dataset: ImageDataset, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read images and labels, and check them.

    Raises:
        InputError: for images that are not uint8 (B, C, H, W) of the data set's shape, or labels that are not int64
            (B,) from -1 to num_classes - 1; without classes they are not read.
    """
    images, labels = dataset.read(indices)
    method, count = f"dataset: {type(dataset).__name__}.read", len(indices)
    _check_tensor(f"{method}: images are", images, torch.uint8, (count, *dataset.shape), ", 0 to 255")
    _check_tensor(f"{method}: labels are", labels, torch.int64, (count,), ", -1 for no class")
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= dataset.num_classes > 0:
        raise InputError(
            f"{method}: labels are from {low} to {high} with num_classes={dataset.num_classes}; they count from 0, and "
            "-1 stands for no class"
        )
    return images, labels


def _check_tensor(what: str, value: object, dtype: torch.dtype, shape: tuple[int, ...], more: str) -> None:
    kind, size = getattr(value, "dtype", type(value).__name__), tuple(getattr(value, "shape", ()))
    if not isinstance(value, Tensor) or kind != dtype or size != shape:
        raise InputError(f"{what} {kind} {size}; they must be {dtype} {shape}{more}")


class ArrayDataset(ImageDataset):
    """A data set in memory: images uint8 (N, C, H, W), labels int64 (N,) or None.

    When to use it: for tensors of your own, in training and in metrics.

    Raises:
        ValueError: if the images are not uint8 (N, C, H, W).
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor | None = None, num_classes: int = 0) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        self.name = name
        self.images = images
        self.labels = torch.full((len(images),), -1) if labels is None else labels.to(torch.int64)
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]
