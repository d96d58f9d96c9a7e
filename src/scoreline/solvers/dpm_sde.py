"""SDE-DPM-Solver++(2M): the two-step method of DPM-Solver++ for the reverse diffusion."""

import math
from dataclasses import dataclass
from itertools import pairwise

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.frames import log_step
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class DPMSDE2M:
    """SDE-DPM-Solver++(2M):

        x' = (rho' / rho) e^(-eta h) x + (1 - e^(-(1 + eta) h)) (D_0 + (D_0 - D_1) / (2 r))
             + rho' sqrt(1 - e^(-2 eta h)) z,

    D_j = E[x_0 | x] j steps ago, h the step in lambda = -ln rho, r = h_before / h; the first step has no difference.
    One call a step. eta = 0 is DPM-Solver++(2M), of order 2.

    The weak order is 2 as well, though D_0 - D_1 contains fresh noise, which no expansion of the drift accounts for:
    it stands, one step late, for the noise that moves D within the step and that the formula leaves out. Use this for
    samples of the reverse diffusion rather than of the ODE, at weak order 2; with few evaluations prefer an ODE solver.

    Attributes:
        eta: strength of the noise; 1 is the reverse diffusion of the process.

    Source: Lu et al. (2022), arXiv:2211.01095, App. (SDE-DPM-Solver++(2M), midpoint form), there for eta = 1.

    Raises:
        InputError: for a negative eta or sigma_min = 0.
    """

    eta: float = 1.0

    convergence = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise InputError(
                f"solver.eta={self.eta:g}: choose 0 (DPM-Solver++(2M)) or above; 1 is the reverse diffusion"
            )

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        levels = grid(schedule, sigma_max, sigma_min, nfe).tolist()
        clean: list[int] = []
        rows, x, before = Rows(sigma_max), 0, 0.0
        for rho, target in pairwise(levels):
            h = log_step(rho, target)
            clean = [rows.clean(x), *clean[:1]]  # D_0, D_1
            extra = h / (2 * before) if before else 0.0  # 1 / (2 r)
            weight = -math.expm1(-(1 + self.eta) * h)
            mean = dict(zip(clean, (weight * (1 + extra), -weight * extra), strict=False))
            mean[x] = math.exp(-(1 + self.eta) * h)
            x = rows.add(target, mean, noise=target * math.sqrt(-math.expm1(-2 * self.eta * h)))
            before = h
        return rows.tableau()
