import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.budget import step_levels, step_orders
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.dpm_solver import DPMSolver
from scoreline.solvers.tableau import Solver, build

VP = LinearVP()
QUADRATIC = Polynomial(VP, 2)
LOG_SNR = LogSNR()
RANGE = (VP.sigma_max, VP.sigma_min)

# The algorithm boxes in native VP coordinates: x_t = alpha_t x_0 + sigma_t eps, lambda = ln(alpha / sigma).


def alpha(t: float) -> float:
    return math.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)


def sigma(t: float) -> float:
    return math.sqrt(-math.expm1(-(t**2) * 19.9 / 2 - t * 0.1))


def lam(t: float) -> float:
    return math.log(alpha(t) / sigma(t))


def time_of(lam: float) -> float:
    w = 2 * 19.9 * math.log1p(math.exp(-2 * lam))
    return w / ((math.sqrt(0.1**2 + w) + 0.1) * 19.9)


Eps = Callable[[Tensor, float], Tensor]


@pytest.fixture(scope="module")
def eps(mixture: GaussianMixture) -> Eps:
    return lambda x, t: mixture.eps(x / alpha(t), sigma(t) / alpha(t))


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def clean(eps: Eps, x: Tensor, t: float) -> Tensor:
    return (x - sigma(t) * eps(x, t)) / alpha(t)


def dpm_solver_2(eps: Eps, x: Tensor, s: float, t: float, r1: float = 0.5) -> Tensor:
    h = lam(t) - lam(s)
    s1 = time_of(lam(s) + r1 * h)
    f = eps(x, s)
    u = alpha(s1) / alpha(s) * x - sigma(s1) * math.expm1(r1 * h) * f
    x = alpha(t) / alpha(s) * x - sigma(t) * math.expm1(h) * f
    return x - sigma(t) / (2 * r1) * math.expm1(h) * (eps(u, s1) - f)


