"""`calibration=tableau` and `solver=learned`: what is learned, what it never costs, and its records."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learned_models import SHAPE, SPAN, Counting, anisotropic, subject
from torch import Tensor

from scoreline.calibration.distances import distances, fine_ends
from scoreline.calibration.learned import learned_tableau
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.learned.losses import FeatureDistance
from scoreline.calibration.ranking import Families
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Card, save_model
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.records import Record, load_record
from scoreline.sampling import count_calls
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.frames import Velocity
from scoreline.solvers.learned import Learned, load_learned, tableau_in
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build, build_tableau
from scoreline.storage.files import sha256
from scoreline.storage.resumable import Parts

ROOT = Path(__file__).parents[3]

SOLVERS = {"ddim": DDIM(), "deis_tab2": DEIS(2, LinearVP()), "velocity": DEIS(2, LinearVP(), frame=Velocity(0.7))}
FAMILIES = Families(SOLVERS, {"karras": Power(7)})  # type: ignore[arg-type]


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


@pytest.fixture(scope="module")
def learned() -> dict:
    return estimator(1, 2, 3, evaluations=10_000)(subject(range(60)))


@pytest.mark.parametrize(("nfe", "gain"), [(1, 1.2), (2, 8), (3, 10)])
def test_a_gaussian_is_learned_for_noise_never_seen(learned: dict, nfe: int, gain: float) -> None:
    """The flow of a Gaussian is linear: K calls multiply each of three numbers by a polynomial in the parameters.

    One call has a weight and no more; two have five parameters for three factors and meet them all. Nothing is random
    in that, so fresh noise gains as much.
    """
    fresh = subject(range(5000, 5064))
    best = min(mean_distance(fresh, build_tableau(it, Power(7), SPAN, nfe, "none")) for it in SOLVERS.values())
    reached = mean_distance(fresh, tableau_in(learned, nfe))
    assert reached < best / gain, best / reached
    place = learned["budgets"].tolist().index(nfe)
    assert float(learned["learned"][place]) == pytest.approx(reached, rel=0.6, abs=3e-4)
    assert float(learned["start"][place]) >= float(learned["learned"][place])


def test_one_curve_serves_every_budget() -> None:
    of, fresh = subject(range(60)), subject(range(5000, 5064))
    values = estimator(3, 4, 6, curve=True, evaluations=6000)(of)
    for nfe in (3, 4, 6):
        best = min(mean_distance(fresh, build_tableau(it, Power(7), SPAN, nfe, "none")) for it in SOLVERS.values())
        assert mean_distance(fresh, tableau_in(values, nfe)) < best / 2, nfe


def test_the_same_command_learns_the_same_bits(learned: dict) -> None:
    again = estimator(2, evaluations=10_000)(subject(range(60)))
    for name in ("rho_2", "N_2", "query_2", "sigma_data_2"):
        assert (name in again) == (name in learned)
        assert name not in again or torch.equal(learned[name], again[name])
    for name in ("start", "start_error", "learned", "learned_error", "ratio_of_medians"):
        assert float(again[name][0]) == float(learned[name][1])


def test_a_record_returns_the_tableaus_exactly(learned: dict, tmp_path: Path) -> None:
    path = tmp_path / "tableau.safetensors"
    tensors = {name: value for name, value in learned.items() if isinstance(value, Tensor)}
    provenance = {"checkpoint": "ab", "images": 60, "starts": learned["starts"], "span": learned["span"]}
    Record("tableau", tensors, provenance).save(path)
    loaded = load_learned(path, "ab")
    for nfe in (1, 2, 3):
        table, made = loaded(Power(3), *SPAN, nfe), tableau_in(learned, nfe)
        for name in ("rho", "S", "N", "query_levels"):
            assert torch.equal(getattr(table, name), getattr(made, name))
        assert build(loaded, Power(3), SPAN, nfe + 1, "denoise").nfe == nfe + 1
    with pytest.raises(InputError, match="made for checkpoint ab, this one is cd"):
        load_learned(path, "cd")
    with pytest.raises(InputError, match="calibration=tableau"):
        load_learned(tmp_path / "none.safetensors", "ab")
    estimator(1).plot(load_record(path, "tableau", "ab"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    lines = estimator(1).summary(learned).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"NFE {k}" for k in (1, 2, 3)]


def test_a_record_of_levels_and_weights_alone_is_noise_prediction(tmp_path: Path) -> None:
    """Records from before frames and query levels: x_{k+1} = x_k + sum_j N_kj eps_j, to the bit."""
    table = build_tableau(DEIS(2, LinearVP()), Power(7), SPAN, 4, "none")
    tensors = {"budgets": torch.tensor([4]), "rho_4": table.rho, "N_4": table.N}
    Record("tableau", tensors, {"checkpoint": "ab"}).save(tmp_path / "old.safetensors")
    loaded = load_learned(tmp_path / "old.safetensors", "ab")(Power(7), *SPAN, 4)
    for name in ("rho", "S", "N", "query_levels"):
        assert torch.equal(getattr(loaded, name), getattr(table, name))


def test_weights_that_make_no_tableau_are_one_sentence(tmp_path: Path) -> None:
    table = build_tableau(DEIS(2, LinearVP()), Power(7), SPAN, 4, "none")
    tensors = {"budgets": torch.tensor([4]), "rho_4": table.rho, "N_4": 1e300 * table.N}
    tensors |= {"sigma_data_4": torch.tensor([1e-200], dtype=torch.float64)}
    Record("tableau", tensors, {"checkpoint": "ab"}).save(tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=r"solver\.path=.*wrong\.safetensors"):
        load_learned(tmp_path / "wrong.safetensors", "ab")


def test_another_budget_or_range_is_one_sentence(learned: dict) -> None:
    loaded = Learned({2: tableau_in(learned, 2)})
    with pytest.raises(InputError, match=r"nfe=5: .*calibration\.budgets=\[5\]"):
        loaded(Power(7), *SPAN, 5)
    with pytest.raises(InputError, match=r"sigma_max=30: .*from 20 to 0\.05; .*sigma_max=30"):
        loaded(Power(7), 30.0, SPAN[1], 2)
    with pytest.raises(InputError, match=r"sigma_min=0\.01: .*from 20 to 0\.05"):
        loaded(Power(7), SPAN[0], 0.01, 2)


def held_out(of: Subject, table: Tableau) -> float:
    held = replace(of, seeds=list(of.seeds)[2::3])
    return float(distances(held, table, fine_ends(held)).mean())


def test_useless_steps_cost_nothing_on_held_out_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descent goes astray, and the best closed form remains."""
    monkeypatch.setattr(learned_tableau, "descend", lambda turns, theta, *others: theta + 0.5)
    of = subject(range(18))
    values = estimator(3)(of)
    first = build_tableau(SOLVERS[values["starts"][0][0]], Power(7), SPAN, 3, "none")
    assert held_out(of, tableau_in(values, 3)) == pytest.approx(held_out(of, first), rel=1e-5)
    assert float(values["learned"][0]) == pytest.approx(float(values["start"][0]), rel=1e-5)


