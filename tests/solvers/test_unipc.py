"""UniPC against the paper's formulas in native coordinates, which share no code with the tableaux."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate, trajectory
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build
from scoreline.solvers.unipc import UniPC

VP = LinearVP()
QUADRATIC = Polynomial(VP, 2)
SPAN = (VP.sigma_max, VP.sigma_min)
EVERY = [
    UniPC(*options)
    for options in itertools.product((1, 2, 3), ("bh1", "bh2"), ("noise", "data"), (True, False), (True, False))
]


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * VP.sigma_max


class Native:
    """UniPC as its paper states it: x_t = alpha_t x_0 + sigma_t eps, one state at a time, integrals by quadrature."""

    def __init__(self, solver: UniPC, mixture: GaussianMixture, rho: list[float]) -> None:
        self.solver, self.mixture, self.rho = solver, mixture, rho
        self.alpha = [1 / math.sqrt(1 + level**2) for level in rho]
        self.sigma = [level / math.sqrt(1 + level**2) for level in rho]
        self.lam = [math.log(a / s) for a, s in zip(self.alpha, self.sigma, strict=True)]

    def model(self, x: Tensor, i: int) -> Tensor:
        eps = self.mixture.eps(x / self.alpha[i], self.rho[i])
        return eps if self.solver.prediction == "noise" else (x - self.sigma[i] * eps) / self.alpha[i]

    def update(self, x: Tensor, i: int, values: dict[int, Tensor]) -> Tensor:
        """From node i to i + 1 with model values at the nodes given, i among them."""
        h, lam = self.lam[i + 1] - self.lam[i], self.lam
        noise = self.solver.prediction == "noise"
        sign = 1 if noise else -1
        if noise:
            base = self.alpha[i + 1] / self.alpha[i] * x - self.sigma[i + 1] * math.expm1(h) * values[i]
        else:
            base = self.sigma[i + 1] / self.sigma[i] * x - self.alpha[i + 1] * math.expm1(-h) * values[i]
        others = [j for j in values if j != i]
        r = np.array([(lam[j] - lam[i]) / h for j in others])
        B = h if self.solver.variant == "bh1" else sign * math.expm1(sign * h)
        n = np.arange(1, len(others) + 1)
        b = [h * quad(lambda s, k=k: s**k * math.exp(sign * h * (1 - s)), 0, 1, epsrel=1e-13)[0] / B for k in n]
        a = [0.5] if len(others) == 1 else np.linalg.solve(r[None, :] ** (n[:, None] - 1), b)
        factor = -self.sigma[i + 1] * B if noise else self.alpha[i + 1] * B
        return base + sum(factor * w / m * (values[j] - values[i]) for w, m, j in zip(a, r, others, strict=True))

    def run(self, x: Tensor) -> Tensor:
        x, steps = x * self.alpha[0], len(self.rho) - 1
        values = {0: self.model(x, 0)}
        for i in range(steps):
            points = min(self.solver.order, i + 1)
            if self.solver.lower_order_final:
                points = min(points, steps - i)
            used = {j: values[j] for j in range(i, i - points, -1)}
            predicted = self.update(x, i, used)
            if i + 1 == steps:
                return predicted / self.alpha[-1]
            values[i + 1] = self.model(predicted, i + 1)
            x = self.update(x, i, {**used, i + 1: values[i + 1]}) if self.solver.corrector else predicted
        raise AssertionError


@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_equals_the_papers_loop_in_native_coordinates(solver: UniPC, mixture: GaussianMixture, start: Tensor) -> None:
    rho = grid(QUADRATIC, *SPAN, 7).tolist()
    ours = integrate(mixture.eps, start, solver(QUADRATIC, *SPAN, 7))
    torch.testing.assert_close(ours, Native(solver, mixture, rho).run(start), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [solver for solver in EVERY if solver.variant == "bh2"], ids=str)
def test_budget_is_exact_and_rows_are_consistent(solver: UniPC) -> None:
    for nfe in range(1, 31):
        table = build(solver, QUADRATIC, SPAN, nfe, "none")
        assert table.nfe == nfe
        assert table.residual < 1e-12
        assert float(table.rho[-1]) == VP.sigma_min


@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_order_one_without_corrector_is_ddim(
    prediction: str, variant: str, mixture: GaussianMixture, start: Tensor
) -> None:
    table = UniPC(1, variant, prediction, corrector=False)(QUADRATIC, *SPAN, 9)
    truth = integrate(mixture.eps, start, DDIM()(QUADRATIC, *SPAN, 9))
    torch.testing.assert_close(integrate(mixture.eps, start, table), truth, rtol=1e-12, atol=1e-12)


def increments(solver: UniPC, degree: int, nfe: int) -> list[tuple[float, float]]:
    """Of x or of x / rho over every step, for F = lambda^degree: (ours, by quadrature).

    A corrected state c_n has no row: the next prediction is c_n plus what the predictor alone would add.
    """
    noise = solver.prediction == "noise"

    def eps(x: Tensor, rho: float) -> Tensor:
        value = (-math.log(rho)) ** degree
        return torch.full_like(x, value) if noise else (x - value) / rho

    table = solver(Power(7), 20.0, 0.05, nfe)
    scaled = {20.0: 1.0 if noise else 1.0 / 20}
    for state in trajectory(eps, torch.ones(1, dtype=torch.float64), table):
        if state.rho:
            scaled[state.rho] = float(state.x) if noise else float(state.x) / state.rho
    pairs = []
    for before, after in itertools.pairwise(scaled):
        weight = (lambda v: -math.exp(-v)) if noise else math.exp
        exact, _ = quad(lambda v, w=weight: v**degree * w(v), -math.log(before), -math.log(after), epsrel=1e-13)
        pairs.append((scaled[after] - scaled[before], exact))
    assert len(pairs) == nfe
    if not solver.corrector:
        return pairs
    alone = [step for step, _ in increments(replace(solver, corrector=False), degree, nfe)]
    corrected = [pairs[i + 1][0] - alone[i + 1] + alone[i] for i in range(nfe - 1)]
    return [(step, exact) for step, (_, exact) in zip(corrected, pairs, strict=False)]


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize(("order", "corrector", "degree"), [(1, False, 0), (3, False, 2), (2, True, 2), (3, True, 3)])
def test_polynomials_in_lambda_are_integrated_exactly(
    order: int, corrector: bool, degree: int, prediction: str, variant: str
) -> None:
    """Every step that has its whole history, to the degree that its number of points allows and not beyond."""
    solver = UniPC(order, variant, prediction, corrector)
    for power in range(degree + 1):
        for ours, exact in increments(solver, power, 9)[order - 1 : 8]:
            assert ours == pytest.approx(exact, rel=1e-9, abs=1e-11)
    ours, exact = increments(solver, degree + 1, 9)[6]
    assert ours != pytest.approx(exact, rel=1e-5)


def test_variants_differ_in_single_differences_only() -> None:
    one, two = (UniPC(3, variant, "noise", corrector=False)(QUADRATIC, *SPAN, 6).N for variant in ("bh1", "bh2"))
    same = torch.isclose(one, two, rtol=1e-13, atol=0).all(1)
    assert same.tolist() == [True, False, True, True, True, True]


@pytest.fixture(scope="module")
def truth(exact_flow: Callable[..., Tensor], start: Tensor) -> Tensor:
    return exact_flow(start, VP.sigma_max, VP.sigma_min)


@pytest.mark.parametrize("solver", [solver for solver in EVERY if not solver.lower_order_final], ids=str)
def test_measured_order(solver: UniPC, mixture: GaussianMixture, start: Tensor, truth: Tensor) -> None:
    errors = [float((integrate(mixture.eps, start, solver(QUADRATIC, *SPAN, n)) - truth).norm()) for n in (160, 640)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(solver.convergence, abs=0.15), errors


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_lower_order_final_has_order_two(
    prediction: str, mixture: GaussianMixture, start: Tensor, truth: Tensor
) -> None:
    solver = UniPC(3, prediction=prediction, lower_order_final=True)
    errors = [float((integrate(mixture.eps, start, solver(QUADRATIC, *SPAN, n)) - truth).norm()) for n in (160, 640)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(solver.convergence, abs=0.15), errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, r"solver\.order=4"),
        ({"order": 0}, r"solver\.order=0"),
        ({"order": 2, "variant": "bh3"}, r"solver\.variant=bh3: .*did you mean 'bh[12]'"),
        ({"order": 2, "prediction": "dat"}, r"solver\.prediction=dat: .*did you mean 'data'"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UniPC(**options)


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_cannot_reach_zero_noise(prediction: str) -> None:
    with pytest.raises(InputError, match="sigma_min=0"):
        UniPC(2, prediction=prediction)(Power(7), 80.0, 0.0, 5)
    with pytest.raises(InputError, match="sigma_min=0"):
        UniPC(2, prediction=prediction)(LogSNR(), 80.0, 0.0, 5)
