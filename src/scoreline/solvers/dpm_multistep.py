"""DPM-Solver and DPM-Solver++, multistep: one call a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.budget import check_order, multistep_orders
from scoreline.solvers.dpm_solver import exponential_row
from scoreline.solvers.frames import frame_of, log_step, phi
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau


@dataclass(frozen=True)
class DPMMultistep:
    """Multistep DPM-Solver and DPM-Solver++: the frame's exact step (`frames`) of an F that is approximated by

        order 1:  F_0, which is DDIM.
        order 2:  F_0 + D / 2, held constant.
        order 3:  F_0 + d_1 s / h + d_2 (s / h)^2, the parabola through the three latest,
                  d_2 = (D - (F_1 - F_2) / r_1) / (r_0 + r_1),  d_1 = D + r_0 d_2.

    F_j is the noise or data prediction j steps ago, h the step in lambda = -ln rho, h_1 and h_2 those before,
    r_0 = h_1 / h, r_1 = h_2 / h and D = (F_0 - F_1) / r_0. In data prediction order 2 is
    x' = (rho' / rho) x + (1 - e^-h) (D_0 + (D_0 - D_1) / (2 r_0)). Order 3 in noise prediction is DEIS of degree 2 in
    ln rho. The first steps are of order 1, then 2. One call a step, nfe steps.

    Use order 2 in data prediction (`dpmpp_2m`) at few evaluations: on the shipped digits model it is among the best
    from NFE 5 on, on each spacing measured. Order 3 is worse than order 2 there at NFE 5 and 10.

    Measured orders are 1, 2 and 3; order 3 measures 2.9 to 3.2 from sigma_max = 80 and less from 20, where the first
    step, of order 1, matters. The released third-order code counts d_2, which is half of a second derivative, as if it
    were one: order 2, with a smaller constant than that of order 2 itself. The last step of order 1 of
    `lower_order_final` matters where it is long: order 3 then measures 3 on log-SNR and Karras grids that end at 0.002,
    2.3 to 2.7 on quadratic time.

    Attributes:
        order: 1, 2 or 3.
        prediction: `noise` is multistep DPM-Solver, `data` is DPM-Solver++(2M, 3M).
        released: use the released third-order formula, d_2 halved.
        lower_order_final: step i of n = nfe, counted from 1, has at most order n + 1 - i (`multistep_orders`).

    Source: Lu et al. (2022), arXiv:2211.01095, Alg. 2 (2M); third order and `released` from the authors' code.

    Raises:
        InputError: for an option that does not exist, or sigma_min = 0.
    """

    order: int
    prediction: str = "noise"
    released: bool = False
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("multistep DPM-Solver", self.order, range(1, 4))
        if self.released and self.order != 3:
            raise InputError(f"solver.released=true: only solver.order=3 differs from the paper, not {self.order}")
        frame_of(self.prediction)

    @property
    def from_infinity(self) -> bool:
        return self.prediction == "data"

    @property
    def convergence(self) -> float:
        return 2.0 if self.released else float(self.order)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        levels = grid(schedule, sigma_max, sigma_min, nfe).tolist()
        rows, history = Rows(sigma_max), [0]
        orders = multistep_orders(nfe, self.order, self.lower_order_final)
        for order, target in zip(orders, levels[1:], strict=True):
            if self.prediction == "data":
                rows.clean(history[0])
            history = [self._step(rows, history[:order], target), *history[:2]]
        return rows.tableau()

    def _step(self, rows: Rows, history: Sequence[int], target: float) -> int:
        """Write the row from the newest state in `history` to the level `target`, of order len(history)."""
        frame = frame_of(self.prediction)
        h = log_step(rows.rho[history[0]], target)
        ratios = [log_step(rows.rho[j], rows.rho[i]) / h for i, j in pairwise(history)]  # r_0, r_1
        z = frame.exponent(h)
        slopes = [-phi(1, z) / (2 * r) for r in ratios]  # order 2: F_0 + D / 2, held constant
        if len(ratios) == 2:  # order 3: int s / h and (s / h)^2 against the exponential are phi_2 and 2 phi_3
            square = phi(3, z) if self.released else 2 * phi(3, z)
            slopes = _parabola(ratios[0], ratios[1], phi(2, z), square)
        return exponential_row(frame, rows, history[0], target, dict(zip(history[1:], slopes, strict=True)))


def _parabola(r0: float, r1: float, linear: float, square: float) -> list[float]:
    """Return the weights of F_1 - F_0 and F_2 - F_0 in linear d_1 + square d_2."""
    curvature = linear * r0 + square
    return [-linear / r0 - curvature / (r0 * r1), curvature / (r1 * (r0 + r1))]
