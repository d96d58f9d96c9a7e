"""DEIS-rhoAB: Adams-Bashforth methods in rho, also known as LMS."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.spacings import Power
from scoreline.solvers.budget import check_order
from scoreline.solvers.deis import adams_bashforth
from scoreline.solvers.quadrature import Quadrature
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class RhoAB:
    """`DEIS` with rho itself as the variable:

        x_{i+1} = x_i + sum_j b_ij eps_{i-j},    b_ij = int over step i of l_j(rho) drho,    j = 0 .. min(order, i).

    The integrands are cubics at most, so two Gauss-Legendre points a step give the closed form. Order r + 1 with the
    caveat of `DEIS`; one call a step. Use this to reproduce LMS samplers, which are Adams-Bashforth methods in sigma:
    LMS of order 4 is this with order 3. To match k-diffusion's run down to sigma = 0, take a table of levels that ends
    there, with sigma_min=0, since the final denoising step of `final=denoise` is of order 1.

    Attributes:
        order: degree r of the polynomial; 0 is DDIM.

    Source: Zhang & Chen (2023), arXiv:2204.13902, Sec. 3 (rhoAB-DEIS).

    Raises:
        InputError: for an order outside 0 .. 3.
    """

    order: int

    def __post_init__(self) -> None:
        check_order("rhoAB", self.order, range(4))

    @property
    def convergence(self) -> float:
        return self.order + 1.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, adams_bashforth(rho, self.order, Power(1), None, rule=_two_points(rho)))


def _two_points(rho: Tensor) -> Quadrature:
    """Return the two-point Gauss-Legendre rule of every step, in rho."""
    half = rho.diff()[:, None] / 2
    nodes = rho[:-1, None] + half * (1 + rho.new_tensor([-1, 1]) / 3**0.5)
    return Quadrature(nodes.flatten(), half.repeat(1, 2).flatten(), torch.arange(len(half)).repeat_interleave(2))
