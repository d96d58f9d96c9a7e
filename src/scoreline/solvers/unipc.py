"""UniPC: an exponential multistep predictor and a corrector that reuses the next step's call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.budget import check_order, multistep_orders
from scoreline.solvers.frames import frame_of, log_step, phi
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau
from scoreline.values import check_choice


@dataclass(frozen=True)
class UniPC:
    """UniPC. A step of length h in lambda = -ln rho, F the noise or data prediction, z = h or -h the frame's exponent:

        scaled x' = scaled x + scale(rho') (h phi_1(z) F_0 + B(h) sum_m (a_m / r_m) (F_m - F_0)),
        sum_m a_m r_m^(n-1) = n! h phi_(n+1)(z) / B(h),   r_m = (lambda_m - lambda_0) / h,   n = 1, 2, ..

    UniP-p predicts from p points, the latest first; UniC-p adds the predicted point, r = 1, and makes the step again.
    F is taken at the predicted states and serves the next predictor, so a step costs one call; the last step has no
    corrector, which would need one more. Both are exact for polynomials F(lambda) of as many points, hence B cancels,
    except with a single difference: there the paper takes a = 1/2, and `bh1` and `bh2` part ways.

    Use this with 20 evaluations or more, where its order shows; on the shipped digits model order 3 is worse than
    `DPMMultistep` of order 2 at NFE 5 and 10, and noise prediction at every budget up to 20. With hundreds of
    evaluations it is the fine run that calibrations compare with.

    The corrected state is never evaluated, only stepped from, and scaled states add. So its row is left out: what it
    adds to the predicted state is carried into the next step, one row a call with one more term.

    With the corrector the order is p + 1 although the last step has none: predictor and corrected steps have local
    errors h^(p+1) and h^(p+2). The first step however is made from one point, with local error h^3 (h^2 without
    corrector), small where eps hardly varies. Measured: p + 1, for p = 3 in noise prediction 3.8 at 320 calls and 3.9
    at 800; p without corrector. `lower_order_final` ends in a DDIM step, local error h^2, and hence has order 2 at
    most, which at small budgets is not yet seen.

    Attributes:
        order: p = 1, 2 or 3; the first steps use the points there are.
        variant: B(h) = h is `bh1`, B(h) = h phi_1(z), the paper's e^h - 1, is `bh2`.
        prediction: `noise` or `data`.
        corrector: False gives UniP-p; UniP-1 is DDIM.
        lower_order_final: take at most as many points as steps are left (`multistep_orders`).

    Source: Zhao et al. (2023), arXiv:2302.04867, Sec. 3 and App. A (weights), Alg. 1-2 and App. B (data prediction).

    Raises:
        InputError: for an option that does not exist or sigma_min = 0.
    """

    order: int
    variant: str = "bh2"
    prediction: str = "data"
    corrector: bool = True
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("UniPC", self.order, range(1, 4))
        check_choice("solver.variant", ("bh1", "bh2"), self.variant)
        frame_of(self.prediction)

    @property
    def from_infinity(self) -> bool:
        return self.prediction == "data" and self.variant == "bh2"

    @property
    def convergence(self) -> float:
        order = self.order + 1.0 if self.corrector else float(self.order)
        return min(order, 2.0) if self.lower_order_final else order

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        levels = grid(schedule, sigma_max, sigma_min, nfe).tolist()
        frame, rows, x = frame_of(self.prediction), Rows(sigma_max), 0
        called, correction = [0], dict[int, float]()
        orders = multistep_orders(nfe, self.order, self.lower_order_final)
        for order, target in zip(orders, levels[1:], strict=True):
            points = called[:order]
            if self.prediction == "data":
                rows.clean(x)
            # UniP: the predictor, plus the former step's correction, which has no row of its own
            predicted = self._weights([rows.rho[j] for j in points], target, points)
            x = frame.advance(rows, x, target, _sum(correction, predicted))
            if self.corrector:  # UniC: the same step with F at the predicted point; the next row carries the difference
                corrected = self._weights([*(rows.rho[j] for j in points), target], target, [*points, x])
                correction = _sum(corrected, {j: -weight for j, weight in predicted.items()})
            called = [x, *called[:2]]
        return rows.tableau()

    def _weights(self, levels: Sequence[float], target: float, points: Sequence[int]) -> dict[int, float]:
        """Return the weights of F at `points`, whose noise levels these are, F_0 first, in a step to `target`."""
        frame, h = frame_of(self.prediction), log_step(levels[0], target)
        if h == math.inf:  # D_0, and with the corrector (D_0 + D_1) / 2: the limits of bh2
            return dict.fromkeys(points, frame.scale(target) / len(points))
        z = frame.exponent(h)
        r = [-math.inf if level == math.inf else math.log(levels[0] / level) / h for level in levels[1:]]
        slopes = [slope * h for slope in _difference_weights(r, z, self.variant)]
        weights = [h * phi(1, z) - sum(slopes), *slopes]
        return {j: frame.scale(target) * w for j, w in zip(points, weights, strict=True)}


def _sum(one: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    return {j: one.get(j, 0.0) + other.get(j, 0.0) for j in one | other}


def _difference_weights(r: Sequence[float], z: float, variant: str) -> list[float]:
    """Return B(h) a_m / (h r_m), the weights of F_m - F_0 at lambda_0 + r_m h, in units of h.

    A single difference takes a = 1/2 and depends on B; with more differences B cancels.
    """
    if len(r) == 1:
        return [(phi(1, z) if variant == "bh2" else 1.0) / (2 * r[0])]
    # The moments n! phi_(n+1)(z) determine the weights: the linear system of the paper, solved by Lagrange's formula.
    moments = [math.factorial(n) * phi(n + 1, z) for n in range(1, len(r) + 1)]
    weights = []
    for m, node in enumerate(r):
        if math.isinf(node):  # the point at infinite noise carries no weight
            weights.append(0.0)
            continue
        others = tuple(other for other in (*r[:m], *r[m + 1 :]) if math.isfinite(other))
        weights.append(_at_product(others, moments) / math.prod((node - other for other in others), start=node))
    return weights


def _at_product(roots: tuple[float, ...], moments: Sequence[float]) -> float:
    """Apply the linear functional that is `moments` at 1, x, x^2 to the polynomial with these roots."""
    match roots:
        case ():
            return moments[0]
        case (a,):
            return moments[1] - a * moments[0]
        case (a, b):
            return moments[2] - (a + b) * moments[1] + a * b * moments[0]
    raise ValueError(f"{len(roots) + 1} differences: UniPC-3 has three at most")
