"""The sampling loop, one for every solver."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

Eps = Callable[[Tensor, float], Tensor]
"""eps(x (B, *), rho) -> (B, *): the right-hand side of dx/drho = eps(x, rho); at rho = infinity D of x / rho."""

Draw = Callable[[int], Tensor]
"""Fresh noise z_k of x's shape for row k of a stochastic tableau."""

Term = tuple[Tensor, float]
"""A tensor and its weight in a sum."""

Progress = Callable[[float], object]
"""Called with the work done since the last call, in fractions of an image."""


class State(NamedTuple):
    """State number `row` of a run: x (B, *) in unit-signal coordinates at noise level rho.

    Attributes:
        sigma: the level at which the network evaluates x next; None if no row needs that, or the run is over.
    """

    row: int
    rho: float
    x: Tensor
    sigma: float | None = None

    @property
    def done(self) -> bool:
        """Whether x is the sample, for states that `Stepper.start` and `Stepper.step` return."""
        return self.sigma is None


def _combine(terms: list[Term], out: Tensor | None) -> Tensor:
    """Return the sum of weight * tensor, one fused pass per term; a leading unit weight is free.

    Args:
        terms: tensors and their weights.
        out: memory for the sum, perhaps that of the first term but of no other; None for new memory.
    """
    (first, scale), *rest = terms
    if out is first:
        total = first if scale == 1.0 else first.mul_(scale)
    elif scale != 1.0 or not rest:
        total = torch.mul(first, scale, out=out)
    else:
        (second, weight), *rest = rest
        total = torch.add(first, second, alpha=weight, out=out)
    for tensor, weight in rest:
        total.add_(tensor, alpha=weight)
    return total


class Stepper:
    """A run of a tableau for a program that calls the network itself:

        stepper = Stepper(tableau)
        state = stepper.start(x)
        while not state.done:
            state = stepper.step(denoise(state.x, state.sigma))
        sample = state.x

    Use this inside a loop that you do not own, such as another program's; `sample` and `trajectory` drive the same
    object. States and estimates are freed as soon as no later row reads them. One stepper makes one run at a time;
    `start` begins another.

    Args:
        tableau: the run.
        draw: fresh noise for stochastic rows.
        reuse: write new states into the memory of dead ones, so that a returned state does not last. Fresh memory costs
            page faults, as much time as the sum itself.
    """

    def __init__(self, tableau: Tableau, draw: Draw | None = None, reuse: bool = False) -> None:
        self.tableau, self._draw, self._reuse = tableau, draw, reuse
        self._sums, rho = tableau.sums, tableau.rho.tolist()
        levels = [q if call else None for q, call in zip(tableau.query_levels.tolist(), tableau.calls, strict=True)]
        self._levels = list(zip(rho, [*levels, None], strict=True))
        self._row = len(self._sums)
        self._states: dict[int, Tensor] = {}
        self._estimates: dict[int, Tensor] = {}
        self._spare: list[Tensor] = []

    def start(self, x: Tensor) -> State:
        """Begin a run and return its first state with a call, x itself unless the first step takes none.

        Args:
            x: initial state (B, *) at tableau.rho[0], not modified; at rho = infinity x / rho, standard normal noise.
        """
        state = self.load(x)
        return state if state.sigma is not None else self._until_call()

    def step(self, denoised: Tensor) -> State:
        """Go on to the next state with a call, or to the sample.

        Args:
            denoised: D = E[x_0 | x] (B, *) of the latest state, at its level `sigma`.

        Raises:
            ValueError: if the run is over, or was not started, and for another shape than x's.
        """
        x, sigma = self._called(denoised)
        return self.advance(denoised if sigma == math.inf else (x - denoised) / sigma)

    def advance(self, estimate: Tensor) -> State:
        """As `step`, given eps = (x - D) / sigma instead of D, in memory of its own; at sigma = infinity still D."""
        self._called(estimate)
        self.row(estimate)
        return self._until_call()

    def load(self, x: Tensor) -> State:
        """Begin a run and return its state 0, whether or not it needs a call. Use `start` unless you call `row`."""
        self._row, self._states, self._estimates, self._spare = 0, {0: x}, {}, []
        return self.state

    @property
    def state(self) -> State:
        """The latest state.

        Raises:
            ValueError: before `start`.
        """
        k = self._row
        if k not in self._states:
            raise ValueError("the run has no state yet; begin it with start(x)")
        rho, sigma = self._levels[k]
        return State(k, rho, self._states[k], sigma)

    def replace(self, x: Tensor) -> State:
        """Put another tensor in place of the latest state, for a program that changes samples between steps."""
        state = self.state
        self._states[self._row] = x
        return state._replace(x=x)

    def row(self, estimate: Tensor | None) -> State:
        """Evaluate one row and return its state: x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps_j + B_k z_k.

        Args:
            estimate: eps of the latest state, D at sigma = infinity, None for a row without a call.

        Raises:
            ValueError: if the row is stochastic and there is no `draw`.
        """
        k, states, estimates = self._row, self._states, self._estimates
        row = self._sums[k]
        if estimate is not None:
            estimates[k] = estimate
        terms = [((states if is_state else estimates)[j], weight) for is_state, j, weight in row.terms]
        if row.noise:
            if self._draw is None:
                raise ValueError("a stochastic tableau needs `draw`, a source of fresh noise")
            terms.append((self._draw(k), row.noise))
        for is_state, j in row.dead:
            if self._reuse and is_state and j > 0:
                self._spare.append(states[j])
            del (states if is_state else estimates)[j]
        out = None
        if self._spare:
            out = _memory(self._spare, terms)
            self._spare = [memory for memory in self._spare if memory is not out][:1]
        self._row = k = k + 1
        x = states[k] = _combine(terms, out)
        rho, sigma = self._levels[k]
        return State(k, rho, x, sigma)

    def _called(self, output: Tensor) -> tuple[Tensor, float]:
        """Return x and sigma of the latest state, for which the network returned this output."""
        x, sigma = self.state.x, self.state.sigma
        if sigma is None:
            raise ValueError("the run is over; begin another one with start(x)")
        if output.shape != x.shape:
            raise ValueError(f"the network returned {tuple(output.shape)} for x of {tuple(x.shape)}; return x's shape")
        return x, sigma

    def _until_call(self) -> State:
        """Evaluate the rows that need no call and return the state after them."""
        while (state := self.state).sigma is None and self._row < len(self._sums):
            self.row(None)
        return state


