"""The sampling loop, one for every solver, and `sample`, the call for any model."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.schedules.base import Schedule
from scoreline.solvers.adaptive import Adaptive, AdaptiveRun
from scoreline.solvers.tableau import Solver, Tableau, build

Eps = Callable[[Tensor, float], Tensor]
"""eps(x (B, *), rho) -> (B, *): the right-hand side of dx/drho = eps(x, rho)."""

Draw = Callable[[int], Tensor]
"""Fresh noise z_k of x's shape for row k of a stochastic tableau."""

Term = tuple[Tensor, float]
"""A tensor and its weight in a sum."""

Progress = Callable[[float], object]
"""Called with the work done since the last call, in fractions of an image."""


class State(NamedTuple):
    """State number `row` of a run: x (B, *) in unit-signal coordinates at noise level rho."""

    row: int
    rho: float
    x: Tensor


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
        reuse: write new states into the memory of dead ones, so that a yielded state does not last. Fresh memory costs
            page faults, as much time as the sum itself.

    Raises:
        ValueError: if the tableau is stochastic and `draw` is missing.
    """
    rho, query = tableau.rho.tolist(), tableau.query_levels.tolist()
    states: dict[int, Tensor] = {0: x}
    del x
    estimates: dict[int, Tensor] = {}
    spare: list[Tensor] = []
    for k, row in enumerate(tableau.sums):
        if row.call:  # one network evaluation
            estimates[k] = eps(states[k], query[k])
        # x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps_j + B_k z_k
        terms = [((states if is_state else estimates)[j], weight) for is_state, j, weight in row.terms]
        if row.noise:
            if draw is None:
                raise ValueError("a stochastic tableau needs `draw`, a source of fresh noise")
            terms.append((draw(k), row.noise))
        for is_state, j in row.dead:
            if reuse and is_state and j > 0:
                spare.append(states[j])
            del (states if is_state else estimates)[j]
        out = _memory(spare, terms)
        states[k + 1] = _combine(terms, out)
        spare = [memory for memory in spare if memory is not out][:1]
        del terms, out
        yield State(k + 1, rho[k + 1], states[k + 1])


def _memory(spare: list[Tensor], terms: list[Term]) -> Tensor | None:
    """Return memory for a sum: that of its first term if it is spare, else spare memory of no term, else None."""
    first, *others = (tensor for tensor, _ in terms)
    if any(first is memory for memory in spare):
        return first
    return next((memory for memory in spare if all(memory is not other for other in others)), None)


def integrate(eps: Eps, x: Tensor, run: Tableau | AdaptiveRun, draw: Draw | None = None) -> Tensor:
    """Return the sample (B, *): the last state of a tableau's `trajectory`, or the end of an adaptive run.

    Use this if you have the run already; `sample` builds it from a solver and a schedule.
    """
    if isinstance(run, AdaptiveRun):
        return run(eps, x)
    for state in trajectory(eps, x, run, draw, reuse=not torch.is_grad_enabled()):
        x = state.x
    return x


@torch.inference_mode()
def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x_init: Tensor,
    solver: Solver | Adaptive,
    schedule: Schedule,
    *,
    nfe: int = 10,
    sigma_min: float,
    sigma_max: float,
    final: str = "none",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample with any model, without a checkpoint or a config.

    Use this for a model of your own in a few lines; sample.py draws images from checkpoints, in shards and with
    metrics.

    Args:
        denoise: denoise(x, sigma) -> E[x_0 | x_0 + sigma eps = x], EDM's convention: x (B, *) with unit signal, sigma a
            float64 tensor of shape () on x's device. Called `nfe` times.
        x_init: state at sigma_max, usually sigma_max * torch.randn(...); not modified.
        solver: any frozen object of `scoreline.solvers`.
        schedule: the coordinate in which steps are even, any object of `scoreline.schedules`; `Power(7)` is EDM's.
        nfe: evaluations of `denoise`, the final denoising step included; a ceiling for `Adaptive` solvers.
        sigma_min: last noise level.
        sigma_max: first noise level.
        final: `none` ends at sigma_min; `denoise` spends the last evaluation on E[x_0 | x].
        generator: source of fresh noise for stochastic solvers, on x_init's device; None is torch's own.

    Returns:
        the sample (B, *), of x_init's shape, dtype and device.

    Raises:
        InputError: if the budget or the range is impossible for the solver.
    """
    run = build(solver, schedule, (sigma_max, sigma_min), nfe, final)

    def eps(x: Tensor, rho: float) -> Tensor:
        sigma = torch.full((), rho, dtype=torch.float64, device=x.device)
        return (x - denoise(x, sigma)) / rho

    def draw(row: int) -> Tensor:
        return torch.randn(x_init.shape, generator=generator, dtype=x_init.dtype, device=x_init.device)

    return integrate(eps, x_init, run, draw)


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
