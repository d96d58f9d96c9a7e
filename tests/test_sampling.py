import weakref

import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError, NotFiniteError
from scoreline.generation.batches import generate
from scoreline.networks.exact import GaussianMixture
from scoreline.parameterisations import NoisePrediction
from scoreline.runtime.seeded_noise import integers, normal
from scoreline.sampling import integrate, trajectory
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.rows import Rows
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build
from scoreline.storage.pictures import to_uint8, to_unit

VP = LinearVP()
SPAN = (VP.sigma_max, VP.sigma_min)


def dense(table: Tableau, eps, x: Tensor) -> Tensor:
    """Equation (2) term by term, nothing fused, nothing freed."""
    states, estimates = [x], []
    for k in range(len(table.B)):
        estimates.append(eps(states[k], float(table.rho[k])))
        terms = [float(table.S[k, j]) * states[j] + float(table.N[k, j]) * estimates[j] for j in range(k + 1)]
        states.append(sum(terms[1:], terms[0]))
    return states[-1]


@pytest.mark.parametrize("solver", [DDIM(), heun(), DEIS(3, VP)], ids=lambda s: type(s).__name__)
def test_loop_equals_the_table_written_out(solver, mixture: GaussianMixture) -> None:
    x = torch.randn(5, 2, dtype=torch.float64) * SPAN[0]
    before = x.clone()
    table = build(solver, Polynomial(VP, 2), SPAN, 9, "denoise")
    torch.testing.assert_close(integrate(mixture.eps, x, table), dense(table, mixture.eps, x), rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)


def test_any_lower_triangular_table_is_evaluated(mixture: GaussianMixture) -> None:
    generator = torch.Generator().manual_seed(1)
    S = torch.rand(6, 6, dtype=torch.float64, generator=generator).tril()
    N = torch.randn(6, 6, dtype=torch.float64, generator=generator).tril() / 10
    N[:, 2] = 0
    table = Tableau(
        torch.linspace(3, 1, 7, dtype=torch.float64), S / S.sum(1, keepdim=True), N, torch.zeros(6).double()
    )
    assert table.nfe == 5
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(integrate(mixture.eps, x, table), dense(table, mixture.eps, x))


@torch.no_grad()
def test_only_memory_of_dead_states_is_reused(mixture: GaussianMixture) -> None:
    """Rows that keep a state as it is (identity, no call) alias it; clean states live for three steps."""
    x = torch.randn(5, 2, dtype=torch.float64) * 5
    before = x.clone()
    rows, last = Rows(5.0), 0
    for target in (3.0, 2.0, 1.0, 0.5, 0.2):
        same = rows.add(rows.rho[last], {last: 1.0})
        clean = rows.clean(same)
        part = target / rows.rho[same]
        last = rows.add(target, {same: part, 2: 0.2 * (1 - part)} | {clean: (1.0 if clean == 2 else 0.8) * (1 - part)})
    table = rows.tableau()
    kept = [(state.x, state.x.clone()) for state in trajectory(mixture.eps, x, table)]
    assert all(torch.equal(state, then) for state, then in kept)
    torch.testing.assert_close(integrate(mixture.eps, x, table), kept[-1][0], rtol=0, atol=0)
    torch.testing.assert_close(kept[-1][0], dense(table, mixture.eps, x), rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)
    seen = {state.x.data_ptr() for state in trajectory(mixture.eps, x, table, reuse=True)}
    assert len(seen) < len(table.B) - 5


def test_network_calls_are_those_of_the_tableau(mixture: GaussianMixture) -> None:
    calls = []

    def eps(x: Tensor, rho: float) -> Tensor:
        calls.append(rho)
        return mixture.eps(x, rho)

    for nfe in (1, 4, 7):
        calls.clear()
        table = build(heun(), Power(7), (10.0, 0.1), nfe, "none")
        states = list(trajectory(eps, torch.ones(1, 2, dtype=torch.float64), table))
        assert len(calls) == nfe == table.nfe
        assert [s.rho for s in states] == table.rho[1:].tolist()


def test_history_is_freed_after_its_last_row() -> None:
    alive: list[weakref.ref] = []
    most = 0

    def eps(x: Tensor, rho: float) -> Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        out = x.clone()
        alive.append(weakref.ref(out))
        return out

    table = DEIS(2, VP)(Polynomial(VP, 2), *SPAN, 30)
    for _ in trajectory(eps, torch.ones(2), table):
        pass
    assert most == 2