def trajectory(eps: Eps, x: Tensor, tableau: Tableau, draw: Draw | None = None, reuse: bool = False) -> Iterator[State]:
    """Evaluate a tableau: yield x_1, x_2, .., x_K as they are made; the last one is the sample.

    Use this to look at every state of a run, and `integrate` for the sample alone. States and estimates are freed as
    soon as no later row reads them, the initial state too. With `reuse`, a method that combines p estimates or data
    predictions holds at most p + 2 tensors of x's size, if the caller keeps no reference to x; in velocity prediction,
    where a slope is a state and an estimate, 2 p + 1.

    Args:
        eps: noise estimate in memory of its own, called exactly `tableau.nfe` times.
        x: initial state (B, *) at tableau.rho[0], usually rho_0 times standard normal noise; not modified.
        tableau: the run.
        draw: fresh noise for stochastic rows.
        reuse: as in `Stepper`.

    Raises:
        ValueError: if the tableau is stochastic and `draw` is missing.
    """
    stepper = Stepper(tableau, draw, reuse)
    state = stepper.load(x)
    del x
    for _ in tableau.sums:
        level = state.sigma
        estimate = None if level is None else eps(state.x, level)  # one network evaluation
        del state
        state = stepper.row(estimate)
        del estimate
        yield state


def _memory(spare: list[Tensor], terms: list[Term]) -> Tensor | None:
    """Return memory for a sum: that of its first term if it is spare, else spare memory of no term, else None."""
    first, *others = (tensor for tensor, _ in terms)
    if any(first is memory for memory in spare):
        return first
    return next((memory for memory in spare if all(memory is not other for other in others)), None)


def integrate(
    eps: Eps, x: Tensor, run: Tableau | AdaptiveRun, draw: Draw | None = None, reuse: bool | None = None
) -> Tensor:
    """Return the sample (B, *): the last state of a tableau's `trajectory`, or the end of an adaptive run.

    Use this if you have the run already; `scoreline.sample` builds it from a solver and a schedule.

    Args:
        eps: noise estimate, called exactly as often as the run says.
        x: initial state (B, *), not modified.
        run: the steps.
        draw: fresh noise for stochastic rows.
        reuse: as in `Stepper`; None where gradients are not recorded.
    """
    if isinstance(run, AdaptiveRun):
        return run(eps, x)
    for state in trajectory(eps, x, run, draw, not torch.is_grad_enabled() if reuse is None else reuse):
        x = state.x
    return x


class Calls(threading.local):
    """The number of network calls that the current thread has seen so far."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def count_calls(denoiser: nn.Module) -> Iterator[Calls]:
    """Count the calls of the networks of all `Denoiser`s in `denoiser`, whoever makes them: the measured NFE.

    Use this to check what a sampler spends; guidance counts each of its calls.
    """
    calls = Calls()

    def increment(*_: object) -> None:
        calls.count += 1

    networks = {module.network for module in denoiser.modules() if isinstance(module, Denoiser)}
    handles = [network.register_forward_pre_hook(increment) for network in networks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
