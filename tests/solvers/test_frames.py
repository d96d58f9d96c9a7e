"""The building blocks of solvers."""

import math

import pytest
import torch
from scipy.integrate import quad

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.solvers.budget import check_budget, step_levels, step_orders
from scoreline.solvers.frames import FRAMES, frame_of, log_step, phi
from scoreline.solvers.rows import Rows


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("z", [-30.0, -3.0, -1.9, -0.3, -1e-6, 0.0, 1e-9, 0.4, 2.1, 12.0])
def test_phi_functions_against_their_integral(k: int, z: float) -> None:
    """phi_k(z) = int_0^1 e^((1 - s) z) s^(k-1) / (k - 1)! ds."""
    if k == 0:
        truth = math.exp(z)
    else:
        truth, _ = quad(lambda s: math.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1), 0, 1, epsrel=1e-13)
    assert phi(k, z) == pytest.approx(truth, rel=2e-12)


@pytest.mark.parametrize("name", ["noise", "data"])
def test_exact_exponential_step_of_a_polynomial_slope(name: str) -> None:
    """scaled x' - scaled x = scale(rho') sum_k h^(k+1) phi_(k+1)(z) F^(k) for F = lambda - lambda_0, by quadrature."""
    frame, rho, target = FRAMES[name], 3.0, 0.4
    h = log_step(rho, target)
    ours = frame.scale(target) * h**2 * phi(2, frame.exponent(h))
    truth, _ = quad(lambda s: -math.log((s if name == "noise" else 1 / s) / rho), *map(frame.coordinate, (rho, target)))
    assert ours == pytest.approx(truth, rel=1e-10)


def test_both_frames_of_one_slope_are_ddim(mixture: GaussianMixture) -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    ends = []
    for frame in FRAMES.values():
        rows, last = Rows(5.0), 0
        for target in (2.0, 0.3):
            step = frame.coordinate(target) - frame.coordinate(rows.rho[last])
            last = frame.advance(rows, last, target, {last: step})
        ends.append(integrate(mixture.eps, x, rows.tableau()))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-13)


def test_clean_states_are_made_once_and_used(mixture: GaussianMixture) -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    rows = Rows(5.0)
    assert rows.clean(0) == rows.clean(0) == 1
    states, estimates = rows.data({0: 0.75})
    assert (states, estimates) == ({1: 0.75}, {})
    rows.add(1.25, {0: 0.25, **states})
    table = rows.tableau()
    assert table.nfe == 1
    assert table.residual == 0
    expected = 0.25 * x + 0.75 * mixture.denoise(x, 5.0)
    torch.testing.assert_close(integrate(mixture.eps, x, table), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("nfe", "order", "budget", "expected"),
    [
        (12, 3, "agile", [3, 3, 3, 2, 1]),
        (20, 3, "agile", [3] * 6 + [2]),
        (10, 3, "agile", [3, 3, 3, 1]),
        (3, 3, "agile", [2, 1]),
        (2, 3, "agile", [2]),
        (1, 2, "agile", [1]),
        (7, 2, "agile", [2, 2, 2, 1]),
        (15, 2, "fixed", [2] * 7),
        (20, 3, "fixed", [3] * 6),
    ],
)
def test_budgets_of_the_published_tables(nfe: int, order: int, budget: str, expected: list[int]) -> None:
    assert step_orders(nfe, order, budget) == expected


def test_mixed_orders_keep_nodes_of_a_fine_grid() -> None:
    fine = torch.linspace(10, 1, 13, dtype=torch.float64)
    torch.testing.assert_close(step_levels(Power(1), 10, 1, [3, 3, 3, 2, 1]), fine[[0, 3, 6, 9, 11, 12]])
    even = step_levels(LogSNR(), 10, 1, [3, 2]).log().diff()
    torch.testing.assert_close(even[0], even[1])


def test_bad_choices_are_named() -> None:
    with pytest.raises(InputError, match=r"solver\.prediction=date.*'data'"):
        frame_of("date")
    with pytest.raises(InputError, match=r"solver\.budget=agil.*'agile'"):
        check_budget("agil")
    with pytest.raises(InputError, match="nfe=2: one step takes 3"):
        step_orders(2, 3, "fixed")
    with pytest.raises(InputError, match="sigma_min=0"):
        log_step(1.0, 0.0)
