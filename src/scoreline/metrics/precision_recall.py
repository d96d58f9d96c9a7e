"""Fidelity of generated images (precision, density) and their variety (recall, coverage), from nearest neighbours."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from scoreline.metrics.jackknife import Replicates
from scoreline.runtime.threads import one_core_each

CHUNK = 256
LARGE = 256


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (n, m) between rows (n, d) and (m, d).

    They come from differences, so that equal rows are at exactly 0; above LARGE dimensions from scalar products, which
    are many times as fast and leave equal rows at up to 1e-7 of their length.
    """
    by = "donot_use_mm_for_euclid_dist" if x.shape[1] <= LARGE else "use_mm_for_euclid_dist"
    return torch.cdist(x, y, compute_mode=by)


def support_replicates(x: Tensor, y: Tensor, group: Tensor, neighbours: int = 3) -> dict[str, Replicates]:
    """Compute precision, recall, density, coverage of x (n, d) against real y (m, d), of all and without each group.

    r(a) is the distance of row a to its k-th nearest other row of its own set, k = `neighbours`; B(a) is the closed
    ball of radius r(a) around a. All are shares of rows except the density, which is unbounded and on average 1 for
    equal distributions:

        precision = share of x_i in some B(y_j)           recall   = share of y_j in some B(x_i)
        density   = sum_ij [x_i in B(y_j)] / (k n)        coverage = share of B(y_j) that hold some x_i

    Distances are Euclidean, in float64; at most CHUNK x max(n, m) of them are in memory for a core. Leaving a group
    of `group` (n,) out of x changes the radii r(x_i) too. All four depend on n, m and k, and compare only at equal
    ones.

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
    _check(x, y, len(x) - int(torch.bincount(group).max()), neighbours)
    return _support(x.double(), y.double(), group, neighbours)


def support(x: Tensor, y: Tensor, neighbours: int = 3) -> dict[str, float]:
    """Compute precision, recall, density and coverage as `support_replicates` does, of all rows alone.

    Raises:
        ValueError: for no more than k rows on a side, for unequal d, or for k < 1.
    """
    _check(x, y, len(x), neighbours)
    everyone = torch.zeros(len(x), dtype=torch.int64)
    return {name: it.full for name, it in _support(x.double(), y.double(), everyone, neighbours).items()}


def _support(x: Tensor, y: Tensor, group: Tensor, neighbours: int) -> dict[str, Replicates]:
    sizes, member = torch.bincount(group), one_hot(group).double()
    radii_x = _radii_without(x, group, neighbours)
    radii_y = _radii_without(y, torch.zeros(len(y), dtype=torch.int64), neighbours)[:, -1:]

    def block(start: int) -> tuple[Tensor, Tensor, Tensor]:
        here = slice(start, start + CHUNK)
        gaps = _distances(y[here], x)
        # (rows of y, n): which x_i lie in B(y_j)
        inside = (gaps <= radii_y[here]).double()
        # (rows of y, g + 1): whether y_j lies in some B(x_i), with each group left out, then with none
        recalled = torch.stack([(gaps <= radii).any(1) for radii in radii_x.T], 1)
        return inside.sum(0), _without_each(inside @ member) > 0, recalled

    held, covered, recalled = zip(*one_core_each(block, range(0, len(y), CHUNK)), strict=True)
    holds = torch.stack(held).sum(0)
    return {
        "precision": _row_mean((holds > 0).double(), member),
        "recall": _replicates(torch.cat(recalled).double().mean(0), sizes),
        "density": _row_mean(holds / neighbours, member),
        "coverage": _replicates(torch.cat(covered).double().mean(0), sizes),
    }


def _radii_without(x: Tensor, group: Tensor, k: int) -> Tensor:
    """Radii (n, g + 1): without group j in column j, of all rows in the last; -1, an empty ball, for absent rows."""
    members = [(group == j).nonzero().flatten() for j in range(int(group.max()) + 1)]

    def block(start: int) -> Tensor:
        rows = torch.arange(start, min(start + CHUNK, len(x)))
        gaps = _distances(x[rows], x)
        gaps[torch.arange(len(rows)), rows] = torch.inf
        # (rows, g, k): the k nearest of each group suffice for the k nearest of any union of groups
        nearest = torch.stack([_k_smallest(gaps[:, member], k) for member in members], 1)
        columns = []
        for j in range(len(members)):
            kept = nearest.clone()
            kept[:, j] = torch.inf
            columns.append(kept.flatten(1).kthvalue(k).values.masked_fill(group[rows] == j, -1.0))
        return torch.stack([*columns, nearest.flatten(1).kthvalue(k).values], 1)

    return torch.cat(one_core_each(block, range(0, len(x), CHUNK)))


def _k_smallest(gaps: Tensor, k: int) -> Tensor:
    return pad(gaps, (0, k), value=torch.inf).topk(k, largest=False).values


def _without_each(by_group: Tensor) -> Tensor:
    """Turn sums by group (rows, g) into sums over the other groups and, last, over all (rows, g + 1)."""
    total = by_group.sum(1, keepdim=True)
    return torch.cat([total - by_group, total], 1)


def _row_mean(values: Tensor, member: Tensor) -> Replicates:
    sizes = member.sum(0)
    kept = _without_each((values @ member)[None])[0] / _without_each(sizes[None])[0]
    return _replicates(kept, sizes.long())


def _replicates(columns: Tensor, sizes: Tensor) -> Replicates:
    return Replicates(float(columns[-1]), columns[:-1], sizes)


def _check(x: Tensor, y: Tensor, rows: int, k: int) -> None:
    if k < 1 or min(rows, len(y)) <= k:
        raise ValueError(f"{k} nearest neighbours need 1 <= k < rows on each side, got {rows} and {len(y)} rows")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions have no distance")