def test_stochastic_rows_draw_their_noise() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    table = Tableau(torch.tensor([2.0, 1.0]).double(), one, -one, torch.tensor([0.5]).double())
    x = torch.zeros(20_000, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    out = integrate(
        lambda x, rho: torch.zeros_like(x), x, table, lambda row: torch.randn(x.shape, generator=generator).double()
    )
    assert float(out.std()) == pytest.approx(0.5, rel=0.03)
    with pytest.raises(ValueError, match="draw"):
        integrate(lambda x, rho: x, x, table)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.net(x) + (0 if label is None else label.reshape(-1, 1, 1, 1) / 10)


def draw(seeds: list[int], batch_size: int, labels: Tensor | None = None, network_batch: int | None = 64) -> Tensor:
    table = build(DEIS(3, VP), Polynomial(VP, 2), SPAN, 6, "none")
    batches = generate(
        Denoiser(Small(), NoisePrediction(VP)), table, (1, 8, 8), seeds, batch_size, labels, network_batch
    )
    return torch.cat([batch.x for batch in batches])


@pytest.mark.parametrize("batch_size", [1, 7, 63, 100])
def test_an_image_does_not_depend_on_the_batch(batch_size: int) -> None:
    labels = torch.arange(64) % 3
    together = draw(list(range(64)), 64, labels)
    assert torch.equal(draw(list(range(64)), batch_size, labels), together)


def test_images_do_not_depend_on_other_seeds() -> None:
    together = draw(list(range(64)), 64)
    assert torch.equal(draw([63, 5, 17], 2), together[[63, 5, 17]])


def test_without_fixed_network_batches_images_agree_to_rounding() -> None:
    together = draw(list(range(64)), 64)
    torch.testing.assert_close(draw(list(range(64)), 7, network_batch=None), together, rtol=0, atol=1e-3)


def test_an_adaptive_run_counts_and_reports_progress() -> None:
    run = build(Adaptive("RK45", rtol=1e-2, atol=1e-2), Power(7), SPAN, 2000, "denoise")
    told: list[float] = []
    denoiser = Denoiser(Small(), NoisePrediction(VP))
    batches = list(generate(denoiser, run, (1, 8, 8), range(6), 4, progress=told.append))
    assert [len(batch.x) for batch in batches] == [4, 2]
    assert all(20 < batch.nfe == batch.network_calls <= 2000 for batch in batches)
    assert len(told) == sum(batch.nfe for batch in batches)
    assert min(told) >= 0
    assert sum(told) == pytest.approx(6)
    with pytest.raises(InputError, match="nfe=9: the adaptive solver needs more"):
        list(generate(denoiser, build(run.solver, Power(7), SPAN, 9, "none"), (1, 8, 8), [0], 1))


def test_wrong_counts_and_broken_networks_are_errors() -> None:
    class Twice(Denoiser):
        def eps(self, x, rho, **condition):
            super().eps(x, rho, **condition)
            return super().eps(x, rho, **condition)

    class Broken(Small):
        def forward(self, x, noise, label=None):
            return super().forward(x, noise) * float("nan")

    table = build(DDIM(), Polynomial(VP, 2), SPAN, 3, "none")
    with pytest.raises(RuntimeError, match="called 6 times an image, 3 evaluations take 3"):
        list(generate(Twice(Small(), NoisePrediction(VP)), table, (1, 8, 8), [0], 1))
    with pytest.raises(NotFiniteError, match="seeds 4-5"):
        list(generate(Denoiser(Broken(), NoisePrediction(VP)), table, (1, 8, 8), [4, 5], 2))


def test_noise_depends_on_seed_purpose_and_step() -> None:
    z = normal(range(10), (3, 5), "initial")
    assert torch.equal(normal([7, 2], (3, 5), "initial"), z[[7, 2]])
    others = [
        normal(range(10), (3, 5), "solver"),
        normal(range(10), (3, 5), "initial", 1),
        normal(range(10, 20), (3, 5), "initial"),
    ]
    assert all(float((z - other).abs().min()) > 0 for other in others)
    assert z.dtype == torch.float32


def test_noise_is_pinned_across_versions() -> None:
    """A change here would change every image of every published table."""
    z = normal([0, 2**63], (3,), "initial").flatten().tolist()
    assert z == pytest.approx([0.40025213, -0.42846784, 0.54163772, 0.73480278, 0.10190331, -0.87147790], abs=1e-7)


def test_noise_is_standard_normal() -> None:
    from scipy.stats import kstest

    z = normal(range(400), (3, 17), "initial").flatten().double().numpy()
    assert kstest(z, "norm").pvalue > 1e-3
    rows = normal(range(2000), (2,), "initial").double()
    assert abs(float(torch.corrcoef(rows.T)[0, 1])) < 0.08


def test_integers_are_uniform_and_keyed() -> None:
    from scipy.stats import chisquare

    k = integers(range(5000), 10, "label")
    assert k.min() >= 0
    assert k.max() <= 9
    assert chisquare(torch.bincount(k, minlength=10).numpy()).pvalue > 1e-3
    assert torch.equal(integers([42], 10, "label"), k[42:43])


def test_bytes_and_numbers_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(torch.tensor([-9.0, 9.0, -1.0, 1.0, 0.0])).tolist() == [0, 255, 0, 255, 128]
