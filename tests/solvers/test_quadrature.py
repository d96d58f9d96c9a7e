import math

import pytest
import torch
from scipy.integrate import quad

from scoreline.schedules.base import Schedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import LogSNR
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.quadrature import gauss_legendre


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP(), LogSNR()], ids=repr)
def test_integrals_of_a_schedule_against_adaptive_quadrature(schedule: Schedule) -> None:
    levels = torch.tensor([120.0, 15.0, 0.9, 0.05, 0.011], dtype=torch.float64)
    nodes, weight, interval = gauss_legendre(levels, schedule)
    ours = torch.zeros(4, dtype=torch.float64).index_add_(0, interval, weight * schedule(nodes) ** 3)
    for i in range(4):

        def cube(v: float) -> float:
            return float(schedule(torch.tensor(math.exp(v), dtype=torch.float64))) ** 3 * math.exp(v)

        truth, _ = quad(cube, math.log(levels[i]), math.log(levels[i + 1]), epsabs=1e-13, epsrel=1e-13, limit=200)
        assert float(ours[i]) == pytest.approx(truth, rel=1e-11)


def test_piecewise_schedule_is_integrated_exactly_between_knots() -> None:
    """With a = cos^2(theta) and t linear in a on a knot interval, int a drho = theta: closed form."""
    schedule = DiscreteVP()
    levels = torch.tensor([30.0, 1.0, 0.02, 0.0], dtype=torch.float64)
    nodes, weight, interval = gauss_legendre(levels, schedule)
    a = schedule.alpha(schedule(nodes)) ** 2
    ours = torch.zeros(3, dtype=torch.float64).index_add_(0, interval, weight * a)
    torch.testing.assert_close(ours, levels.atan().diff(), rtol=1e-13, atol=1e-15)


def test_knots_matter() -> None:
    """t(rho) of a discrete process has kinks; the same rule across them is visibly worse."""
    schedule, levels = DiscreteVP(steps=10), torch.tensor([0.9, 0.02], dtype=torch.float64)
    knots = schedule.knots()
    pieces = torch.cat([levels, knots[(knots < 0.9) & (knots > 0.02)]]).sort(descending=True).values

    def integrate(*hints: Schedule, at: torch.Tensor = levels) -> float:
        nodes, weight, _ = gauss_legendre(at, *hints)
        return float((weight * schedule(nodes) ** 2).sum())

    truth = integrate(at=pieces)
    assert integrate(schedule) == pytest.approx(truth, rel=1e-13)
    assert integrate() != pytest.approx(truth, rel=1e-7)


def test_weights_sum_to_the_interval_and_reach_zero() -> None:
    levels = torch.tensor([80.0, 3.0, 1e-3, 0.0], dtype=torch.float64)
    nodes, weight, interval = gauss_legendre(levels)
    total = torch.zeros(3, dtype=torch.float64).index_add_(0, interval, weight)
    torch.testing.assert_close(total, levels.diff(), rtol=1e-14, atol=0)
    assert float(nodes.min()) > 0
