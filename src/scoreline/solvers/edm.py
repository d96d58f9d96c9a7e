"""EDM's sampler: Heun's method with churn, ending in clean data."""

import math
from dataclasses import dataclass

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.rows import Rows
from scoreline.solvers.runge_kutta import EULER, heun
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class EDMHeun:
    """EDM's sampler. N levels t_0 = sigma_max > .. > t_(N-1) = sigma_min lie on the grid, and t_N = 0. At each level

        t^ = (1 + gamma) t,  gamma = min(S_churn / N, sqrt(2) - 1) if S_min <= t <= S_max, else 0,
        x^ = x + S_noise sqrt(t^^2 - t^2) z,

    then a Heun step goes from t^ to the next level; the last step, to 0, is Euler's: 2 N - 1 calls. An even budget has
    2 N - 2 calls, and its last two steps are Euler's. nfe = 1 goes from sigma_max to 0 at once.

    Use this, on the `karras` schedule with an odd budget, to reproduce EDM's tables; it needs more evaluations than the
    multistep methods, 20 or more on the shipped digits model. Churn costs further evaluations. Tableaus end at rho = 0
    by themselves: use `final=none`. Without churn this is `heun` with `final=denoise`.

    Order 2, with churn in law, towards the exact flow to sigma_min followed by E[x_0 | x]. While the bound cuts gamma
    off, churn still grows with N, so the order shows from N = S_churn / (sqrt(2) - 1) on; and churn at sigma_min,
    if S_min is below, makes the final denoising step start gamma too high, a first-order error in proportion to
    sigma_min^2. With S_noise other than 1 the noise added is not that of its level: the law has an offset that no
    budget removes, and `Tableau.residual` is not zero.

    Attributes:
        S_churn: churn over the whole run; 0 is deterministic, Algorithm 1.
        S_min: lowest noise level with churn.
        S_max: highest noise level with churn.
        S_noise: factor of the noise that churn adds.

    Source: Karras et al. (2022), arXiv:2206.00364, Alg. 1 and 2.

    Raises:
        InputError: for a negative S_churn or S_noise, an empty range of churn or sigma_min = 0.
    """

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("S_churn", self.S_churn), ("S_noise", self.S_noise)):
            if not 0 <= value < math.inf:
                raise InputError(f"solver.{name}={value:g}: choose a finite number, 0 or above")
        if not self.S_min <= self.S_max:
            raise InputError(f"solver.S_min={self.S_min:g}, solver.S_max={self.S_max:g}: choose S_min <= S_max")

    @property
    def convergence(self) -> float:
        return 2.0 if self.S_churn == 0 or self.S_noise == 1 else 0.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        if sigma_min == 0:
            raise InputError("sigma_min=0: EDM's sampler goes on from sigma_min to 0 by itself; choose it above 0")
        count = nfe // 2 + 1  # N
        levels = [*grid(schedule, sigma_max, sigma_min, max(count - 1, 1)).tolist()[:count], 0.0]
        steps = [heun()] * (nfe - count) + [EULER] * (2 * count - nfe)  # one Euler step if nfe is odd, else two
        rows, x = Rows(sigma_max), 0
        for step, target in zip(steps, levels[1:], strict=True):
            x = step.step(rows, self._churn(rows, x, count), target)
        return rows.tableau()

    def _churn(self, rows: Rows, x: int, count: int) -> int:
        """Write the row that adds fresh noise to state x, if there is churn; return the state to step from."""
        rho = rows.rho[x]
        gamma = min(self.S_churn / count, math.sqrt(2) - 1)
        if gamma == 0 or not self.S_min <= rho <= self.S_max:
            return x
        return rows.add((1 + gamma) * rho, {x: 1.0}, noise=self.S_noise * rho * math.sqrt(gamma * (2 + gamma)))
