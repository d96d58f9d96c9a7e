"""`calibration=tableau` and `solver=learned`: neighbourhoods, derivatives, the descent, and what is learned."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scoreline.calibration.distances import distances, fine_ends
from scoreline.calibration.learned import learned_tableau
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.learned.least_distance import SOFTENED, Linear, descend
from scoreline.calibration.learned.linearisation import linearise
from scoreline.calibration.learned.neighbourhood import Neighbourhood
from scoreline.calibration.ranking import Families
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Card, save_model
from scoreline.commands.certify import maker
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.networks.exact import GaussianMixture
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record, load_record
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.learned import Learned, load_learned
from scoreline.solvers.tableau import Solver, Tableau, build, build_tableau
from scoreline.storage.files import sha256

ROOT = Path(__file__).parents[3]
SPAN = (20.0, 0.05)
SHAPE = (3, 1, 1)
STARTS = ("ddim", "heun", "deis_tab3", "dpm_solver_3", "unipc_3", "dpmpp_3m", "scire_v1_2", "ipndm4")


@cache
def solver(name: str) -> Solver:
    return maker(name, [])(LinearVP())


@cache
def start(name: str, nfe: int = 6) -> Tableau:
    return build_tableau(solver(name), Power(7), SPAN, nfe, "none").unrolled()


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def parameters(near: Neighbourhood, seed: int = 0, size: float = 0.1) -> Tensor:
    return size * torch.randn(near.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STARTS)
def test_a_neighbourhood_is_centred_on_its_start(name: str) -> None:
    table = start(name)
    near = Neighbourhood(table, 4)
    here = near(zeros(near.size))
    assert torch.equal(here.rho, table.rho)
    torch.testing.assert_close(here.N, table.N, rtol=1e-13, atol=1e-13)


def test_a_scaled_start_becomes_exact_for_constant_eps() -> None:
    table = start("deis_sn")
    near = Neighbourhood(table, 4)
    here = near(zeros(near.size))
    assert table.residual > 1e-5 > 1e-12 > here.residual
    torch.testing.assert_close(here.N.tril(-1), table.N.tril(-1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", STARTS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 0.1, 1.0]), history=st.integers(1, 6))
def test_every_member_is_consistent(name: str, seed: int, size: float, history: int) -> None:
    table = start(name)
    near = Neighbourhood(table, history)
    there = near(parameters(near, seed, size))
    assert there.residual < 1e-12
    assert torch.equal(there.rho[[0, -1]], table.rho[[0, -1]])
    assert there.nfe == len(there.B) == table.nfe
    assert bool((there.rho > 0).all())


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("history", [1, 3, 9])
def test_slopes_are_those_of_central_differences(name: str, history: int) -> None:
    near = Neighbourhood(start(name), history)
    theta, h = parameters(near), 1e-5
    d_rho, d_N = near.slopes(theta)
    assert d_rho.shape == (near.size, 7)
    assert d_N.shape == (near.size, 6, 6)
    for p in range(near.size):
        moved = torch.zeros_like(theta)
        moved[p] = h
        up, down = near(theta + moved), near(theta - moved)
        torch.testing.assert_close(d_rho[p], (up.rho - down.rho) / (2 * h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(d_N[p], (up.N - down.N) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("nfe", "history"), [(1, 4), (2, 4), (5, 1), (5, 2), (5, 4), (7, 3), (7, 99)])
def test_the_size_counts_levels_and_older_weights(nfe: int, history: int) -> None:
    near = Neighbourhood(start("deis_tab3", nfe), history)
    assert near.size == nfe - 1 + sum(min(k, history - 1) for k in range(nfe))


def test_only_weights_within_the_history_move() -> None:
    near = Neighbourhood(start("dpmpp_3m"), 3)
    theta = zeros(near.size)
    theta[5:] = parameters(near)[5:]
    moved = (near(theta).N - near.start.N).abs() > 1e-9
    assert torch.equal(near(theta).rho, near.start.rho)
    row, column = moved.nonzero(as_tuple=True)
    assert set((row - column).tolist()) == {0, 1, 2}
    assert int(moved.tril(-1).sum()) == near.size - 5
    assert not bool(moved[0].any())


def chain(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Three rows whose levels and weights are all moved by five parameters, without `Neighbourhood`."""
    rho = torch.cat(
        [
            torch.tensor([3.0]).to(theta),
            torch.stack([theta[0].exp(), 0.4 + 0.1 * theta[1].sin()]),
            0.1 * theta.new_ones(1),
        ]
    )
    step = rho.diff()
    zero = torch.zeros_like(step[0])
    rows = [
        [step[0] + theta[2] * theta[4], zero, zero],
        [0.3 * theta[2], step[1] - 0.3 * theta[2], zero],
        [0.05 * theta[3] ** 2, -0.2 * theta[4], step[2] + 0.2 * theta[4]],
    ]
    return rho, torch.stack([torch.stack(row) for row in rows])


