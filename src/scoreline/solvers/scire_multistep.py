"""SciRE-Solver, multistep: one call a step, differences from the steps before."""

from collections.abc import Sequence
from dataclasses import dataclass

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.budget import check_order, multistep_orders
from scoreline.solvers.frames import frame_of, log_step
from scoreline.solvers.rows import Rows, Weights
from scoreline.solvers.scire import check_terms, finite_levels, phi_1
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class SciREMultistep:
    """Multistep SciRE-Solver. F_j is the slope of the frame's scaled state y, j steps ago, and h = s' - s:

        order 2:  y' = y + h F_0 + h / (2 phi r) (F_0 - F_1),    r = (ln(rho_1 / rho_0) / ln(rho_0 / rho'))^(1/4)
        order 3:  y' = y + h F_0 + h / (2 phi r_0) (F_0 - F_1) + h / (6 phi^2 r_0 r_1) (F_0 - 2 F_1 + F_2),
                  r_0 = phi (rho_1 - rho_0) / (rho_0 - rho'),  r_1 = phi / (1 + phi) (rho_2 - rho_1) / (rho_1 - rho_0)

    This is the released code: the exponent 1/4 and the ratios in rho (also for V2) are its authors' choice. The first
    steps are of order 1, then 2. One call a step, nfe steps.

    The released phi, different at every step but always below 0.67, over-scales the differences, so both orders measure
    1. With per_step off and m = 1 both measure 2: the ratios tend to those of even steps only, and order 3 gives the
    second difference the weight 1/3 where Adams and Bashforth have 5/12. Use this to reproduce the released code, which
    is the only description of the method.

    Attributes:
        order: 2 or 3.
        prediction: `noise` is V1 (s = rho), `data` is V2 (s = 1 / rho).
        m: number of terms of a constant phi = `phi_1`(m), from 1, or `inf`; needs per_step off.
        per_step: phi_1 with the released number of terms for each step (`terms_of_step`).
        lower_order_final: step i of n = nfe, counted from 1, has at most order n + 1 - i (`multistep_orders`).

    Source: released code of Li et al. (2023), arXiv:2308.07896.

    Raises:
        InputError: for an option that does not exist, or sigma_min = 0 where a step needs ln(rho') or 1 / rho'.
    """

    order: int
    prediction: str = "noise"
    m: float | str = 3
    per_step: bool = True
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("multistep SciRE", self.order, range(2, 4))
        frame_of(self.prediction)
        check_terms(self.m, self.per_step)

    @property
    def convergence(self) -> float:
        return 1.0 if self.per_step or phi_1(self.m) != 1 else 2.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        levels = finite_levels(grid(schedule, sigma_max, sigma_min, nfe), self.prediction)
        rows, history = Rows(sigma_max), [0]
        for step, order in enumerate(multistep_orders(nfe, self.order, self.lower_order_final), start=1):
            if self.prediction == "data":
                rows.clean(history[0])
            phi = phi_1(terms_of_step(step, nfe, self.order) if self.per_step else self.m)
            history = [self._step(rows, history[:order], levels[step], phi), *history[:2]]
        return rows.tableau()

    def _step(self, rows: Rows, history: Sequence[int], target: float, phi: float) -> int:
        frame, start = frame_of(self.prediction), history[0]
        h = frame.coordinate(target) - frame.coordinate(rows.rho[start])
        mixture = _difference_weights([rows.rho[j] for j in history], target, phi)
        weights: Weights = {j: h * weight for j, weight in zip(history, mixture, strict=True)}
        return frame.advance(rows, start, target, weights)


def _difference_weights(rho: Sequence[float], target: float, phi: float) -> tuple[float, ...]:
    """Return the weights of F_0, F_1, .. at the levels rho, the newest first; they sum to one."""
    if len(rho) == 1:  # DDIM
        return (1.0,)
    if len(rho) == 2:  # order 2: F_0 + (F_0 - F_1) / (2 phi r)
        r = (log_step(rho[1], rho[0]) / log_step(rho[0], target)) ** 0.25
        first = 1 / (2 * phi * r)
        return (1 + first, -first)
    # order 3: F_0 + (F_0 - F_1) / (2 phi r_0) + (F_0 - 2 F_1 + F_2) / (6 phi^2 r_0 r_1)
    r0 = phi * (rho[1] - rho[0]) / (rho[0] - target)
    r1 = phi / (1 + phi) * (rho[2] - rho[1]) / (rho[1] - rho[0])
    first, second = 1 / (2 * phi * r0), 1 / (6 * phi**2 * r0 * r1)
    return (1 + first + second, -first - 2 * second, second)


def terms_of_step(step: int, steps: int, order: int) -> int:
    """Return m of step 1 .. `steps` in the released code.

    Steps before the full order have 2 step + 2. From there it is 4, 6, 8, .. up to the middle, steps + 3 in the middle,
    and falls to .., 5, 3.
    """
    if step < order:
        return 2 * step + 2
    middle = steps // 2
    if step == middle:
        return steps + 3
    return 2 * (step - order) + 4 if step < middle else 2 * (steps - step) + 3
