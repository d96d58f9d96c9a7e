"""The forms in which the same ODE is integrated: noise prediction, data prediction and velocity prediction.

In unit-signal coordinates dx/drho = eps(x, rho). A frame has an amplitude a(rho), the solution of a' = l a for a gain
l(rho) that is an estimate of d eps / dx: with y = x / a(rho) and F = eps - l(rho) x the ODE reads dy/drho = F / a, so
that a method is exact at any budget where F vanishes.

    noise     a = 1,                   l = 0:                     F = eps
    data      a = rho,                 l = 1 / rho:               F = -D / rho, D(x, rho) = E[x_0 | x]
    velocity  a = sqrt(rho^2 + s^2),   l = rho / (rho^2 + s^2):   F vanishes for Gaussian data of deviation s
    flow      a = 1 + rho,             l = 1 / (1 + rho):         (1 + rho) F = eps - D

Velocity prediction lies between the first two, which are its limits s to infinity and s to 0. Runge-Kutta, multistep
and exponential methods are written once, for several frames.

At rho = infinity x and eps are infinite or equal, so a state is held there as y = x / rho, which is standard normal
noise, and the network's estimate is D. Data, velocity and flow prediction are finite there.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.values import check_choice, is_number

if TYPE_CHECKING:
    from scoreline.solvers.rows import Rows, Weights


class Frame(Protocol):
    """A form of the ODE, by its amplitude and gain, and the coordinate s in which its scaled state has the slope G.

    The row that advances a state to rho by slopes G_j with weights in s is
    x' = a(rho) (x_start / a_start + sum_j w_j G_j), G = u F with the frame's `unit` u.
    """

    def amplitude(self, rho: Tensor) -> Tensor:
        """Return a(rho)."""
        ...

    def gain(self, rho: Tensor) -> Tensor:
        """Return l(rho) = a'(rho) / a(rho)."""
        ...

    def unit(self, rho: Tensor) -> Tensor:
        """Return u(rho) = 1 / (a ds/drho), so that G = u F = dy/ds."""
        ...

    def exact(self, rho: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return a state at each level, and eps of all but the last, of the data that the frame's methods keep.

        At rho = infinity these are x / rho and D.
        """
        ...

    @property
    def limit(self) -> Tensor:
        """Scaled state and slope G at rho = infinity as sums of x / rho and D, (2, 2) float64: rows (state, slope)."""
        ...

    def coordinate(self, rho: float) -> float:
        """Return s(rho)."""
        ...

    def level(self, coordinate: float) -> float:
        """Return rho(s)."""
        ...

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        """Write the row from state `start` to the level rho with the weights of G_j; return the new state's number."""
        ...


class Exponential(Protocol):
    """A frame that steps in lambda = -ln rho by an exponential integrator. Use `frame_of` to choose one."""

    def coordinate(self, rho: float) -> float: ...

    def level(self, coordinate: float) -> float: ...

    def exponent(self, h: float) -> float:
        """Return z in the exact step x' = .. + scale(rho') sum_k h^(k+1) phi_(k+1)(z) F^(k), h the step in -ln rho."""
        ...

    def scale(self, rho: float) -> float:
        """Return the factor of that sum, in the units of `advance`'s weights."""
        ...

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        """Write the row scaled x(rho) = scaled x_start + sum_j weights[j] F_j; return the new state's number."""
        ...


@dataclass(frozen=True)
class Noise:
    """Noise prediction, s = rho and G = F = eps: x' = x + sum_j w_j eps_j.

    Exact step: x' = x - rho' sum_k h^(k+1) phi_(k+1)(h) eps^(k), derivatives in lambda = -ln rho. Exact for data at a
    single point, where x = rho eps.
    """

    def amplitude(self, rho: Tensor) -> Tensor:
        return rho.new_ones(rho.shape)

    def gain(self, rho: Tensor) -> Tensor:
        return rho.new_zeros(rho.shape)

    def unit(self, rho: Tensor) -> Tensor:
        return rho.new_ones(rho.shape)

    def exact(self, rho: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        levels = rho[:-1]
        eps = torch.where(query == levels, 1.0, levels / query)
        return torch.where(rho.isinf(), 1.0, rho), torch.where(levels.isinf(), 0.0, eps)

    @property
    def limit(self) -> Tensor:
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # x - rho eps = D, and eps = x / rho

    def coordinate(self, rho: float) -> float:
        return rho

    def level(self, coordinate: float) -> float:
        return coordinate

    def exponent(self, h: float) -> float:
        return h

    def scale(self, rho: float) -> float:
        return -rho

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        if rows.rho[0] == math.inf and (start == 0 or 0 in weights):
            raise InputError("sigma_max=inf: a step in noise prediction has no limit there; use data prediction")
        return rows.add(rho, {start: 1.0}, weights)


class Data:
    """Data prediction, s = 1 / rho and F = D = E[x_0 | x]: x' = (rho' / rho) x + rho' sum_j w_j D_j.

    Exact step: x' = (rho' / rho) x + sum_k h^(k+1) phi_(k+1)(-h) D^(k), derivatives in lambda = -ln rho. Its rows keep
    what those of noise prediction keep, and its tableaus name that frame.
    """

    def coordinate(self, rho: float) -> float:
        return 1 / rho

    def level(self, coordinate: float) -> float:
        return 1 / coordinate

    def exponent(self, h: float) -> float:
        return -h

    def scale(self, rho: float) -> float:
        return 1 / rho

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        states, estimates = rows.data({j: rho * weight for j, weight in weights.items()})
        from_start = rho if rows.rho[start] == math.inf else rho / rows.rho[start]
        states[start] = states.get(start, 0.0) + from_start
        return rows.add(rho, states, estimates)


@dataclass(frozen=True)
class Velocity:
    """Velocity prediction for data of standard deviation s:

        y = x / sqrt(rho^2 + s^2),  theta = arctan(rho / s),
        dy/dtheta = G = ((rho^2 + s^2) eps - rho x) / (s sqrt(rho^2 + s^2)).

    theta is the coordinate; all is finite at rho = infinity, theta = pi / 2. G is the velocity that TrigFlow and
    v-prediction networks learn, and EDM's preconditioning makes of its network's output. For Gaussian data of deviation
    s it vanishes and every budget is exact.

    Attributes:
        sigma_data: s, for images in [-1, 1] the root of the mean variance of a pixel. Its value hardly matters.

    Source: Lu & Song (2024), arXiv:2410.11081, Sec. 3 (TrigFlow); Karras et al. (2022), arXiv:2206.00364, Table 1;
    Salimans & Ho (2022), arXiv:2202.00512 (v-prediction).

    Raises:
        InputError: unless 0 < sigma_data < inf.
    """

    sigma_data: float

    def __post_init__(self) -> None:
        if not (is_number(self.sigma_data) and 0 < self.sigma_data < math.inf):
            raise InputError(f"sigma_data={self.sigma_data}: must be a number greater than 0, such as 0.5")

    def amplitude(self, rho: Tensor) -> Tensor:
        return (rho**2 + self.sigma_data**2).sqrt()

    def gain(self, rho: Tensor) -> Tensor:
        return rho / (rho**2 + self.sigma_data**2)

    def unit(self, rho: Tensor) -> Tensor:
        return self.amplitude(rho) / self.sigma_data

    def exact(self, rho: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        amplitude = self.amplitude(rho)
        eps = torch.where(rho[:-1].isinf(), 0.0, self.gain(query) * amplitude[:-1])
        return torch.where(rho.isinf(), 1.0, amplitude), eps

    @property
    def limit(self) -> Tensor:
        return torch.tensor([[1.0, 0.0], [0.0, -1 / self.sigma_data]], dtype=torch.float64)  # G = -D / s

    def coordinate(self, rho: float) -> float:
        return math.atan2(rho, self.sigma_data)

    def level(self, coordinate: float) -> float:
        return self.sigma_data * math.tan(coordinate)

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        amplitude = math.hypot(rho, self.sigma_data)
        first = rows.rho[start] == math.inf
        states = {start: amplitude if first else amplitude / math.hypot(rows.rho[start], self.sigma_data)}
        estimates = {}
        for j, weight in weights.items():  # G_j = (a_j eps_j - rho_j x_j / a_j) / s, and -D / s at infinity
            if rows.rho[j] == math.inf:
                estimates[j] = -amplitude * weight / self.sigma_data
                continue
            own = math.hypot(rows.rho[j], self.sigma_data)
            estimates[j] = amplitude * weight * own / self.sigma_data
            states[j] = states.get(j, 0.0) - amplitude * weight * rows.rho[j] / (own * self.sigma_data)
        return rows.add(rho, states, estimates)


@dataclass(frozen=True)
class Flow:
    """Flow prediction, the coordinates of rectified flow (`schedules.flow`):

        y = x / (1 + rho) = (1 - t) x_0 + t eps,   t = rho / (1 + rho),   dy/dt = G = (1 + rho) eps - x = eps - D.

    t is the coordinate; all is finite at rho = infinity, t = 1. A Runge-Kutta method in this frame is the method in t
    that flow models are usually sampled with; Euler's is DDIM.

    Source: Liu et al. (2022), arXiv:2209.03003; Lipman et al. (2022), arXiv:2210.02747.
    """

    def amplitude(self, rho: Tensor) -> Tensor:
        return 1 + rho

    def gain(self, rho: Tensor) -> Tensor:
        return 1 / (1 + rho)

    def unit(self, rho: Tensor) -> Tensor:
        return 1 + rho

    def exact(self, rho: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.where(rho[:-1].isinf(), 1.0, (1 + rho[:-1]) / (1 + query))
        return torch.where(rho.isinf(), 1.0, 1 + rho), eps

    @property
    def limit(self) -> Tensor:
        return torch.tensor([[1.0, 0.0], [1.0, -1.0]], dtype=torch.float64)  # G = x / rho - D

    def coordinate(self, rho: float) -> float:
        return 1.0 if rho == math.inf else rho / (1 + rho)

    def level(self, coordinate: float) -> float:
        return coordinate / (1 - coordinate)

    def advance(self, rows: "Rows", start: int, rho: float, weights: "Weights") -> int:
        amplitude = 1 + rho
        states = {start: amplitude if rows.rho[start] == math.inf else amplitude / (1 + rows.rho[start])}
        estimates = {}
        for j, weight in weights.items():
            first = rows.rho[j] == math.inf
            states[j] = states.get(j, 0.0) + amplitude * weight * (1.0 if first else -1.0)
            estimates[j] = amplitude * weight * (-1.0 if first else 1 + rows.rho[j])
        return rows.add(rho, states, estimates)


NOISE = Noise()
FLOW = Flow()

FRAMES: dict[str, Exponential] = {"noise": NOISE, "data": Data()}


def frame_of(prediction: str) -> Exponential:
    """Return the frame called `noise` or `data`.

    Raises:
        InputError: for any other name.
    """
    return FRAMES[check_choice("solver.prediction", FRAMES, prediction)]


def finite_unit(frame: Frame, rho: Tensor) -> Tensor:
    """Return the frame's unit u, and 1 at rho = infinity, where a tableau weighs G itself."""
    return torch.where(rho.isinf(), 1.0, frame.unit(rho))


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
