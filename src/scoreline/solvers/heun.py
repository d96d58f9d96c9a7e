"""Heun's method in rho."""

from dataclasses import dataclass

import torch

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class Heun:
    """Predict x' = x_i + h eps_i, correct x_{i+1} = x_i + h/2 (eps_i + eps(x', rho_{i+1})), h = rho_{i+1} - rho_i.

    Order 2, two calls a step; an odd budget makes the last step Euler. With `final=denoise` this is EDM's
    deterministic sampler: N noise levels and NFE 2 N - 1.

    Source: Karras et al. (2022), arXiv:2206.00364, Alg. 1; as rho-RK in Zhang & Chen (2023), arXiv:2204.13902.
    """

    order = 2

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        steps = (nfe + 1) // 2
        level = grid(schedule, sigma_max, sigma_min, steps)
        rho = torch.cat([level[:1], level[1:].repeat_interleave(2)])[: nfe + 1]
        S, N = torch.zeros(nfe, nfe, dtype=torch.float64), torch.zeros(nfe, nfe, dtype=torch.float64)
        first = torch.arange(0, nfe, 2)
        S[first, first] = 1.0
        N[first, first] = level.diff()
        second = torch.arange(1, nfe, 2)
        half = level.diff()[: len(second)] / 2
        S[second, second - 1] = 1.0
        N[second, second - 1], N[second, second] = half, half
        return Tableau(rho, S, N, torch.zeros(nfe, dtype=torch.float64))
