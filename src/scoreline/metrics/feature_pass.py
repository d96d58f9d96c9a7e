"""One pass of a feature extractor over images, in parts that processes share and later scores reuse."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.metrics.base import ALONE, Score
from scoreline.numerics import NUMERICS_VERSION
from scoreline.runtime.progress import ImageProgress
from scoreline.sampling import Progress
from scoreline.storage.files import cache_folder
from scoreline.storage.resumable import Parts, Tensors

PART = 512
"""Images a part. Image i is always in part i // PART, so that its features have the same bits on any machine."""

Extract = Callable[[Tensor], Tensors]


@dataclass(frozen=True)
class Features:
    """Features of `n` images by name, (rows, d) a part, read from the parts on each access."""

    n: int
    parts: Sequence[Tensors]

    def stream(self, name: str) -> Iterator[Tensor]:
        """Yield the parts in order, one in memory at a time."""
        return (part[name] for part in self.parts)

    def all(self, name: str) -> Tensor:
        """Return the rows of all images (n, d)."""
        return self.rows(name, self.n)

    def rows(self, name: str, count: int) -> Tensor:
        """Return `count` rows (at most n) evenly spread over all: images floor(k n / count), k = 0 .. count - 1."""
        chosen = spread(self.n, count)
        whole, filled = torch.empty(0), 0
        for number, part in enumerate(self.stream(name)):
            # places inside this part of the images that were chosen
            here = chosen[torch.div(chosen, PART, rounding_mode="floor") == number] - number * PART
            if filled == 0:
                whole = part.new_empty((len(chosen), part.shape[1]))
            whole[filled : filled + len(here)] = part[here]
            filled += len(here)
        return whole


def spread(n: int, count: int) -> Tensor:
    """floor(k n / count) for k = 0 .. count - 1, with count at most n: (count,) int64."""
    count = min(n, count)
    return torch.div(torch.arange(count) * n, count, rounding_mode="floor")


def read(images: ImageDataset, chosen: Sequence[int]) -> Tensor:
    """Read images uint8 (B, C, H, W) into new memory, row by row.

    torch may take a view of one channel for channels last, for which convolutions round differently.
    """
    batch = images.read(chosen)[0]
    return torch.empty(batch.shape, dtype=batch.dtype).copy_(batch)


def extract(images: ImageDataset, extractor: Extract, digest: str, parts: Parts, progress: Progress) -> Features:
    """Compute the features of all images, PART of them at a time, except for parts that are kept already.

    Features keep the precision in which the extractor computes them; sums over them are float64.

    Args:
        images: the images.
        extractor: images uint8 (B, C, H, W) -> tensors (B, d) by name.
        digest: SHA-256 of everything that the extractor depends on; features of several extractors lie side by side.
        parts: the folder that keeps the features, if any, and the processes that share the pass through it.
        progress: called with the number of images that have just passed through the extractor.
    """
    n = len(images)

    def part(number: int) -> Tensors:
        chosen = range(number * PART, min(n, (number + 1) * PART))
        features = extractor(read(images, chosen))
        progress(len(chosen))
        return features

    kept = parts
    if parts.folder is not None:
        kept = parts.at(parts.folder / digest[:16], f"{parts.stamp} {digest} {images.digest}")
    return Features(n, kept.lazily(-(-n // PART), part))


def reference_features(
    images: ImageDataset, extractor: Extract, digest: str, slow: bool, parts: Parts = ALONE
) -> Tensors:
    """Compute the features of reference images, all in memory.

    Args:
        images: the reference.
        extractor: images uint8 (B, C, H, W) -> tensors (B, d) by name.
        digest: SHA-256 of everything that the extractor depends on.
        slow: whether the cache keeps the features, and a bar shows the pass.
        parts: the processes that share the pass if the cache keeps it.
    """
    if not slow:
        return extractor(read(images, range(len(images))))
    with ImageProgress(len(images), "features of the reference", enabled=parts.rank == 0) as progress:
        features = extract(images, extractor, digest, parts.at(cache_folder("features"), ""), progress.update)
    return {name: features.all(name) for name in features.parts[0]}


def share_scores(
    images: ImageDataset, parts: Parts, settings: str, compute: Callable[[], dict[str, Score]]
) -> dict[str, Score]:
    """Compute scores in the first process and read them in the others, if there is a folder to read them from.

    Args:
        images: the scored images.
        parts: the folder and the processes.
        settings: everything besides images and numerics on which the scores depend.
        compute: the computation.
    """
    if parts.folder is None or parts.size == 1:
        return compute()
    kept = parts.at(parts.folder / "scores", f"{parts.stamp} {NUMERICS_VERSION} {images.digest} {settings}")

    def as_tensors(number: int) -> Tensors:
        return {
            f"{place:03d} {name}": torch.tensor([it["value"], it["error"], it["n"]], dtype=torch.float64)
            for place, (name, it) in enumerate(compute().items())
        }

    (tensors,) = kept(1, as_tensors)
    scores = {}
    for key in sorted(tensors):
        value, error, n = tensors[key].tolist()
        scores[key.partition(" ")[2]] = Score(value=value, error=error, n=int(n))
    return scores
