"""Fidelity of generated images (precision, density) and their variety (recall, coverage), from nearest neighbours."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoreline.metrics.jackknife import Replicates, group_pairs, replicates_of_groups
from scoreline.runtime.threads import one_core_each

CHUNK = 256
LARGE = 256
NAMES = ("precision", "recall", "density", "coverage")
LeftOut = Sequence[tuple[int, ...]]
"""Sets of groups that are left out."""


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (n, m) between rows (n, d) and (m, d).

    They come from differences, so that equal rows are at exactly 0; above LARGE dimensions from scalar products, which
    are many times as fast and leave equal rows at up to 1e-7 of their length.
    """
    by = "donot_use_mm_for_euclid_dist" if x.shape[1] <= LARGE else "use_mm_for_euclid_dist"
    return torch.cdist(x, y, compute_mode=by)


def support_replicates(x: Tensor, y: Tensor, group: Tensor, neighbours: int = 3) -> dict[str, Replicates]:
    """Compute precision, recall, density, coverage of x (n, d) against real y (m, d), with their replicates.

    r(a) is the distance of row a to its k-th nearest other row of its own set, k = `neighbours`; B(a) is the closed
    ball of radius r(a) around a. All are shares of rows except the density, which is unbounded and on average 1 for
    equal distributions:

        precision = share of x_i in some B(y_j)           recall   = share of y_j in some B(x_i)
        density   = sum_ij [x_i in B(y_j)] / (k n)        coverage = share of B(y_j) that hold some x_i

    Distances are Euclidean, in float64; at most CHUNK x max(n, m) of them are in memory for a core. Leaving a group
    of `group` (n,) out of x changes the radii r(x_i) too. All four depend on n, m and k, and compare only at equal
    ones. The error is that over other x, with y held fixed. Precision and density are means over x, so that their
    replicates are without each row; the other two leave out groups and pairs of groups.

    Source: Kynkaanniemi et al. (2019), arXiv:1904.06991; Naeem et al. (2020), arXiv:2002.09797 (who
    recommend k = 5 for the last two; here one k serves all four).

    When to use it: to tell a model that makes few good images (high precision, low recall) from one that makes many
    poor ones, which a single distance cannot. Density and coverage are less sensitive to outliers.

    Args:
        x: features of generated images.
        y: features of real images.
        group: the group of each row of x.
        neighbours: k.

    Raises:
        ValueError: if no more than k rows are left on a side, for unequal d, or for k < 1.
    """
    sizes = torch.bincount(group)
    _check(x, y, len(x) - int(sizes.max()), neighbours)
    enough = len(x) - int(sizes.topk(min(2, len(sizes))).values.sum()) > neighbours
    left_out = [*((j,) for j in range(len(sizes))), *(group_pairs(len(sizes)) if enough else [])]
    found = _support(x.double(), y.double(), group, neighbours, left_out)
    return {
        "precision": _mean((found.holds > 0).double()),
        "recall": _replicates(found.recalled, sizes),
        "density": _mean(found.holds / neighbours),
        "coverage": _replicates(found.covered, sizes),
    }


def support(x: Tensor, y: Tensor, neighbours: int = 3) -> dict[str, float]:
    """Compute precision, recall, density and coverage as `support_replicates` does, of all rows alone.

    Raises:
        ValueError: for no more than k rows on a side, for unequal d, or for k < 1.
    """
    _check(x, y, len(x), neighbours)
    found = _support(x.double(), y.double(), torch.zeros(len(x), dtype=torch.int64), neighbours, [])
    means = ((found.holds > 0).double().mean(), found.recalled, found.holds.mean() / neighbours, found.covered)
    return {name: float(value) for name, value in zip(NAMES, means, strict=True)}


class _Support(NamedTuple):
    """Number of balls B(y_j) that hold each x_i (n,); recall and coverage without each set of groups, last of all."""

    holds: Tensor
    recalled: Tensor
    covered: Tensor


def _support(x: Tensor, y: Tensor, group: Tensor, neighbours: int, left_out: LeftOut) -> _Support:
    radii_x = _radii_without(x, group, neighbours, left_out)
    radii_y = _radii_without(y, torch.zeros(len(y), dtype=torch.int64), neighbours, [])
    # (n, sets + 1): whether row x_i is there
    kept = (radii_x >= 0).double()

    def block(start: int) -> tuple[Tensor, Tensor, Tensor]:
        here = slice(start, start + CHUNK)
        gaps = _distances(y[here], x)
        # (rows of y, n): which x_i lie in B(y_j)
        inside = (gaps <= radii_y[here]).double()
        # (rows of y, sets + 1): whether y_j lies in some B(x_i)
        recalled = torch.stack([(gaps <= radii).any(1) for radii in radii_x.T], 1)
        return inside.sum(0), inside @ kept > 0, recalled

    held, covered, recalled = zip(*one_core_each(block, range(0, len(y), CHUNK)), strict=True)
    shares = (torch.cat(each).double().mean(0) for each in (recalled, covered))
    return _Support(torch.stack(held).sum(0), *shares)


def _radii_without(x: Tensor, group: Tensor, k: int, left_out: LeftOut) -> Tensor:
    """Radii (n, sets + 1): without each set of groups, of all rows in the last; -1, an empty ball, for absent rows."""
    members = [(group == j).nonzero().flatten() for j in range(int(group.max()) + 1)]

    def block(start: int) -> Tensor:
        rows = torch.arange(start, min(start + CHUNK, len(x)))
        gaps = _distances(x[rows], x)
        gaps[torch.arange(len(rows)), rows] = torch.inf
        # (rows, g, k): the k nearest of each group suffice for the k nearest of any union of groups
        nearest = torch.stack([_k_smallest(gaps[:, member], k) for member in members], 1)
        columns = []
        for groups in (*left_out, ()):
            rest = nearest.clone()
            rest[:, groups] = torch.inf
            absent = torch.isin(group[rows], torch.tensor(groups, dtype=torch.int64))
            columns.append(rest.flatten(1).kthvalue(k).values.masked_fill(absent, -1.0))
        return torch.stack(columns, 1)

    return torch.cat(one_core_each(block, range(0, len(x), CHUNK)))


def _k_smallest(gaps: Tensor, k: int) -> Tensor:
    return pad(gaps, (0, k), value=torch.inf).topk(k, largest=False).values


def _mean(values: Tensor) -> Replicates:
    """Return the replicates of a mean over rows, without each row."""
    n, total = len(values), values.sum()
    return Replicates(float(total / n), (total - values) / (n - 1), torch.ones(n, dtype=torch.int64))


def _replicates(columns: Tensor, sizes: Tensor) -> Replicates:
    return replicates_of_groups(float(columns[-1]), columns[: len(sizes)], columns[len(sizes) : -1], sizes)


def _check(x: Tensor, y: Tensor, rows: int, k: int) -> None:
    if k < 1 or min(rows, len(y)) <= k:
        raise ValueError(f"{k} nearest neighbours need 1 <= k < rows on each side, got {rows} and {len(y)} rows")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions have no distance")
