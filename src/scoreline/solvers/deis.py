"""DEIS and DEIS-SN: Adams-Bashforth exponential integrators, one formula with a variable and a scale.

The formula of DEIS's weights is `adams_bashforth`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import NEARLY_NOISE, Schedule, grid
from scoreline.solvers.budget import check_order
from scoreline.solvers.frames import NOISE, Frame, finite_unit
from scoreline.solvers.quadrature import Knotted, Quadrature, gauss_legendre
from scoreline.solvers.tableau import Tableau
from scoreline.values import whole_number

FAR = 100
"""Least ratio of sigma_max to the data's deviation at which the first slope of a frame may be taken as zero."""


class Scale(Protocol):
    """A positive function w(rho) by which a solver normalises eps, with the knots of its interpolation.

    Write one to normalise `DEIS` by a function of your own; `ScoreScale` is the measured one.
    """

    def __call__(self, rho: Tensor) -> Tensor: ...

    def knots(self) -> Tensor: ...


@dataclass(frozen=True)
class DEIS:
    """DEIS and DEIS-SN:

        x_{i+1} = x_i + sum_j b_ij eps_{i-j},    j = 0 .. min(order, i),
        b_ij = (1 / w(rho_{i-j})) int from rho_i to rho_{i+1} of w(rho) l_j(c(rho)) drho.

    l_j are the Lagrange polynomials on the latest nodes in the variable c. The first steps use as many nodes as there
    are, as published. The integrals are exact to round-off (`gauss_legendre`). One call a step.

    In another frame the polynomials interpolate its slope G in place of eps, and the step integrates the scaled state
    y = x / a(rho) over the frame's coordinate s (theta in velocity prediction, `frames.Velocity`):

        y_{i+1} = y_i + sum_j b_ij G_{i-j},    b_ij = (1 / w(rho_{i-j})) int over step i of w(rho) l_j(c(rho)) ds.

    The corrector makes each step but the last again with its end as one more node (Adams-Moulton), and carries the
    difference into the next step, which costs no call, as in `UniPC`. More of the last steps can be left as predicted
    (`uncorrected`).

    Use this at few evaluations. In velocity prediction (`Velocity`), in the variable t + 0.3 t^(1/3) of linear VP's
    time (`Blend`), of order 2 with the corrector up to the last two steps, on steps uniform in t^(1/2), it is the
    default of sample.py, `velocity_abm2_open` on `linear_vp_quadratic`: on colour pictures about as close to the fine
    run as any fixed choice at NFE 10 and 20. On data of few coordinates, images of 8x8 among them, order 3 with the
    first slope free up to NFE 20 and steps uniform in t^(1/2.4), `velocity_ab3` on `linear_vp_few`, is closer. The
    published form of order 3 in the native time of the process (`deis_tab3`) needs no `sigma_data` and suits steps
    uniform in the square root of time. Prefer all of them to `RhoAB`, the same method in the variable rho. Score
    normalisation needs a `score_norm` record; its gain on the digits models is small.

    Attributes:
        order: degree r of the polynomial; 0 is DDIM. The order of convergence is r + 1. The first step is of order 0,
            as published, which formally caps it at 2; from sigma_max = 80, where x is noise, the cap does not show
            before NFE 640, while from 152 or 20 degree 3 falls below 4 (3.4 at NFE 160) and then towards 2. A measured
            scale has noise and kinks, which end the convergence at their own size.
        variable: c. The native time of the process gives DEIS-tAB, rho itself DEIS-rhoAB.
        scale: w. None gives DEIS; the calibrated mean |eps| gives DEIS-SN (score normalisation).
        frame: noise prediction, or another frame.
        corrector: correct each step by the slope at its end; the order of convergence is then r + 2.
        uncorrected: the number of last steps that are not corrected. At few evaluations the last slopes lie far apart
            in noise level, and what they correct is carried to the end: on digits, 2 halves the distance from the fine
            run at NFE 5.
        analytic_first: the largest number of evaluations for which the slope at sigma_max is taken as zero, as it is
            for Gaussian data, in place of a call, where x is noise (a / s = u >= `FAR`). Its error is the angle of the
            first step, so it pays while steps are few, and where the data's mean and its widest direction are small
            beside the noise. The deviation along that direction, of pictures the brightness, grows with the square
            root of the number of pixels, and no later step brings back what the first one misses of it.

    Source: Zhang & Chen (2023), arXiv:2204.13902, Eq. 14-15; Xia et al. (2023), arXiv:2311.00157 for the scale.

    Raises:
        InputError: for an order outside 0 .. 3, uncorrected below 1 or a scale that is not positive on the range.
    """

    order: int
    variable: Schedule
    scale: Scale | None = None
    frame: Frame = NOISE
    corrector: bool = False
    uncorrected: int = 1
    analytic_first: int = 0
    from_infinity: ClassVar[bool] = True

    @property
    def convergence(self) -> float:
        return self.order + 1.0 + self.corrector

    def __post_init__(self) -> None:
        check_order("DEIS", self.order, range(4))
        whole_number("solver.uncorrected", self.uncorrected)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        start = torch.tensor(sigma_max, dtype=torch.float64)
        analytic = nfe <= self.analytic_first and float(self.frame.unit(start)) >= FAR
        rho = grid(schedule, sigma_max, sigma_min, nfe + analytic)
        W = adams_bashforth(rho, self.order, self.variable, self.scale, self.frame)
        if self.corrector:
            corrected = adams_bashforth(rho, self.order + 1, self.variable, self.scale, self.frame, ahead=True)
            end = max(1, len(W) - self.uncorrected + 1)  # each step before it takes up the difference of the last
            W[1:end] = W[1:end] + corrected[1:end] - W[: end - 1]
        if analytic:  # the first slope is known: its step costs no call
            W[:, 0] = 0
        return Tableau.single_term(rho, W, self.frame)


