"""The jackknife: standard errors from the values of a statistic with one group of rows left out at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

PAIRED = 8
"""Groups of which all pairs are left out too."""


@dataclass(frozen=True)
class Replicates:
    """A statistic of n rows, and the same statistic without each of g groups of them.

    When to use it: for the error of any smooth statistic of a set of images that has no formula for its variance.

    Attributes:
        full: theta, the statistic of all n rows.
        without: theta_(j) (g,) float64, the statistic of the n - m_j rows outside group j.
        sizes: m_j (g,) int64, the number of rows in group j.
        second: J_2, the second order of the variance (`second_order`); 0 leaves SE as it is.
    """

    full: float
    without: Tensor
    sizes: Tensor
    second: float = 0.0

    @property
    def error(self) -> float:
        """Delete-m_j jackknife standard error, in the units of the statistic.

        With h_j = n / m_j and the pseudo-values p_j = h_j theta - (h_j - 1) theta_(j):

            SE^2 = 1/g sum_j (p_j - theta_J)^2 / (h_j - 1),   theta_J = g theta - sum_j (1 - 1/h_j) theta_(j)

        For equal groups this is (g - 1)/g sum_j (theta_(j) - mean theta_(j))^2. A bias of order 1/n cancels in p_j, so
        that unequal groups add nothing to the error of a biased statistic.

        The variance of a statistic is a sum V_1 + V_2 + .. over the orders of its interactions between rows, and SE^2
        is V_1 + 2 V_2 + 3 V_3 + .. on average: right for a mean, twice the variance for the square of a mean around 0,
        and nearly so for a distance between two sets of one distribution. With r = 2 J_2 / SE^2, where J_2 = V_2 +
        3 V_3 + 6 V_4 + .. is that of `second_order`, the square of the error is

            SE^2 max(1 - r/2, min(1/2, log(1 + r) / r))

        The first is exact for orders one and two, whose r is at most 1. A larger r shows that higher orders matter,
        as in a covariance of about as many rows as columns, or in the share of balls that hold no row. Two orders alone
        do not leave less than the half, and the last is exact for orders V_k = V_1 q^(k-1) / k, those of a logarithm.

        Source: Busing, Meijer & van der Leeden (1999), doi:10.1023/A:1008800423698; for equal groups Efron &
        Tibshirani (1993), An Introduction to the Bootstrap, chapter 11. The second order: Efron & Stein (1981),
        doi:10.1214/aos/1176345462; beyond r = 1 the formula is ours, measured in docs/metrics.md.
        """
        # NumPy adds on one thread, so that the bits of 50,000 rows do not depend on the number of threads
        h = (self.sizes.sum() / self.sizes.double()).numpy()
        change = (self.without - self.full).numpy()
        # p_j - theta_J with theta subtracted from every term: differences of large numbers never arise
        deviation = ((1 - 1 / h) * change).sum() - (h - 1) * change
        variance = float((deviation**2 / (h - 1)).mean())
        return math.sqrt(variance * _share(2 * self.second / variance)) if variance > 0 else 0.0


def _share(ratio: float) -> float:
    """Return the variance over SE^2 where 2 J_2 / SE^2 is `ratio`."""
    return max(1 - ratio / 2, min(1 / 2, math.log1p(ratio) / ratio)) if ratio > 0 else 1.0


def second_order(values: Tensor) -> float:
    """Estimate the part J_2 of the variance of a statistic, from values of pairs of g groups:

        Q_jl = (g - 2) theta_(jl) - (g - 1) (theta_(j) + theta_(l)) + g theta,    J_2 = 1/2 mean (Q_jl - mean Q)^2

    Args:
        values: Q_jl of any number of pairs, up to a constant; all pairs are not needed.

    Source: Efron & Stein (1981), doi:10.1214/aos/1176345462, section 4.
    """
    return float((values - values.mean()).square().mean() / 2)


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


def group_pairs(groups: int) -> list[tuple[int, int]]:
    """Return pairs of the first PAIRED groups, of which `second_order` is estimated; none of fewer than 4 groups."""
    return list(combinations(range(min(groups, PAIRED)), 2)) if groups > 3 else []


def replicates_of_groups(full: float, without: Tensor, pairs: Tensor, sizes: Tensor) -> Replicates:
    """Return the replicates of groups of `sizes` (g,), with those without each of `group_pairs` (p,), or none (0,)."""
    if len(pairs) == 0:
        return Replicates(full, without, sizes)
    g, places = len(sizes), torch.tensor(group_pairs(len(sizes)))
    values = (g - 2) * (pairs - full) - (g - 1) * (without - full)[places].sum(1)
    return Replicates(full, without, sizes, second_order(values))


def delete_each_group(statistic: Callable[[Tensor], float], rows: Tensor, group: Tensor) -> Replicates:
    """Compute `statistic` of rows (n, ...), without each group of `group` (n,), and without pairs of groups.

    When to use it: for any statistic. It takes g + 1 calls, and up to 28 more for the pairs.
    """
    sizes = torch.bincount(group)
    without = [statistic(rows[group != j]) for j in range(len(sizes))]
    pairs = [statistic(rows[(group != j) & (group != k)]) for j, k in group_pairs(len(sizes))]
    of_groups, of_pairs = (torch.tensor(each, dtype=torch.float64) for each in (without, pairs))
    return replicates_of_groups(statistic(rows), of_groups, of_pairs, sizes)
