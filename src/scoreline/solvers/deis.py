"""DEIS and DEIS-SN: Adams-Bashforth exponential integrators, one formula with a variable and a scale."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.quadrature import Quadrature, gauss_legendre
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
        order: degree r of the polynomial; 0 is DDIM. The order of convergence is r + 1. Its first step is of order 0,
            as published, which formally caps it at 2; from sigma_max = 80, where x is noise, that is not seen before
            NFE 640, while from 152 or 20 degree 3 falls below 4 (3.4 at NFE 160) and then towards 2. A scale that
            was measured has noise and kinks, which end the convergence at their own size.
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
        return self.order + 1.0

    def __post_init__(self) -> None:
        if self.order not in range(4):
            raise InputError(f"solver.order={self.order}: DEIS has the orders 0, 1, 2 and 3")

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, adams_bashforth(rho, self.order, self.variable, self.scale))


def adams_bashforth(
    rho: Tensor, order: int, variable: Schedule, scale: Scale | None, rule: Quadrature | None = None
) -> Tensor:
    """Weights b_ij of `DEIS` at column i - j of row i: (K, K) float64 for noise levels rho (K + 1,).

    Args:
        rule: quadrature over the steps; by default one that is exact to round-off for every schedule.
    """
    pieces = (variable, scale) if scale is not None else (variable,)
    nodes, weight, step = rule or gauss_legendre(rho, *pieces)
    norm = torch.ones_like(rho[:-1])
    if scale is not None:
        weight, norm = weight * scale(nodes), scale(rho[:-1])
        if not bool((norm > 0).all() & (weight < 0).all()):
            raise InputError("solver.scale: the score scale must be positive on the whole range of noise levels")
    c = variable(rho[:-1])
    moments = _moments(variable(nodes) - c[step], weight, step, (min(order, len(c) - 1) + 1, len(c)))
    weights = (_lagrange(c, len(moments)) * moments).sum(1)
    N = torch.zeros(len(c), len(c), dtype=torch.float64)
    for j, row in enumerate(weights):
        N.diagonal(-j)[:] = row[j:]
    return N / norm


def _moments(c: Tensor, weight: Tensor, step: Tensor, shape: tuple[int, int]) -> Tensor:
    """int c^m over each step, m = 0 .. M - 1, from nodes and weights of all steps: shape (M, K)."""
    powers = [weight]
    for _ in range(shape[0] - 1):
        powers.append(powers[-1] * c)
    return weight.new_zeros(shape).index_add_(1, step, torch.stack(powers))


def _lagrange(c: Tensor, count: int) -> Tensor:
    """Coefficients (j, m, i) of l_j, j = 0 .. count - 1, in powers (c - c_i)^m for the step i; (count, count, K).

    The nodes of step i are c_{i-k}, k = 0 .. min(count - 1, i). All lie on the far side of c_i, so neither these
    coefficients nor the sums over moments cancel.
    """
    step, j = torch.arange(len(c)), torch.arange(count)[:, None]
    d = c[(step - j).clamp(min=0)] - c
    basis = torch.cat([c.new_ones(count, 1, len(c)), c.new_zeros(count, count - 1, len(c))], dim=1)
    for k in range(count):
        other = (j != k) & (step >= j.clamp(min=k))
        gap = torch.where(other, d - d[k], 1.0)[:, None]
        raised = torch.cat([c.new_zeros(count, 1, len(c)), basis[:, :-1]], dim=1)
        basis = torch.where(other[:, None], (raised - d[k] * basis) / gap, basis)
    return basis


def scaled_residual(tableau: Tableau, scale: Scale) -> float:
    """max_k |sum_j N_kj w(rho_j) - integral over row k of w drho| / rho_0: zero if eps proportional to w is exact."""
    nodes, weight, step = gauss_legendre(tableau.rho, scale)
    exact = torch.zeros_like(tableau.B).index_add_(0, step, weight * scale(nodes))
    return float((tableau.N @ scale(tableau.rho[:-1]) - exact).abs().max() / tableau.rho[0])
