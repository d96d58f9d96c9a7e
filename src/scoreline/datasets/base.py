"""The interface of every data set: numbered uint8 images of one shape, labels, and a digest of the content."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


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
            images, labels = self.read(range(start, min(start + 1024, len(self))))
            sha.update(images.numpy().tobytes())
            sha.update(labels.numpy().tobytes())
        return sha.hexdigest()


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