def test_a_model_that_answers_nothing_is_survived() -> None:
    """eps = 0: every run in noise prediction ends where it began, at distance zero, and there is no derivative."""
    net = GaussianMixtureScore(1, 3, 1)
    net.stds.data = torch.tensor([1e12], dtype=torch.float64)
    families = Families({"ddim": DDIM(), "deis_tab2": DEIS(2, LinearVP())}, FAMILIES.schedules)
    learner = LearnedTableau([2, 3], families, evaluations=2000)
    values = learner(subject(range(6), net))
    assert values["start"].tolist() == values["learned"].tolist() == [0.0, 0.0]
    assert "NFE 3" in learner.summary(values)


def test_features_and_a_ball_round_the_noise_are_losses() -> None:
    """With features that see the first number alone, that one gains most; a ball is no obstacle."""
    of, fresh = subject(range(60)), subject(range(5000, 5064))
    first = FeatureDistance(lambda x: x[:, :1])
    ddim = Families({"ddim": DDIM()}, FAMILIES.schedules)
    seen = tableau_in(LearnedTableau([1], ddim, loss=first, evaluations=6000)(of), 1)
    plain = tableau_in(LearnedTableau([1], ddim, evaluations=6000)(of), 1)
    soft = tableau_in(LearnedTableau([2], ddim, radius=0.01, evaluations=10_000)(of), 2)
    off = [
        float((batch.x.flatten(1) - exact_ends(fresh))[:, 0].square().mean())
        for table in (seen, plain)
        for batch in generate(fresh.denoiser, table, SHAPE, fresh.seeds, 999)
    ]
    assert off[0] < off[1] / 2
    assert mean_distance(fresh, soft) < mean_distance(fresh, build_tableau(DDIM(), Power(7), SPAN, 2, "none")) / 10


