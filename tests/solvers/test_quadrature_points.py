"""Fewer points on short panels: as exact as before, and cheaper."""

import pytest
import torch

from scoreline.schedules.base import Schedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.quadrature import gauss_legendre


class Dense:
    """Knots that cut panels to about a given length in v = asinh(1000 rho)."""

    def __init__(self, length: float) -> None:
        self.length = length

    def knots(self) -> torch.Tensor:
        return 1e-3 * torch.sinh(torch.arange(2, 12, self.length, dtype=torch.float64))


@pytest.mark.parametrize("length", [0.9, 0.26, 0.25, 0.2, 0.06, 0.05, 0.01])
def test_round_off_at_every_length_of_panel(length: float) -> None:
    """int 1 / (1 + rho^2) = arctan rho and int 1 / rho = ln rho, poles at the distance that the rule allows for."""
    levels = torch.tensor([130.0, 7.0, 1.01, 0.99, 0.3, 0.02, 0.004], dtype=torch.float64)
    nodes, weight, interval = gauss_legendre(levels, Dense(length))
    for f, exact in ((1 / (1 + nodes**2), levels.atan()), (1 / nodes, levels.log())):
        ours = torch.zeros(6, dtype=torch.float64).index_add_(0, interval, weight * f)
        torch.testing.assert_close(ours, exact.diff(), rtol=2e-13, atol=0)


@pytest.mark.parametrize(("schedule", "most"), [(DiscreteVP(), 5500), (LinearVP(), 400)], ids=repr)
def test_number_of_points(schedule: Schedule, most: int) -> None:
    levels = torch.logspace(2, -1.9, 11, dtype=torch.float64)
    nodes, weight, interval = gauss_legendre(levels, schedule)
    assert len(nodes) == len(weight) == len(interval) < most
    assert (nodes.diff() < 0).all()
    assert (weight < 0).all()
    assert (interval.diff() >= 0).all()
    assert ((nodes < levels[interval]) & (nodes > levels[interval + 1])).all()
