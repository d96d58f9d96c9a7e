"""The inception score: how certain a classifier is of each image, and how many classes it sees over all."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Sums over the images of a split: their number, class probabilities (K,) and entropies."""

    n: int
    probability: Tensor
    entropy: float

    @property
    def score(self) -> float:
        """exp(H(mean p) - mean H(p))."""
        return float((_entropy(self.probability / self.n) - self.entropy / self.n).exp())


def inception_score(probabilities: Iterable[Tensor], n: int, splits: int = 10) -> Sequence[float]:
    """Return scores of `splits` blocks of consecutive images, of which the literature reports the mean:

        IS = exp( E_x KL(p(y | x) || p(y)) ) = exp( H(E p) - E H(p) ),      p(y) = E_x p(y | x) over the split

    Split k holds the images floor(k n / splits) .. floor((k + 1) n / splits) - 1. Sums are float64. A score lies
    between 1 and the number of classes; it is biased downwards for few images a split.

    When to use it: to compare with older papers. It needs no reference, and does not see missing variety in a class.

    Args:
        probabilities: p(y | x) of all n images in order, some rows (b, K) at a time.
        n: number of images.
        splits: number of blocks.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 4; the mean over 10 splits is that of its code.

    Raises:
        ValueError: for fewer images than splits, or if the rows are not n.
    """
    if not 1 <= splits <= n:
        raise ValueError(f"the inception score needs from 1 split to one for each of the {n} images, got {splits}")
    bounds = [k * n // splits for k in range(splits + 1)]
    sums: list[Split | None] = [None] * splits
    row = 0
    for part in probabilities:
        for k in range(splits):
            # the rows of this part that fall into split k
            mine = part[max(0, bounds[k] - row) : max(0, bounds[k + 1] - row)].double()
            if len(mine):
                sums[k] = _added(sums[k], mine)
        row += len(part)
    if row != n:
        raise ValueError(f"{row} rows of probabilities for {n} images")
    return [split.score for split in sums if split is not None]


def _added(split: Split | None, rows: Tensor) -> Split:
    mine = Split(len(rows), rows.sum(0), float(_entropy(rows).sum()))
    if split is None:
        return mine
    return Split(split.n + mine.n, split.probability + mine.probability, split.entropy + mine.entropy)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy
