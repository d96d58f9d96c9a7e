"""iPNDM: DDIM steps with the Adams-Bashforth weights of even steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.budget import check_order
from scoreline.solvers.frames import NOISE, Frame, finite_unit
from scoreline.solvers.tableau import Tableau

WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class IPNDM:
    """iPNDM:

        x_{i+1} = x_i + (rho_{i+1} - rho_i) sum_j w_j eps_{i-j},

    w the Adams-Bashforth weights of even steps. The first steps use as many terms as there are. One call a step.

    The weights ignore that steps in rho are uneven. On a grid even in a smooth coordinate u they give the mean of eps
    over the step in u, and the product of two means misses the covariance of eps and drho/du: a local error of third
    order, so every order from 2 on measures 2, and 4 only on `schedule=rho_uniform`, where these are the classical
    methods. Use this to reproduce published baselines; `DEIS` takes the uneven steps into account. In another frame the
    same weights apply to steps in its coordinate: theta and G in velocity prediction (`frames.Velocity`).

    Attributes:
        order: number of terms, 1 .. 4; 1 is DDIM, 4 is the published method.
        frame: noise prediction, or another frame.

    Source: Zhang & Chen (2023), arXiv:2204.13902, App. H.2; Liu et al. (2022), arXiv:2202.09778.

    Raises:
        InputError: for another order.
    """

    order: int = 4
    frame: Frame = NOISE
    from_infinity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_order("iPNDM", self.order, range(1, 5))

    @property
    def convergence(self) -> float:
        return 1.0 if self.order == 1 else 2.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rho = grid(schedule, sigma_max, sigma_min, nfe)
        W = torch.zeros(nfe, nfe, dtype=torch.float64)
        coordinate = rho.new_tensor([self.frame.coordinate(level) for level in rho.tolist()])
        for i, h in enumerate(coordinate.diff()):
            weights = WEIGHTS[min(self.order, i + 1) - 1]
            W[i, i + 1 - len(weights) : i + 1] = h * torch.tensor(weights[::-1], dtype=torch.float64)
        return Tableau.single_term(rho, W * finite_unit(self.frame, rho[:-1]), self.frame)
