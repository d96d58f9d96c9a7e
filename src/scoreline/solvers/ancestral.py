"""Ancestral sampling: Euler steps that overshoot, and fresh noise back up to the level."""

import math
from dataclasses import dataclass
from itertools import pairwise

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class EulerAncestral:
    """Ancestral sampling, DDPM's and DDIM's with noise:

        x' = x + (down - rho) eps + up z,
        up = min(rho', eta rho' sqrt(1 - (rho' / rho)^2)),    down = sqrt(rho'^2 - up^2).

    eta = 1 is ancestral sampling as in DDPM, eta = 0 is DDIM; values between are DDIM with noise. Weak order 1, one
    call a step. Use this to reproduce stochastic baselines, with many evaluations; `DPMSDE2M` has weak order 2.

    Attributes:
        eta: strength of the fresh noise; above 1 there is more than DDPM's.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, Eq. 12 and 16; Ho et al. (2020), arXiv:2006.11239, Alg. 2, of
    which eta = 1 is the smaller choice of variance.

    Raises:
        InputError: for a negative eta.
    """

    eta: float = 1.0

    convergence = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise InputError(f"solver.eta={self.eta:g}: choose 0 (DDIM) or above; 1 is ancestral sampling")

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        rows = Rows(sigma_max)
        for x, (rho, target) in enumerate(pairwise(grid(schedule, sigma_max, sigma_min, nfe).tolist())):
            up = min(target, self.eta * target * math.sqrt(1 - (target / rho) ** 2))
            rows.add(target, {x: 1.0}, {x: math.sqrt(target**2 - up**2) - rho}, up)
        return rows.tableau()
