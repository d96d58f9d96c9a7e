"""Shards: files of a few finished images each, with a stamp of the run and a digest of every image."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoreline.storage.files import write_atomically

NO_LABEL = -1
FIELDS = {
    "index": torch.int64,
    "seed": torch.int64,
    "label": torch.int64,
    "sha256": torch.uint8,
    "nfe": torch.int64,
    "network_calls": torch.int64,
}
"""Fields of a shard and their types; `images` have that of the shards."""

Fields = dict[str, Tensor]


def image_digests(images: Tensor) -> Tensor:
    """Return the SHA-256 of each of the images (N, C, H, W): uint8 (N, 32).

    Users can check it without this package: for images uint8 it equals the digest of `arr_0[i].tobytes()` in ADM's
    layout (H, W, C), for samples float32 that of `samples[i].tobytes()` in samples.npy, (C, H, W).
    """
    rows = images.permute(0, 2, 3, 1) if images.dtype == torch.uint8 else images
    digests = [hashlib.sha256(image.tobytes()).digest() for image in rows.contiguous().numpy()]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(images), 32).copy())


@dataclass(frozen=True)
class ShardIndex:
    """The place of each of N images, with its digest and counts.

    Attributes:
        paths: the shards.
        shard: (N,) int64, number of the shard with image i; -1 for a missing image.
        row: (N,) int64, row of the image in the shard.
        digests: (N, 32) uint8, SHA-256 of its bytes.
        counts: (N, 2) int64, evaluations of the denoiser and calls of networks for the image.
    """

    paths: list[Path]
    shard: Tensor
    row: Tensor
    digests: Tensor
    counts: Tensor

    @property
    def missing(self) -> Tensor:
        """Indices (M,) int64 of the images that are in no shard, ascending."""
        return (self.shard < 0).nonzero().flatten()


def keep_here(path: Path) -> None:
    """Send a shard nowhere."""


@dataclass(frozen=True)
class Shards:
    """Shards of the images 0 .. N - 1 of a run, in a folder that all its processes share.

    A shard is a safetensors file of a few images with index, seed, label, SHA-256 and counts of each. It is written
    atomically under the index of its first image, which no other whole shard holds. One that is damaged, of another
    stamp, or that disagrees with the run's seeds and labels in any image counts as if it were not there.

    Attributes:
        folder: where they lie.
        stamp: of what an image depends besides its seed and label: config, checkpoint, code.
        seeds: N seeds, image i belongs to the i-th one.
        labels: (N,) int64, or None where images have no label.
        shape: (C, H, W) of the images.
        dtype: torch.uint8 for images in bytes, torch.float32 for samples as they are.
        latents: (C, H, W) of the states, if images are decoded from them; None if they are the images.
        send: receives the path of each shard that is written, to keep a copy elsewhere.
    """

    folder: Path
    stamp: str
    seeds: Sequence[int]
    labels: Tensor | None
    shape: tuple[int, int, int]
    dtype: torch.dtype = torch.uint8
    latents: tuple[int, int, int] | None = None
    send: Callable[[Path], object] = keep_here

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states that are sampled."""
        return self.latents or self.shape

    @property
    def types(self) -> dict[str, torch.dtype]:
        """The types of a shard's fields."""
        return {**FIELDS, "images": self.dtype}

    def write(self, indices: Sequence[int], images: Tensor, nfe: int, network_calls: int) -> None:
        """Write a shard of images (n, C, H, W) of `dtype` at `indices`, with the counts that are theirs alike."""
        from safetensors.torch import save

        index = torch.tensor(indices)
        fields = {
            "index": index,
            "seed": self._seeds(index),
            "label": self.label(index),
            "sha256": image_digests(images),
            "nfe": torch.full((len(images),), nfe),
            "network_calls": torch.full((len(images),), network_calls),
            "images": images.contiguous(),
        }
        content, name = save(fields, {"stamp": self.stamp}), f"{indices[0]:09d}.safetensors"
        write_atomically(self.folder / name, lambda temporary: temporary.write_bytes(content))
        self.send(self.folder / name)

    def label(self, index: Tensor) -> Tensor:
        """Return the labels int64 of the images at `index`, -1 without a label."""
        return torch.full((len(index),), NO_LABEL) if self.labels is None else self.labels[index]

    def find(self, check: bool = True) -> ShardIndex:
        """Return the places of all images; of several copies the one in the first shard by name counts.

        Args:
            check: whether to compare the pixels with their SHA-256 too, which reads them all.
        """
        total = len(self.seeds)
        shard, row = torch.full((total,), -1), torch.zeros(total, dtype=torch.int64)
        digests, counts = torch.zeros((total, 32), dtype=torch.uint8), torch.zeros((total, 2), dtype=torch.int64)
        paths: list[Path] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            fields = self._read(path, check)
            if fields is None:
                continue
            fresh = shard[fields["index"]] < 0
            at = fields["index"][fresh]
            shard[at], row[at] = len(paths), fresh.nonzero().flatten()
            digests[at] = fields["sha256"][fresh]
            counts[at] = torch.stack([fields["nfe"], fields["network_calls"]], 1)[fresh]
            paths.append(path)
        return ShardIndex(paths, shard, row, digests, counts)

    def _seeds(self, index: Tensor) -> Tensor:
        return torch.tensor([self.seeds[i] for i in index.tolist()], dtype=torch.int64)

    def _read(self, path: Path, check: bool) -> Fields | None:
        """Return the content of a shard, or None unless it is whole and belongs to this run."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("stamp") != self.stamp or set(file.keys()) != set(self.types):
                    return None
                fields = {name: file.get_tensor(name) for name in self.types}
        except (SafetensorError, OSError):
            return None
        whole = self._fits(fields) and (not check or torch.equal(image_digests(fields["images"]), fields["sha256"]))
        return fields if whole else None

    def _fits(self, fields: Fields) -> bool:
        count = len(fields["index"])
        tails = {"sha256": (32,), "images": self.shape}
        shapes = {name: (count, *tails.get(name, ())) for name in self.types}
        if any(fields[name].dtype != kind or fields[name].shape != shapes[name] for name, kind in self.types.items()):
            return False
        index = fields["index"]
        if not count or int(index.min()) < 0 or int(index.max()) >= len(self.seeds) or len(set(index.tolist())) < count:
            return False
        return torch.equal(fields["seed"], self._seeds(index)) and torch.equal(fields["label"], self.label(index))
