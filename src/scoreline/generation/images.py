"""The images of a finished run, read from their shards a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.generation.shards import NO_LABEL, ShardIndex, Shards
from scoreline.sampling import Progress

BLOCK = 256


def no_progress(images: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: `sha256`, hexadecimal, covers the bytes of the image in the order (H, W, C)."""

    index: int
    seed: int
    label: int | None
    sha256: str


class ShardImages(ImageDataset):
    """The N images of a run in the order of its seeds; only a few numbers per image are in memory.

    Args:
        shards: the images of the run.
        found: the places of the images; none may be missing.
        num_classes: number of classes of the model, 0 for an unconditional one.
        name: the name of the data set.
    """

    def __init__(self, shards: Shards, places: ShardIndex, num_classes: int = 0, name: str = "generated") -> None:
        if len(places.missing):
            raise ValueError(f"{len(places.missing)} of {len(shards.seeds)} images are missing")
        self.shards, self.found = shards, places
        self.name, self.shape, self.num_classes = name, shards.shape, num_classes

    def __len__(self) -> int:
        return len(self.shards.seeds)

    @property
    def labelled(self) -> bool:
        """Return whether the images have labels."""
        return self.shards.labels is not None

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images uint8 (B, C, H, W) and labels int64 (B,), -1 without a label, in the order of the indices."""
        from safetensors import safe_open

        index = torch.as_tensor(indices, dtype=torch.int64)
        images = torch.empty((len(index), *self.shape), dtype=torch.uint8)
        shard, row = self.found.shard[index], self.found.row[index]
        for number in sorted(set(shard.tolist())):
            here = shard == number
            with safe_open(self.found.paths[number], framework="pt") as file:
                images[here] = file.get_tensor("images")[row[here]]
        return images, self.shards.label(index)

    def entry(self, index: int) -> Entry:
        """Return the line of the manifest for image `index`."""
        label = int(self.shards.label(torch.tensor([index])))
        digest = self.found.digests[index].numpy().tobytes().hex()
        return Entry(index, self.shards.seeds[index], None if label == NO_LABEL else label, digest)

    def blocks(self, progress: Progress = no_progress) -> Iterator[Tensor]:
        """Yield all images in order, as blocks uint8 (n, C, H, W); `progress` receives n after the block is used."""
        for start in range(0, len(self), BLOCK):
            block, _ = self.read(range(start, min(start + BLOCK, len(self))))
            yield block
            progress(len(block))

    def one_by_one(self, progress: Progress = no_progress) -> Iterator[tuple[Entry, Tensor]]:
        """Yield all images uint8 (C, H, W) in order, each with its line of the manifest."""
        index = 0
        for block in self.blocks(progress):
            for image in block:
                yield self.entry(index), image
                index += 1
