"""One set of parameters for tableaus of many budgets: their families' parameters as curves over the run."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.calibration.learned.family import Family
from scoreline.solvers.tableau import Tableau

POINTS = 7
"""Control points of each curve, even in the share of the calls, with straight lines between them."""

LAGS = 4
"""Latest slopes whose weights follow a curve; older ones keep those of the closed form."""

CURVES = 3 + LAGS
"""Those of gaps, query levels and the weights of each lag, and the frame's deviation, one number."""

REFERENCE = 5
"""Every control point is a + b REFERENCE / K, so that corrections may fade as budgets K grow."""


@dataclass(frozen=True)
class Curve:
    """Families of several budgets K whose parameters are linear in one vector theta:

        family_K(M_K theta),    (M_K theta)_i = sum_p hat_p(t_i) (a_p + b_p 5 / K),

    with t = (k + 1/2) / K for the gap and the weights of row k, k / K for query level k, K here the number of rows, and
    curves apart for gaps, query levels and the weights of each lag k - j; the frame's deviation is one number. Use this
    where one learning has to serve every budget.

    Attributes:
        families: by their number of calls.
    """

    families: Mapping[int, Family]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 2 * POINTS * CURVES

    def parameters(self, theta: Tensor, nfe: int) -> Tensor:
        """Return the parameters of the family of a budget, M_K theta."""
        return _matrix(self.families[nfe]) @ theta

    def __call__(self, theta: Tensor, nfe: int) -> Tableau:
        """Return the tableau of a budget at theta (size,), as `Family` does."""
        return self.families[nfe](self.parameters(theta, nfe))


def _matrix(family: Family) -> Tensor:
    """Return M_K (P_K, P)."""
    count, (gaps, query, weights, frame) = len(family.start.B), family.sizes
    row, column = family.places
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    first = torch.arange(count, dtype=torch.float64) / count
    lag = row - column
    blocks = [
        _rows(middle[:gaps], torch.zeros(gaps, dtype=torch.int64)),
        _rows(first[count - query :], torch.ones(query, dtype=torch.int64)),
        _rows(middle[row][:weights], 2 + lag[:weights].clamp(max=LAGS - 1)) * (lag[:weights, None] < LAGS),
        _rows(middle.new_zeros(frame), torch.full((frame,), CURVES - 1)),
    ]
    hats = torch.cat(blocks)
    return torch.cat([hats, hats * REFERENCE / count], 1)


def _rows(t: Tensor, curve: Tensor) -> Tensor:
    """Return the hat functions at t (n,), each in the columns of its curve, (n, CURVES POINTS)."""
    hats = (1 - (t[:, None] * (POINTS - 1) - torch.arange(POINTS)).abs()).clamp(min=0)
    rows = torch.zeros(len(t), CURVES, POINTS, dtype=torch.float64)
    rows[torch.arange(len(t)), curve] = hats
    return rows.flatten(1)