def dpm_solver_3(eps: Eps, x: Tensor, s: float, t: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    h = lam(t) - lam(s)
    s1, s2 = time_of(lam(s) + r1 * h), time_of(lam(s) + r2 * h)
    f = eps(x, s)
    u1 = alpha(s1) / alpha(s) * x - sigma(s1) * math.expm1(r1 * h) * f
    d1 = eps(u1, s1) - f
    u2 = alpha(s2) / alpha(s) * x - sigma(s2) * math.expm1(r2 * h) * f
    u2 = u2 - sigma(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps(u2, s2) - f
    x = alpha(t) / alpha(s) * x - sigma(t) * math.expm1(h) * f
    return x - sigma(t) / r2 * (math.expm1(h) / h - 1) * d2


def dpmpp_2s(eps: Eps, x: Tensor, s: float, t: float, r1: float = 0.5) -> Tensor:
    h = lam(t) - lam(s)
    s1 = time_of(lam(s) + r1 * h)
    f = clean(eps, x, s)
    u = sigma(s1) / sigma(s) * x - alpha(s1) * math.expm1(-r1 * h) * f
    D = (1 - 1 / (2 * r1)) * f + 1 / (2 * r1) * clean(eps, u, s1)
    return sigma(t) / sigma(s) * x - alpha(t) * math.expm1(-h) * D


def dpmpp_3s(eps: Eps, x: Tensor, s: float, t: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    h = lam(t) - lam(s)
    s1, s2 = time_of(lam(s) + r1 * h), time_of(lam(s) + r2 * h)
    f = clean(eps, x, s)
    u1 = sigma(s1) / sigma(s) * x - alpha(s1) * math.expm1(-r1 * h) * f
    u2 = sigma(s2) / sigma(s) * x - alpha(s2) * math.expm1(-r2 * h) * f
    u2 = u2 + r2 / r1 * alpha(s2) * (math.expm1(-r2 * h) / (r2 * h) + 1) * (clean(eps, u1, s1) - f)
    x = sigma(t) / sigma(s) * x - alpha(t) * math.expm1(-h) * f
    return x + alpha(t) / r2 * (math.expm1(-h) / h + 1) * (clean(eps, u2, s2) - f)


def native_times(steps: int) -> list[float]:
    """Quadratic in time from 1 to 1e-3."""
    return [(1 + (math.sqrt(1e-3) - 1) * i / steps) ** 2 for i in range(steps + 1)]


def ours(solver: Solver, mixture: GaussianMixture, noise: Tensor, nfe: int) -> Tensor:
    """Native samples at t = 1e-3 from the native state sigma_T z."""
    table = solver(QUADRATIC, *RANGE, nfe)
    return alpha(1e-3) * integrate(mixture.eps, sigma(1.0) / alpha(1.0) * noise, table)


BOXES = [
    (DPMSolver(2), dpm_solver_2, ()),
    (DPMSolver(2, r1=0.3), dpm_solver_2, (0.3,)),
    (DPMSolver(3), dpm_solver_3, ()),
    (DPMSolver(3, r1=0.4, r2=0.7), dpm_solver_3, (0.4, 0.7)),
    (DPMSolver(2, "data"), dpmpp_2s, ()),
    (DPMSolver(2, "data", r1=0.7), dpmpp_2s, (0.7,)),
    (DPMSolver(3, "data"), dpmpp_3s, ()),
]


@pytest.mark.parametrize("steps", [2, 4, 9])
@pytest.mark.parametrize(("solver", "box", "nodes"), BOXES, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_single_steps_are_the_published_boxes(
    solver: DPMSolver,
    box: Callable[..., Tensor],
    nodes: tuple[float, ...],
    steps: int,
    mixture: GaussianMixture,
    eps: Eps,
    noise: Tensor,
) -> None:
    t, x = native_times(steps), sigma(1.0) * noise
    for i in range(steps):
        x = box(eps, x, t[i], t[i + 1], *nodes)
    torch.testing.assert_close(ours(solver, mixture, noise, solver.order * steps), x, rtol=0, atol=1e-10)


def test_dpm_solver_fast(mixture: GaussianMixture, eps: Eps, noise: Tensor) -> None:
    """nfe = 9 is 3, 3, 2, 1 on a grid of 9; nodes that the user moved belong to order 3 only."""
    t, x = native_times(9), sigma(1.0) * noise
    for i in (0, 3):
        x = dpm_solver_3(eps, x, t[i], t[i + 3], 0.25, 2 / 3)
    x = dpm_solver_2(eps, x, t[6], t[8])
    h = lam(t[9]) - lam(t[8])
    x = alpha(t[9]) / alpha(t[8]) * x - sigma(t[9]) * math.expm1(h) * eps(x, t[8])
    solver = DPMSolver(3, budget="agile", r1=0.25)
    torch.testing.assert_close(ours(solver, mixture, noise, 9), x, rtol=0, atol=1e-10)


def multistep_noise(eps: Eps, x: Tensor, t: list[float], order: int, second: float) -> Tensor:
    """Multistep DPM-Solver as in its released code, `second` times the second-difference term."""
    F: list[Tensor] = []
    for i in range(len(t) - 1):
        F.insert(0, eps(x, t[i]))
        h, used = lam(t[i + 1]) - lam(t[i]), min(order, i + 1)
        p1 = math.expm1(h)
        p2 = p1 / h - 1
        p3 = p2 / h - 1 / 2
        x = alpha(t[i + 1]) / alpha(t[i]) * x - sigma(t[i + 1]) * p1 * F[0]
        x = x - sigma(t[i + 1]) * differences(F, t[: i + 1], h, used, (p1, p2, second * p3))
    return x


def multistep_data(eps: Eps, x: Tensor, t: list[float], order: int, second: float) -> Tensor:
    """DPM-Solver++(2M, 3M) as in the released code, `second` times the second-difference term."""
    F: list[Tensor] = []
    for i in range(len(t) - 1):
        F.insert(0, clean(eps, x, t[i]))
        h, used = lam(t[i + 1]) - lam(t[i]), min(order, i + 1)
        p1 = math.expm1(-h)
        p2 = p1 / h + 1
        p3 = p2 / h - 1 / 2
        x = sigma(t[i + 1]) / sigma(t[i]) * x - alpha(t[i + 1]) * p1 * F[0]
        x = x - alpha(t[i + 1]) * differences(F, t[: i + 1], h, used, (p1, -p2, second * p3))
    return x


def differences(F: list[Tensor], t: list[float], h: float, used: int, p: tuple[float, float, float]) -> Tensor | float:
    if used == 1:
        return 0.0
    r0 = (lam(t[-1]) - lam(t[-2])) / h
    D1_0 = (F[0] - F[1]) / r0
    if used == 2:
        return p[0] / 2 * D1_0
    r1 = (lam(t[-2]) - lam(t[-3])) / h
    D1_1 = (F[1] - F[2]) / r1
    d1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
    d2 = (D1_0 - D1_1) / (r0 + r1)
    return p[1] * d1 + p[2] * d2


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize(("order", "released"), [(1, False), (2, False), (3, False), (3, True)])
@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_multistep_is_the_published_box(
    steps: int, order: int, released: bool, prediction: str, mixture: GaussianMixture, eps: Eps, noise: Tensor
) -> None:
    box = multistep_noise if prediction == "noise" else multistep_data
    x = box(eps, sigma(1.0) * noise, native_times(steps), order, 1.0 if released else 2.0)
    solver = DPMMultistep(order, prediction, released)
    torch.testing.assert_close(ours(solver, mixture, noise, steps), x, rtol=0, atol=1e-10)


def test_corrected_third_order_is_deis_in_log_rho() -> None:
    """Noise prediction, parabola through the three latest in ln rho, integrated by an independent quadrature."""
    ours, theirs = (solver(QUADRATIC, *RANGE, 15) for solver in (DPMMultistep(3), DEIS(2, LogSNR())))
    torch.testing.assert_close(ours.N[2:], theirs.N[2:], rtol=1e-10, atol=1e-12)
    released = DPMMultistep(3, released=True)(QUADRATIC, *RANGE, 15)
    assert float((released.N[2:] - theirs.N[2:]).abs().max()) > 1e-2


def test_corrected_third_order_integrates_a_parabola() -> None:
    """d(x / rho) / d lambda = e^lambda D: weights rho' int e^lambda l_j(lambda) d lambda, by Gauss-Legendre."""
    table = build(DPMMultistep(3, "data"), LogSNR(), (10.0, 0.05), 8, "none")
    # rows of steps alternate with rows of clean data: state 2 i + 1 is E[x_0 | x_2i], state 2 i the grid's
    levels = [10.0, *table.rho[2::2].tolist()]
    node, weight = np.polynomial.legendre.leggauss(20)
    for i in range(2, 8):
        now = [-math.log(level) for level in levels[i - 2 : i + 2]]
        points = now[2] + (now[3] - now[2]) * (node + 1) / 2
        for j in range(3):
            other = [now[k] for k in range(3) if k != j]
            line = (points - other[0]) * (points - other[1]) / ((now[j] - other[0]) * (now[j] - other[1]))
            integral = float((weight * np.exp(points - now[3]) * line).sum() * (now[3] - now[2]) / 2)
            assert float(table.S[2 * i + 1, 2 * (i - 2 + j) + 1]) == pytest.approx(integral, rel=1e-9)


def test_data_history_is_one_tensor_a_step() -> None:
    table = build(DPMMultistep(3, "data"), QUADRATIC, RANGE, 10, "none")
    steps = table.rho[1:] > 0
    assert int(steps.sum()) == 10
    assert not table.N[steps].any()
    assert int(table.S[steps].count_nonzero(1).max()) == 4


def test_order_one_is_ddim(mixture: GaussianMixture, noise: Tensor) -> None:
    ddim = ours(DDIM(), mixture, noise, 9)
    for prediction in ("noise", "data"):
        for solver in (DPMSolver(1, prediction), DPMMultistep(1, prediction)):
            torch.testing.assert_close(ours(solver, mixture, noise, 9), ddim, rtol=0, atol=1e-13)


def test_lower_order_final_ends_with_ddim() -> None:
    plain, lower = (DPMMultistep(3, lower_order_final=flag)(QUADRATIC, *RANGE, 8) for flag in (False, True))
    torch.testing.assert_close(plain.N[:6], lower.N[:6], rtol=0, atol=0)
    assert [int(row.count_nonzero()) for row in plain.N] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert [int(row.count_nonzero()) for row in lower.N] == [1, 2, 3, 3, 3, 3, 2, 1]
    second = DPMMultistep(2)(QUADRATIC, *RANGE, 8)
    torch.testing.assert_close(lower.N[6], second.N[6], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("nfe", "order", "orders"),
    [
        (1, 3, [1]),
        (2, 3, [2]),
        (3, 3, [2, 1]),
        (4, 3, [3, 1]),
        (5, 3, [3, 2]),
        (6, 3, [3, 2, 1]),
        (12, 3, [3, 3, 3, 2, 1]),
        (20, 3, [3] * 6 + [2]),
        (100, 3, [3] * 33 + [1]),
        (7, 2, [2, 2, 2, 1]),
        (8, 2, [2] * 4),
        (5, 1, [1] * 5),
    ],
)
def test_agile_orders(nfe: int, order: int, orders: list[int]) -> None:
    assert step_orders(nfe, order, "agile") == orders


@pytest.mark.parametrize("order", [1, 2, 3])
def test_budgets(order: int) -> None:
    for nfe in range(1, 121):
        agile = step_orders(nfe, order, "agile")
        assert sum(agile) == nfe
        assert sorted(agile, reverse=True) == agile
        assert agile.count(order) >= len(agile) - 2
        if nfe >= order:
            assert step_orders(nfe, order, "fixed") == [order] * (nfe // order)


def test_steps_are_as_long_as_their_calls() -> None:
    levels = step_levels(Power(1), 7.0, 1.0, [3, 2, 1])
    torch.testing.assert_close(levels, torch.tensor([7.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    even = step_levels(LogSNR(), math.e**6, 1.0, [3, 2, 1])  # as released, on this grid alone
    torch.testing.assert_close(even.log(), torch.tensor([6.0, 4.0, 2.0, 0.0], dtype=torch.float64))


EXACT = [DPMSolver(p, d, "agile") for p in (1, 2, 3) for d in ("noise", "data")]
EXACT += [DPMMultistep(p, d, lower_order_final=f) for p in (1, 2, 3) for d in ("noise", "data") for f in (False, True)]


@pytest.mark.parametrize("solver", EXACT, ids=repr)
def test_exact_budgets(solver: Solver) -> None:
    for nfe in range(1, 31):
        table = build(solver, Power(7), (80.0, 0.002), nfe, "none")
        assert table.nfe == nfe
        assert table.residual < 1e-12
        assert float(table.rho[-1]) == 0.002


@pytest.mark.parametrize(("order", "nfe", "spent"), [(2, 2, 2), (2, 15, 14), (3, 3, 3), (3, 20, 18), (3, 50, 48)])
def test_the_fixed_budget_leaves_a_rest(order: int, nfe: int, spent: int) -> None:
    for prediction in ("noise", "data"):
        table = build(DPMSolver(order, prediction), Power(7), (80.0, 0.002), nfe, "none")
        assert table.nfe == spent
        assert table.residual < 1e-12


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 80


@pytest.fixture(scope="module")
def truth(exact_flow: Callable[..., Tensor], start: Tensor) -> Tensor:
    return exact_flow(start, 80.0, 0.002)


def measured(
    solver: Solver, mixture: GaussianMixture, start: Tensor, truth: Tensor, spacing: Schedule = LOG_SNR
) -> float:
    """Order between 120 and 480 calls."""
    errors = [
        float((integrate(mixture.eps, start, solver(spacing, 80.0, 0.002, nfe)) - truth).norm()) for nfe in (120, 480)
    ]
    return math.log2(errors[0] / errors[1]) / 2


MEASURED: list[tuple[Solver, float]] = [
    *((DPMSolver(p, d), float(p)) for p in (1, 2, 3) for d in ("noise", "data")),
    (DPMSolver(2, r1=0.3), 2.0),
    (DPMSolver(3, r1=0.4), 3.0),
    (DPMSolver(3, r1=0.4, r2=0.7), 2.0),
    *((DPMMultistep(p, d), float(p)) for p in (1, 2, 3) for d in ("noise", "data")),
    *((DPMMultistep(3, d, released=True), 2.0) for d in ("noise", "data")),
    *((DPMMultistep(p, d, lower_order_final=True), float(p)) for p in (2, 3) for d in ("noise", "data")),
    *((DPMSolver(3, d, "agile"), 3.0) for d in ("noise", "data")),
]


@pytest.mark.parametrize(("solver", "order"), MEASURED, ids=repr)
def test_measured_orders(solver: Solver, order: float, mixture: GaussianMixture, start: Tensor, truth: Tensor) -> None:
    assert measured(solver, mixture, start, truth) == pytest.approx(order, abs=0.15)
    assert solver.convergence == order


def test_a_long_last_step_lowers_the_order(mixture: GaussianMixture, start: Tensor, truth: Tensor) -> None:
    """Even in sqrt(time) the last of 120 calls more than halves rho: order 2 instead of 3."""
    orders = [measured(DPMSolver(3, budget=b), mixture, start, truth, QUADRATIC) for b in ("fixed", "agile")]
    assert orders == [pytest.approx(3, abs=0.15), pytest.approx(2, abs=0.15)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolver(4), r"solver\.order=4.*1, 2, 3"),
        (lambda: DPMSolver(0), r"solver\.order=0"),
        (lambda: DPMSolver(2, "dta"), r"solver\.prediction=dta.*did you mean 'data'"),
        (lambda: DPMSolver(2, budget="fxed"), r"solver\.budget=fxed.*did you mean 'fixed'"),
        (lambda: DPMSolver(2, r1=0.0), r"solver\.r1=0\.0.*0 < r1"),
        (lambda: DPMSolver(2, r1=1.0), r"solver\.r1=1\.0.*r2 < 1"),
        (lambda: DPMSolver(3, r1=0.7), r"solver\.r1=0\.7.*r1 < r2"),
        (lambda: DPMSolver(3, r2=1.5), r"solver\.r2=1\.5"),
        (lambda: DPMSolver(3, r2=math.nan), r"solver\.r2=nan"),
        (lambda: DPMSolver(2, r2=0.7), r"solver\.r2=0\.7.*order 2"),
        (lambda: DPMSolver(1, r1=0.5), r"solver\.r1=0\.5.*order 1"),
        (lambda: DPMMultistep(4), r"solver\.order=4.*1, 2, 3"),
        (lambda: DPMMultistep(2, "x"), r"solver\.prediction=x"),
        (lambda: DPMMultistep(2, released=True), r"solver\.released=true.*order=3"),
        (lambda: DPMSolver(3)(QUADRATIC, *RANGE, 2), r"nfe=2.*3 evaluations.*agile"),
        (lambda: DPMSolver(2)(QUADRATIC, *RANGE, 1), r"nfe=1.*2 evaluations.*agile"),
        (lambda: DPMSolver(2)(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: DPMSolver(2, "data")(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: DPMMultistep(2, "data")(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: DPMMultistep(3)(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: DPMMultistep(3)(Power(7), 80.0, 1.0, 0), r"steps=0"),
    ],
)
def test_wrong_options_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_inner_nodes_are_those_of_a_finer_grid(prediction: str) -> None:
    """With inner=schedule the evaluated levels of equal steps are the nodes of the schedule's grid of nfe intervals."""
    spacing = Polynomial(LinearVP(), 1)
    table = DPMSolver(3, prediction, inner="schedule")(spacing, 80.0, 0.01, 12)
    torch.testing.assert_close(table.rho[:-1], grid(spacing, 80.0, 0.01, 12)[:-1], rtol=1e-9, atol=0)
    same = DPMSolver(3, prediction, inner="schedule")(LogSNR(), 80.0, 0.01, 12)
    torch.testing.assert_close(same.N, DPMSolver(3, prediction)(LogSNR(), 80.0, 0.01, 12).N, rtol=1e-9, atol=1e-9)


def test_inner_is_checked() -> None:
    with pytest.raises(InputError, match=r"solver\.inner=schedul.*'schedule'"):
        DPMSolver(2, inner="schedul")
    with pytest.raises(InputError, match=r"solver\.inner=schedule: chooses r1 and r2"):
        DPMSolver(2, inner="schedule", r1=0.4)
