"""DDIM: Euler's method in rho."""

from dataclasses import dataclass

import torch

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class DDIM:
    """DDIM with eta = 0, which is Euler's method for dx/drho = eps and DEIS of order 0:

        x_{i+1} = x_i + (rho_{i+1} - rho_i) eps_i.

    Order 1, one call a step. Use this as the baseline; at equal NFE `DEIS` of higher order is better on the shipped
    digits model.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, Eq. 12-14.
    """

    convergence = 1.0
    from_infinity = True

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, torch.diag(rho.diff()))
