"""EDM's sampler, ancestral sampling and SDE-DPM-Solver++ against their algorithm boxes, and their laws."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.dpm_sde import DPMSDE2M
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver, Tableau, build
from scoreline.solvers.unipc import UniPC
from scoreline.verification.weak_error import gaussian_variance

VP = LinearVP()
QUADRATIC = Polynomial(VP, 2)
SPAN = (VP.sigma_max, VP.sigma_min)
KARRAS = Power(7)
RANGE = (80.0, 0.002)
CHURN = EDMHeun(S_churn=4, S_min=0.05, S_max=50, S_noise=1.003)
Fresh = Callable[[], Tensor]


@pytest.fixture
def start() -> Tensor:
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * RANGE[0]


def source(seed: int = 5) -> Fresh:
    """Fresh noise in the order in which it is asked for; two sources of one seed agree."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(16, 2, generator=generator, dtype=torch.float64)


def sample(mixture: GaussianMixture, start: Tensor, table: Tableau) -> Tensor:
    fresh = source()
    return integrate(mixture.eps, start, table, lambda row: fresh())


def edm_loop(mixture: GaussianMixture, x: Tensor, t: list[float], solver: EDMHeun, eulers: int, fresh: Fresh) -> Tensor:
    """Algorithm 2 of Karras et al.; Algorithm 1 without churn. The last `eulers` steps have no second half."""
    N = len(t) - 1
    for i in range(N):
        gamma = min(solver.S_churn / N, math.sqrt(2) - 1) if solver.S_min <= t[i] <= solver.S_max else 0.0
        t_hat = t[i] + gamma * t[i]
        if gamma:
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * solver.S_noise * fresh()
        d = (x - mixture.denoise(x, t_hat)) / t_hat
        trial = x + (t[i + 1] - t_hat) * d
        if i < N - eulers:
            d_trial = (trial - mixture.denoise(trial, t[i + 1])) / t[i + 1]
            trial = x + (t[i + 1] - t_hat) * (d / 2 + d_trial / 2)
        x = trial
    return x


@pytest.mark.parametrize("solver", [EDMHeun(), CHURN, EDMHeun(S_churn=30)], ids=["none", "some", "capped"])
@pytest.mark.parametrize(("nfe", "eulers"), [(1, 1), (2, 2), (3, 1), (4, 2), (11, 1), (12, 2), (35, 1)])
def test_edm_is_the_papers_loop(
    solver: EDMHeun, nfe: int, eulers: int, mixture: GaussianMixture, start: Tensor
) -> None:
    N = (nfe + eulers) // 2
    a, b = (level ** (1 / 7) for level in RANGE)
    t = [*((a + i / (N - 1) * (b - a)) ** 7 for i in range(N)), 0.0] if N > 1 else [RANGE[0], 0.0]
    truth = edm_loop(mixture, start, t, solver, eulers, source())
    ours = sample(mixture, start, build(solver, KARRAS, RANGE, nfe, "none"))
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)


def test_edm_without_churn_is_heun_with_denoising() -> None:
    for nfe in range(2, 31):
        ours, other = build(EDMHeun(), KARRAS, RANGE, nfe, "none"), build(heun(), KARRAS, RANGE, nfe, "denoise")
        for part in ("rho", "S", "N", "B"):
            assert torch.equal(getattr(ours, part), getattr(other, part))


def test_churn_stays_in_its_range_and_costs_nothing() -> None:
    table = build(CHURN, KARRAS, RANGE, 35, "none")
    churned = table.B > 0
    assert bool((table.rho[1:][churned] > table.rho[:-1][churned]).all())
    assert bool(((table.rho[:-1][churned] >= 0.05) & (table.rho[:-1][churned] <= 50)).all())
    assert 0 < int(churned.sum()) < 18
    assert not table.N[churned].any()
    assert table.nfe == 35


