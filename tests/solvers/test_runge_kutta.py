"""Runge-Kutta tableaux against the order conditions, and their rows against a plain loop."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.solvers import runge_kutta
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.runge_kutta import RungeKutta

SPAN = (80.0, 0.002)
METHODS = [
    runge_kutta.heun(),
    runge_kutta.midpoint(),
    runge_kutta.kutta3(),
    runge_kutta.ralston3(),
    runge_kutta.heun3(),
    runge_kutta.van_der_houwen3(),
    runge_kutta.ssprk3(),
    runge_kutta.rk4(),
]


def exact(value: float) -> Fraction:
    return Fraction(value).limit_denominator(1000)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{len(m.b)}-{m.a}")
def test_order_conditions_hold_exactly(method: RungeKutta) -> None:
    """Butcher's conditions up to order 4, in rational arithmetic; those of the next order fail."""
    b, c = [exact(v) for v in method.b], [exact(v) for v in method.c]
    a = [[exact(v) for v in row] + [Fraction(0)] * (len(b) - len(row)) for row in ((), *method.a)]
    stages = range(len(b))
    conditions = {
        2: [sum(b[i] * c[i] for i in stages) == Fraction(1, 2)],
        3: [
            sum(b[i] * c[i] ** 2 for i in stages) == Fraction(1, 3),
            sum(b[i] * a[i][j] * c[j] for i in stages for j in stages) == Fraction(1, 6),
        ],
        4: [
            sum(b[i] * c[i] ** 3 for i in stages) == Fraction(1, 4),
            sum(b[i] * c[i] * a[i][j] * c[j] for i in stages for j in stages) == Fraction(1, 8),
            sum(b[i] * a[i][j] * c[j] ** 2 for i in stages for j in stages) == Fraction(1, 12),
            sum(b[i] * a[i][j] * a[j][k] * c[k] for i in stages for j in stages for k in stages) == Fraction(1, 24),
        ],
    }
    for order, hold in conditions.items():
        assert all(hold) == (order <= method.convergence), order


def by_hand(method: RungeKutta, eps, x: torch.Tensor, levels: list[float]) -> torch.Tensor:
    for rho, target in pairwise(levels):
        h, slopes = target - rho, []
        for c, row in zip(method.c, ((), *method.a), strict=True):
            stage = x + sum((h * w * k for w, k in zip(row, slopes, strict=True)), torch.zeros_like(x))
            slopes.append(eps(stage, rho + c * h))
        x = x + sum(h * w * k for w, k in zip(method.b, slopes, strict=True))
    return x


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{len(m.b)}-{m.a}")
def test_rows_are_the_plain_loop(method: RungeKutta, mixture: GaussianMixture) -> None:
    x = torch.linspace(-80, 80, 10, dtype=torch.float64).reshape(5, 2)
    table = method(Power(7), *SPAN, 4 * len(method.b))
    expected = by_hand(method, mixture.eps, x, grid(Power(7), *SPAN, 4).tolist())
    torch.testing.assert_close(integrate(mixture.eps, x, table), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{len(m.b)}-{m.a}")
@pytest.mark.parametrize("nfe", range(1, 13))
def test_any_budget_is_exact(method: RungeKutta, nfe: int) -> None:
    table = method(Power(7), *SPAN, nfe)
    assert table.nfe == nfe
    assert table.residual < 1e-14
    assert float(table.rho[-1]) == SPAN[1]


def test_one_call_is_ddim() -> None:
    table = runge_kutta.EULER(Power(7), *SPAN, 6)
    torch.testing.assert_close(table.N, DDIM()(Power(7), *SPAN, 6).N, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("c", "a", "b"),
    [
        ((0, 1), ((0.5,),), (0.5, 0.5)),  # a does not sum to c
        ((0, 1), ((1,),), (0.5, 0.6)),  # b does not sum to one
        ((0, 1), ((1, 0),), (0.5, 0.5)),  # implicit
        ((0,), ((1,),), (0.5, 0.5)),  # one stage short
    ],
)
def test_refuses_tableaux_that_are_no_explicit_methods(c, a, b) -> None:
    with pytest.raises(InputError, match=r"solver\.[abc]"):
        RungeKutta(c, a, b, 2)
