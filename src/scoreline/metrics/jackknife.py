"""The jackknife: standard errors from the values of a statistic with one group of rows left out at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Replicates:
    """A statistic of n rows, and the same statistic without each of g groups of them.

    When to use it: for the error of any smooth statistic of a set of images that has no formula for its variance.

    Attributes:
        full: theta, the statistic of all n rows.
        without: theta_(j) (g,) float64, the statistic of the n - m_j rows outside group j.
        sizes: m_j (g,) int64, the number of rows in group j.
    """

    full: float
    without: Tensor
    sizes: Tensor

    @property
    def error(self) -> float:
        """Delete-m_j jackknife standard error, in the units of the statistic.

        With h_j = n / m_j and the pseudo-values p_j = h_j theta - (h_j - 1) theta_(j):

            SE^2 = 1/g sum_j (p_j - theta_J)^2 / (h_j - 1),   theta_J = g theta - sum_j (1 - 1/h_j) theta_(j)

        For equal groups this is (g - 1)/g sum_j (theta_(j) - mean theta_(j))^2. A bias of order 1/n cancels in p_j, so
        that unequal groups add nothing to the error of a biased statistic.

        Source: Busing, Meijer & van der Leeden (1999), doi:10.1023/A:1008800423698; for equal groups Efron &
        Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.
        """
        h = self.sizes.sum() / self.sizes.double()
        change = self.without - self.full
        # p_j - theta_J with theta subtracted from every term: differences of large numbers never arise
        deviation = ((1 - 1 / h) * change).sum() - (h - 1) * change
        return float((deviation.square() / (h - 1)).mean().sqrt())


def assign_groups(n: int, groups: int) -> Tensor:
    """Assign each of n rows to a group in 0..groups-1, (n,) int64, by a fixed shuffle of i mod `groups`.

    The shuffle (NumPy's PCG64, seed 0) matters: labels are often i mod classes, and groups of one class each would
    report the difference between classes as error.

    Raises:
        ValueError: unless 2 <= groups <= n.
    """
    if not 2 <= groups <= n:
        raise ValueError(f"the jackknife needs from 2 groups to one for each of the {n} rows, got groups={groups}")
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).permutation(n) % groups)


def delete_each_group(statistic: Callable[[Tensor], float], rows: Tensor, group: Tensor) -> Replicates:
    """Compute `statistic` of rows (n, ...), and without each group of `group` (n,), in g + 1 calls."""
    sizes = torch.bincount(group)
    without = [statistic(rows[group != j]) for j in range(len(sizes))]
    return Replicates(statistic(rows), torch.tensor(without, dtype=torch.float64), sizes)