def test_another_s_noise_leaves_a_residual() -> None:
    kept, inflated = (build(EDMHeun(S_churn=4, S_noise=s), KARRAS, RANGE, 11, "none") for s in (1.0, 1.007))
    assert kept.residual < 1e-12
    assert inflated.residual > 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_ancestral_steps_are_the_written_out_ones(eta: float, mixture: GaussianMixture, start: Tensor) -> None:
    fresh, x, rho = source(), start, grid(KARRAS, *RANGE, 9).tolist()
    for s, t in pairwise(rho):
        up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = math.sqrt(t**2 - up**2)
        d = (x - mixture.denoise(x, s)) / s
        x = x + d * (down - s) + (up * fresh() if up else 0.0)
    ours = sample(mixture, start, build(EulerAncestral(eta), KARRAS, RANGE, 9, "none"))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-12)


def test_ancestral_sampling_without_noise_is_ddim() -> None:
    ours, ddim = EulerAncestral(0.0)(KARRAS, 80.0, 0.0, 6), DDIM()(KARRAS, 80.0, 0.0, 6)
    torch.testing.assert_close(ours.N, ddim.N, rtol=1e-14, atol=0)
    assert float(EulerAncestral()(KARRAS, 80.0, 0.0, 6).B[-1]) == 0
    assert not ours.B.any()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_sde_steps_are_the_written_out_ones(eta: float, mixture: GaussianMixture, start: Tensor) -> None:
    fresh, x, rho = source(), start, grid(KARRAS, *RANGE, 9).tolist()
    D_1, h_1 = None, 0.0
    for s, t in pairwise(rho):
        h, D_0 = math.log(s) - math.log(t), mixture.denoise(x, s)
        D = D_0 if D_1 is None else D_0 + (D_0 - D_1) * h / (2 * h_1)
        x = t / s * math.exp(-eta * h) * x + (1 - math.exp(-h - eta * h)) * D
        if eta:
            x = x + t * math.sqrt(1 - math.exp(-2 * eta * h)) * fresh()
        D_1, h_1 = D_0, h
    ours = sample(mixture, start, build(DPMSDE2M(eta), KARRAS, RANGE, 9, "none"))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-12)


def test_sde_without_noise_is_2m_in_native_coordinates(mixture: GaussianMixture, start: Tensor) -> None:
    """Lu et al., Alg. 2: x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) ((1 + 1/(2r)) D_0 - 1/(2r) D_1)."""
    rho = grid(QUADRATIC, *SPAN, 8)
    alpha = (1 + rho**2).rsqrt()
    sigma = rho * alpha
    lam = (alpha / sigma).log()
    x, D = start * alpha[0], [mixture.denoise(start, float(rho[0]))]
    for i in range(8):
        h = lam[i + 1] - lam[i]
        half = h / (lam[i] - lam[i - 1]) / 2 if i else torch.zeros(())
        mean = (1 + half) * D[-1] - half * D[-2 if i else -1]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * mean
        D.append(mixture.denoise(x / alpha[i + 1], float(rho[i + 1])))
    ours = integrate(mixture.eps, start, DPMSDE2M(0.0)(QUADRATIC, *SPAN, 8))
    torch.testing.assert_close(ours, x / alpha[-1], rtol=1e-11, atol=1e-12)


EVERY: list[Solver] = [
    EDMHeun(),
    EDMHeun(S_churn=4, S_min=0.05, S_max=50),
    EulerAncestral(),
    EulerAncestral(0.3),
    DPMSDE2M(),
    DPMSDE2M(0.0),
]


@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_budget_and_noise_of_rows_are_exact(solver: Solver) -> None:
    for nfe in range(1, 31):
        table = build(solver, KARRAS, RANGE, nfe, "none")
        assert table.nfe == nfe
        assert table.residual < 1e-12
        assert float(table.rho[-1]) == (0.0 if isinstance(solver, EDMHeun) else 0.002)


