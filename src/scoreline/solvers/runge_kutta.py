"""Explicit Runge-Kutta methods in a frame's coordinate (DEIS-rhoRK in rho). A method is its Butcher tableau."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.solvers.frames import FLOW, NOISE, Frame
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Tableau

Row = tuple[float, ...]


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method for dx/drho = eps:

        X_s = x_i + h sum_r a_sr eps(X_r) at rho_i + c_s h,    x_{i+1} = x_i + h sum_s b_s eps(X_s).

    h = rho_{i+1} - rho_i; the stages lie between the levels in rho, not in time. A step costs len(b) calls. Calls that
    whole steps leave over go to one last step of fewer stages (Euler, Heun, Kutta), so that any budget is exact. In
    velocity prediction the same steps are made in theta, on dy/dtheta = G (`frames.Velocity`). From infinite noise,
    where rho is no coordinate, noise prediction gives way to that of flow models, t = rho / (1 + rho) (`frames.Flow`).

    Use this with many evaluations, where its order shows; at NFE 10 and below its few long steps are worse than
    multistep methods on the shipped digits model. `heun` and the other functions of this module are instances.

    Attributes:
        c: stage positions, c_0 = 0.
        a: rows of the strictly lower triangle, one for each stage after the first.
        b: weights.
        convergence: order of the method.
        frame: noise prediction (rhoRK), or another frame.

    Source: Zhang & Chen (2023), arXiv:2204.13902, Sec. 4 (rhoRK-DEIS); Butcher (2016), Numerical Methods for ODEs.

    Raises:
        InputError: unless the tableau is explicit and consistent: sum_r a_sr = c_s, sum_s b_s = 1.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    convergence: float
    frame: Frame = NOISE
    from_infinity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sums = [sum(row) for row in ((), *self.a)]
        shapes = [len(row) for row in self.a] == list(range(1, len(self.b)))
        if (
            not shapes
            or len(self.c) != len(self.b)
            or max(abs(s - c) for s, c in zip(sums, self.c, strict=True)) > 1e-9
        ):
            raise InputError("solver.a, solver.c: give an explicit tableau whose rows of a sum to c")
        if abs(sum(self.b) - 1) > 1e-9:
            raise InputError(f"solver.b={list(self.b)}: the weights must sum to one")

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        if sigma_max == math.inf and self.frame == NOISE:
            return replace(self, frame=FLOW)(schedule, sigma_max, sigma_min, nfe)
        steps, rest = divmod(nfe, len(self.b))
        methods = [self] * steps + [replace(SHORTER[rest - 1], frame=self.frame)] * (rest > 0)
        level = grid(schedule, sigma_max, sigma_min, len(methods)).tolist()
        rows, x = Rows(sigma_max, self.frame), 0
        for method, target in zip(methods, level[1:], strict=True):
            x = method.step(rows, x, target)
        return rows.tableau()

    def step(self, rows: Rows, x: int, target: float) -> int:
        """Write one step from state x to the level `target`; return the new state's number."""
        frame, s = self.frame, self.frame.coordinate(rows.rho[x])
        h = frame.coordinate(target) - s
        stages = [x]
        for c, row in zip(self.c[1:], self.a, strict=True):
            weights = {stage: h * weight for stage, weight in zip(stages, row, strict=True) if weight}
            stages.append(frame.advance(rows, x, target if c == 1 else frame.level(s + c * h), weights))
        return frame.advance(rows, x, target, {stage: h * b for stage, b in zip(stages, self.b, strict=True) if b})


EULER = RungeKutta((0,), (), (1,), 1)


def heun(frame: Frame = NOISE) -> RungeKutta:
    """Return Heun's method, order 2, two calls a step. With `final=denoise` it is EDM's deterministic sampler.

    Use it on the `karras` schedule to compare with EDM; below 20 evaluations the multistep methods come closer on the
    shipped digits model.

    Source: Karras et al. (2022), arXiv:2206.00364, Alg. 1; "2heun" in Zhang & Chen (2023).
    """
    return RungeKutta((0, 1), ((1,),), (1 / 2, 1 / 2), 2, frame)


def midpoint() -> RungeKutta:
    """Return the midpoint rule, order 2, two calls a step; its middle is in rho (DPM-Solver-2 takes it in ln rho)."""
    return RungeKutta((0, 1 / 2), ((1 / 2,),), (0, 1), 2)


def kutta3() -> RungeKutta:
    """Return Kutta's third-order method, three calls a step; "3kutta", the default of DEIS's released code."""
    return RungeKutta((0, 1 / 2, 1), ((1 / 2,), (-1, 2)), (1 / 6, 4 / 6, 1 / 6), 3)


def ralston3() -> RungeKutta:
    """Return Ralston's third-order method, three calls a step.

    Source: Ralston (1962), Math. Comp. 16, 431-437.
    """
    return RungeKutta((0, 1 / 2, 3 / 4), ((1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3)


def heun3() -> RungeKutta:
    """Return Heun's third-order method, three calls a step."""
    return RungeKutta((0, 1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), 3)


def van_der_houwen3() -> RungeKutta:
    """Return Van der Houwen's third-order method, three calls a step."""
    return RungeKutta((0, 8 / 15, 2 / 3), ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0, 3 / 4), 3)


def ssprk3() -> RungeKutta:
    """Return the third-order strong-stability-preserving method, three calls a step.

    Source: Shu & Osher (1988), J. Comput. Phys. 77, 439-471.
    """
    return RungeKutta((0, 1, 1 / 2), ((1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3)


def rk4(frame: Frame = NOISE) -> RungeKutta:
    """Return the classical fourth-order method, four calls a step."""
    return RungeKutta((0, 1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, frame)


SHORTER = (EULER, heun(), kutta3())
"""The last steps of 1, 2 and 3 calls that use up a budget."""
