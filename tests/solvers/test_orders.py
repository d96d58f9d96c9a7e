"""Measured orders of convergence on models whose score is exact."""

import math
from collections.abc import Callable

import pytest
import torch

from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.spacings import Polynomial
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver

VP = LinearVP()
ORDERS: list[tuple[Solver, float]] = [
    (DDIM(), 1.0),
    (heun(), 2.0),
    (DEIS(0, VP), 1.0),
    (DEIS(1, VP), 2.0),
    (DEIS(2, VP), 2.9),
    (DEIS(3, VP), 3.4),  # not 4: the first step is of order 0, as published
]
# Absolute error at t0 on N(0, 1/4), x(T) = 1, steps 20 .. 320, quadratic time, t0 = 1e-3: the published-method table.
SPECIFIED = {
    0: [3.9e-2, 2.0e-2, 9.9e-3, 5.0e-3, 2.5e-3],
    1: [8.5e-3, 2.3e-3, 6.1e-4, 1.6e-4, 3.9e-5],
    2: [2.4e-3, 3.6e-4, 5.0e-5, 6.7e-6, 8.9e-7],
    3: [7.7e-4, 7.1e-5, 6.9e-6, 6.4e-7, 5.9e-8],
}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_errors_on_a_gaussian_are_the_specified_ones(order: int) -> None:
    """Scalar N(0, 1/4) in native VP coordinates, x(T) = 1, as DEIS's acceptance table states it."""
    alpha_T, alpha_0 = (float(VP.alpha(torch.tensor(t, dtype=torch.float64))) for t in (1.0, 1e-3))
    marginal = [(alpha**2 * 0.25 + 1 - alpha**2) ** 0.5 for alpha in (alpha_T, alpha_0)]
    for steps, published in zip([20, 40, 80, 160, 320], SPECIFIED[order], strict=True):
        table = DEIS(order, VP)(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, steps)
        x = torch.full((1,), 1 / alpha_T, dtype=torch.float64)
        end = integrate(lambda x, rho: rho * x / (0.25 + rho**2), x, table) * alpha_0
        error = abs(float(end) - marginal[1] / marginal[0])
        unit = 10.0 ** math.floor(math.log10(published)) / 10
        assert error == pytest.approx(published, abs=0.51 * unit)


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 2, generator=generator, dtype=torch.float64) * VP.sigma_max


@pytest.fixture(scope="module")
def truth(exact_flow: Callable[..., torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    return exact_flow(start, VP.sigma_max, VP.sigma_min)


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda value: str(value)[:12])
def test_measured_order_on_a_mixture(
    solver: Solver, order: float, mixture: GaussianMixture, start: torch.Tensor, truth: torch.Tensor
) -> None:
    errors = []
    for nfe in (40, 160):
        table = solver(Polynomial(VP, 2), VP.sigma_max, VP.sigma_min, nfe)
        errors.append(float((integrate(mixture.eps, start, table) - truth).norm()))
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.15), errors