POINT = torch.tensor([0.2, -0.3, 0.5, 0.7, 0.4], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 0.01), (torch.float32, 0.01)])
def test_run_derivatives_agree_with_autograd(mixture: GaussianMixture, dtype: torch.dtype, tolerance: float) -> None:
    """Forward differences of length `STEP` = 3e-3: each derivative to 1 % of its norm, in either precision."""
    x = 3 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def end(theta: Tensor) -> Tensor:
        rho, N = chain(theta)
        state, found = x, []
        for k in range(3):
            found.append(mixture.eps(state, rho[k]))
            state = state + sum(N[k, j] * found[j] for j in range(k + 1))
        return state

    def eps(state: Tensor, rho: Tensor) -> Tensor:
        assert rho.dtype == torch.float64
        return mixture.eps(state.double(), rho[:, None]).to(dtype)

    exact = torch.autograd.functional.jacobian(end, POINT).permute(2, 0, 1)
    d_rho, d_N = torch.autograd.functional.jacobian(chain, POINT)
    slopes = d_rho.permute(1, 0), d_N.permute(2, 0, 1)
    sample, moved = linearise(eps, x.to(dtype), Tableau.single_term(*chain(POINT)), slopes)
    torch.testing.assert_close(sample.double(), end(POINT), rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-6)
    assert moved.dtype == dtype
    for p in range(len(POINT)):
        assert float((moved[p].double() - exact[p]).norm()) < tolerance * float(exact[p].norm()), p
    if dtype == torch.float64:
        _, longer = linearise(eps, x, Tableau.single_term(*chain(POINT)), slopes, step=3e-2)
        _, shorter = linearise(eps, x, Tableau.single_term(*chain(POINT)), slopes, step=3e-4)
        assert 5 < float((longer - exact).norm() / (moved - exact).norm()) < 20  # first order: ten times the length
        assert 5 < float((moved - exact).norm() / (shorter - exact).norm()) < 20


def test_the_first_state_needs_no_derivatives(mixture: GaussianMixture) -> None:
    near, calls = Neighbourhood(start("deis_tab3", 4), 4), []

    def eps(x: Tensor, rho: Tensor) -> Tensor:
        calls.append(float(rho[0]))
        return mixture.eps(x, rho[:, None])

    theta = zeros(near.size)
    linearise(eps, torch.ones(1, 2, dtype=torch.float64), near(theta), near.slopes(theta))
    # The state moves with its own level and those before it, and with the weights of the rows before.
    moving = [sum(1 for level in range(1, 4) if level <= k) + sum(min(row, 3) for row in range(k)) for k in range(4)]
    assert len(calls) == 4 + sum(moving)


