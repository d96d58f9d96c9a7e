"""The images of a finished run, read from their shards a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.generation.shards import NO_LABEL, ShardIndex, Shards
from scoreline.sampling import Progress
from scoreline.storage.pictures import PICTURES, sheet, to_uint8

BLOCK = 256

SHOWN, COLUMNS = 64, 8
"""Images of a contact sheet, and tiles in its rows."""


def no_progress(images: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: `sha256`, hexadecimal, is that of `shards.image_digests`."""

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
        images = self.kept(indices)
        labels = self.shards.label(torch.as_tensor(indices, dtype=torch.int64))
        return images if images.dtype == torch.uint8 else to_uint8(images), labels

    def kept(self, indices: Sequence[int]) -> Tensor:
        """Return what the shards hold, images uint8 or samples float32 (B, C, H, W), in the order of the indices."""
        from safetensors import safe_open

        index = torch.as_tensor(indices, dtype=torch.int64)
        images = torch.empty((len(index), *self.shape), dtype=self.shards.dtype)
        shard, row = self.found.shard[index], self.found.row[index]
        for number in sorted(set(shard.tolist())):
            here = shard == number
            with safe_open(self.found.paths[number], framework="pt") as file:
                images[here] = file.get_tensor("images")[row[here]]
        return images

    def entry(self, index: int) -> Entry:
        """Return the line of the manifest for image `index`."""
        label = int(self.shards.label(torch.tensor([index])))
        digest = self.found.digests[index].numpy().tobytes().hex()
        return Entry(index, self.shards.seeds[index], None if label == NO_LABEL else label, digest)

    def blocks(self, progress: Progress = no_progress) -> Iterator[Tensor]:
        """Yield what the shards hold in order, as blocks (n, C, H, W); `progress` receives n after a block is used."""
        for start in range(0, len(self), BLOCK):
            block = self.kept(range(start, min(start + BLOCK, len(self))))
            yield block
            progress(len(block))

    def one_by_one(self, progress: Progress = no_progress) -> Iterator[tuple[Entry, Tensor]]:
        """Yield all images uint8 (C, H, W) in order, each with its line of the manifest."""
        index = 0
        for block in self.blocks(progress):
            for image in block:
                yield self.entry(index), image
                index += 1


def contact_sheet(images: ShardImages) -> Tensor:
    """Arrange the first 64 images as `sheet` does, about eight tiles in a row.

    Samples float32 of neither one nor three channels, whose range is unknown, are divided by their largest absolute
    value if that is above 1.
    """
    first, channels = images.kept(range(min(SHOWN, len(images)))), images.shape[0]
    if first.dtype != torch.uint8:
        first = to_uint8(first if channels in PICTURES else first / first.abs().amax().clamp(min=1))
    return sheet(first, COLUMNS if channels in PICTURES else max(1, COLUMNS // channels))
