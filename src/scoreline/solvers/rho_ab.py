"""DEIS-rhoAB: Adams-Bashforth methods in rho, which is also what LMS is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import adams_bashforth
from scoreline.solvers.quadrature import Quadrature
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class RhoAB:
    """x_{i+1} = x_i + sum_j b_ij eps_{i-j}, b_ij = integral of l_j(rho) drho over step i, j = 0 .. min(order, i).

    `DEIS` with rho itself as the variable. The integrands are cubics at most, so two Gauss-Legendre points a step give
    the closed form. Order r + 1, as `DEIS` says. The samplers called LMS are Adams-Bashforth methods in sigma: LMS of
    order 4 is this with order 3 (k-diffusion's run down to sigma = 0 is matched on a table of levels that ends there,
    with sigma_min=0; a last hop by `final=denoise` is of order 1). One call a step.

    Source: Zhang & Chen (2023), arXiv:2204.13902, Sec. 3 (rhoAB-DEIS).

    Raises:
        InputError: for an order outside 0 .. 3.
    """

    order: int

    def __post_init__(self) -> None:
        if self.order not in range(4):
            raise InputError(f"solver.order={self.order}: rhoAB has the orders 0, 1, 2 and 3")

    @property
    def convergence(self) -> float:
        return self.order + 1.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, adams_bashforth(rho, self.order, Power(1), None, _two_points(rho)))


def _two_points(rho: Tensor) -> Quadrature:
    """The two-point Gauss-Legendre rule of every step, in rho."""
    half = rho.diff()[:, None] / 2
    nodes = rho[:-1, None] + half * (1 + rho.new_tensor([-1, 1]) / 3**0.5)
    return Quadrature(nodes.flatten(), half.repeat(1, 2).flatten(), torch.arange(len(half)).repeat_interleave(2))