class Problem:
    """Residuals r_b + J_b theta of 30 images with 12 numbers each, of similar size."""

    def __init__(self, parameters: int = 4, spread: float = 0.3) -> None:
        drawn = torch.Generator().manual_seed(1)
        self.J = torch.randn(parameters, 30, 12, dtype=torch.float64, generator=drawn)
        noise = torch.randn(30, 12, dtype=torch.float64, generator=drawn)
        self.r = spread * noise - torch.einsum("p,pbd->bd", torch.linspace(1, 2, parameters).double(), self.J)

    def residual(self, theta: Tensor) -> Tensor:
        return self.r + torch.einsum("p,pbd->bd", theta, self.J)

    def linearised(self, theta: Tensor) -> list[Linear]:
        residual = self.residual(theta)
        return [Linear(residual[part], self.J[:, part]) for part in (slice(0, 13), slice(13, 30))]

    def distances(self, theta: Tensor) -> Tensor:
        return self.residual(theta).square().mean(1).sqrt()

    def least(self, ridge: float) -> tuple[Tensor, float]:
        def objective(theta: object) -> float:
            theta = torch.as_tensor(theta)
            return float(self.distances(theta).mean() + ridge * theta.square().sum() / 2)

        found = scipy.optimize.minimize(objective, [0.0] * len(self.J), method="BFGS", options={"gtol": 1e-9})
        return torch.from_numpy(found.x), float(found.fun)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_descent_finds_the_least_mean_distance(ridge: float) -> None:
    """SOFTENED in the weights tilts the gradient by about that share, and what is lost goes with its square."""
    problem = Problem()
    steps = list(descend(problem.linearised, problem.distances, zeros(4), ridge, 60))
    theta, least = problem.least(ridge)
    values = [step.distance + ridge * float(step.theta.square().sum()) / 2 for step in steps]
    assert values == sorted(values, reverse=True)
    assert values[0] < float(problem.distances(zeros(4)).mean())
    assert values[-1] == pytest.approx(least, rel=SOFTENED**2)
    torch.testing.assert_close(steps[-1].theta, theta, rtol=2 * SOFTENED, atol=1e-3)
    assert len(steps) < 60, "it stops by itself"


def test_few_far_images_do_not_decide() -> None:
    """The mean of distances is a median of sorts: one image a hundred times as far moves the squares' minimum only."""
    problem = Problem()
    problem.r[7] += 100
    near = list(descend(problem.linearised, problem.distances, zeros(4), 0.0, 60))[-1].theta
    theta, least = problem.least(0.0)
    assert float(problem.distances(near).mean()) == pytest.approx(least, rel=1e-3)
    flat = problem.J.flatten(1)
    squares = torch.linalg.solve(flat @ flat.T, -(flat @ problem.r.flatten()))
    assert float((squares - theta).abs().max()) > 10 * float((near - theta).abs().max())


def test_runs_that_diverge_shorten_the_step() -> None:
    problem = Problem()

    def diverging(theta: Tensor) -> Tensor:
        found = problem.distances(theta)
        return found if float(theta.norm()) < 1.0 else torch.full_like(found, torch.inf)

    steps = list(descend(problem.linearised, diverging, zeros(4), 0.0, 60))
    assert steps
    assert all(math.isfinite(step.distance) and float(step.theta.norm()) < 1 for step in steps)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_no_descent_begins_at_zero_or_nan(value: float) -> None:
    problem = Problem()
    assert list(descend(problem.linearised, lambda theta: torch.full((30,), value), zeros(4), 1e-4, 5)) == []


def test_residuals_that_nothing_changes_end_the_descent() -> None:
    problem = Problem()
    problem.J.zero_()
    assert list(descend(problem.linearised, problem.distances, zeros(4), 0.0, 5)) == []


def anisotropic() -> GaussianMixtureScore:
    """One Gaussian with standard deviations 0.15, 0.5 and 1, off centre."""
    net = GaussianMixtureScore(1, 3, 1, full_covariance=True)
    net.means.data = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    net.variances.data = torch.tensor([[0.15, 0.5, 1.0]], dtype=torch.float64) ** 2
    return net


def subject(seeds: range, net: nn.Module | None = None, batch_size: int = 16) -> Subject:
    run = DEIS(3, Power(1))(Power(7), *SPAN, 100)
    return Subject(Denoiser(net or anisotropic(), VarianceExploding()), run, SHAPE, seeds, batch_size)


FAMILIES = Families({"ddim": DDIM(), "deis_tab2": DEIS(2, LinearVP())}, {"karras": Power(7)})


def estimator(*budgets: int, **options: object) -> LearnedTableau:
    return LearnedTableau(list(budgets), FAMILIES, **options)  # type: ignore[arg-type]