def adams_bashforth(
    rho: Tensor,
    order: int,
    variable: Schedule,
    scale: Scale | None,
    frame: Frame = NOISE,
    rule: Quadrature | None = None,
    ahead: bool = False,
) -> Tensor:
    """Compute the weights b_ij of `DEIS`, of F = G / u in another frame, at column i - j of row i.

    Args:
        rho: noise levels (K + 1,) float64, decreasing.
        order: degree of the polynomials.
        variable: c.
        scale: w, or None for w = 1.
        frame: the frame whose slope is interpolated.
        rule: quadrature over the steps; None takes one that is exact to round-off for every schedule.
        ahead: integrate over step i - 1 with the nodes of step i (Adams-Moulton); row 0 is zero.

    Returns:
        (K, K) float64, lower triangular.

    Raises:
        InputError: for a scale that is not positive on the range.
    """
    pieces = (variable, scale) if scale is not None else (variable,)
    nodes, weight, step = rule or _rule(rho, pieces)
    unit = finite_unit(frame, rho[:-1])
    norm = 1 / unit
    weight = weight / (frame.amplitude(nodes) * frame.unit(nodes))  # d rho to ds
    # w(rho) drho under the integral, 1 / w(rho_{i-j}) in front of it
    if scale is not None:
        size = scale(nodes)
        weight, norm = weight * size, norm * scale(_finite(rho[:-1], scale))
        if not bool((norm > 0).all() & (size > 0).all()):
            raise InputError("solver.scale: the score scale must be positive on the whole range of noise levels")
    # a node at an infinite coordinate carries no weight: the polynomial is that of the others
    c = variable(rho[:-1]).nan_to_num(nan=math.inf, posinf=math.inf)
    if ahead:
        kept = step < len(c) - 1
        nodes, weight, step = nodes[kept], weight[kept], step[kept] + 1
    # b_ij = sum_m (coefficient m of l_j around c_i) * int (c(rho) - c_i)^m w drho
    moments = _moments(variable(nodes) - c[step], weight, step, (min(order, len(c) - 1) + 1, len(c)))
    weights = (_lagrange(c, len(moments)) * moments).sum(1)
    N = torch.zeros(len(c), len(c), dtype=torch.float64)
    for j, row in enumerate(weights):  # b_ij belongs to eps_{i-j}: the j-th subdiagonal
        N.diagonal(-j)[:] = row[j:]
    if float(rho[0]) == math.inf:  # the first step holds its only slope; ahead, it is the trapezoidal rule
        used = min(1 + ahead, len(rho) - 1)
        width = frame.coordinate(float(rho[1])) - frame.coordinate(math.inf)
        N[used - 1, :used] = norm[:used] * unit[:used] * width / used
    return N / norm


