"""One vector of parameters for tableaus of many budgets."""

import pytest
import torch
from learned_models import solver, start, zeros

from scoreline.calibration.learned.curve import LAGS, Curve
from scoreline.calibration.learned.family import Family, Free, theory_of


def curve(*budgets: int, **free: object) -> Curve:
    def family(nfe: int) -> Family:
        table = start("velocity", nfe)
        return Family(table, theory_of(solver("velocity"), table), Free(**free), 0.7)  # type: ignore[arg-type]

    return Curve({nfe: family(nfe) for nfe in budgets})


def test_theta_zero_is_the_closed_form_of_every_budget() -> None:
    of = curve(1, 3, 8)
    for nfe in (1, 3, 8):
        torch.testing.assert_close(of(zeros(of.size), nfe).N, start("velocity", nfe).N, rtol=1e-9, atol=1e-9)


def test_parameters_of_a_budget_lie_on_the_curves() -> None:
    """A constant curve gives every entry that constant, and the part that fades falls as 5 / K."""
    of = curve(4, 10)
    half = of.size // 2
    for nfe in (4, 10):
        level, fading = zeros(of.size), zeros(of.size)
        level[:half], fading[half:] = 1.0, 1.0
        row, column = of.families[nfe].places
        within = torch.cat([torch.ones(2 * nfe), (row - column < LAGS).double(), torch.ones(1)]).double()
        torch.testing.assert_close(of.parameters(level, nfe), within)
        torch.testing.assert_close(of.parameters(fading, nfe), within * 5 / nfe)


@pytest.mark.parametrize("free", [{"weights": False}, {"nodes": False}, {"query": False}, {"rows": "bound"}])
def test_parts_that_are_not_free_stay(free: dict[str, object]) -> None:
    of = curve(5, **free)
    drawn = 0.1 * torch.randn(of.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(of.parameters(drawn, 5)) == of.families[5].size
    table, plain = of(drawn, 5), start("velocity", 5)
    assert torch.equal(table.rho, plain.rho) == (free == {"nodes": False})
    assert (table.query is None) == (free == {"query": False})
