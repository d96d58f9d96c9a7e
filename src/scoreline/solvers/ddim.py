"""DDIM."""

from dataclasses import dataclass

import torch

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class DDIM:
    """x_{i+1} = x_i + (rho_{i+1} - rho_i) eps_i: DDIM with eta = 0, Euler's rule for dx/drho = eps, DEIS of order 0.

    Order 1, one call a step.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, Eq. 12-14.
    """

    convergence = 1.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        return Tableau.single_term(rho, torch.diag(rho.diff()))
