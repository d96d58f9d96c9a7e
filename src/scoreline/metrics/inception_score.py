"""The inception score: how sure a classifier is of each image, and how many classes it sees over all."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Of the images of a split: their number, the sums of their class probabilities (K,) and of their entropies."""

    n: int
    probability: Tensor
    entropy: float

    @property
    def score(self) -> float:
        """exp(H(mean p) - mean H(p))."""
        return float((_entropy(self.probability / self.n) - self.entropy / self.n).exp())


def inception_score(probabilities: Iterable[Tensor], n: int, splits: int = 10) -> Sequence[float]:
    """The scores of `splits` runs of consecutive images, of which the literature reports the mean:

        IS = exp( E_x KL(p(y | x) || p(y)) ) = exp( H(E p) - E H(p) ),      p(y) = E_x p(y | x) over the split

    Split k holds the images floor(k n / splits) .. floor((k + 1) n / splits) - 1. Sums are float64. Each is at least 1
    and at most the number of classes; biased downwards for few images in a split.

    Args:
        probabilities: p(y | x) of all n images in order, some rows (b, K) at a time.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 4; the mean over 10 splits is that of its code.

    Raises:
        ValueError: for fewer images than splits, or other rows than n.
    """
    if not 1 <= splits <= n:
        raise ValueError(f"the inception score needs from 1 split to one for each of the {n} images, got {splits}")
    bounds = [k * n // splits for k in range(splits + 1)]
    found: list[Split | None] = [None] * splits
    row = 0
    for part in probabilities:
        for k in range(splits):
            mine = part[max(0, bounds[k] - row) : max(0, bounds[k + 1] - row)].double()
            if len(mine):
                found[k] = _added(found[k], mine)
        row += len(part)
    if row != n:
        raise ValueError(f"{row} rows of probabilities for {n} images")
    return [split.score for split in found if split is not None]


def _added(split: Split | None, rows: Tensor) -> Split:
    mine = Split(len(rows), rows.sum(0), float(_entropy(rows).sum()))
    if split is None:
        return mine
    return Split(split.n + mine.n, split.probability + mine.probability, split.entropy + mine.entropy)


def _entropy(p: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(p).sum(-1)
    return found
