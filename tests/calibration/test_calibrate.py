"""`scoreline.calibrate`: the same measurements as calibrate.py's, for functions of any shape, and usable records."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoreline
from scoreline.calibration import calibrate
from scoreline.calibration.closed_forms import START_SCHEDULES, STARTS, named_families
from scoreline.calibration.function_denoiser import ITSELF, as_denoising
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.sampler_records import (
    LearnedRecord,
    SamplerRecord,
    ScoreNormRecord,
    ScoreOptimalRecord,
    SearchRecord,
)
from scoreline.calibration.score_norm import ScoreNorm
from scoreline.calibration.score_optimal import CumulativeLength
from scoreline.calibration.score_scale import ScoreScale
from scoreline.calibration.search import Search
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import run_names
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.runtime import seeded_noise
from scoreline.sampling import trajectory
from scoreline.schedules.base import grid
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.score_optimal import load_schedule
from scoreline.schedules.spacings import LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import load_learned
from scoreline.solvers.tableau import build_tableau
from scoreline.solvers.unipc import UniPC

SPAN: dict[str, Any] = {"sigma_min": 0.05, "sigma_max": 20.0}
FEW: dict[str, dict[str, Any]] = {
    "score_norm": {"nfe": 12},
    "score_optimal": {"nfe": 6, "levels": 6},
    "search": {"nfe": 12, "budgets": [3, 4], "solvers": ("ddim", "ipndm2", "velocity_ab3"), "schedules": ("karras",)},
    "learn": {"nfe": 12, "budgets": [3], "evaluations": 300},
}
"""Small measurements of every kind."""

STDS = torch.tensor([[0.1, 0.3, 0.5, 0.7, 0.9, 1.1]], dtype=torch.float64)
"""Standard deviations of a Gaussian over signals of one channel and six samples."""


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] of that Gaussian, in x's dtype."""
    assert sigma.shape == ()
    assert sigma.dtype == x.dtype
    variance = STDS.to(x) ** 2
    return x * (variance / (variance + sigma**2))


def measured(kind: str, denoise: Any = gaussian, start: Any = (1, 6), **options: Any) -> Any:
    settings: dict[str, Any] = {"seeds": "0-23"} if not isinstance(start, Tensor) else {}
    return getattr(calibrate, kind)(denoise, start, **{**settings, **SPAN, **FEW[kind], **options})


def same(one: Record, two: Record) -> bool:
    assert one.values.keys() == two.values.keys()
    return all(torch.equal(one.values[name].nan_to_num(), two.values[name].nan_to_num()) for name in one.values)


@pytest.fixture(scope="module")
def digits() -> Checkpoint:
    return load_model(run_names.model_path("digits_vp"))


def subject(digits: Checkpoint, nfe: int, solver: Any = None, schedule: Any = None) -> Subject:
    """As calibrate.py builds it, of 64 images."""
    native = digits.noise_schedule
    span = native.sigma_max, native.sigma_min
    run = build_tableau(solver or DEIS(2, native), schedule or Polynomial(native, 1), span, nfe, "none")
    return Subject(digits.denoiser, run, digits.card.shape, range(64), 64)


def theirs(kind: str, digits: Checkpoint) -> dict[str, Any]:
    """The classes of calibrate.py with its solvers."""
    few, native = FEW[kind], digits.noise_schedule
    if kind == "score_norm":
        return ScoreNorm()(subject(digits, few["nfe"]))
    if kind == "score_optimal":
        return CumulativeLength(levels=few["levels"])(subject(digits, few["nfe"]))
    if kind == "search":
        families = named_families(few["solvers"], few["schedules"], native, 0.7)
        return Search(few["budgets"], families)(subject(digits, few["nfe"], UniPC(3), Power(7)))
    fine = subject(digits, few["nfe"], UniPC(3), Polynomial(LinearVP(), 2))
    families = named_families(STARTS, START_SCHEDULES, native, 0.7)
    return LearnedTableau(few["budgets"], families, 0.7, evaluations=few["evaluations"])(fine)


