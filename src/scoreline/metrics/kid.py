"""The kernel distance (KID): an unbiased squared maximum mean discrepancy under a cubic polynomial kernel."""

import torch
from torch import Tensor

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
    xx, xy, yy = (_row_sums(a, b)[:, 0].sum() for a, b in ((x, x), (x, y), (y, y)))
    n = torch.tensor(len(x))
    return float(_mmd(xx - _self_kernel(x).sum(), xy, yy - _self_kernel(y).sum(), n, len(y)))


def kernel_replicates(x: Tensor, y: Tensor) -> Replicates:
    """Compute `kernel_distance` of x (n, d) from y (m, d), of all rows and without each row, in one pass.

    Leaving out a row, or two, takes no more than the sums r_i = sum_j k(x_i, x_j) over j != i, and the second order of
    the variance that of k^2: up to terms of one row each, Q_ij = 2/(n-3) (k(x_i, x_j) - (r_i + r_j) / (n-2)).

    Raises:
        ValueError: for fewer than 3 rows x or 2 rows y, or for unequal d.
    """
    _check(x, y, len(x) - 1)
    x, y, n = x.double(), y.double(), len(x)
    within, squares = _row_sums(x, x).T - torch.stack([_self_kernel(x), _self_kernel(x).square()])
    across = _row_sums(x, y)[:, 0]
    yy = _row_sums(y, y)[:, 0].sum() - _self_kernel(y).sum()
    # leaving out row i removes its row and its column
    without = _mmd(within.sum() - 2 * within, across.sum() - across, yy, torch.tensor(n - 1), len(y))
    full = _mmd(within.sum(), across.sum(), yy, torch.tensor(n), len(y))
    second = _second_order(within, squares.sum()) if n > 3 else 0.0
    return Replicates(float(full), without, torch.ones(n, dtype=torch.int64), second)


def _second_order(within: Tensor, squares: Tensor) -> float:
    """Return `jackknife.second_order` of all pairs, from row sums of k and the sum of k^2 over i != j."""
    n = len(within)
    own = within / (n - 2)
    # sums over i != j of k - own_i - own_j and of its square
    total = within.sum() - 2 * (n - 1) * own.sum()
    square = squares - 4 * within @ own + 2 * (n - 2) * own @ own + 2 * own.sum() ** 2
    pairs = n * (n - 1)
    return float(2 / (n - 3) ** 2 * (square / pairs - (total / pairs) ** 2))


def _mmd(xx: Tensor, xy: Tensor, yy: Tensor, n: Tensor, m: int) -> Tensor:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Return sum_j k(x_i, y_j) and sum_j k(x_i, y_j)^2, (n, 2), with at most CHUNK rows of k in memory a core."""

    def block(start: int) -> Tensor:
        kernel = _cubic_kernel(x[start : start + CHUNK], y)
        return torch.stack([kernel.sum(1), kernel.square().sum(1)], 1)

    return torch.cat(one_core_each(block, range(0, len(x), CHUNK)))


def _self_kernel(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1) ** 3


def _check(x: Tensor, y: Tensor, rows: int) -> None:
    if min(rows, len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"the kernel distance needs at least 2 rows of equal length on each side, got {rows} of "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
