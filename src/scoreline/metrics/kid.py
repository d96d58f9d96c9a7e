"""The kernel distance (KID): an unbiased squared maximum mean discrepancy under a cubic polynomial kernel."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scoreline.metrics.jackknife import Replicates
from scoreline.runtime.threads import one_core_each

CHUNK = 256


def _cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return k(x, y) = (x . y / d + 1)^3 of rows (n, d) and (m, d), (n, m).

    Source: Binkowski et al. (2018), arXiv:1801.01401, section 4.
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 of features x (n, d) and y (m, d), in float64:

        sum_{i != j} k(x_i, x_j) / (n (n-1)) + sum_{i != j} k(y_i, y_j) / (m (m-1)) - 2 sum_ij k(x_i, y_j) / (n m)

    Its mean is 0 for equal distributions, so that it may be negative. All rows enter; there are no random subsets.
    The unit is that of the kernel.

    When to use it: for few images, where `frechet_distance` is biased.

    Source: Gretton et al. (2012), JMLR 13, Eq. 3; Binkowski et al. (2018), arXiv:1801.01401, section 4.

    Raises:
        ValueError: for fewer than 2 rows on a side or unequal d.
    """
    _check(x, y, len(x))
    x, y = x.double(), y.double()
    xx, xy, yy = (_block_sums(a, b, _everyone(a), _everyone(b)).squeeze() for a, b in ((x, x), (x, y), (y, y)))
    n = torch.tensor(len(x))
    return float(_mmd(xx - _self_kernel(x).sum(), xy, yy - _self_kernel(y).sum(), n, len(y)))


def kernel_replicates(x: Tensor, y: Tensor, group: Tensor) -> Replicates:
    """Compute `kernel_distance` of x (n, d) from y (m, d), of all rows and without each of the groups, in one pass.

    Raises:
        ValueError: if fewer than 2 rows are left on a side, or for unequal d.
    """
    sizes = torch.bincount(group)
    _check(x, y, len(x) - int(sizes.max()))
    x, y = x.double(), y.double()
    member = one_hot(group).double()
    # (g, g): sums of k over pairs of groups, without each row's kernel with itself
    within = _block_sums(x, x, member, member) - torch.diag(member.T @ _self_kernel(x))
    across = _block_sums(x, y, member, _everyone(y)).squeeze(1)
    yy = _block_sums(y, y, _everyone(y), _everyone(y)).squeeze() - _self_kernel(y).sum()
    # leaving group j out removes row j and column j; their common entry is removed twice
    within_kept = within.sum() - within.sum(0) - within.sum(1) + within.diagonal()
    without = _mmd(within_kept, across.sum() - across, yy, len(x) - sizes, len(y))
    full = _mmd(within.sum(), across.sum(), yy, sizes.sum(), len(y))
    return Replicates(float(full), without, sizes)


def _mmd(xx: Tensor, xy: Tensor, yy: Tensor, n: Tensor, m: int) -> Tensor:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _block_sums(x: Tensor, y: Tensor, member_x: Tensor, member_y: Tensor) -> Tensor:
    """Compute member_x^T k(x, y) member_y with at most CHUNK rows of k in memory a core."""

    def block(start: int) -> Tensor:
        here = slice(start, start + CHUNK)
        return member_x[here].T @ (_cubic_kernel(x[here], y) @ member_y)

    return torch.stack(one_core_each(block, range(0, len(x), CHUNK))).sum(0)


def _self_kernel(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def _everyone(x: Tensor) -> Tensor:
    return torch.ones(len(x), 1, dtype=torch.float64)


def _check(x: Tensor, y: Tensor, rows: int) -> None:
    if min(rows, len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"the kernel distance needs at least 2 rows of equal length on each side, got {rows} of "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