@pytest.mark.parametrize("kind", list(FEW))
def test_a_denoiser_gives_the_tensors_of_calibrate_py_to_the_bit(kind: str, digits: Checkpoint) -> None:
    reads = {"sigma_data": 0.7} if kind in ("search", "learn") else {}
    record = getattr(calibrate, kind)(digits.denoiser, digits.card.shape, seeds="0-63", **reads, **FEW[kind])
    values = {name: value for name, value in theirs(kind, digits).items() if isinstance(value, Tensor)}
    assert same(record, Record(record.kind, values, {}))
    assert record.provenance["seeds"] == "0-63"


def test_a_function_gives_the_values_of_its_denoiser(digits: Checkpoint) -> None:
    """eps is (x - D) / sigma for a function, which loses what D rounds: 1e-7 / sigma."""
    function = measured("score_norm", lambda x, sigma: digits.denoiser(x, float(sigma)), (1, 8, 8))
    itself = measured("score_norm", digits.denoiser, (1, 8, 8))
    for name in itself.values:
        torch.testing.assert_close(function.values[name], itself.values[name], rtol=1e-4, atol=1e-9)


def test_the_derivative_by_the_level_is_that_of_the_network(digits: Checkpoint) -> None:
    """By differences for a function that reads sigma as a number, by autograd for the denoiser; image by image."""
    own = as_denoising(lambda x, sigma: digits.denoiser(x, float(sigma)), torch.float32, torch.device("cpu"))
    x = seeded_noise.normal(range(3), (1, 8, 8), "x")
    found = []
    for model in (own, digits.denoiser):
        at, level = x.clone().requires_grad_(), torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
        loss = (model.eps(at, level) * torch.arange(1.0, 4).reshape(3, 1, 1, 1)).square().sum()
        found.append(torch.autograd.grad(loss, (at, level)))
    (by_x, by_level), (exact_by_x, exact_by_level) = found
    torch.testing.assert_close(by_x, exact_by_x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(by_level, exact_by_level, rtol=5e-3, atol=0)
    assert len(set(exact_by_level.tolist())) == 3


@pytest.mark.parametrize("shape", [(2,), (3, 5), (2, 4, 4), (1, 2, 2, 2)])
@pytest.mark.parametrize("kind", list(FEW))
def test_shapes_of_any_rank(kind: str, shape: tuple[int, ...]) -> None:
    record = (
        measured(kind, lambda x, sigma: x * 0.25 / (0.25 + sigma**2), shape, seeds="0-8", sigma_data=0.5)
        if (kind in ("search", "learn"))
        else measured(kind, lambda x, sigma: x * 0.25 / (0.25 + sigma**2), shape, seeds="0-8")
    )
    assert all(value.isfinite().all() for value in record.values.values() if value.is_floating_point())


def fine_end(x: Tensor) -> Tensor:
    """The flow of the Gaussian from sigma_max to sigma_min, exactly."""
    low, high = SPAN["sigma_min"], SPAN["sigma_max"]
    return x * ((STDS**2 + low**2) / (STDS**2 + high**2)).sqrt()


@pytest.fixture(scope="module")
def learned() -> LearnedRecord:
    return measured("learn", seeds="0-59", nfe=100, evaluations=8000, sigma_data=0.7)  # type: ignore[no-any-return]


def test_a_learned_table_is_closer_than_every_closed_form_on_fresh_noise(learned: LearnedRecord) -> None:
    x = 20 * seeded_noise.normal(range(5000, 5256), (1, 6), "initial").double()

    def distance(solver: Any, schedule: Any) -> float:
        end = scoreline.sample(gaussian, x, solver, schedule, nfe=3, **SPAN)
        return float((end - fine_end(x)).flatten(1).square().mean(1).sqrt().mean())

    families = named_families(STARTS, START_SCHEDULES, LinearVP(), 0.7)
    best = min(
        distance(solver, schedule) for solver in families.solvers.values() for schedule in families.schedules.values()
    )
    assert distance(learned, Power(7)) < best / 3
    assert learned.part.held_out[3].ratio < 1 / 3


def test_a_function_without_a_derivative_by_sigma_learns_as_well(learned: LearnedRecord) -> None:
    """A function that turns sigma into a Python number breaks the graph; the levels are learned all the same."""

    def opaque(x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(x, torch.tensor(float(sigma), dtype=x.dtype))

    again = measured("learn", opaque, seeds="0-59", nfe=100, evaluations=8000, sigma_data=0.7)
    assert same(again, learned)


@pytest.mark.parametrize("kind", list(FEW))
def test_a_record_is_saved_loaded_and_sampled_with(kind: str, tmp_path: Path) -> None:
    record, x = measured(kind), 20 * torch.randn(4, 1, 6)
    record.save(str(tmp_path / "r.safetensors"))
    loaded = calibrate.load(str(tmp_path / "r.safetensors"))
    assert type(loaded) is type(record)
    assert same(loaded, record)
    assert loaded.provenance == json.loads(json.dumps(record.provenance))
    assert loaded.provenance["checkpoint"] is None
    one, two = (scoreline.sample(gaussian, x, *pair(each), nfe=3, **SPAN) for each in (record, loaded))
    assert torch.equal(one, two)
    assert float((one - fine_end(x.double())).square().mean().sqrt()) < 0.5


def pair(record: SamplerRecord) -> tuple[Any, Any]:
    """The solver and the schedule that a record makes."""
    match record:
        case ScoreNormRecord():
            return DEIS(3, LinearVP(), record), Polynomial(LinearVP(), 2)  # type: ignore[arg-type]
        case ScoreOptimalRecord():
            return DDIM(), record
        case LearnedRecord() | SearchRecord():
            return record, Power(7)
    raise AssertionError(record)


def test_parts_are_those_of_the_loaders(tmp_path: Path) -> None:
    """A record that is bound to a digest is one of calibrate.py's, and serves its readers."""
    path = tmp_path / "r.safetensors"
    norm = measured("score_norm", digest="ab" * 32)
    scale = ScoreScale(tuple(norm.values["rho"].tolist()), tuple(norm.values["mean_abs_eps"].tolist()))
    own, plain = (DEIS(3, LinearVP(), each)(Power(7), 20.0, 0.05, 6) for each in (norm, scale))
    assert torch.equal(own.N, plain.N)
    optimal = measured("score_optimal", digest="ab" * 32)
    optimal.save(path)
    assert torch.equal(grid(load_schedule(path, "ab" * 32), 20.0, 0.05, 5), grid(optimal, 20.0, 0.05, 5))
    found = measured("search")
    solver, schedule = found.pair(4)
    expected = named_families((solver,), (schedule,), None, found.provenance["sigma_data"])
    run = found(LogSNR(), 20.0, 0.05, 4)
    assert torch.equal(
        run.N, build_tableau(expected.solvers[solver], expected.schedules[schedule], (20.0, 0.05), 4, "none").N
    )  # type: ignore[arg-type]


def test_a_digest_binds_a_record_to_its_model(tmp_path: Path) -> None:
    bound, free = tmp_path / "bound.safetensors", tmp_path / "free.safetensors"
    measured("learn", digest="ab" * 32, name="mine").save(bound)
    measured("learn").save(free)
    assert calibrate.load(bound).provenance["name"] == "mine"
    assert load_learned(bound, "ab" * 32).tableaus.keys() == {3}
    with pytest.raises(InputError, match="made for checkpoint abababababab, this one is cdcd"):
        calibrate.load(bound, digest="cd" * 32)
    for reader in (lambda: calibrate.load(free, digest="cd" * 32), lambda: load_learned(free, "cd" * 32)):
        with pytest.raises(InputError, match="bound to no checkpoint"):
            reader()


def test_names_in_a_file_choose_among_known_objects_only(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    mine = {"mine": DDIM(), "other": DEIS(1, LinearVP())}
    record = measured("search", solvers=mine, schedules={"steps": Power(5)})
    assert record.provenance["sigma_data"] is None
    record.save(path)
    x = 20 * torch.randn(2, 1, 6)
    loaded = calibrate.load(path, solvers=mine, schedules={"steps": Power(5)})
    arguments: dict[str, Any] = {"nfe": 3, **SPAN}
    expected = scoreline.sample(gaussian, x, record, Power(7), **arguments)
    assert torch.equal(scoreline.sample(gaussian, x, loaded, Power(7), **arguments), expected)
    with pytest.raises(InputError, match=r"solver=.(mine|other).: no such name"):
        scoreline.sample(gaussian, x, calibrate.load(path), Power(7), **arguments)
    for name in ("learned", "score_optimal/../deis_sn", "auto"):
        changed = {**record.provenance, "candidates": [[[[name, "karras"]]], [[[name, "karras"]]]]}
        Record("search", record.values, changed).save(path)
        with pytest.raises(InputError, match=r"reads a file|no such name|not"):
            scoreline.sample(gaussian, x, calibrate.load(path), Power(7), **arguments)


def test_a_damaged_record_is_refused_on_loading(tmp_path: Path) -> None:
    path, record = tmp_path / "r.safetensors", measured("learn")
    with pytest.raises(InputError, match="no such record"):
        calibrate.load(path)
    Record("tableau", {**record.values, "N_3": 1e300 * record.values["N_3"]}, record.provenance).save(path)
    with pytest.raises(InputError, match="it makes no tableau"):
        calibrate.load(path)
    Record("target_variance", record.values, record.provenance).save(path)
    with pytest.raises(InputError, match="holds 'target_variance', not 'score_norm' or"):
        calibrate.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="safetensors"):
        calibrate.load(path)


def test_conditions_follow_the_images() -> None:
    """Seven seeds in batches of three: every image has the Gaussian of its own seed, by a run of its own."""
    seeds, means = [5, 2, 9, 0, 7, 1, 4], torch.linspace(-2, 2, 20).reshape(10, 2)

    def denoise(x: Tensor, sigma: Tensor, tree: dict[str, list[Tensor]], scale: float) -> Tensor:
        (mean,) = tree["means"]
        return mean + (x - mean) * scale / (scale + sigma**2)

    record = measured(
        *("score_norm", denoise, (2,)),
        **{"seeds": seeds, "batch_size": 3},
        condition=lambda chosen: {"tree": {"means": [means[chosen]]}, "scale": 0.09},
    )
    run = build_tableau(DEIS(2, LinearVP()), LinearVP(), (20.0, 0.05), 12, "none")
    sizes = torch.zeros(12, dtype=torch.float64)
    for seed in seeds:
        seen = []

        def eps(x: Tensor, rho: float, mean: Tensor = means[seed], seen: list[float] = seen) -> Tensor:
            slope = (x - denoise(x, torch.tensor(rho), {"means": [mean]}, 0.09)) / rho
            seen.append(float(slope.double().abs().mean()))
            return slope

        list(trajectory(eps, seeded_noise.normal([seed], (2,), "initial") * 20, run))
        sizes += torch.tensor(seen, dtype=torch.float64).flip(0) / len(seeds)
    torch.testing.assert_close(record.values["mean_abs_eps"], sizes, rtol=1e-5, atol=0)
    assert record.provenance["seeds"] == "5,2,9,0,7,1,4"


def test_a_conditional_model_is_learned_as_well_as_an_unconditional_one() -> None:
    """N(m, s^2) for images of two classes: about its class's mean the flow is that of N(0, s^2)."""
    means = torch.tensor([[[1.0]], [[-0.5]]])

    def denoise(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return means[label] + gaussian(x - means[label], sigma)

    condition = lambda seeds: {"label": torch.tensor(seeds) % 2}  # noqa: E731
    record = measured("learn", denoise, seeds="0-59", evaluations=4000, nfe=60, condition=condition)
    assert record.part.held_out[3].ratio < 0.5
    assert 0.5 < record.provenance["sigma_data"] < 0.9  # within the classes: root mean square of STDS is 0.69


def test_fixed_conditions_are_passed_as_they_are() -> None:
    tree = {"label": None, "extra": [object(), (1, "two")]}

    def denoise(x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        assert condition.keys() == tree.keys()
        assert condition["extra"] is tree["extra"]
        return gaussian(x, sigma)

    assert same(measured("search", denoise, condition=tree), measured("search"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_states_take_the_place_of_seeds(dtype: torch.dtype) -> None:
    x_init = 20 * seeded_noise.normal(range(24), (1, 6), "initial").to(dtype)
    seen = set()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.add((x.dtype, sigma.dtype))
        return gaussian(x, sigma)

    for kind in FEW:
        given, drawn = measured(kind, denoise, x_init), measured(kind)
        for name in ("mean_abs_eps", "length", "mean", "start"):
            if name in given.values:
                torch.testing.assert_close(given.values[name], drawn.values[name], rtol=1e-3, atol=1e-6)
    assert seen == {(dtype, dtype)}


def test_half_precision_is_for_the_function_alone() -> None:
    """The state stays in float32, so that 12 steps in bfloat16 estimates end where they should to 1 %."""
    x_init = (20 * seeded_noise.normal(range(24), (1, 6), "initial")).bfloat16()
    record = measured("score_norm", gaussian, x_init)
    torch.testing.assert_close(
        record.values["mean_abs_eps"][3:], measured("score_norm").values["mean_abs_eps"][3:], rtol=0.02, atol=0
    )


def test_a_module_is_called_in_its_own_dtype() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.variance = nn.Parameter(STDS**2)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            assert x.dtype == sigma.dtype == torch.float64
            return x * (self.variance / (self.variance + sigma**2))

    found = measured("learn", Module(), sigma_data=0.7)
    for name, value in measured("learn", sigma_data=0.7).values.items():
        torch.testing.assert_close(found.values[name], value, rtol=0.05, atol=0.02)


def test_a_denoiser_says_its_range() -> None:
    model = SimpleNamespace(noise_schedule=LinearVP())
    denoise = type("Own", (), {"noise_schedule": LinearVP(), "__call__": lambda self, x, sigma: gaussian(x, sigma)})()
    record = calibrate.score_norm(denoise, (1, 6), nfe=4, seeds="0-3")
    assert float(record.values["rho"][-1]) == model.noise_schedule.sigma_max


@pytest.mark.parametrize("kind", list(FEW))
def test_flow_models_are_measured_from_a_finite_level(kind: str) -> None:
    """Their noise is infinite at first; at level 1000 the states are 1000 times the same noise."""
    flow, noise = RectifiedFlow(), seeded_noise.normal(range(24), (1, 6), "initial")
    denoise = type("Flow", (), {"noise_schedule": flow, "__call__": lambda self, x, sigma: gaussian(x, sigma)})()
    record = measured(kind, denoise, noise, sigma_max=None)
    level, nfe = (math.inf, 3) if kind in ("search", "learn") else (1000.0, 20)
    state = noise if level == math.inf else noise * level
    end = scoreline.sample(denoise, state, *pair(record), nfe=nfe, sigma_min=0.05, sigma_max=level)
    exact = noise * (STDS**2 + 0.05**2).sqrt()
    assert float((end - exact).square().mean().sqrt()) < 0.4  # 0.69 for states of the wrong size


@pytest.mark.parametrize("kind", list(FEW))
def test_progress_rises_to_one(kind: str) -> None:
    shares: list[float] = []
    measured(kind, progress=shares.append)
    assert len(shares) > 5
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1.0
    assert all(one < two for one, two in pairwise(shares))


def broken(value: Any, below: float = math.inf) -> Callable[[Tensor, Tensor], Any]:
    """The Gaussian above a level, and something else below."""
    return lambda x, sigma: gaussian(x, sigma) if float(sigma) > below else value(x)


REFUSED: list[tuple[str, Any, dict[str, Any]]] = [
    ("nfe=0", gaussian, {"nfe": 0}),
    ("nfe=2.5", gaussian, {"nfe": 2.5}),
    ("batch_size=0", gaussian, {"batch_size": 0}),
    (r"budgets=\[\]", gaussian, {"budgets": []}),
    (r"budgets=\[3, 3\]", gaussian, {"budgets": (3, 3)}),
    (r"budgets=5", gaussian, {"budgets": 5}),
    ("seeds=7: a standard error needs at least two images", gaussian, {"seeds": 7}),
    (r"x_init of shape \(1, 1, 6\): a standard error needs", gaussian, {"start": 20 * torch.randn(1, 1, 6)}),
    ("seeds=0-9: x_init brings its own noise", gaussian, {"start": 20 * torch.randn(9, 1, 6), "seeds": "0-9"}),
    ("x_init: its standard deviation is .* give sigma_max", gaussian, {"start": torch.randn(9, 1, 6)}),
    (r"x_init: has shape \(9,\)", gaussian, {"start": torch.randn(9)}),
    (r"shape=\(1, 0\)", gaussian, {"start": (1, 0)}),
    ("shape='16'", gaussian, {"start": "16"}),
    ("sigma_min=20, sigma_max=0.05: choose 0 <=", gaussian, {"sigma_min": 20, "sigma_max": 0.05}),
    ("sigma_max=None: .* give both ends", gaussian, {"sigma_max": None}),
    ("sigma_data=-1", gaussian, {"sigma_data": -1}),
    ("nfe=2: no solver and schedule of this search", gaussian, {"solvers": ("dpm_solver_3",), "budgets": [2]}),
    ("solver='dmp_2m': no such name; did you mean", gaussian, {"solvers": ("dmp_2m",)}),
    (r"denoise returned \(24, 1\) for x of \(24, 1, 6\)", broken(lambda x: x[..., 0]), {"sigma_data": 0.7}),
    ("denoise returned a tuple", broken(lambda x: (x,)), {}),
    ("denoise returned a SimpleNamespace.* its .sample", broken(lambda x: SimpleNamespace(sample=x)), {}),
    ("sigma=20: numbers that denoise returns are not finite", broken(lambda x: x * math.nan), {}),
    (r"sigma=0\.\d+: numbers that denoise returns are not", broken(lambda x: x * math.nan, 0.9), {"sigma_data": 0.7}),
    ("denoise='digits_vp'", "digits_vp", {}),
    ("condition: returns a list", gaussian, {"condition": list}),
]


@pytest.mark.parametrize(("words", "denoise", "options"), REFUSED, ids=[words[:30] for words, *_ in REFUSED])
def test_what_cannot_be_measured_is_one_sentence(words: str, denoise: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        measured("search", denoise, options.get("start", (1, 6)), **{k: v for k, v in options.items() if k != "start"})
    assert "\n" not in str(caught.value)


def test_a_function_lies_where_it_is_told_to() -> None:
    on_meta = as_denoising(gaussian, torch.float32, torch.device("meta"))
    assert on_meta.device.type == "meta"
    assert as_denoising(nn.Linear(2, 2, device="meta"), torch.float32, torch.device("cpu")).device.type == "meta"
    assert Denoiser(nn.Identity(), ITSELF).device.type == "cpu"


def test_the_cost_of_the_predictor_follows_second_derivatives() -> None:
    record = measured("score_optimal", start=(6,), cost="predictor", denoise=lambda x, s: gaussian(x[:, None], s)[:, 0])
    steps = grid(record, 20.0, 0.05, 5)
    assert bool((record.values["length"].diff() > 0).all())
    assert not torch.allclose(steps, grid(LogSNR(), 20.0, 0.05, 5), rtol=0.05)


def test_few_images_do_not_teach() -> None:
    with pytest.raises(InputError, match="seeds: 4 are too few to learn from"):
        measured("learn", seeds="0-3", sigma_data=0.7)


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword 'batchsize'; did you mean 'batch_size'"):
        measured("score_norm", batchsize=3)
