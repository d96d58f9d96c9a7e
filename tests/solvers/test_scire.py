import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers import scire_multistep
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.dpm_solver import DPMSolver
from scoreline.solvers.runge_kutta import heun3, midpoint
from scoreline.solvers.scire import SciRE, phi_1, terms_of_step
from scoreline.solvers.scire_exponential import SciREExponential
from scoreline.solvers.scire_multistep import SciREMultistep
from scoreline.solvers.tableau import Solver, build

VP = LinearVP()
QUADRATIC = Polynomial(VP, 2)
RANGE = (VP.sigma_max, VP.sigma_min)
PHI = {3: 2 / 3, 4: 5 / 8, 5: 0.633333, 6: 0.631944, 7: 0.632143, "inf": 0.632121}


def phi_of(m: float | str) -> float:
    """Nested from the inside: 1 - 1/2 (1 - 1/3 (1 - ..))."""
    value = 0.0
    for k in range(50 if m == "inf" else int(m), 0, -1):
        value = (1 - value) / k
    return value


@pytest.mark.parametrize(("m", "value"), PHI.items())
def test_golden_values_of_phi(m: int | str, value: float) -> None:
    assert phi_1(m) == pytest.approx(value, abs=5.1e-7)
    assert phi_1(m) == pytest.approx(phi_of(m), rel=1e-15)


def test_phi_with_few_and_with_infinitely_many_terms() -> None:
    assert (phi_1(1), phi_1(2)) == (1.0, 0.5)
    assert phi_1(math.inf) == phi_1("inf") == pytest.approx((math.e - 1) / math.e, rel=1e-15)
    assert phi_1(20) == pytest.approx(phi_1("inf"), rel=1e-15)


@pytest.mark.parametrize("steps", range(1, 25))
def test_single_step_terms_are_the_released_ones(steps: int) -> None:
    P = [phi_of(j + 3) for j in range(steps)]
    for i in range(steps + 1):
        if i < steps // 2:
            released = P[2 * i]
        else:
            released = P[-1] if i == steps // 2 else P[2 * (steps - i) - 1]
        assert phi_1(terms_of_step(i, steps)) == pytest.approx(released, rel=1e-14)


def released_multistep_phi(step: int, steps: int, order: int) -> float:
    P = [phi_of(j + 3) for j in range(max(steps, order) + 1)]  # the released code refuses fewer steps than the order
    if step < order:
        return P[2 * step - 1]
    if step < steps // 2:
        return P[2 * (step - order) + 1]
    return P[steps] if step == steps // 2 else P[2 * (steps - step)]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("steps", range(1, 25))
def test_multistep_terms_are_the_released_ones(steps: int, order: int) -> None:
    for step in range(1, steps + 1):
        m = scire_multistep.terms_of_step(step, steps, order)
        assert phi_1(m) == pytest.approx(released_multistep_phi(step, steps, order), rel=1e-14)


# The algorithm boxes in native VP coordinates: x_t = alpha_t x_0 + sigma_t eps.


def alpha(t: float) -> float:
    return math.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)


def sigma(t: float) -> float:
    return math.sqrt(-math.expm1(-(t**2) * 19.9 / 2 - t * 0.1))


def nsr(t: float) -> float:
    return sigma(t) / alpha(t)


def r_nsr(q: float) -> float:
    w = 2 * 19.9 * math.log1p(q**2)
    return w / ((math.sqrt(0.1**2 + w) + 0.1) * 19.9)


Eps = Callable[[Tensor, float], Tensor]


@pytest.fixture(scope="module")
def eps(mixture: GaussianMixture) -> Eps:
    return lambda x, t: mixture.eps(x / alpha(t), nsr(t))


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def v1_2(eps: Eps, x: Tensor, s: float, t: float, phi: float) -> Tensor:
    h, r1 = nsr(t) - nsr(s), 0.5
    s1 = r_nsr(nsr(s) + r1 * h)
    f = eps(x, s)
    x1 = alpha(s1) / alpha(s) * x + alpha(s1) * r1 * h * f
    f1 = eps(x1, s1)
    return alpha(t) / alpha(s) * x + alpha(t) * h * f + alpha(t) * h / (2 * phi * r1) * (f1 - f)


