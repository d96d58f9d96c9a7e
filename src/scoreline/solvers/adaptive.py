"""Adaptive Runge-Kutta pairs. They have no tableau, because the images themselves choose the steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.errors import InputError, NotFiniteError
from scoreline.schedules.base import Schedule
from scoreline.values import check_choice

METHODS = ("DOP853", "RK45")
FINEST = 1e-13
"""Smallest rtol: below 100 float64 roundings (2.2e-14) the error estimate is rounding itself."""

State = NDArray[np.float64]
Slope = Callable[[State, float], State]
"""dy/drho of a flat state y (n,) at noise level rho."""


@dataclass(frozen=True)
class Adaptive:
    """Solve dx/drho = eps(x, rho) by one of SciPy's embedded Runge-Kutta pairs, which choose steps by their error.

    Use this as a reference for other solvers, or for likelihoods; it takes far more evaluations than a tableau. The
    number of evaluations follows from the tolerance: the budget `nfe` is a ceiling. The schedule plays no role.

    The pair runs in v = ln rho, where dx/dv = rho eps, on float64 states. It accepts a step if the root mean square of
    error_i / (atol + rtol |x_i|) is below one. The mean is over the whole batch, so the images of a batch share their
    steps and an image depends on its batch, by about the tolerance.

    Attributes:
        method: `RK45` (Dormand & Prince, order 5(4)) or `DOP853` (order 8(5,3)).
        rtol: relative error allowed per step.
        atol: absolute error allowed per step, in unit-signal units.
        convergence: NaN, since the error falls with the tolerance: there is no order in NFE.

    Source: Dormand & Prince (1980), doi:10.1016/0771-050X(80)90013-3; Hairer, Norsett & Wanner (1993), Solving
    Ordinary Differential Equations I, Sec. II.4-5; as black-box sampler Song et al. (2021), arXiv:2011.13456, App. D.

    Raises:
        InputError: for an unknown method, rtol outside [1e-13, 1) or atol not above 0.
    """

    method: str = "DOP853"
    rtol: float = 1e-6
    atol: float = 1e-6
    convergence: ClassVar[float] = math.nan

    def __post_init__(self) -> None:
        check_choice("solver.method", METHODS, self.method)
        if not FINEST <= self.rtol < 1:
            raise InputError(f"solver.rtol={self.rtol:g}: choose {FINEST:g} <= rtol < 1, such as 1e-5")
        if not 0 < self.atol < math.inf:
            raise InputError(f"solver.atol={self.atol:g}: must be a number greater than 0, such as 1e-5")

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> "AdaptiveRun":
        """Return the run from sigma_max to sigma_min in at most nfe evaluations; `schedule` is not read.

        Raises:
            InputError: unless both levels are positive, finite and different and nfe >= 1. A sigma_max below sigma_min
                makes a run from data to noise.
        """
        return self.between(sigma_max, sigma_min, nfe)

    def between(self, sigma_max: float, sigma_min: float, nfe: int) -> "AdaptiveRun":
        """Return the same run; for callers without a schedule."""
        if min(sigma_min, sigma_max) == 0:
            raise InputError("sigma_min=0: eps is not defined there and the solver evaluates it; use sigma_min above 0")
        if not (min(sigma_min, sigma_max) > 0 and sigma_min != sigma_max and max(sigma_min, sigma_max) < math.inf):
            raise InputError(
                f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}: choose 0 < sigma_min < sigma_max < inf"
            )
        if nfe < 1:
            raise InputError(f"nfe={nfe}: a ceiling of evaluations, at least 1; 1000 is usual")
        return AdaptiveRun(self, torch.tensor([sigma_max, sigma_min], dtype=torch.float64), nfe)


@dataclass(frozen=True)
class AdaptiveRun:
    """An adaptive solver with its range and its ceiling of evaluations; it holds no state, so a run can be repeated.

    Attributes:
        solver: the pair and its tolerances.
        rho: (sigma_max, sigma_min), float64, followed by 0 if the run ends with a final denoising step.
        nfe: the largest number of evaluations allowed; `solve` returns how many a run took.
    """

    solver: Adaptive
    rho: Tensor
    nfe: int

    def __call__(
        self, eps: Callable[[Tensor, float], Tensor], x: Tensor, draw: Callable[[int], Tensor] | None = None
    ) -> Tensor:
        """Return the sample (B, *), of x's dtype and on its device.

        Args:
            eps: called with float64 states, once for every evaluation.
            x: the state (B, *) at sigma_max, not modified.
            draw: not used, the method is deterministic.

        Raises:
            InputError: as soon as evaluation nfe + 1 is needed, or if no step is short enough for the tolerance.
            NotFiniteError: if eps is not finite.
        """

        def slope(state: State, rho: float) -> State:
            return to_flat(eps(to_state(state, x), rho))

        first, last, *hop = self.rho.tolist()
        end, calls = self.solve(slope, to_flat(x), first, last)
        state = to_state(end, x)
        if hop:
            self._refuse_more_than(calls)
            state = state - last * eps(state, last)
        return state.to(x.dtype)

    def covered(self, rho: float) -> float:
        """Return the share of the range, in ln rho, that lies above rho, for progress bars."""
        first, last = self.rho[:2].tolist()
        return min(max(math.log(first / rho) / math.log(first / last), 0.0), 1.0)

    def denoised(self) -> "AdaptiveRun":
        """Return the same run followed by the final denoising step E[x_0 | x], one more evaluation."""
        return replace(self, rho=torch.nn.functional.pad(self.rho, (0, 1)))

    @property
    def initial_scale(self) -> float:
        """The factor of standard normal noise in the initial state, sigma_max."""
        return float(self.rho[0])

    @property
    def peak_tensors(self) -> int:
        """As `Tableau.peak_tensors`: SciPy's stages and five more states, which are float64 and count twice."""
        from scipy.integrate import DOP853, RK45

        stages = int({"RK45": RK45.n_stages + 1, "DOP853": DOP853.n_stages + 4}[self.solver.method])
        return 2 * (stages + 5)

    def _refuse_more_than(self, calls: int) -> None:
        if calls == self.nfe:
            raise InputError(f"nfe={self.nfe}: the adaptive solver needs more; raise nfe or solver.rtol")

    def solve(self, slope: Slope, state: State, start: float, end: float) -> tuple[State, int]:
        """Integrate dy/drho = slope(y, rho) between two levels in either direction.

        Args:
            slope: the right-hand side.
            state: y(start) (n,).
            start: first noise level.
            end: last noise level.

        Returns:
            y(end) (n,), and the number of evaluations, those of rejected steps included.

        Raises:
            InputError: as `__call__`.
            NotFiniteError: as `__call__`.
        """
        from scipy import integrate

        low, high = sorted((start, end))
        calls = 0

        def in_log(v: float, y: State) -> State:
            nonlocal calls
            self._refuse_more_than(calls)
            calls += 1
            rho = min(max(math.exp(v), low), high)  # exp(log(rho)) may round out of the range
            derivative = slope(y, rho)
            if not np.isfinite(derivative).all():
                raise NotFiniteError(f"rho={rho:g}: the right-hand side of the ODE is")
            return rho * derivative

        tolerance = {"rtol": self.solver.rtol, "atol": self.solver.atol}
        pair = getattr(integrate, self.solver.method)(in_log, math.log(start), state, math.log(end), **tolerance)
        while pair.status == "running":
            pair.step()
        if pair.status == "failed":
            raise InputError(f"solver.rtol={self.solver.rtol:g}: no step is short enough for it; raise solver.rtol")
        return pair.y, calls


def to_flat(x: Tensor) -> State:
    """Flatten (B, *) of any dtype and device into (n,) float64, sharing memory where possible."""
    flat: State = x.detach().to(torch.float64).cpu().numpy().ravel()
    return flat


def to_state(flat: State, like: Tensor) -> Tensor:
    """Return (n,) as float64 of the shape and on the device of `like`."""
    return torch.from_numpy(flat).reshape(like.shape).to(like.device)