def exact_ends(of: Subject) -> Tensor:
    """m + (x - m) sqrt((c^2 + rho^2) / (c^2 + rho_0^2)), number by number: the flow of a Gaussian."""
    net = anisotropic()
    (batch,) = generate(of.denoiser, DDIM()(Power(7), SPAN[0], SPAN[0] * (1 - 1e-12), 1), SHAPE, of.seeds, 999)
    x, mean = batch.x.double().flatten(1), net.means
    return mean + (x - mean) * ((net.variances + SPAN[1] ** 2) / (net.variances + SPAN[0] ** 2)).sqrt()


def mean_distance(of: Subject, table: Tableau) -> float:
    (batch,) = generate(of.denoiser, table, SHAPE, of.seeds, 999)
    return float((batch.x.double().flatten(1) - exact_ends(of)).square().mean(1).sqrt().mean())


def table_of(values: dict, nfe: int) -> Tableau:
    return Tableau.single_term(values[f"rho_{nfe}"], values[f"N_{nfe}"])


@pytest.fixture(scope="module")
def learned() -> dict:
    return estimator(1, 2, 3)(subject(range(60)))


@pytest.mark.parametrize(("nfe", "gain"), [(2, 1.5), (3, 20)])
def test_a_gaussian_is_learned_for_noise_never_seen(learned: dict, nfe: int, gain: float) -> None:
    """The flow of a Gaussian is linear: K calls multiply each of three numbers by a polynomial in the parameters.

    Two calls have two parameters for three factors, hence little to gain; three have five and meet them all, and
    what is left is the ridge and rounding. Nothing is random in that, so fresh noise gains as much.
    """
    fresh = subject(range(5000, 5064))
    names = [("ddim", DDIM()), ("deis_tab2", DEIS(2, LinearVP()))]
    best = min(mean_distance(fresh, build_tableau(it, Power(7), SPAN, nfe, "none")) for _, it in names)
    reached = mean_distance(fresh, table_of(learned, nfe))
    assert reached < best / gain, best / reached
    place = learned["budgets"].tolist().index(nfe)
    assert float(learned["learned"][place]) == pytest.approx(reached, rel=0.6, abs=2e-4)
    assert float(learned["start"][place]) >= float(learned["learned"][place])


def test_one_call_leaves_nothing_to_learn(learned: dict) -> None:
    assert torch.equal(learned["rho_1"], torch.tensor(SPAN, dtype=torch.float64))
    assert learned["N_1"].tolist() == [[SPAN[1] - SPAN[0]]]
    assert float(learned["start"][0]) == float(learned["learned"][0])


def test_the_same_command_learns_the_same_bits(learned: dict) -> None:
    again = estimator(2)(subject(range(60)))
    for name in ("rho_2", "N_2"):
        assert torch.equal(learned[name], again[name])
    for name in ("start", "start_error", "learned", "learned_error", "ratio_of_medians"):
        assert float(again[name][0]) == float(learned[name][1])


