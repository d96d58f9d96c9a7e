"""Velocity prediction: exact for Gaussian data, between noise and data prediction, weights by an independent rule."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate, trajectory
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Blend, LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.frames import NOISE, Frame, Velocity
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.runge_kutta import heun, rk4
from scoreline.solvers.tableau import Solver, Tableau, build_tableau

S = 0.7
VELOCITY = Velocity(S)
BLEND = Blend(LinearVP(), 0.3)
SPAN = (80.0, 0.002)

METHODS: dict[str, Solver] = {
    "ab0": DEIS(0, BLEND, frame=VELOCITY),
    "ab3": DEIS(3, BLEND, frame=VELOCITY),
    "abm2": DEIS(2, BLEND, frame=VELOCITY, corrector=True),
    "ipndm4": IPNDM(4, VELOCITY),
    "heun": heun(VELOCITY),
    "rk4": rk4(VELOCITY),
}

MIXTURE = GaussianMixture(
    torch.tensor([[1.2, -0.4], [-0.7, 0.9]], dtype=torch.float64),
    torch.tensor([0.5, 0.3], dtype=torch.float64),
    torch.tensor([0.35, 0.65], dtype=torch.float64),
)


def tableau(solver: Solver, nfe: int = 8, frame: Frame | None = None) -> Tableau:
    solver = solver if frame is None else replace(solver, frame=frame)  # type: ignore[type-var]
    return build_tableau(solver, Power(7), SPAN, nfe, "none")


def noise(seed: int = 0) -> Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * SPAN[0]


def gaussian(x: Tensor, rho: float) -> Tensor:
    return rho * x / (rho**2 + S**2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nfe", [1, 4, 9])
def test_gaussian_data_are_exact_at_every_budget(name: str, nfe: int) -> None:
    run = tableau(METHODS[name], nfe)
    exact = noise() * ((SPAN[1] ** 2 + S**2) / (SPAN[0] ** 2 + S**2)) ** 0.5
    assert torch.allclose(integrate(gaussian, noise(), run), exact, rtol=1e-11)
    assert run.residual < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_a_gaussian_of_another_deviation_is_not(name: str) -> None:
    other = integrate(lambda x, rho: rho * x / (rho**2 + 0.3**2), noise(), tableau(METHODS[name], 4))
    exact = noise() * ((SPAN[1] ** 2 + 0.3**2) / (SPAN[0] ** 2 + 0.3**2)) ** 0.5
    assert not torch.allclose(other, exact, rtol=1e-2)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_very_large_deviation_is_noise_prediction(order: int) -> None:
    far, plain = (tableau(DEIS(order, LinearVP(), frame=frame)) for frame in (Velocity(1e7), NOISE))
    assert torch.allclose(far.S, plain.S, atol=1e-9)
    assert torch.allclose(far.N, plain.N, rtol=1e-9, atol=1e-9)


def test_a_very_small_deviation_is_data_prediction() -> None:
    # order 0 in data prediction is DDIM: x' = rho' / rho x + (1 - rho' / rho) D
    run = tableau(DEIS(0, LinearVP(), frame=Velocity(1e-7)))
    D = integrate(MIXTURE.eps, noise(), run), integrate(MIXTURE.eps, noise(), tableau(DEIS(0, LinearVP())))
    assert torch.allclose(*D, rtol=1e-6)


def test_weights_are_integrals_over_theta() -> None:
    rho = grid(Power(7), *SPAN, 5)
    run, c = Tableau.single_term(rho, torch.zeros(5, 5, dtype=torch.float64), VELOCITY), BLEND(rho).tolist()
    _, W = DEIS(2, BLEND, frame=VELOCITY)(Power(7), *SPAN, 5).in_frame()
    unit = VELOCITY.unit(rho)
    for j in range(3):  # row 4 reads the slopes at 4, 3, 2

        def integrand(theta: float, j: int = j) -> float:
            at = float(BLEND(torch.tensor(S * math.tan(theta), dtype=torch.float64)))
            others = [4 - k for k in range(3) if k != j]
            product = 1.0
            for k in others:
                product *= (at - c[k]) / (c[4 - j] - c[k])
            return product

        ends = [VELOCITY.coordinate(float(level)) for level in rho[4:6]]
        expected, _ = quad(integrand, *ends, epsabs=1e-13, epsrel=1e-12)
        assert float(W[4, 4 - j] / unit[4 - j]) == pytest.approx(expected, rel=1e-9)
    assert run.residual < 1e-12


@pytest.mark.parametrize("name", ["ab3", "abm2", "rk4"])
def test_rows_in_the_frame_and_unrolled_rows_make_the_same_run(name: str) -> None:
    run = tableau(METHODS[name])
    P, W = run.in_frame()
    assert torch.allclose(P.sum(1), torch.ones(len(P), dtype=torch.float64), atol=1e-12)
    assert bool(W.triu(1).eq(0).all())
    one, other = (integrate(MIXTURE.eps, noise(), each) for each in (run, run.unrolled()))
    assert torch.allclose(one, other, rtol=1e-10)
    assert run.unrolled().frame == VELOCITY


def test_weights_stay_finite_as_noise_grows() -> None:
    near, far = (DEIS(3, Power(1e3), frame=VELOCITY)(LogSNR(), top, 0.01, 1).in_frame()[1] for top in (1e4, 1e6))
    # in units of G: the weight of F is a / s times it
    weights = [float(W / VELOCITY.unit(torch.tensor(top))) for W, top in ((near, 1e4), (far, 1e6))]
    assert weights[0] == pytest.approx(weights[1], rel=2e-4)
    assert weights[1] == pytest.approx(VELOCITY.coordinate(0.01) - math.pi / 2, rel=2e-6)


def test_a_row_that_does_not_keep_the_gaussian_is_refused() -> None:
    plain = tableau(DEIS(3, LinearVP()))
    with pytest.raises(ValueError, match="frame"):
        replace(plain, frame=VELOCITY)
    with pytest.raises(ValueError, match="frame"):
        replace(tableau(METHODS["ab3"]), frame=NOISE)


def test_the_last_row_may_be_the_denoised_mean() -> None:
    run = build_tableau(METHODS["ab3"], Power(7), SPAN, 5, "denoise")
    assert (run.nfe, float(run.rho[-1])) == (5, 0.0)
    assert run.residual < 1e-12
    *_, before, last = trajectory(MIXTURE.eps, noise(), run)
    assert torch.allclose(last.x, before.x - before.rho * MIXTURE.eps(before.x, before.rho))
    with pytest.raises(ValueError, match="no such form"):
        run.unrolled()


def test_the_network_is_given_the_query_levels() -> None:
    plain = tableau(METHODS["ab3"], 4)
    query = plain.rho[:-1] * torch.tensor([1.0, 1.1, 0.9, 1.05], dtype=torch.float64)
    run = Tableau.single_term(plain.rho, plain.in_frame()[1], VELOCITY, query)
    given: list[float] = []

    def eps(x: Tensor, rho: float) -> Tensor:
        given.append(rho)
        return gaussian(x, rho)

    # any levels keep the Gaussian, since F vanishes at all of them
    assert torch.allclose(integrate(eps, noise(), run), integrate(gaussian, noise(), plain), rtol=1e-10)
    assert given == query.tolist()
    assert torch.equal(run.unrolled().query_levels, query)


def test_a_point_needs_no_more_than_the_query_levels_say() -> None:
    plain = tableau(DEIS(1, LinearVP()), 3)
    query = plain.rho[:-1] * 2
    run = Tableau.single_term(plain.rho, plain.N * 2, query=query)  # eps(x, 2 rho) = x / (2 rho)
    assert run.residual < 1e-12
    assert torch.allclose(integrate(lambda x, rho: x / rho, noise(), run), noise() * SPAN[1] / SPAN[0], rtol=1e-9)


def test_the_corrector_costs_no_call_and_one_order_more() -> None:
    errors = {}
    for name, solver in (("predictor", DEIS(1, BLEND, frame=VELOCITY)), ("corrector", METHODS["abm2"])):
        runs = [build_tableau(solver, Power(7), SPAN, nfe, "none") for nfe in (400, 800)]
        assert [run.nfe for run in runs] == [400, 800]
        assert [len(run.B) for run in runs] == [400, 800]
        fine = integrate(MIXTURE.eps, noise(), build_tableau(rk4(), Power(7), SPAN, 8000, "none"))
        one, two = (float((integrate(MIXTURE.eps, noise(), run) - fine).norm()) for run in runs)
        errors[name] = torch.tensor(one / two).log2()
    assert float(errors["predictor"]) == pytest.approx(2, abs=0.15)
    assert float(errors["corrector"]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "0.5", True])
def test_a_deviation_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"sigma_data={value}"):
        Velocity(value)  # type: ignore[arg-type]


def test_the_blend_is_its_own_inverse_backwards() -> None:
    rho = torch.logspace(-4, 2.5, 40, dtype=torch.float64)
    assert torch.allclose(BLEND.inverse(BLEND(rho)), rho, rtol=1e-12)
    assert bool((BLEND(rho).diff() > 0).all())
    with pytest.raises(InputError, match=r"schedule\.weight"):
        Blend(LinearVP(), 0)


def test_the_first_slope_is_free_where_x_is_noise_and_steps_are_few() -> None:
    solver = DEIS(3, BLEND, frame=VELOCITY, analytic_first=10)
    few, many = (build_tableau(solver, Power(7), SPAN, nfe, "none") for nfe in (10, 11))
    near = build_tableau(solver, Power(7), (60.0, 0.002), 10, "none")  # below 100 S
    assert [len(run.B) for run in (few, many, near)] == [11, 11, 10]
    assert [run.nfe for run in (few, many, near)] == [10, 11, 10]
    assert not few.calls[0]
    assert many.calls[0]
    # the weights of the other slopes are those of the method with all calls
    assert torch.equal(few.N[:, 1:], many.N[:, 1:])
    assert torch.allclose(integrate(gaussian, noise(), few), integrate(gaussian, noise(), many), rtol=1e-11)
    one, other = (integrate(MIXTURE.eps, noise(), run) for run in (few, few.unrolled()))
    assert torch.allclose(one, other, rtol=1e-10)
    plain = DEIS(3, BLEND, analytic_first=10)(Power(7), *SPAN, 5)
    assert plain.nfe == len(plain.B) == 5  # noise prediction has no such step


def test_the_free_step_pays_on_a_mixture() -> None:
    fine = integrate(MIXTURE.eps, noise(), build_tableau(rk4(), Power(7), SPAN, 2000, "none"))
    spacing = Polynomial(LinearVP(), 2.4)
    errors = [
        float((integrate(MIXTURE.eps, noise(), build_tableau(solver, spacing, SPAN, 5, "none")) - fine).norm())
        for solver in (DEIS(3, BLEND, frame=VELOCITY, analytic_first=20), DEIS(3, BLEND, frame=VELOCITY))
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("nfe", [5, 10, 20])
def test_the_free_step_costs_what_it_misses_of_brightness(nfe: int) -> None:
    """Along one direction of pictures of 3x32x32: a deviation of 15, and the mean of pictures on a white ground."""
    s, mean, deviation = 0.5, 0.5 * 3072**0.5, 15.0
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SPAN[0]
    width = [(level**2 + deviation**2) ** 0.5 for level in SPAN]
    exact = mean + (x - mean) * width[1] / width[0]
    errors = []
    for analytic_first in (20, 0):
        solver = DEIS(3, BLEND, frame=Velocity(s), analytic_first=analytic_first)
        run = build_tableau(solver, Polynomial(LinearVP(), 2), SPAN, nfe, "none")
        out = integrate(lambda x, rho: rho * (x - mean) / (rho**2 + deviation**2), x, run)
        errors.append(float((out - exact).square().mean().sqrt()))
    assert errors[0] > 2 * errors[1]


def test_the_last_steps_can_be_left_as_predicted() -> None:
    """Rows are Adams-Bashforth-Moulton's up to the one that takes up the last difference, then Adams-Bashforth's."""
    predicted, corrected = (tableau(DEIS(2, BLEND, frame=VELOCITY, corrector=it)).N for it in (False, True))
    for uncorrected in range(1, 12):
        run = tableau(DEIS(2, BLEND, frame=VELOCITY, corrector=True, uncorrected=uncorrected))
        taken_up = max(1, len(run.N) - uncorrected + 1)
        assert torch.equal(run.N[:taken_up], corrected[:taken_up])
        assert torch.equal(run.N[taken_up:], predicted[taken_up:])
    with pytest.raises(InputError, match=r"solver\.uncorrected=0: must be a whole number, at least 1"):
        DEIS(2, BLEND, corrector=True, uncorrected=0)
