"""The two forms in which the literature integrates the same ODE: by noise prediction and by data prediction.

In unit-signal coordinates dx/drho = eps(x, rho). With z = x / rho and u = 1 / rho the same equation is
dz/du = D(x, rho) = E[x_0 | x]. A frame is one of these forms: a coordinate s, a scaled state whose derivative in s is
the slope F, and the row that advances it. Runge-Kutta, multistep and exponential methods are written once, for both.
"""

import math
from functools import lru_cache
from typing import Protocol

from scoreline.errors import InputError
from scoreline.solvers.rows import Rows, Weights
from scoreline.values import check_choice


class Frame(Protocol):
    """A form of the ODE: scaled state' = F in the coordinate s. Use `frame_of` to choose one."""

    def coordinate(self, rho: float) -> float:
        """Return s(rho); the function is its own inverse in both frames."""
        ...

    def exponent(self, h: float) -> float:
        """Return z in the exact step x' = .. + scale(rho') sum_k h^(k+1) phi_(k+1)(z) F^(k), h the step in -ln rho."""
        ...

    def scale(self, rho: float) -> float:
        """Return the factor of that sum, in the units of `advance`'s weights."""
        ...

    def advance(self, rows: Rows, start: int, rho: float, weights: Weights) -> int:
        """Write the row scaled x(rho) = scaled x_start + sum_j weights[j] F_j; return the new state's number."""
        ...


class Noise:
    """Noise prediction, s = rho and F = eps: x' = x + sum_j w_j eps_j.

    Exact step: x' = x - rho' sum_k h^(k+1) phi_(k+1)(h) eps^(k), derivatives in lambda = -ln rho.
    """

    def coordinate(self, rho: float) -> float:
        return rho

    def exponent(self, h: float) -> float:
        return h

    def scale(self, rho: float) -> float:
        return -rho

    def advance(self, rows: Rows, start: int, rho: float, weights: Weights) -> int:
        return rows.add(rho, {start: 1.0}, weights)


class Data:
    """Data prediction, s = 1 / rho and F = D = E[x_0 | x]: x' = (rho' / rho) x + rho' sum_j w_j D_j.

    Exact step: x' = (rho' / rho) x + sum_k h^(k+1) phi_(k+1)(-h) D^(k), derivatives in lambda = -ln rho.
    """

    def coordinate(self, rho: float) -> float:
        return 1 / rho

    def exponent(self, h: float) -> float:
        return -h

    def scale(self, rho: float) -> float:
        return 1 / rho

    def advance(self, rows: Rows, start: int, rho: float, weights: Weights) -> int:
        states, estimates = rows.data({j: rho * weight for j, weight in weights.items()})
        states[start] = states.get(start, 0.0) + rho / rows.rho[start]
        return rows.add(rho, states, estimates)


FRAMES: dict[str, Frame] = {"noise": Noise(), "data": Data()}


def frame_of(prediction: str) -> Frame:
    """Return the frame called `noise` or `data`.

    Raises:
        InputError: for any other name.
    """
    return FRAMES[check_choice("solver.prediction", FRAMES, prediction)]


def log_step(rho: float, target: float) -> float:
    """Return h = lambda' - lambda = ln(rho / rho') > 0, the step in half log-SNR, to the level rho' = `target`.

    Raises:
        InputError: if the target is rho = 0, which lies at infinity.
    """
    if target == 0:
        raise InputError("sigma_min=0: this solver steps in ln(rho); choose sigma_min above 0, with final=denoise")
    return math.log(rho / target)


def phi(k: int, z: float) -> float:
    """Evaluate phi_k(z) = sum_n z^n / (n + k)!, k = 0 .. 4, the functions of exponential integrators, to round-off.

    phi_0 = exp and phi_1(z) = expm1(z) / z. The recursion phi_(k+1) = (phi_k - 1 / k!) / z runs upwards where that is
    stable, and else downwards from the series of the highest one.

    Source: Hochbruck & Ostermann (2010), Acta Numerica 19, Eq. 2.9-2.11.
    """
    return _phis(z)[k]


@lru_cache(64)
def _phis(z: float) -> list[float]:
    if abs(z) > 2:
        values = [math.exp(z)]
        for factorial in FACTORIALS[:TOP]:
            values.append((values[-1] - 1 / factorial) / z)
        return values
    term = total = 1 / FACTORIALS[TOP]  # the series of phi_4
    n = TOP
    while abs(term) > 1e-18:
        n += 1
        term *= z / n
        total += term
    values = [total]
    for factorial in FACTORIALS[TOP - 1 :: -1]:
        values.append(z * values[-1] + 1 / factorial)
    return values[::-1]


TOP = 4
"""The largest k of `phi`."""

FACTORIALS = [math.factorial(k) for k in range(TOP + 1)]
