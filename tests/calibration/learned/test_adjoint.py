"""Derivatives of a run's end by its tableau, against automatic differentiation."""

import pytest
import torch
from learned_models import SPAN, start, subject
from torch import Tensor

from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.losses import distance
from scoreline.denoiser import Denoiser
from scoreline.solvers.frames import NOISE, Frame, Velocity
from scoreline.solvers.tableau import Tableau


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def general(frame: Frame) -> Tableau:
    """A tableau all of whose weights below the diagonal differ from zero, with query levels of its own."""
    plain = start("velocity" if frame != NOISE else "deis_tab3", 5)
    W = plain.in_frame()[1] + 0.03 * torch.ones(5, 5, dtype=torch.float64).tril()
    return Tableau.single_term(plain.rho, W, frame, plain.rho[:-1] * torch.linspace(1, 1.2, 5, dtype=torch.float64))


@pytest.mark.parametrize("frame", [NOISE, Velocity(0.7)])
@pytest.mark.parametrize("memory", [0.0, 2e4, 1e9])
def test_derivatives_agree_with_autograd(frame: Frame, memory: float) -> None:
    """Of the loss by S, N, q and the noise, for every image, whether all calls, some or none keep their graphs."""
    denoiser, table = subject(range(3)).denoiser, general(frame)
    x, end = SPAN[0] * normal(7, 2), normal(7, 3)
    S, N, query = (part.expand(7, *part.shape).clone() for part in (table.S, table.N, table.query_levels))
    leaves = [part.requires_grad_() for part in (S, N, query, x.clone())]
    states, found = [leaves[3]], list[Tensor]()
    for k in range(5):
        found.append(denoiser.eps(states[k], query[:, k]))
        both = zip((S, N), (states, found), strict=True)
        states.append(sum(part[:, k, j, None, None, None] * of[j] for part, of in both for j in range(k + 1)))
    values = distance(states[-1], end)
    exact = torch.autograd.grad(values.sum(), leaves)
    reached = slope(denoiser.eps, x, table, lambda x: distance(x, end), memory)
    torch.testing.assert_close(reached.loss, values.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(reached[1:], (exact[0].tril(), exact[1].tril(), *exact[2:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        assert float(ours.abs().max()) > 1e-3


def test_a_first_step_without_a_call_has_derivatives_of_the_others() -> None:
    table = start("velocity, first slope free", 3)
    denoiser, x, end = subject(range(3)).denoiser, SPAN[0] * normal(2, 4), normal(2, 5)
    reached = slope(denoiser.eps, x, table, lambda x: distance(x, end))
    assert not bool(reached.N[:, :, 0].any() | reached.query[:, 0].any())
    for name, place in (("N", (2, 1)), ("query_levels", (2,))):
        ends = []
        for h in (1e-5, -1e-5):
            moved = {"N": table.N.clone(), "query_levels": table.query_levels.clone()}
            moved[name][place] += h
            ends.append(run_end(denoiser, x, table.S, **moved))
        difference = (distance(ends[0], end) - distance(ends[1], end)) / 2e-5
        found = getattr(reached, name.removesuffix("_levels"))[(slice(None), *place)]
        torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-8)


def run_end(denoiser: Denoiser, x: Tensor, S: Tensor, N: Tensor, query_levels: Tensor) -> Tensor:
    states, estimates = [x], list[Tensor]()
    for k in range(len(S)):
        estimates.append(denoiser.eps(states[k], query_levels[k].expand(len(x))))
        states.append(sum(S[k, j] * states[j] + N[k, j] * estimates[j] for j in range(k + 1)))  # type: ignore[arg-type]
    return states[-1]


@pytest.mark.parametrize(("memory", "calls"), [(0.0, 10), (1e9, 5)])
def test_memory_decides_whether_calls_are_repeated(memory: float, calls: int) -> None:
    denoiser, count = subject(range(3)).denoiser, []

    def eps(x: Tensor, query: Tensor) -> Tensor:
        count.append(len(x))
        return denoiser.eps(x, query)

    slope(eps, normal(4, 1), start("deis_tab3", 5), lambda x: distance(x, torch.zeros_like(x)), memory)
    assert count == [4] * calls


def test_an_end_that_is_met_has_no_slope() -> None:
    """The distance is zero and its root has no derivative: no step, and no NaN, comes of it."""
    denoiser, table, x = subject(range(3)).denoiser, start("deis_tab3", 3), normal(1, 0)
    ends: list[Tensor] = []
    slope(denoiser.eps, x, table, lambda end: ends.append(end.detach()) or end.flatten(1).sum(1))
    met = slope(denoiser.eps, x, table, lambda end: distance(end, ends[0]))
    assert float(met.loss) < 1e-100
    assert not any(bool(part.any()) for part in met[1:])
