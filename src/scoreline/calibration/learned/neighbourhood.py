"""The neighbourhood of a tableau, as a vector of parameters."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoreline.solvers.tableau import Tableau

LEAST_GAP = 0.05
"""Least unit of a row's weights, as a share of its noise level, for rows that hardly change the level."""


@dataclass(frozen=True)
class Neighbourhood:
    """Tableaus x_{k+1} = x_k + sum_{j<=k} N_kj eps_j around a start, with its ends and its number of calls.

    theta = (the logarithms of the K - 1 inner levels, the weights N_kj of older estimates j < k in units of the row's
    step), both as differences from the start, theta = 0. The weight of the newest estimate follows,
    N_kk = rho_{k+1} - rho_k - sum_{j<k} N_kj, so that every member is exact for constant eps: its `residual` is zero.
    If the start is not (a method with a measured scale is exact for constant eps / w), theta = 0 is a tableau beside
    it.

    Attributes:
        start: a tableau with one row a call (`Tableau.unrolled`).
        history: number of estimates whose weights in a row are parameters; older ones keep the start's weights.
    """

    start: Tableau
    history: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.start.nfe - 1 + len(self._free[0])

    def __call__(self, theta: Tensor) -> Tableau:
        """Return the tableau at theta (size,) float64."""
        return Tableau.single_term(*self.parts(theta.double()))

    def slopes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return d rho / d theta (size, K + 1) and dN / d theta (size, K, K), float64."""
        rho, N = torch.autograd.functional.jacobian(self.parts, theta.double())  # type: ignore[no-untyped-call]
        return rho.permute(1, 0), N.permute(2, 0, 1)

    @cached_property
    def _free(self) -> tuple[Tensor, Tensor]:
        """Row and column of every weight that is a parameter."""
        below = torch.ones(self.start.nfe, self.start.nfe, dtype=torch.bool).tril(-1).triu(1 - self.history)
        row, column = below.nonzero(as_tuple=True)
        return row, column

    @cached_property
    def _unit(self) -> Tensor:
        """Units of the weights of a row, (K,)."""
        return torch.maximum(self.start.rho.diff().abs(), LEAST_GAP * self.start.rho[:-1])

    def parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return rho (K + 1,) and N (K, K) at theta, differentiable in theta."""
        first, count = self.start.rho, self.start.nfe
        inner = first[1:-1] * theta[: count - 1].exp()
        rho = torch.cat([first[:1], inner, first[-1:]])
        change = torch.zeros_like(self.start.N).index_put(self._free, theta[count - 1 :])
        older = (self.start.N / self._unit[:, None] + change).tril(-1) * self._units_at(rho.diff())[:, None]
        return rho, older + torch.diag(rho.diff() - older.sum(1))

    def _units_at(self, step: Tensor) -> Tensor:
        """Scale the units with the rows' steps, where the start has one."""
        before = self.start.rho.diff()
        factor = torch.where(before.abs() > 0, step / torch.where(before.abs() > 0, before, 1.0), 1.0)
        return self._unit * factor