def test_a_record_returns_the_tableaus_exactly(learned: dict, tmp_path: Path) -> None:
    path = tmp_path / "tableau.safetensors"
    tensors = {name: value for name, value in learned.items() if isinstance(value, Tensor)}
    provenance = {"checkpoint": "ab", "images": 60, "starts": learned["starts"], "span": learned["span"]}
    Record("tableau", tensors, provenance).save(path)
    loaded = load_learned(path, "ab")
    for nfe in (1, 2, 3):
        table = loaded(Power(3), *SPAN, nfe)
        assert torch.equal(table.rho, learned[f"rho_{nfe}"])
        assert torch.equal(table.N, learned[f"N_{nfe}"])
        assert build(loaded, Power(3), SPAN, nfe + 1, "denoise").nfe == nfe + 1
    with pytest.raises(InputError, match="made for checkpoint ab, this one is cd"):
        load_learned(path, "cd")
    with pytest.raises(InputError, match="calibration=tableau"):
        load_learned(tmp_path / "none.safetensors", "ab")
    estimator(1).plot(load_record(path, "tableau", "ab"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    lines = estimator(1).summary(learned).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"NFE {k}" for k in (1, 2, 3)]


def test_another_budget_or_range_is_one_sentence(learned: dict) -> None:
    loaded = Learned({2: (learned["rho_2"], learned["N_2"])})
    with pytest.raises(InputError, match=r"nfe=5: tables were learned for NFE 2 .*calibration\.budgets=\[5\]"):
        loaded(Power(7), *SPAN, 5)
    with pytest.raises(InputError, match=r"sigma_max=30: this tableau was learned from 20 to 0\.05; .*sigma_max=30"):
        loaded(Power(7), 30.0, SPAN[1], 2)
    with pytest.raises(InputError, match=r"sigma_min=0\.01: this tableau was learned from 20 to 0\.05"):
        loaded(Power(7), SPAN[0], 0.01, 2)


def held_out(of: Subject, table: Tableau) -> float:
    held = replace(of, seeds=list(of.seeds)[2::3])
    return float(distances(held, table, fine_ends(held)).mean())


@pytest.mark.parametrize("useless", ["ridge", "derivatives", "ascent"])
def test_useless_steps_cost_nothing_on_held_out_seeds(useless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def garbage(
        eps: object, x: Tensor, table: Tableau, slopes: tuple[Tensor, Tensor], step: float
    ) -> tuple[Tensor, Tensor]:
        x, moved = linearise(eps, x, table, slopes, step)  # type: ignore[arg-type]
        return x, -moved if useless == "ascent" else torch.randn(
            moved.shape, generator=torch.Generator().manual_seed(3)
        )

    if useless != "ridge":
        monkeypatch.setattr(learned_tableau, "linearise", garbage)
    of = subject(range(18))
    values = estimator(3, starts=2, steps=3, polish=0, ridge=1e9 if useless == "ridge" else 1e-4)(of)
    first = build_tableau(FAMILIES.solvers[values["starts"][0][0]], Power(7), SPAN, 3, "none")
    assert held_out(of, table_of(values, 3)) <= held_out(of, first) * (1 + 1e-5)
    assert float(values["learned"][0]) <= float(values["start"][0])
    if useless == "ridge":
        assert float((values["rho_3"].log() - first.rho.log()).abs().max()) < 1e-6


def test_a_model_that_answers_nothing_is_survived() -> None:
    """eps = 0: every run ends where it began, at distance zero, and there is no derivative."""
    net = GaussianMixtureScore(1, 3, 1)
    net.stds.data = torch.tensor([1e12], dtype=torch.float64)
    values = estimator(2, 3)(subject(range(6), net))
    assert values["start"].tolist() == values["learned"].tolist() == [0.0, 0.0]
    assert "NFE 3" in estimator(2, 3).summary(values)


class Counting(nn.Module):
    """How the network behind it was called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows, self.graph, self.labels = net, 0, False, set()

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.rows = max(self.rows, len(x))
        self.graph |= torch.is_grad_enabled()
        if label is not None:
            self.labels |= set(label.tolist())
        return self.net(x, noise, label)


def test_learning_keeps_batches_and_reports_all_progress() -> None:
    counting, told = Counting(anisotropic()), []
    of = replace(subject(range(21), counting, batch_size=5), labels=torch.arange(100, 121))
    estimator(2, 3, starts=1, steps=2, polish=0)(of, told.append)
    assert counting.rows == 5
    assert not counting.graph
    assert counting.labels == set(range(100, 121))
    assert sum(told) == pytest.approx(21)
    assert min(told) >= 0
    told.clear()
    estimator(2, 3, starts=1, steps=2, polish=3, batch=4)(of, told.append)
    assert sum(told) == pytest.approx(21)


def test_starts_are_closed_forms_with_the_right_end(learned: dict) -> None:
    """EDM's own last step goes to rho = 0, and a table that was learned before would make a repetition differ."""
    before = Learned({3: (learned["rho_3"], learned["N_3"])})
    families = Families({"edm": EDMHeun(), "learned": before, "ddim": DDIM()}, {"karras": Power(7)})
    values = LearnedTableau([3], families, starts=1, first=1, steps=1)(subject(range(9)))
    assert values["starts"] == [("ddim", "karras")]
    assert float(values["rho_3"][-1]) == SPAN[1]
    for name in ("edm", "learned"):
        only = Families({name: families.solvers[name]}, families.schedules)
        with pytest.raises(InputError, match=r"nfe=3: no .*calibration\.") as told:
            LearnedTableau([3], only)(subject(range(9)))
        assert "\n" not in str(told.value)


def test_tableaus_to_zero_learn_from_clean_data() -> None:
    of = subject(range(12))
    of = replace(of, run=build_tableau(DDIM(), Power(7), (SPAN[0], 0.0), 60, "none"))
    values = estimator(3, starts=1)(of)
    assert float(values["rho_3"][-1]) == 0
    assert float(values["learned"][0]) < float(values["start"][0]) / 3


def test_too_few_seeds_and_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="seeds: 5 are too few to learn from and hold out"):
        estimator(2)(subject(range(5)))
    assert estimator(2, starts=1, steps=1)(subject(range(6)))["budgets"].tolist() == [2]
    for name in ("starts", "first", "steps", "history", "batch"):
        for value in (0, 2.5, True, "3"):
            with pytest.raises(InputError, match=rf"calibration\.{name}=.*: must be a whole number, at least 1"):
                estimator(2, **{name: value})
    with pytest.raises(InputError, match=r"calibration\.polish=-1: must be a whole number, at least 0"):
        estimator(2, polish=-1)
    for rate in (0, 1.0, math.nan, "fast", True):
        with pytest.raises(InputError, match=r"calibration\.rate=.*: must be a number between 0 and 1"):
            estimator(2, rate=rate)
    for ridge in (-1.0, math.nan, math.inf, "much", None):
        with pytest.raises(InputError, match=r"calibration\.ridge=.*: must be a number, 0 or greater"):
            estimator(2, ridge=ridge)
    for length in (0, -0.1, 1.0, math.nan, "short", True):
        with pytest.raises(InputError, match=r"calibration\.difference=.*: must be a number between 0 and 1"):
            estimator(2, difference=length)
    with pytest.raises(InputError, match=r"calibration\.budgets=5: give a list"):
        LearnedTableau(5, FAMILIES)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the exact model as a checkpoint."""
    root = tmp_path_factory.mktemp("tableau")
    described = {"components": 1, "channels": 3, "resolution": 1, "full_covariance": True}
    model = {
        "network": {"_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore", **described},
        "noise_schedule": {"_target_": "scoreline.schedules.ve.VE", "scale_min": SPAN[1], "scale_max": SPAN[0]},
        "parameterisation": {"_target_": "scoreline.parameterisations.VarianceExploding"},
    }
    save_model(root / "toy.safetensors", anisotropic().state_dict(), Card(model, SHAPE, 0, {}, {}))
    return root


def call(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"{script}.py"), "checkpoint=toy.safetensors", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_tableau_then_learned_on_the_command_line(place: Path) -> None:
    draw = ("solver=learned", "metrics=none", "seeds=0-3")
    words = ("nfe=20", "seeds=0-11", "calibration.budgets=[3]", "calibration.solvers=[ddim,deis_tab2]")
    words += ("calibration.schedules=[karras]", "calibration.steps=2", "hydra.run.dir=found")
    done = call("calibrate", "calibration=tableau", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "-> learned" in done.stdout
    assert {path.name for path in (place / "found").iterdir()} >= {"tableau.safetensors", "tableau.png", "config.yaml"}
    drawn = call("sample", *draw, "nfe=3", "hydra.run.dir=drawn", cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    result = json.loads((place / "drawn/metrics.json").read_text())
    assert (result["solver"], result["schedule"], result["nfe"]) == ("learned", "its own", 3)
    loaded = load_learned(place / "toy.tableau.safetensors", sha256(place / "toy.safetensors"))
    assert float(grid(Power(7), *SPAN, 3)[1]) != float(loaded.tables[3][0][1]), "levels moved"
