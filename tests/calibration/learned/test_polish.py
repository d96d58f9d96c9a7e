"""The polish of a learned tableau: derivatives against automatic differentiation, and what the steps may not do."""

from dataclasses import replace

import pytest
import torch
from test_learned_tableau import SPAN, Counting, anisotropic, subject, zeros
from torch import Tensor, nn

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned import polish as module
from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.halves import SeedGroup, Trial, split_seeds
from scoreline.calibration.learned.neighbourhood import Neighbourhood
from scoreline.calibration.learned.polish import Plan, cost, gradient, polish
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import Tableau, build_tableau


def begin(nfe: int = 4) -> Tableau:
    return build_tableau(DEIS(2, LinearVP()), Power(7), SPAN, nfe, "none").unrolled()


def sides(count: int = 24, batch_size: int = 16, net: nn.Module | None = None) -> tuple[SeedGroup, SeedGroup]:
    of = subject(range(count), net, batch_size)
    return split_seeds(of, fine_ends(of))


def distance(eps, x: Tensor, end: Tensor, rho: Tensor, N: Tensor) -> Tensor:
    found: list[Tensor] = []
    for k in range(len(N)):
        found.append(eps(x, rho[k].expand(len(x))))
        x = x + sum(N[k, j] * found[j] for j in range(k + 1))
    return (x - end).square().mean(1).sqrt().sum()


def test_adjoint_derivatives_agree_with_autograd() -> None:
    denoiser = subject(range(3)).denoiser
    generator = torch.Generator().manual_seed(2)
    x = SPAN[0] * torch.randn(7, 3, 1, 1, dtype=torch.float64, generator=generator)
    end = torch.randn(7, 3, 1, 1, dtype=torch.float64, generator=generator)
    table = begin(5)
    rho, N = table.rho.clone().requires_grad_(), table.N.clone().requires_grad_()
    value = distance(lambda x, rho: denoiser.eps(x, rho), x, end, rho, N)
    by_rho, by_N = torch.autograd.grad(value.squeeze(), (rho, N))
    found = slope(lambda x, rho: denoiser.eps(x, rho), x, end, table)
    assert found.distance == pytest.approx(float(value.detach().sum()), rel=1e-12)
    torch.testing.assert_close(found.rho, by_rho, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.N, by_N.tril(), rtol=1e-9, atol=1e-12)
    assert float(found.rho.abs().max()) > 1e-3


def test_the_gradient_agrees_with_central_differences() -> None:
    train, _ = sides()
    near = Neighbourhood(begin(), 4)
    theta = 0.02 * torch.randn(near.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = gradient(train, near, theta.clone().requires_grad_())
    for p in range(near.size):
        moved = torch.zeros_like(theta)
        moved[p] = 1e-3
        up, down = (float(train.distances_near(near, theta + sign * moved).mean()) for sign in (1, -1))
        assert float(found[p]) == pytest.approx((up - down) / 2e-3, rel=0.02, abs=2e-3 * float(found.abs().max()))


def test_an_end_that_is_met_has_no_slope() -> None:
    """The distance is zero and its root has no derivative: no step, and no NaN, comes of it."""
    denoiser, table = subject(range(3)).denoiser, begin()
    x = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    end, found = x, []
    for k in range(table.nfe):
        found.append(denoiser.eps(end, table.rho[k].expand(1)))
        for j in range(k + 1):
            end = end + float(table.N[k, j]) * found[j]
    met = slope(lambda x, rho: denoiser.eps(x, rho), x, end, table)
    assert met.distance == 0
    assert not bool(met.rho.any() | met.N.any())


def test_steps_lower_the_held_out_distance() -> None:
    train, held = sides(60)
    first = Trial(begin(), held.mean(begin()))
    told: list[float] = []
    reached = polish(train, held, first, Plan(60, 16, 0.02), told.append)
    assert reached.held_out < first.held_out / 2
    assert reached.held_out == held.mean(reached.tableau)
    assert reached.tableau.residual < 1e-12
    assert sum(told) == pytest.approx(cost(Plan(60, 16, 0.02), 4, 40))


def test_steps_that_only_harm_leave_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gradient", lambda group, near, theta: -gradient(group, near, theta))
    train, held = sides()
    near = Neighbourhood(begin(), 4)
    good = polish(train, held, Trial(begin(), held.mean(begin())), Plan(0, 16, 0.02), lambda evaluations: None)
    assert torch.equal(good.tableau.N, near.start.N)
    kept = polish(train, held, good, Plan(20, 16, 0.02), lambda evaluations: None)
    assert kept is good


def test_steps_that_overflow_end_the_polish() -> None:
    train, held = sides()
    first = Trial(begin(), held.mean(begin()))
    reached = polish(train, held, first, Plan(30, 16, 1e3), lambda evaluations: None)
    assert reached.held_out <= first.held_out


def test_one_call_has_nothing_to_polish() -> None:
    train, held = sides()
    one = Trial(begin(1), held.mean(begin(1)))
    assert polish(train, held, one, Plan(5, 16, 0.01), lambda evaluations: None) is one


def test_batches_and_labels_reach_the_network() -> None:
    counting = Counting(anisotropic())
    of = replace(subject(range(21), counting, batch_size=5), labels=torch.arange(100, 121))
    train, held = split_seeds(of, fine_ends(of))
    near = Neighbourhood(begin(3), 3)
    whole = gradient(train, near, zeros(near.size).requires_grad_())
    assert counting.rows == 5
    assert counting.labels == set(range(100, 121))
    parts = [gradient(part, near, zeros(near.size).requires_grad_()) for part in train.groups(7)]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)
    assert held.subject.labels is not None