def test_learning_keeps_batches_and_reports_all_progress() -> None:
    counting, told = Counting(anisotropic()), list[float]()
    of = replace(subject(range(21), counting, batch_size=5), labels=torch.arange(100, 121))
    estimator(2, 3, evaluations=100, batch=8)(of, told.append)
    assert counting.rows == 5
    assert counting.labels == set(range(100, 121))
    assert sum(told) == pytest.approx(21)
    assert min(told) >= 0


@pytest.mark.parametrize("curve", [False, True])
def test_processes_share_budgets(curve: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes by turns, each until it has to wait for a part of the other: of the fine run, then of a budget."""
    of, learner = subject(range(18), batch_size=6), estimator(1, 2, 3, evaluations=500, curve=curve)
    alone = learner(of)
    second, first = (replace(of, parts=Parts(tmp_path, "stamp", rank, 2)) for rank in (1, 0))
    for process in (second, first)[: 1 if curve else 2]:  # a curve is the first one's alone
        with pytest.raises(InputError, match="another process"):
            learner(process)
    both = learner(first if curve else second)
    monkeypatch.setattr(learned_tableau, "descend", None)  # nothing is left to learn
    again = learner(second if curve else first)
    assert_equal(alone, both)
    assert_equal(alone, again)


@pytest.mark.parametrize(("curve", "stop"), [(False, 0.5), (False, 0.9), (True, 0.5), (True, 0.95)])
def test_a_restart_goes_on_to_the_bit_and_tells_what_is_left(curve: bool, stop: float, tmp_path: Path) -> None:
    """The run is stopped at a share of its work; what it did is not done again, and not counted as progress."""
    lines = list[str]()
    of = replace(subject(range(18), batch_size=6), parts=Parts(tmp_path, "stamp"), report=lines.append)
    learner, told = estimator(2, 3, evaluations=4000, curve=curve), list[float]()

    def stop_at_share(images: float) -> None:
        told.append(images)
        if sum(told) > stop * 18:
            raise KeyboardInterrupt

    with count_calls(of.denoiser) as whole:
        alone = learner(replace(of, parts=Parts()))
    lines.clear()
    with pytest.raises(KeyboardInterrupt):
        learner(of, stop_at_share)
    kept = list(lines)
    told.clear()
    with count_calls(of.denoiser) as rest:
        assert_equal(alone, learner(of, told.append))
    assert rest.count < (1 - stop + 0.12) * whole.count
    assert sum(told) == pytest.approx(18)
    if not curve:
        assert [line[:5] for line in kept if line.startswith("NFE")] == ["NFE 2"] * (stop > 0.5)
        assert ("1 of 2 budgets are finished by an earlier start" in lines) == (stop > 0.5)
        assert lines[-1] in learner.summary(alone)


def assert_equal(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for name in one.keys() - {"seconds"}:
        a, b = one[name], other[name]
        assert torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b, name


@pytest.mark.parametrize(("free", "processes", "memory"), [(8e9, 1, 4e9), (8e9, 2, 2e9), (None, 1, 0.5e9)])
def test_activations_take_half_of_what_is_free(
    free: float | None, processes: int, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_tableau, "free_memory", lambda device: free)
    some = replace(subject(range(12)), parts=Parts(size=processes))
    assert estimator(4)._plan(some, 1.0, 4).memory == memory
    assert estimator(4, memory=1.5)._plan(some, 1.0, 4).memory == 1.5e9


def test_a_tableau_is_the_same_whatever_the_memory() -> None:
    few, none = ({"evaluations": 800, "starts": 1, "memory": memory} for memory in (1.0, 0.0))
    kept, repeated = (estimator(3, **options)(subject(range(24))) for options in (few, none))
    assert torch.equal(kept["rho_3"], repeated["rho_3"])
    assert torch.equal(kept["N_3"], repeated["N_3"])


def test_starts_are_closed_forms_with_the_right_end(learned: dict) -> None:
    """EDM's own last step goes to rho = 0, a table that was learned before would make a repetition differ, and Heun's
    calls at one level twice have no family around them."""
    before = Learned({3: tableau_in(learned, 3)})
    families = Families({"edm": EDMHeun(), "learned": before, "ddim": DDIM()}, {"karras": Power(7)})
    values = LearnedTableau([3], families, evaluations=100)(subject(range(9)))
    repeated = LearnedTableau([4], Families({"heun": heun()}, FAMILIES.schedules), evaluations=100)(subject(range(9)))
    assert float(repeated["start"][0]) == float(repeated["learned"][0])
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
    values = estimator(3, evaluations=5000)(of)
    assert float(values["rho_3"][-1]) == 0
    assert float(values["learned"][0]) < float(values["start"][0]) / 3


def test_too_few_seeds_and_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="seeds: 5 are too few to learn from and hold out"):
        estimator(2)(subject(range(5)))
    assert estimator(2, starts=1, evaluations=1)(subject(range(6)))["budgets"].tolist() == [2]
    wrong = {
        **dict.fromkeys(("starts", "evaluations", "batch"), (0, 2.5, True, "3")),
        **{"rate": (0, 1.0, math.nan, "fast", True), "memory": (-1.0, math.nan, "much"), "radius": (-1, 1, "wide")},
        **{"sigma_data": (0, -1.0, math.inf, None), "history": (0, 1.5), "rows": ("some", 1)},
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=rf"calibration\.{name}="):
                estimator(2, **{name: value})
    with pytest.raises(InputError, match=r"calibration\.budgets=5: give a list"):
        LearnedTableau(5, FAMILIES)  # type: ignore[arg-type]
    repeated = LearnedTableau([2, 4], Families({"heun": heun()}, FAMILIES.schedules), curve=True)
    with pytest.raises(InputError, match=r"calibration\.curve=false"):
        repeated(subject(range(9)))


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
    words += ("calibration.schedules=[karras]", "calibration.evaluations=5000", "hydra.run.dir=found")
    done = call("calibrate", "calibration=tableau", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "-> learned" in done.stdout
    assert {path.name for path in (place / "found").iterdir()} >= {"tableau.safetensors", "tableau.png", "config.yaml"}
    drawn = call("sample", *draw, "nfe=3", "hydra.run.dir=drawn", cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    result = json.loads((place / "drawn/metrics.json").read_text())
    assert (result["solver"], result["schedule"], result["nfe"]) == ("learned", "its own", 3)
    loaded = load_learned(place / "toy.tableau.safetensors", sha256(place / "toy.safetensors"))
    assert float(grid(Power(7), *SPAN, 3)[1]) != float(loaded.tableaus[3].rho[1]), "levels moved"
