"""DPM-Solver and DPM-Solver++, single-step: exponential Runge-Kutta in half log-SNR."""

import math
from dataclasses import dataclass
from itertools import pairwise

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.budget import NODES, check_budget, check_inner, check_order, step_levels, step_orders
from scoreline.solvers.frames import Exponential, frame_of, log_step, phi
from scoreline.solvers.rows import NOTHING, Rows, Weights
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class DPMSolver:
    """Single-step DPM-Solver and DPM-Solver++. A step of length h in lambda = -ln rho, F_k the noise or the data
    prediction at lambda + r_k h:

        order 1:  F_0 held constant, which is DDIM.
        order 2:  F_0 held over r_1 h; then F_0 + (F_1 - F_0) / (2 r_1) held over h.
        order 3:  F_0 held over r_1 h; then the line through F_0 and F_1 integrated over r_2 h; then the line through
                  F_0 and F_2 over h.

    F is held or integrated against the exponential weight of the frame, in closed form. In noise prediction:

        x_2 = x + (rho_2 - rho) eps_0 - (r_2 / r_1) rho_2 ((e^(r_2 h) - 1) / (r_2 h) - 1) (eps_1 - eps_0)
        x'  = x + (rho' - rho) eps_0 - (rho' / r_2) ((e^h - 1) / h - 1) (eps_2 - eps_0)

    A step of order p makes p calls and measures order p; order 3 needs r_2 = 2/3, else it is 2. `agile` ends order 3 in
    a step of order 1 or 2, which matters where it is long: order 3 then measures 3 on log-SNR and Karras grids that end
    at 0.002, 2 on quadratic time. Use this to reproduce DPM-Solver's tables; at few evaluations the multistep form
    (`DPMMultistep`) makes more steps of the same budget and is far better on the shipped digits model.

    Attributes:
        order: 1, 2 or 3.
        prediction: `noise` is DPM-Solver-1/2/3, `data` is DPM-Solver++(1S, 2S, 3S).
        budget: `fixed`, or `agile` (DPM-Solver-fast with order 3), see `step_orders`.
        r1: position of the first intermediate state of full-order steps; None is 1/2 for order 2, 1/3 for order 3.
        r2: position of the second one, for order 3; None is 2/3.
        inner: `fixed` takes r1 and r2. `schedule` takes the fractions, in lambda, at which the schedule's own grid of
            `order` intervals divides the step, as the authors' code does on grids that are not even in log-SNR.

    Source: Lu et al. (2022), arXiv:2206.00927, Alg. 1-2 and App. D; Lu et al. (2022), arXiv:2211.01095, Alg. 1.

    Raises:
        InputError: for an option that does not exist, nodes out of order, fewer calls than one step of the fixed budget
            takes, or sigma_min = 0.
    """

    order: int
    prediction: str = "noise"
    budget: str = "fixed"
    r1: float | None = None
    r2: float | None = None
    inner: str = "fixed"

    def __post_init__(self) -> None:
        check_order("DPM-Solver", self.order, range(1, 4))
        frame_of(self.prediction)
        check_budget(self.budget)
        check_inner(self.inner)
        ends = (0.0, *self._nodes(self.order), 1.0)
        if (self.order < 3 and self.r2 is not None) or (self.order < 2 and self.r1 is not None):
            raise InputError(f"solver.r1={self.r1}, solver.r2={self.r2}: order {self.order} has fewer nodes; leave out")
        if self.inner == "schedule" and (self.r1, self.r2) != (None, None):
            raise InputError("solver.inner=schedule: chooses r1 and r2 by itself; leave them out or use inner=fixed")
        if not all(before < after for before, after in pairwise(ends)):
            raise InputError(f"solver.r1={self.r1}, solver.r2={self.r2}: choose 0 < r1 < r2 < 1")

    @property
    def convergence(self) -> float:
        third = self.order == 3 and self.inner == "fixed" and abs(self._nodes(3)[1] - 2 / 3) < 1e-9
        return 3.0 if third else float(min(self.order, 2))

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        orders = step_orders(nfe, self.order, self.budget)
        levels = step_levels(schedule, sigma_max, sigma_min, orders).tolist()
        rows, x = Rows(sigma_max), 0
        for order, target in zip(orders, levels[1:], strict=True):
            inside = self.inner == "schedule"
            nodes = _nodes_in_lambda(schedule, rows.rho[x], target, order) if inside else self._nodes(order)
            x = self._step(rows, x, target, nodes)
        return rows.tableau()

    def _nodes(self, order: int) -> tuple[float, ...]:
        if order < self.order:
            return NODES[order]
        fractions = (self.r1, self.r2)
        return tuple(default if r is None else r for default, r in zip(NODES[order], fractions, strict=False))

    def _step(self, rows: Rows, x: int, target: float, nodes: tuple[float, ...]) -> int:
        """Write the rows of one step from state x: every stage starts at x and reads F_0 and the stage before."""
        frame, last = frame_of(self.prediction), x
        rho, h = rows.rho[x], log_step(rows.rho[x], target)
        for before, r in pairwise((0.0, *nodes, 1.0)):
            level = target if r == 1 else rho * math.exp(-r * h)
            slopes: Weights = NOTHING
            if before:
                z = frame.exponent(r * h)
                # order 2 holds F_0 + (F_1 - F_0) / (2 r_1); order 3 integrates the line through F_0 and F_last
                slopes = {last: phi(1, z) / (2 * before) if len(nodes) == 1 else r / before * phi(2, z)}
            last = exponential_row(frame, rows, x, level, slopes)
        return last


def _nodes_in_lambda(schedule: Schedule, rho: float, target: float, order: int) -> tuple[float, ...]:
    """Return where the schedule's own grid of `order` intervals divides a step, as fractions in lambda = -ln rho."""
    levels = grid(schedule, rho, target, order)[1:-1].tolist()
    return tuple(log_step(rho, level) / log_step(rho, target) for level in levels)


def exponential_row(frame: Exponential, rows: Rows, start: int, rho: float, slopes: Weights = NOTHING) -> int:
    """Write one row, x(rho) by an exponential integrator that is exact for constant F:

        scaled x(rho) = scaled x + scale(rho) h (phi_1(z) F_start + sum_j slopes[j] (F_j - F_start)),

    h = ln(rho_start / rho) and z = +-h the frame's exponent.

    Returns:
        the new state's number.

    Raises:
        InputError: for rho = 0.
    """
    h = log_step(rows.rho[start], rho)
    if h == math.inf:  # h phi_1(-h) = 1 - e^-h
        return frame.advance(rows, start, rho, {start: frame.scale(rho)})
    factor = frame.scale(rho) * h
    weights = {j: factor * slope for j, slope in slopes.items()}
    weights[start] = factor * (phi(1, frame.exponent(h)) - sum(slopes.values()))
    return frame.advance(rows, start, rho, weights)
