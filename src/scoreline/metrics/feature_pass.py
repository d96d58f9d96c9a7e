"""One pass of an extractor over images, in parts that several processes share and that are kept for other scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.metrics.base import Score
from scoreline.numerics import NUMERICS_VERSION
from scoreline.parts import Parts, Tensors
from scoreline.sampling import Progress

PART = 512
"""Images of a part. Image i is in part i // PART whatever makes it, so that its features have the same bits."""

Extract = Callable[[Tensor], Tensors]


@dataclass(frozen=True)
class Features:
    """What was computed of `n` images, by name, (rows, d) for each part; read from the parts whenever asked for."""

    n: int
    parts: Sequence[Tensors]

    def stream(self, name: str) -> Iterator[Tensor]:
        """The parts in order, one in memory at a time."""
        return (part[name] for part in self.parts)

    def all(self, name: str) -> Tensor:
        """Rows of all images (n, d)."""
        return self.rows(name, self.n)

    def rows(self, name: str, count: int) -> Tensor:
        """Rows of the images floor(k n / count), k = 0 .. count - 1: `count` of them (at most n) evenly over all."""
        chosen = spread(self.n, count)
        whole, filled = torch.empty(0), 0
        for number, part in enumerate(self.stream(name)):
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
    """Images uint8 (B, C, H, W), row by row in new memory: of one channel, others may count as channels last, for which
    convolutions round differently.
    """
    found = images.read(chosen)[0]
    return torch.empty(found.shape, dtype=found.dtype).copy_(found)


def extract(images: ImageDataset, make: Extract, digest: str, parts: Parts, progress: Progress) -> Features:
    """`make` of all images, PART of them at a time; parts that are found are not made again.

    Features keep the precision in which the extractor computes them; what is added up from them is float64.

    Args:
        make: images uint8 (B, C, H, W) -> tensors (B, d) by name.
        digest: of all that `make` depends on; the features of several extractors lie side by side.
        parts: its folder, if any, keeps the features; several processes share the pass if there is one.
        progress: is told how many images went through `make`.
    """
    n = len(images)

    def part(number: int) -> Tensors:
        chosen = range(number * PART, min(n, (number + 1) * PART))
        made = make(read(images, chosen))
        progress(len(chosen))
        return made

    kept = parts
    if parts.folder is not None:
        kept = parts.at(parts.folder / digest[:16], f"{parts.stamp} {digest} {images.digest}")
    return Features(n, kept.lazily(-(-n // PART), part))


def shared(
    images: ImageDataset, parts: Parts, settings: str, compute: Callable[[], dict[str, Score]]
) -> dict[str, Score]:
    """Scores that the first process computes and the others read, where there is a folder to read them from.

    Args:
        settings: all that the scores depend on besides images and numerics.
    """
    if parts.folder is None or parts.size == 1:
        return compute()
    kept = parts.at(parts.folder / "scores", f"{parts.stamp} {NUMERICS_VERSION} {images.digest} {settings}")

    def as_tensors(number: int) -> Tensors:
        return {
            f"{place:03d} {name}": torch.tensor([it["value"], it["error"], it["n"]], dtype=torch.float64)
            for place, (name, it) in enumerate(compute().items())
        }

    (found,) = kept(1, as_tensors)
    scores = {}
    for key in sorted(found):
        value, error, n = found[key].tolist()
        scores[key.partition(" ")[2]] = Score(value=value, error=error, n=int(n))
    return scores