@pytest.mark.parametrize("solver", [EDMHeun(), DPMSDE2M(0.0), EulerAncestral(0.0)], ids=str)
def test_measured_order_without_noise(
    solver: Solver, mixture: GaussianMixture, exact_flow: Callable[..., Tensor]
) -> None:
    start = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * VP.sigma_max
    truth = exact_flow(start, VP.sigma_max, VP.sigma_min)
    if isinstance(solver, EDMHeun):
        truth = mixture.denoise(truth, VP.sigma_min)
    errors = [float((integrate(mixture.eps, start, solver(QUADRATIC, *SPAN, n)) - truth).norm()) for n in (40, 160)]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(solver.convergence, abs=0.15), errors


WEAK: list[Solver] = [
    EulerAncestral(),
    EulerAncestral(0.5),
    DPMSDE2M(),
    DPMSDE2M(0.5),
    EDMHeun(S_churn=5, S_min=0.05),
    EDMHeun(S_churn=20, S_min=0.05, S_max=1),
    EDMHeun(S_churn=20, S_min=0.05, S_max=1, S_noise=1.1),
]


@pytest.mark.parametrize("c", [0.3, 0.5])
@pytest.mark.parametrize("solver", WEAK, ids=str)
def test_measured_weak_order(solver: Solver, c: float) -> None:
    """Variance on N(0, c^2), started at the exact law, whose law at every level is known."""
    truth = c**2 + VP.sigma_min**2
    if isinstance(solver, EDMHeun):
        truth = c**4 / truth
    errors = [
        abs(gaussian_variance(solver(QUADRATIC, *SPAN, nfe), c, c**2 + VP.sigma_max**2) - truth) for nfe in (160, 640)
    ]
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(solver.convergence, abs=0.15), errors


@pytest.mark.parametrize("solver", [CHURN, EulerAncestral(), DPMSDE2M(), UniPC(3)], ids=str)
@pytest.mark.parametrize("initial", [None, 90.0])
def test_variance_is_that_of_many_samples(solver: Solver, initial: float | None) -> None:
    c, count, generator = 0.7, 200_000, torch.Generator().manual_seed(11)

    def normal(row: int = 0) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    table = solver(KARRAS, 10.0, 0.1, 7)
    start = normal() * (10.0 if initial is None else math.sqrt(initial))
    x = integrate(lambda x, rho: rho * x / (c**2 + rho**2), start, table, normal)
    expected = gaussian_variance(table, c, initial)
    assert float(x.square().mean()) == pytest.approx(expected, abs=3 * expected * math.sqrt(2 / count))


def test_fine_runs_have_the_flows_variance() -> None:
    table = UniPC(3)(KARRAS, 10.0, 0.1, 300)
    assert gaussian_variance(table, 0.5) == pytest.approx((0.25 + 0.01) * 100 / (0.25 + 100), rel=1e-7)


def test_data_at_a_point_has_the_level_variance() -> None:
    """c = 0: eps = x / rho, and every consistent row ends with exactly the noise of its level."""
    for solver in EVERY:
        table = solver(KARRAS, 10.0, 0.1, 9)
        assert gaussian_variance(table, 0.0) == pytest.approx(float(table.rho[-1]) ** 2, rel=1e-12, abs=1e-24)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDMHeun(S_churn=-1), r"solver\.S_churn=-1"),
        (lambda: EDMHeun(S_churn=math.inf), r"solver\.S_churn=inf"),
        (lambda: EDMHeun(S_noise=-0.5), r"solver\.S_noise=-0.5"),
        (lambda: EDMHeun(S_min=2, S_max=1), r"solver\.S_min=2, solver\.S_max=1"),
        (lambda: EulerAncestral(-0.1), r"solver\.eta=-0\.1"),
        (lambda: DPMSDE2M(-0.1), r"solver\.eta=-0\.1"),
        (lambda: DPMSDE2M(math.nan), r"solver\.eta=nan"),
        (lambda: DPMSDE2M()(KARRAS, 80.0, 0.0, 5), "sigma_min=0"),
        (lambda: EDMHeun()(KARRAS, 80.0, 0.0, 5), "sigma_min=0"),
        (lambda: build(EDMHeun(), KARRAS, RANGE, 5, "denoise"), "use final=none"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
