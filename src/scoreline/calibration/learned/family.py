"""Families of tableaus around a closed form that moves with their levels, as vectors of parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.frames import Frame, Velocity
from scoreline.solvers.tableau import Solver, Tableau
from scoreline.values import check_choice, is_whole

STEP = 1e-4
"""Length of the central differences of `Theory` by a level, as a share of the distance to the nearest level."""

AGREEMENT = 1e-9
"""Largest relative difference of two tableaus that are the same method."""

Theory = Callable[[Tensor], Tensor]
"""Levels rho (K + 1,) -> weights W (K, K) of F in the frame of the family, float64."""


@dataclass(frozen=True)
class Free:
    """The parts of a tableau that are learned; the others keep the values of the closed form.

    Attributes:
        nodes: the inner levels rho_1 .. rho_{K-1}.
        query: the levels q_0 .. q_{K-1} that the network is given, apart from those of the states.
        weights: the weights of the slopes, and in velocity prediction the deviation s of the frame.
        history: number of latest slopes whose weights in a row are learned; None is all of them.
        rows: `free`, or `bound`: the newest weight of a row makes up for the others, so that the sum of the row's
            weights of G stays that of the closed form. In noise prediction a constant eps then stays exact.
        first_query: whether the level of the first call is among `query`; else it is that of its state, as programs
            need it that hold states in the scale of the level that the network is given.

    Raises:
        InputError: for another word, a history below 1, or nothing that is free.
    """

    nodes: bool = True
    query: bool = True
    weights: bool = True
    history: int | None = None
    rows: str = "free"
    first_query: bool = True

    def __post_init__(self) -> None:
        check_choice("calibration.rows", ("free", "bound"), self.rows)
        if self.history is not None and not is_whole(self.history, 1):
            raise InputError(f"calibration.history={self.history}: must be a whole number, at least 1, or null for all")
        if not (self.nodes or self.query or self.weights):
            raise InputError("calibration.nodes=false: nothing is left to learn; set nodes, query or weights to true")


@dataclass(frozen=True)
class ClosedForm:
    """The weights that a solver has on given levels, W(rho): a `Theory`.

    Attributes:
        solver: a method with one call a step, perhaps without one at the first level.
        nfe: number of its calls.
    """

    solver: Solver
    nfe: int

    def __call__(self, rho: Tensor) -> Tensor:
        levels = tuple(rho.tolist())
        tableau = self.solver(Tabulated(levels), levels[0], levels[-1], self.nfe).unrolled()
        if tableau.nfe != self.nfe or not torch.equal(tableau.rho, rho):
            raise InputError(f"{type(self.solver).__name__}: its calls are not at the levels of its steps")
        return tableau.in_frame()[1]


@dataclass(frozen=True)
class Fixed:
    """The weights of one tableau in units of its steps, at any levels: a `Theory` for methods with inner steps.

    Attributes:
        start: a tableau with one row a call.
    """

    start: Tableau

    def __call__(self, rho: Tensor) -> Tensor:
        W = self.start.in_frame()[1]
        return W * (_units(rho, self.start.frame) / _units(self.start.rho, self.start.frame))


def theory_of(solver: Solver, start: Tableau) -> Theory:
    """Return the closed form of a solver if it has the weights of `start` on the levels of `start`, else `Fixed`."""
    W, moving = start.in_frame()[1], ClosedForm(solver, start.nfe)
    try:
        moving(start.rho.lerp(_between(start.rho), 0.1))  # single-step methods place their calls themselves
        same = (moving(start.rho) - W).abs().max() <= AGREEMENT * W.abs().max()
    except (InputError, ValueError):
        return Fixed(start)
    return moving if bool(same) else Fixed(start)


def _between(rho: Tensor) -> Tensor:
    """Return other levels between the ends."""
    return torch.cat([rho[:1], (rho[1:-1] * rho[2:]).sqrt(), rho[-1:]])


@dataclass(frozen=True)
class Family:
    """Tableaus y_{k+1} = y_k + sum_{j<=k} W_kj F(x_j, q_j) around a closed form, in its frame (`Tableau.single_term`):

        gaps of arctan(rho / s) = their softmax, that of the start times exp(theta_gap),
        q_k = min(rho_k exp(theta_query), rho_0),    W_kj = theory(rho)_kj + unit_kj theta_weight,
        s = that of the start times exp(theta_frame) in velocity prediction,

    with the ends and the number of calls of the start, and unit_kj the start's step in the frame's coordinate, in units
    of G_j. No network is asked beyond rho_0, where a process may end. theta = 0 is the start. `theory` is recomputed as
    the levels move. With s free these are all linear methods but for the states' scale in noise prediction. Where the
    start makes no call at its first level, no member does, and the level of the first call is learned.

    Attributes:
        start: a tableau with one row a call (`Tableau.unrolled`) and strictly decreasing levels.
        theory: its weights as a function of the levels.
        free: what is learned.
        scale: s of the coordinate of the levels, of the size of the data's standard deviation.
    """

    start: Tableau
    theory: Theory
    free: Free
    scale: float

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """Number of gaps, query levels, weights and deviations among the parameters, which is their order."""
        rows = len(self.start.B)
        gaps = rows if self.free.nodes and rows > 1 else 0
        frame = int(self.free.weights and isinstance(self.start.frame, Velocity))
        query = (self.start.nfe - (not self.free.first_query)) * self.free.query
        return gaps, query, len(self.places[0]) * self.free.weights, frame

    def __call__(self, theta: Tensor) -> Tableau:
        """Return the tableau at theta (size,) float64, whose S, N and query are differentiable in theta.

        Raises:
            ValueError: for levels that coincide, or weights that overflow.
        """
        gaps, query, weights, deviation = torch.split(theta, list(self.sizes))
        rho = self._levels(gaps)
        W = self._weights(rho) + self._correction(weights)
        offsets = torch.cat([query.new_zeros(len(W) - len(query)), query])  # none for first states that have none
        levels = (rho[:-1] * offsets.exp()).clamp(max=float(rho[0].detach())) if len(query) else None
        if not isinstance(self.start.frame, Velocity) or not len(deviation):
            return Tableau.single_term(rho, W, self.start.frame, levels)
        return _in_velocity(rho, W, self.start.frame.sigma_data * deviation.exp(), levels)

    def _levels(self, gaps: Tensor) -> Tensor:
        rho = self.start.rho
        if not len(gaps):
            return rho
        angle = (rho / self.scale).atan()
        shares = (angle.diff().neg().log() + gaps).softmax(0)
        inner = self.scale * (angle[0] + (angle[-1] - angle[0]) * shares.cumsum(0)[:-1]).tan()
        return torch.cat([rho[:1], inner, rho[-1:]])

    def _weights(self, rho: Tensor) -> Tensor:
        """Return theory(rho), differentiable by central differences: they cost 2 (K - 1) tables and no network call."""
        levels = rho.detach()
        W = self.theory(levels)
        if not rho.requires_grad:
            return W
        zero: Tensor = torch.tensordot(rho - levels, _slopes(levels, self.theory), 1)  # with the right derivative
        return W + zero

    def _correction(self, weights: Tensor) -> Tensor:
        count = len(self.start.B)
        if not len(weights):
            return weights.new_zeros(count, count)
        change = weights.new_zeros(count, count).index_put(self.places, weights)
        if self.free.rows == "bound":
            change = change - torch.diag(change.sum(1))
        return change * self._unit

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column of every weight that is a parameter."""
        count = len(self.start.B)
        newest = 0 if self.free.rows == "free" else -1
        band = torch.ones(count, count, dtype=torch.bool).tril(newest).triu(1 - (self.free.history or count))
        band[:, 0] &= self.start.calls[0]
        row, column = band.nonzero(as_tuple=True)
        return row, column

    @cached_property
    def _unit(self) -> Tensor:
        return _units(self.start.rho, self.start.frame)


