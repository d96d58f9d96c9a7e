"""DEIS and DEIS-SN: Adams-Bashforth exponential integrators, one formula with a variable and a scale."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.quadrature import gauss_legendre
from scoreline.solvers.tableau import Tableau


class Scale(Protocol):
    """A positive function w(rho) by which a solver normalises eps, with the knots of its interpolation."""

    def __call__(self, rho: Tensor) -> Tensor: ...

    def knots(self) -> Tensor: ...


@dataclass(frozen=True)
class DEIS:
    """x_{i+1} = x_i + sum_j b_ij eps_{i-j},
    b_ij = (1 / w(rho_{i-j})) int from rho_i to rho_{i+1} of w(rho) l_j(c(rho)) drho,  j = 0 .. min(order, i).

    l_j are the Lagrange polynomials on the latest nodes in the variable c; the first steps use as many nodes as there
    are, as published. The integrals are exact to round-off (`gauss_legendre`).

    Attributes:
        order: degree r of the polynomial; 0 is DDIM. Measured order of convergence r + 1 (r = 3: about 3.4 to 4, the
            first step being of order 0).
        variable: c. The native time of the process gives DEIS-tAB, rho itself DEIS-rhoAB.
        scale: w. None is DEIS; the calibrated mean |eps| gives DEIS-SN (score normalisation).

    Source: Zhang & Chen (2023), arXiv:2204.13902, Eq. 14-15; Xia et al. (2023), arXiv:2311.00157 for the scale.

    Raises:
        InputError: for an order outside 0 .. 3 or a scale that is not positive on the range.
    """

    order: int
    variable: Schedule
    scale: Scale | None = None

    @property
    def convergence(self) -> float:
        return (1.0, 2.0, 3.0, 3.5)[self.order]

    def __post_init__(self) -> None:
        if self.order not in range(4):
            raise InputError(f"solver.order={self.order}: DEIS has the orders 0, 1, 2 and 3")

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, adams_bashforth(rho, self.order, self.variable, self.scale))


def adams_bashforth(rho: Tensor, order: int, variable: Schedule, scale: Scale | None) -> Tensor:
    """Weights b_ij of `DEIS` at column i - j of row i: (K, K) float64 for noise levels rho (K + 1,)."""
    pieces = (variable, scale) if scale is not None else (variable,)
    nodes, weight, step = gauss_legendre(rho, *pieces)
    norm = torch.ones_like(rho[:-1])
    if scale is not None:
        weight, norm = weight * scale(nodes), scale(rho[:-1])
        if not bool((norm > 0).all() & (weight < 0).all()):
            raise InputError("solver.scale: the score scale must be positive on the whole range of noise levels")
    c, at = variable(rho[:-1]), variable(nodes)
    steps = len(rho) - 1
    N = rho.new_zeros(steps, steps)
    for j in range(min(order, steps - 1) + 1):
        rows = torch.arange(j, steps)
        integral = rho.new_zeros(steps).index_add_(0, step, weight * _lagrange(c, at, step, j, order))
        N[rows, rows - j] = integral[rows] / norm[rows - j]
    return N


def _lagrange(c: Tensor, at: Tensor, step: Tensor, j: int, order: int) -> Tensor:
    """l_j at the quadrature nodes: nodes c_{i-k}, k = 0 .. min(order, i), of the step i that each one belongs to."""
    own = c[(step - j).clamp(min=0)]
    value = torch.ones_like(at)
    for k in range(order + 1):
        if k != j:
            other = c[(step - k).clamp(min=0)]
            factor = (at - other) / torch.where(step >= max(j, k), own - other, torch.ones_like(own))
            value = value * torch.where(step >= k, factor, torch.ones_like(factor))
    return value