def _finite(rho: Tensor, scale: Scale) -> Tensor:
    """Return the levels with the highest one of a measured scale in the place of infinity."""
    knots = scale.knots()
    return torch.where(rho.isinf(), knots.max() if len(knots) else NEARLY_NOISE, rho)


def _rule(rho: Tensor, pieces: tuple[Knotted, ...]) -> Quadrature:
    """Return `gauss_legendre`, also for increasing levels; a step from infinite noise gets no nodes."""
    if float(rho[0]) < float(rho[-1]):
        nodes, weight, step = gauss_legendre(rho.flip(0), *pieces)
        return Quadrature(nodes, -weight, len(rho) - 2 - step)
    if float(rho[0]) < math.inf:
        return gauss_legendre(rho, *pieces)
    if len(rho) == 2:
        return Quadrature(rho[:0], rho[:0], torch.empty(0, dtype=torch.int64))
    nodes, weight, step = gauss_legendre(rho[1:], *pieces)
    return Quadrature(nodes, weight, step + 1)


def _moments(c: Tensor, weight: Tensor, step: Tensor, shape: tuple[int, int]) -> Tensor:
    """Integrate c^m over each step, m = 0 .. M - 1, from the nodes and weights of all steps: (M, K)."""
    powers = [weight]
    for _ in range(shape[0] - 1):
        powers.append(powers[-1] * c)
    return weight.new_zeros(shape).index_add_(1, step, torch.stack(powers))


def _lagrange(c: Tensor, count: int) -> Tensor:
    """Compute the coefficients of l_j, j = 0 .. count - 1, in powers (c - c_i)^m for every step i: (j, m, i).

    The nodes of step i are c_{i-k}, k = 0 .. min(count - 1, i). All lie on the far side of c_i, so neither these
    coefficients nor the sums over moments cancel.
    """
    step, j = torch.arange(len(c)), torch.arange(count)[:, None]
    d = c[(step - j).clamp(min=0)] - c  # d_j = c_{i-j} - c_i: node j, seen from c_i
    basis = torch.cat([c.new_ones(count, 1, len(c)), c.new_zeros(count, count - 1, len(c))], dim=1)
    # l_j = prod_{k != j} (c - c_i - d_k) / (d_j - d_k), one factor k at a time and all j and i at once
    for k in range(count):
        other = (j != k) & (step >= j.clamp(min=k))  # step i has the nodes j and k only if i >= j and i >= k
        other &= d[k].isfinite()
        gap = torch.where(other, d - d[k], 1.0)[:, None]
        raised = torch.cat([c.new_zeros(count, 1, len(c)), basis[:, :-1]], dim=1)  # times (c - c_i)
        basis = torch.where(other[:, None], (raised - d[k] * basis) / gap, basis)
    return basis


def scaled_residual(tableau: Tableau, scale: Scale) -> float:
    """Return max_k |sum_j N_kj w(rho_j) - int over row k of w drho| / rho_0, zero if eps proportional to w is exact.

    Use this in place of `Tableau.residual` for DEIS-SN, which is exact for constant eps / w. In another frame it is the
    slope G = u F that is proportional to w, and the sum is over W_kj F_j.
    """
    frame, (nodes, weight, step) = tableau.frame, gauss_legendre(tableau.rho, scale)
    along = weight * scale(nodes) / (frame.amplitude(nodes) * frame.unit(nodes))
    exact = torch.zeros_like(tableau.B).index_add_(0, step, along)
    levels = tableau.rho[:-1]
    found = tableau.in_frame()[1] @ (scale(levels) / frame.unit(levels))
    return float((found - exact).abs().max() / levels[0])
