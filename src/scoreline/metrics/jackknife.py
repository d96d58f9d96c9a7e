"""The standard error of any statistic of a set of rows, from its values with one group of rows left out at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Replicates:
    """A statistic of n rows, and the same statistic without each of g groups of them.

    Attributes:
        full: theta, of all n rows.
        without: theta_(j) (g,) float64, of the n - m_j rows outside group j.
        sizes: m_j (g,) int64, the rows of group j.
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
        unequal groups do not add to the error of a biased statistic.

        Source: Busing, Meijer & van der Leeden (1999), doi:10.1023/A:1008800423698; for equal groups Efron &
        Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.
        """
        h = self.sizes.sum() / self.sizes.double()
        change = self.without - self.full
        deviation = ((1 - 1 / h) * change).sum() - (h - 1) * change
        return float((deviation.square() / (h - 1)).mean().sqrt())


def assign_groups(n: int, groups: int) -> Tensor:
    """The group (n,) int64 in 0..groups-1 of each of n rows: a fixed shuffle of i mod `groups`.

    The shuffle (NumPy's PCG64, seed 0) matters: images are often made with label i mod classes, and groups of one class
    each would report the difference between classes as error.

    Raises:
        ValueError: unless 2 <= groups <= n.
    """
    if not 2 <= groups <= n:
        raise ValueError(f"the jackknife needs from 2 groups to one for each of the {n} rows, got groups={groups}")
    return torch.from_numpy(np.random.Generator(np.random.PCG64(0)).permutation(n) % groups)


def delete_each_group(statistic: Callable[[Tensor], float], rows: Tensor, group: Tensor) -> Replicates:
    """`statistic` of rows (n, ...), and without each group of `group` (n,), by calling it g + 1 times."""
    sizes = torch.bincount(group)
    without = [statistic(rows[group != j]) for j in range(len(sizes))]
    return Replicates(statistic(rows), torch.tensor(without, dtype=torch.float64), sizes)