def _in_velocity(rho: Tensor, W: Tensor, s: Tensor, query: Tensor | None) -> Tableau:
    """Return `Tableau.single_term` in velocity prediction, differentiable in its deviation s (1,), too."""
    levels = rho[:-1] if query is None else query
    amplitude, gain = (rho**2 + s**2).sqrt(), levels / (levels**2 + s**2)
    N = amplitude[1:, None] * W
    S = torch.diag(amplitude[1:] / amplitude[:-1]) - N * gain
    return Tableau(rho, S, N, torch.zeros(len(W), dtype=torch.float64), Velocity(float(s.detach())), query)


def _units(rho: Tensor, frame: Frame) -> Tensor:
    """Return step k in the frame's coordinate s times G_j / F_j, (K, K)."""
    coordinate = rho.new_tensor([frame.coordinate(level) for level in rho.tolist()])
    return coordinate.diff()[:, None] * frame.unit(rho[:-1])


def _slopes(rho: Tensor, theory: Theory) -> Tensor:
    """Return dW / d rho (K + 1, K, K); the ends do not move."""
    slopes, gaps = rho.new_zeros(len(rho), len(rho) - 1, len(rho) - 1), rho.diff().abs()
    for k in range(1, len(rho) - 1):
        h = STEP * float(torch.minimum(gaps[k - 1], gaps[k]))
        up, down = (theory(rho.index_add(0, torch.tensor([k]), rho.new_tensor([by]))) for by in (h, -h))
        slopes[k] = (up - down) / (2 * h)
    return slopes


def decreasing(tableau: Tableau) -> bool:
    """Return whether every call is at a lower level than the one before and no level is infinite."""
    rho = tableau.rho
    return bool((rho.diff() < 0).all()) and math.isfinite(float(rho[0]))