def v1_3(eps: Eps, x: Tensor, s: float, t: float, phi: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    h = nsr(t) - nsr(s)
    s1, s2 = r_nsr(nsr(s) + r1 * h), r_nsr(nsr(s) + r2 * h)
    f = eps(x, s)
    f1 = eps(alpha(s1) / alpha(s) * x + alpha(s1) * r1 * h * f, s1)
    c = r2 / (2 * r1 * phi)
    x2 = alpha(s2) / alpha(s) * x + alpha(s2) * r2 * h * f + alpha(s2) * c * h * (f1 - f)
    f2 = eps(x2, s2)
    return alpha(t) / alpha(s) * x + alpha(t) * h * f + alpha(t) * h / (2 * phi * r2) * (f2 - f)


def clean(eps: Eps, x: Tensor, t: float) -> Tensor:
    return (x - sigma(t) * eps(x, t)) / alpha(t)


def v2_2(eps: Eps, x: Tensor, s: float, t: float, phi: float) -> Tensor:
    u, h, z = 1 / nsr(s), 1 / nsr(t) - 1 / nsr(s), x / sigma(s)
    s1 = r_nsr(1 / (u + h / 2))
    f = clean(eps, x, s)
    f1 = clean(eps, sigma(s1) * (z + h / 2 * f), s1)
    return sigma(t) * (z + h * f + h / phi * (f1 - f))


def v2_3(eps: Eps, x: Tensor, s: float, t: float, phi: float, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    u, h, z = 1 / nsr(s), 1 / nsr(t) - 1 / nsr(s), x / sigma(s)
    s1, s2 = r_nsr(1 / (u + r1 * h)), r_nsr(1 / (u + r2 * h))
    f = clean(eps, x, s)
    f1 = clean(eps, sigma(s1) * (z + r1 * h * f), s1)
    f2 = clean(eps, sigma(s2) * (z + r2 * h * f + r2 / (2 * r1 * phi) * h * (f1 - f)), s2)
    return sigma(t) * (z + h * f + h / (2 * phi * r2) * (f2 - f))


def scire_ei_2(eps: Eps, x: Tensor, s: float, t: float, phi: float, r1: float = 0.5) -> Tensor:
    h = math.log(nsr(s)) - math.log(nsr(t))
    s1 = r_nsr(nsr(s) * math.exp(-r1 * h))
    f = eps(x, s)
    f1 = eps(alpha(s1) / alpha(s) * x - sigma(s1) * math.expm1(r1 * h) * f, s1)
    x = alpha(t) / alpha(s) * x - sigma(t) * math.expm1(h) * f
    return x - sigma(t) / (phi * r1) * (math.expm1(h) / h - 1) * (f1 - f)


BOXES = [
    (SciRE(2), v1_2, 2, 2 / 3),
    (SciRE(2, m="inf"), v1_2, 2, 1 - 1 / math.e),
    (SciRE(2, m=1), v1_2, 2, 1.0),
    (SciRE(3), v1_3, 3, 2 / 3),
    (SciRE(3, m=4), v1_3, 3, 5 / 8),
    (SciRE(2, "data"), v2_2, 2, 2 / 3),
    (SciRE(3, "data"), v2_3, 3, 2 / 3),
    (SciREExponential(), scire_ei_2, 2, 2 / 3),
    (SciREExponential(m=1), scire_ei_2, 2, 1.0),
]


def native_times(steps: int) -> list[float]:
    """Quadratic in time from 1 to 1e-3."""
    return [(1 + (math.sqrt(1e-3) - 1) * i / steps) ** 2 for i in range(steps + 1)]


def ours(solver: Solver, mixture: GaussianMixture, noise: Tensor, nfe: int) -> Tensor:
    """Native samples at t = 1e-3 from the native state sigma_T z."""
    table = solver(QUADRATIC, *RANGE, nfe)
    return alpha(1e-3) * integrate(mixture.eps, nsr(1.0) * noise, table)


@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize(
    ("solver", "box", "calls", "phi"), BOXES, ids=lambda value: getattr(value, "__name__", repr(value))
)
def test_single_steps_are_the_published_boxes(
    solver: Solver,
    box: Callable[..., Tensor],
    calls: int,
    phi: float,
    steps: int,
    mixture: GaussianMixture,
    eps: Eps,
    noise: Tensor,
) -> None:
    t, x = native_times(steps), sigma(1.0) * noise
    for i in range(steps):
        x = box(eps, x, t[i], t[i + 1], phi)
    torch.testing.assert_close(ours(solver, mixture, noise, calls * steps), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_inner_nodes_are_measured_in_rho(prediction: str, mixture: GaussianMixture, eps: Eps, noise: Tensor) -> None:
    """The grid of order intervals between sqrt(s) and sqrt(t), its nodes as fractions of the step in rho."""
    t, x = native_times(5), sigma(1.0) * noise
    for s, end in pairwise(t):
        w = [nsr((math.sqrt(s) + (math.sqrt(end) - math.sqrt(s)) * i / 3) ** 2) for i in range(4)]
        r1, r2 = ((w[i] - w[0]) / (w[3] - w[0]) for i in (1, 2))
        x = (v1_3 if prediction == "noise" else v2_3)(eps, x, s, end, 2 / 3, r1, r2)
    inner = SciRE(3, prediction, inner="schedule")
    torch.testing.assert_close(ours(inner, mixture, noise, 15), x, rtol=0, atol=1e-10)


def test_phi_of_each_step_and_an_agile_budget(mixture: GaussianMixture, eps: Eps, noise: Tensor) -> None:
    """nfe = 12 is 3, 3, 3, 2, 1 on a grid of 12; K = 4 steps, hence phi_1 of 3, 5, 6, 4 and, unused, 6 terms."""
    t, x = native_times(12), sigma(1.0) * noise
    for i, m in enumerate((3, 5, 6)):
        x = v1_3(eps, x, t[3 * i], t[3 * i + 3], phi_of(m))
    x = v1_2(eps, x, t[9], t[11], phi_of(4))
    x = alpha(t[12]) / alpha(t[11]) * x + alpha(t[12]) * (nsr(t[12]) - nsr(t[11])) * eps(x, t[11])
    solver = SciRE(3, budget="agile", per_step=True)
    torch.testing.assert_close(ours(solver, mixture, noise, 12), x, rtol=0, atol=1e-10)


def multistep_box(eps: Eps, x: Tensor, times: list[float], order: int, prediction: str, phi: list[float]) -> Tensor:
    """Section "multistep" of the released code, on y = x / alpha or z = x / sigma."""
    noise_frame = prediction == "noise"
    scale, coordinate = (alpha, nsr) if noise_frame else (sigma, lambda t: 1 / nsr(t))
    F: list[Tensor] = []
    y, q = x / scale(times[0]), [nsr(t) for t in times]
    for i in range(len(times) - 1):
        x = scale(times[i]) * y
        F.insert(0, eps(x, times[i]) if noise_frame else clean(eps, x, times[i]))
        h, p, used = coordinate(times[i + 1]) - coordinate(times[i]), phi[i], min(order, i + 1)
        if used == 1:
            y = y + h * F[0]
        elif used == 2:
            r = (math.log(q[i - 1] / q[i]) / math.log(q[i] / q[i + 1])) ** (1 / 4)
            y = y + h * F[0] + h / (2 * p * r) * (F[0] - F[1])
        else:
            r0 = p * (q[i] - q[i - 1]) / (q[i + 1] - q[i])
            r1 = p / (1 + p) * (q[i - 1] - q[i - 2]) / (q[i] - q[i - 1])
            y = y + h * F[0] + h / (2 * r0 * p) * (F[0] - F[1])
            y = y + h / (6 * r0 * r1 * p**2) * (F[0] - 2 * F[1] + F[2])
    return scale(times[-1]) * y


@pytest.mark.parametrize("steps", [1, 2, 7, 12])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize("per_step", [True, False])
def test_multistep_is_the_released_box(
    steps: int, order: int, prediction: str, per_step: bool, mixture: GaussianMixture, eps: Eps, noise: Tensor
) -> None:
    phi = [2 / 3] * steps
    if per_step:
        phi = [released_multistep_phi(i, steps, order) for i in range(1, steps + 1)]
    x = multistep_box(eps, sigma(1.0) * noise, native_times(steps), order, prediction, phi)
    solver = SciREMultistep(order, prediction, per_step=per_step)
    torch.testing.assert_close(ours(solver, mixture, noise, steps), x, rtol=0, atol=1e-10)


def test_lower_order_final_ends_with_ddim() -> None:
    plain, lower = (SciREMultistep(3, lower_order_final=flag)(QUADRATIC, *RANGE, 8) for flag in (False, True))
    torch.testing.assert_close(plain.N[:6], lower.N[:6], rtol=0, atol=0)
    assert [int(row.count_nonzero()) for row in plain.N] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert [int(row.count_nonzero()) for row in lower.N] == [1, 2, 3, 3, 3, 3, 2, 1]
    assert float(lower.N[-1, -1]) == pytest.approx(float(lower.rho[-1] - lower.rho[-2]), rel=1e-14)


def test_plain_differences_are_runge_kutta_methods() -> None:
    for ours, theirs in ((SciRE(2, m=1), midpoint()), (SciRE(3, m=1, stage="consistent"), heun3())):
        nfe = 6 * ours.order
        a, b = ours(QUADRATIC, *RANGE, nfe), theirs(QUADRATIC, *RANGE, nfe)
        torch.testing.assert_close(a.N, b.N, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(a.rho, b.rho, rtol=1e-14, atol=0)


def test_order_one_is_ddim(mixture: GaussianMixture, noise: Tensor) -> None:
    ddim = ours(DDIM(), mixture, noise, 9)
    for solver in (SciRE(1), SciRE(1, "data"), SciRE(1, budget="agile")):
        torch.testing.assert_close(ours(solver, mixture, noise, 9), ddim, rtol=0, atol=1e-13)


def test_the_published_last_row_is_taylors() -> None:
    published, consistent = (SciRE(3, stage=stage)(QUADRATIC, *RANGE, 3) for stage in ("published", "consistent"))
    h = RANGE[1] - RANGE[0]
    assert float(published.N[1, 1]) == pytest.approx(1.5 * h, rel=1e-13)
    assert float(consistent.N[1, 1]) == pytest.approx(1.0 * h, rel=1e-13)
    torch.testing.assert_close(published.N[2], consistent.N[2])


AGILE = [SciRE(p, d, budget="agile") for p in (1, 2, 3) for d in ("noise", "data")]
AGILE += [SciRE(3, budget="agile", inner="schedule"), SciRE(3, budget="agile", per_step=True)]
EXACT = [*AGILE, SciREExponential(budget="agile"), *(SciREMultistep(p, d) for p in (2, 3) for d in ("noise", "data"))]


@pytest.mark.parametrize("solver", EXACT, ids=repr)
def test_exact_budgets(solver: Solver) -> None:
    for nfe in range(1, 31):
        table = build(solver, Power(7), (80.0, 0.002), nfe, "none")
        assert table.nfe == nfe
        assert table.residual < 1e-12
        assert float(table.rho[-1]) == 0.002


@pytest.mark.parametrize(("nfe", "spent"), [(3, 3), (4, 3), (20, 18), (50, 48), (100, 99), (10, 9)])
def test_the_fixed_budget_leaves_a_rest(nfe: int, spent: int) -> None:
    for prediction in ("noise", "data"):
        table = build(SciRE(3, prediction), Power(7), (80.0, 0.002), nfe, "none")
        assert table.nfe == spent
        assert table.residual < 1e-12


def test_noise_prediction_reaches_clean_data() -> None:
    for solver in (SciRE(2), SciRE(3), SciREMultistep(3)):
        table = build(solver, Power(7), (80.0, 0.0), 12, "none")
        assert float(table.rho[-1]) == 0.0
        assert table.residual < 1e-12


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 80


@pytest.fixture(scope="module")
def truth(exact_flow: Callable[..., Tensor], start: Tensor) -> Tensor:
    return exact_flow(start, 80.0, 0.002)


MEASURED: list[tuple[Solver, float]] = [
    *((SciRE(p, d), 1.0) for p in (1, 2, 3) for d in ("noise", "data")),
    (SciRE(3, m="inf"), 1.0),
    (SciRE(3, budget="agile"), 1.0),
    (SciRE(2, per_step=True), 1.0),
    (SciRE(3, per_step=True, inner="schedule"), 1.0),
    *((SciRE(2, d, m=1), 2.0) for d in ("noise", "data")),
    *((SciRE(3, d, m=1), 2.0) for d in ("noise", "data")),
    *((SciRE(3, d, m=1, stage="consistent"), 3.0) for d in ("noise", "data")),
    *((SciRE(3, m=1, stage="consistent", inner=inner, budget="agile"), 3.0) for inner in ("fixed", "schedule")),
    (SciREExponential(), 1.0),
    (SciREExponential(m=1, r1=0.3), 2.0),
    *((SciREMultistep(p, d), 1.0) for p in (2, 3) for d in ("noise", "data")),
    *((SciREMultistep(p, d, m=1, per_step=False), 2.0) for p in (2, 3) for d in ("noise", "data")),
    (SciREMultistep(2, m="inf", per_step=False), 1.0),
]


@pytest.mark.parametrize(("solver", "order"), MEASURED, ids=repr)
def test_measured_orders(solver: Solver, order: float, mixture: GaussianMixture, start: Tensor, truth: Tensor) -> None:
    """Order 1 for every phi other than 1, whatever the nominal order."""
    errors = [
        float((integrate(mixture.eps, start, solver(LogSNR(), 80.0, 0.002, nfe)) - truth).norm()) for nfe in (120, 480)
    ]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(order, abs=0.15), errors
    assert solver.convergence == order


def test_scire_ei_with_phi_one_is_exponential() -> None:
    """Against DPM-Solver-2: the same middle, weights phi_2(h) / r1 instead of phi_1(h) / (2 r1)."""
    ours, theirs = (solver(LogSNR(), 5.0, 1.0, 2) for solver in (SciREExponential(m=1), DPMSolver(2)))
    torch.testing.assert_close(ours.N[0], theirs.N[0])
    h = math.log(5)
    assert float(ours.N[1, 1]) == pytest.approx(-2 * (math.expm1(h) / h - 1), rel=1e-13)
    assert float(theirs.N[1, 1]) == pytest.approx(-math.expm1(h), rel=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SciRE(4), r"solver\.order=4.*1, 2, 3"),
        (lambda: SciRE(0), r"solver\.order=0"),
        (lambda: SciRE(2, "nois"), r"solver\.prediction=nois.*did you mean 'noise'"),
        (lambda: SciRE(2, m=0), r"solver\.m=0"),
        (lambda: SciRE(2, m=2.5), r"solver\.m=2\.5"),
        (lambda: SciRE(2, m=-math.inf), r"solver\.m=-inf"),
        (lambda: SciRE(2, m="oo"), r"solver\.m=oo.*or inf"),
        (lambda: SciRE(2, m=1, per_step=True), r"solver\.m=1.*per_step=false"),
        (lambda: SciRE(2, budget="agil"), r"solver\.budget=agil.*'agile'"),
        (lambda: SciRE(2, inner="fix"), r"solver\.inner=fix.*'fixed'"),
        (lambda: SciRE(2, stage="taylor"), r"solver\.stage=taylor.*consistent, published"),
        (lambda: SciREMultistep(1), r"solver\.order=1.*2, 3"),
        (lambda: SciREMultistep(4), r"solver\.order=4"),
        (lambda: SciREMultistep(2, "x"), r"solver\.prediction=x"),
        (lambda: SciREMultistep(2, m=5), r"solver\.m=5.*per_step=false"),
        (lambda: SciREMultistep(2, m=0, per_step=False), r"solver\.m=0"),
        (lambda: SciREExponential(m="oo"), r"solver\.m=oo"),
        (lambda: SciREExponential(r1=0.0), r"solver\.r1=0"),
        (lambda: SciREExponential(r1=1.0), r"solver\.r1=1"),
        (lambda: SciREExponential(budget="all"), r"solver\.budget=all"),
        (lambda: SciRE(3)(QUADRATIC, *RANGE, 2), r"nfe=2.*3 evaluations.*agile"),
        (lambda: SciREExponential()(QUADRATIC, *RANGE, 1), r"nfe=1.*2 evaluations"),
        (lambda: SciRE(2, "data")(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: SciREMultistep(2, "data")(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: SciREMultistep(2)(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: SciREExponential()(Power(7), 80.0, 0.0, 4), r"sigma_min=0.*final=denoise"),
        (lambda: SciREMultistep(2)(Power(7), 80.0, 1.0, 0), r"steps=0"),
    ],
)
def test_wrong_options_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
