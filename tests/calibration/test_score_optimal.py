"""Score-optimal lengths against closed forms, for one Gaussian and for a mixture of two narrow ones."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from scipy.integrate import quad
from torch import Tensor, nn

from scoreline.calibration import score_optimal
from scoreline.calibration.score_optimal import CumulativeLength
from scoreline.calibration.subject import Subject
from scoreline.config import explain, run_names
from scoreline.datasets.base import ArrayDataset
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record
from scoreline.runtime import seeded_noise as noise
from scoreline.sampling import count_calls
from scoreline.schedules.base import grid
from scoreline.schedules.score_optimal import ScoreOptimal, load_schedule
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.runge_kutta import heun

ROOT = Path(__file__).parents[2]
C = 0.5
HIGH, LOW = 80.0, 0.002
MODES = GaussianMixture(
    torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
    torch.tensor([0.1, 0.1], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)


class PerPixel(nn.Module):
    """Exact for images of independent pixels of one distribution, in VE form: F = -eps, ln(rho / 2) as label.

    A distribution of several entries is that of so many pixels, or of whole images.
    """

    def __init__(self, pixels: GaussianMixture) -> None:
        super().__init__()
        self.pixels = pixels
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return -self.pixels.eps(x.reshape(-1, self.pixels.means.shape[1]), 2 * float(noise[0].exp())).reshape(x.shape)


WIDE = GaussianMixture(MODES.means, MODES.stds + 0.3, MODES.weights)
GAUSSIAN = GaussianMixture(
    torch.zeros(1, 1, dtype=torch.float64),
    torch.tensor([C], dtype=torch.float64),
    torch.ones(1, dtype=torch.float64),
)


def measured(
    estimator: CumulativeLength,
    pixels: GaussianMixture = GAUSSIAN,
    side: int = 16,
    seeds: range = range(100),
    ends: tuple[float, float] = (HIGH, LOW),
) -> dict[str, Tensor]:
    table = heun()(Power(7), *ends, 60)
    model = Denoiser(PerPixel(pixels), VarianceExploding())
    return estimator(Subject(model, table, (1, side, side), seeds, 500))


def schedule_of(values: dict[str, Tensor]) -> ScoreOptimal:
    return ScoreOptimal(tuple(values["rho"].tolist()), tuple(values["length"].tolist()))


def variance(rho: float) -> float:
    return C**2 + rho**2


def gaussian_length(rho: float) -> float:
    return 2 * (math.asinh(rho / C) - rho / math.hypot(rho, C))


def test_one_pass_finds_the_length_of_a_gaussian() -> None:
    values = measured(CumulativeLength())
    assert values["rho"][[0, -1]].tolist() == [LOW, HIGH]
    assert float(values["length"][-1]) / 16 == pytest.approx(9.5367, rel=0.01)
    closed = torch.tensor([gaussian_length(rho) for rho in values["rho"].tolist()]) / 9.5367
    assert float((values["length"] / values["length"][-1] - closed).abs().max()) < 0.002
    published = [80, 49.6573, 30.8208, 19.1258, 11.8625, 7.3479, 4.5358, 2.7741, 1.6527, 0.9007, 0.002]
    assert grid(schedule_of(values), HIGH, LOW, 10).tolist() == pytest.approx(published, rel=0.01)
    assert float(values["spread"][1]) < 0.05 < 0.5 < float(values["spread"][0])


def test_without_velocity_the_inverse_deviation_is_even() -> None:
    values = measured(CumulativeLength(levels=600, velocity=0), side=4)
    found = grid(schedule_of(values), HIGH, LOW, 10)[1:-1]
    ends = [1 / math.sqrt(variance(rho)) for rho in (HIGH, LOW)]
    even = torch.linspace(*ends, 11, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(found, (even**-2 - C**2).sqrt(), rtol=0.02, atol=0)


def test_one_pass_finds_the_length_of_a_mixture() -> None:
    values = measured(CumulativeLength(), MODES, side=8, seeds=range(250))
    length, error = float(values["length"][-1]) / 8, float(values["standard_error"][-1]) / 8
    assert error < 0.01 * length
    assert abs(length - 11.8945) < 3 * error
    nine = [80, 41.307, 21.312, 10.964, 5.579, 2.717, 1.122, 0.494, 0.233, 0.002]
    assert grid(schedule_of(values), HIGH, LOW, 9).tolist() == pytest.approx(nine, rel=0.02)
    ten = [80, 44.130, 24.331, 13.391, 7.328, 3.932, 1.965, 0.848, 0.429, 0.214, 0.002]
    assert grid(schedule_of(values), HIGH, LOW, 10).tolist() == pytest.approx(ten, rel=0.02)


def test_two_passes_make_the_costs_equal() -> None:
    spread = measured(CumulativeLength(passes=2), MODES, side=8, seeds=range(80))["spread"].tolist()
    assert spread[0] == pytest.approx(0.743, rel=0.05)
    assert spread[2] < 0.05


def reference(weight: float, levels: int, passes: int) -> tuple[float, np.ndarray]:
    """Algorithm 1 in NumPy with the closed form of the cost of a Gaussian: length and levels of the last pass."""
    rho = np.geomspace(LOW, HIGH, levels)
    for number in range(passes):
        low, high = rho[:-1], rho[1:]
        work = (high**2 - low**2) ** 2 / ((C**2 + high**2) * (C**2 + low**2) ** 2)
        cost = low ** (2 - 2 * weight) * high ** (2 * weight) * work
        length = np.concatenate([[0], np.sqrt(cost).cumsum()])
        if number + 1 < passes:
            rho = np.exp(np.interp(np.linspace(0, length[-1], levels), length, np.log(rho)))
    return length[-1], rho


def test_few_levels_collapse_with_the_published_weight_only() -> None:
    """The last step is nearly free, so every pass lengthens it: 28 down to 0.002 after 22 passes over 10 steps."""
    for name, weight, published in (("destination", 0.0, 2.30), ("geometric", 0.5, 8.94)):
        values = measured(CumulativeLength(levels=11, passes=23, weight=name), side=16)
        length, rho = reference(weight, 11, 23)
        assert length == pytest.approx(published, rel=0.05)
        assert float(values["length"][-1]) / 16 == pytest.approx(length, rel=0.02)
        assert values["rho"].tolist() == pytest.approx(rho.tolist(), rel=0.02)
        assert (rho[1] > 20) == (name == "destination")


def test_damping_settles_the_source_weight() -> None:
    few = {"levels": 11, "weight": "source"}
    rough = measured(CumulativeLength(**few, passes=12), side=8, seeds=range(100))["spread"]
    smooth = measured(CumulativeLength(**few, passes=12, damping=0.5), side=8, seeds=range(100))["spread"]
    assert float(rough[-2]) > 0.15
    assert float(smooth[-2]) < 0.05


def predicted(rho: Tensor) -> float:
    """The length of a Gaussian by the closed form of the predictor's cost, one entry per image."""
    low, high = rho[:-1], rho[1:]
    left = low * C**2 * (high - low) ** 2 / ((C**2 + high * low) * (C**2 + low**2) * (C**2 + high**2).sqrt())
    return float(left.sqrt().sum())


def test_the_predictors_length_is_independent_of_levels() -> None:
    """To leading order its cost is rho^2 c^4 h^4 / V^5, and the length the integral of the fourth root."""
    exact, _ = quad(lambda rho: (rho**2 * C**4 / variance(rho) ** 5) ** 0.25, 0.1, 10.0)
    for levels, within in ((20, 0.03), (40, 0.015)):
        values = measured(CumulativeLength("predictor", levels), side=4, seeds=range(200), ends=(10.0, 0.1))
        assert predicted(values["rho"]) == pytest.approx(exact, rel=within)
        assert float(values["length"][-1]) / 2 == pytest.approx(predicted(values["rho"]), rel=0.01)
        assert float(values["spread"][1]) < 0.2 < float(values["spread"][0])


@pytest.mark.parametrize("side", [4, 8])
def test_the_probed_predictor_agrees_with_the_exact_one(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps' levels from 80 to 0.002 within 5 %, for six modes whose images' entries depend on each other."""
    generator = torch.Generator().manual_seed(0)
    means = 2 / side * torch.randn(6, side**2, generator=generator, dtype=torch.float64)
    modes = GaussianMixture(means, torch.full((6,), 0.5, dtype=torch.float64), torch.ones(6, dtype=torch.float64))
    levels = []
    for exact_up_to in (0, 64):
        monkeypatch.setattr(score_optimal, "EXACT", exact_up_to)
        values = measured(CumulativeLength("predictor", 20), modes, side, range(60))
        levels.append(grid(schedule_of(values), HIGH, LOW, 10).log())
    probed, exact = levels
    torch.testing.assert_close(probed, exact, rtol=0, atol=0.05)
    assert not torch.equal(probed, exact)


def test_standard_errors_are_the_scatter_between_sets() -> None:
    runs = [
        measured(CumulativeLength(levels=12), MODES, side=1, seeds=range(60 * k, 60 * k + 60), ends=(8.0, 0.05))
        for k in range(30)
    ]
    for place in (4, 8, 11):
        scatter = torch.stack([run["length"][place] for run in runs]).std()
        claimed = torch.stack([run["standard_error"][place] for run in runs]).mean()
        assert float(claimed / scatter) == pytest.approx(1, abs=0.35)


def test_batches_do_not_change_numbers_or_progress() -> None:
    told: list[float] = []
    model = Denoiser(PerPixel(MODES), VarianceExploding()), heun()(Power(7), 8.0, 0.05, 10), (1, 2, 2), range(20)
    whole = CumulativeLength(levels=8)(Subject(*model, 20))
    parts = CumulativeLength(levels=8)(Subject(*model, 7), told.append)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-12)
    assert sum(told) == pytest.approx(20)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cost": "predicter"}, "calibration.cost=predicter: there is no such choice; did you mean 'predictor'?"),
        ({"weight": "target"}, "calibration.weight=target"),
        ({"levels": 2}, "calibration.levels=2: a length needs 3 noise levels"),
        ({"passes": 0}, "calibration.passes=0: at least one pass"),
        ({"damping": 0.0}, "calibration.damping=0: choose 0 < damping <= 1"),
        ({"states": "trajectories"}, "calibration.states=trajectories"),
        ({"states": "trajectory", "passes": 2}, "calibration.states=trajectory: measures a run's own levels once"),
        ({"states": "trajectory", "cost": "predictor"}, "use calibration.cost=corrector calibration.passes=1"),
    ],
)
def test_refuses_options_that_mean_nothing(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        CumulativeLength(**options)


def walked(pixels: GaussianMixture, nfe: int, images: int = 100) -> tuple[dict[str, Tensor], int]:
    """Measured on the trajectories of an accurate run with even steps in ln rho; the network calls that it took."""
    model = Denoiser(PerPixel(pixels), VarianceExploding())
    run = DEIS(3, LogSNR())(LogSNR(), HIGH, LOW, nfe)
    with count_calls(model) as calls:
        values = CumulativeLength(states="trajectory")(Subject(model, run, (1, 8, 8), range(images), images))
    return values, calls.count


def test_trajectory_states_give_the_same_length() -> None:
    values, calls = walked(MODES, 150, 150)
    assert calls == 2 * 150 + 1 + 2 * 150, "run and steps, the denoiser's mean at its end, the check"
    assert values["rho"][[0, -1]].tolist() == pytest.approx([LOW, HIGH])
    assert len(values["rho"]) == 151
    length, error = float(values["length"][-1]) / 8, float(values["standard_error"][-1]) / 8
    reference = measured(CumulativeLength(levels=151), MODES, side=8, seeds=range(150))
    scatter = math.hypot(error, float(reference["standard_error"][-1]) / 8)
    assert scatter < 0.02 * length
    assert abs(length - float(reference["length"][-1]) / 8) < 3 * scatter
    ten = [80, 44.130, 24.331, 13.391, 7.328, 3.932, 1.965, 0.848, 0.429, 0.214, 0.002]
    assert grid(schedule_of(values), HIGH, LOW, 10).tolist() == pytest.approx(ten, rel=0.05)
    assert float(values["spread"][1]) < 0.05 < 0.5 < float(values["spread"][0])


def test_trajectory_costs_are_those_of_its_states() -> None:
    """x = x(sigma_max) sqrt(V / V(sigma_max)) on the flow of a Gaussian, exactly; the costs are multiples of |x|^2."""
    values, _ = walked(GAUSSIAN, 300, 20)
    low, high = values["rho"][:-1], values["rho"][1:]
    start = noise.normal(range(20), (1, 8, 8), "initial").double() * HIGH
    size = float(start.flatten(1).square().sum(1).mean()) / variance(HIGH)
    cost = low**2 * (high**2 - low**2) ** 2 / ((C**2 + high**2) * (C**2 + low**2) ** 2) * size
    torch.testing.assert_close(values["cost"], cost.clamp(min=1e-12 * float(cost.max())), rtol=5e-3, atol=0)


def test_the_trajectory_needs_decreasing_levels() -> None:
    model = Denoiser(PerPixel(GAUSSIAN), VarianceExploding())
    with pytest.raises(
        InputError, match=r"states=trajectory needs a run of strictly decreasing .*use solver=deis_tab2"
    ):
        CumulativeLength(states="trajectory")(Subject(model, heun()(Power(7), 80.0, 0.01, 10), (1, 2, 2), range(4), 4))


def test_the_summary_distinguishes_convergence_from_collapse() -> None:
    """Few levels with the published weight: costs become even while the last step grows at every pass."""
    for options, verdict in (
        ({"levels": 41, "passes": 8, "weight": "source"}, "converged: sigma_1"),
        ({"levels": 11, "passes": 11, "weight": "source"}, "not converged (spread"),
        (
            {"levels": 21, "passes": 6},
            "not converged (costs are even, but the last step still grows, by a factor",
        ),
    ):
        estimator = CumulativeLength(**options)
        values = measured(estimator, side=8, seeds=range(100))
        assert len(values["spread"]) == len(values["lowest"]) == estimator.passes + 1
        first, second = estimator.summary(values).split("\n")
        assert first.startswith("length ")
        assert second.startswith(verdict), second
        assert second.count("->") == estimator.passes - 1


def test_change_and_lowest_foretell_the_next_pass() -> None:
    one, two = (measured(CumulativeLength(levels=40, passes=n), side=4, seeds=range(40)) for n in (1, 2))
    ten = [grid(schedule_of(values), HIGH, LOW, 10).log() for values in (one, two)]
    assert float(one["change"][0]) == pytest.approx(float((ten[0] - ten[1]).abs().max()))
    assert two["change"][:1].tolist() == one["change"].tolist()
    assert float(one["lowest"][0]) == pytest.approx(float(two["rho"][1] / LOW))


def test_refuses_one_image_and_a_run_to_zero() -> None:
    with pytest.raises(InputError, match="two images"):
        measured(CumulativeLength(), seeds=range(1))
    with pytest.raises(InputError, match="sigma_min=0: no score"):
        measured(CumulativeLength(), ends=(80.0, 0.0))


LEVELS, LENGTHS = (0.01, 0.5, 3.0, 40.0), (0.0, 0.2, 4.0, 5.0)


def test_the_map_inverts_exactly() -> None:
    schedule = ScoreOptimal(LEVELS, LENGTHS)
    rho = torch.logspace(-2.5, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule(rho)), rho, rtol=1e-12, atol=0)
    assert bool((schedule(rho).diff() > 0).all())
    assert schedule(torch.tensor(LEVELS, dtype=torch.float64)).tolist() == pytest.approx(LENGTHS)
    assert schedule.knots().tolist() == list(LEVELS)
    assert float(schedule(torch.tensor(math.sqrt(0.5 * 3), dtype=torch.float64))) == pytest.approx(2.1)
    assert grid(schedule, 3.0, 0.5, 2)[1].item() == pytest.approx(math.sqrt(0.5 * 3)), "a part of the range"
    assert grid(schedule, 40.00001, 0.01, 5)[0] == 40.00001, "ends may differ by rounding"


def test_wider_ranges_and_falling_lengths_are_refused() -> None:
    schedule = ScoreOptimal(LEVELS, LENGTHS)
    for ends in ((41.0, 0.01), (40.0, 0.009), (40.0, 0.0)):
        with pytest.raises(InputError, match=r"measured from 40 to 0.01 only; stay within, or make one"):
            grid(schedule, *ends, 5)
    for levels, lengths in (
        ((1.0, 1.0), (0.0, 1.0)),
        ((1.0, 2.0), (0.0, 0.0)),
        ((0.0, 2.0), (0.0, 1.0)),
        ((1.0,), (1.0,)),
        ((1.0, 2.0, 3.0), (0.0, 1.0)),
        ((1.0, 2.0), (0.0, math.nan)),
    ):
        with pytest.raises(InputError, match="increasing noise levels > 0 and increasing lengths"):
            ScoreOptimal(levels, lengths)


def test_a_record_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    values = measured(CumulativeLength(levels=8), side=1, seeds=range(20))
    record = Record("score_optimal", values, {"checkpoint": "ab" * 32, "images": 20})
    path = tmp_path / "r.safetensors"
    record.save(path)
    assert load_schedule(path, "ab" * 32) == schedule_of(values)
    with pytest.raises(InputError, match=r"schedule.path=.*none: no such record; make one with"):
        load_schedule(tmp_path / "none", "ab" * 32)
    remedy = r"make one with: python calibrate.py calibration=score_optimal checkpoint="
    with pytest.raises(InputError, match=rf"schedule.path=.*made for checkpoint abab.*this one is cdcd.*{remedy}"):
        load_schedule(path, "cd" * 32)
    CumulativeLength().plot(record, tmp_path / "plot.png", Power(7))
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def call(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_calibrate_then_sample(tmp_path: Path) -> None:
    shutil.copy(run_names.ASSETS / "digits_vp.safetensors", tmp_path / "digits.safetensors")
    sampling = ("schedule=score_optimal", "nfe=4", "seeds=0-3", "metrics=none")
    few = ("calibration=score_optimal", "calibration.levels=8", "nfe=5", "seeds=0-3", "hydra.run.dir=measured")
    done = call("calibrate", "checkpoint=digits.safetensors", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "spread of the steps' lengths" in done.stdout
    assert "converged" in done.stdout
    assert {"score_optimal.png", "score_optimal.safetensors"} <= {p.name for p in (tmp_path / "measured").iterdir()}
    after = call("sample", "checkpoint=digits.safetensors", *sampling, cwd=tmp_path)
    assert after.returncode == 0, after.stderr
    assert "4 images, NFE 4" in after.stdout


def test_another_checkpoint_is_told_the_command(tmp_path: Path) -> None:
    checkpoint, path = tmp_path / "model.safetensors", tmp_path / "model.score_optimal.safetensors"
    values = {name: torch.tensor([1.0, 2.0], dtype=torch.float64) for name in ("rho", "length")}
    Record("score_optimal", values, {"checkpoint": "ab" * 32}).save(path)
    cfg = composed(checkpoint)
    cfg.digest = "ab" * 32
    assert instantiate(cfg.schedule) == ScoreOptimal((1.0, 2.0), (1.0, 2.0))
    cfg.digest = "cd" * 32
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.schedule)
    assert explain.explain(caught.value) == (
        f"schedule.path={path}: made for checkpoint abababababab, this one is cdcdcdcdcdcd; "
        "make one with: python calibrate.py calibration=score_optimal checkpoint=..."
    )


def composed(checkpoint: Path) -> DictConfig:
    run_names.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("sample", [f"checkpoint={checkpoint}", "schedule=score_optimal"])


def test_a_new_record_is_a_new_run(tmp_path: Path) -> None:
    checkpoint, record = tmp_path / "model.safetensors", tmp_path / "model.score_optimal.safetensors"
    checkpoint.write_bytes(b"weights")
    names = []
    for content in (b"one", b"two", b"one"):
        record.write_bytes(content)
        cfg = composed(checkpoint)
        assert cfg.schedule.path == str(record)
        names.append(cfg.identity)
    assert names[0] == names[2] != names[1]


def test_real_images_give_the_same_length() -> None:
    """Pixels of 0.4 N(-0.4, 0.1^2) + 0.6 N(0.5, 0.1^2), rounded to 1/127.5 for the data set."""
    pixels = GaussianMixture(
        torch.tensor([[-0.4], [0.5]], dtype=torch.float64),
        torch.tensor([0.1, 0.1], dtype=torch.float64),
        torch.tensor([0.4, 0.6], dtype=torch.float64),
    )
    x = pixels.draw(300 * 64, torch.Generator().manual_seed(3)).reshape(300, 1, 8, 8)
    data = ArrayDataset("made", ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    model, table = Denoiser(PerPixel(pixels), VarianceExploding()), heun()(Power(7), 20.0, 0.004, 60)
    subject = Subject(model, table, (1, 8, 8), range(200), 100)
    own, real = (CumulativeLength(levels=60)(each) for each in (subject, replace(subject, data=data)))
    off = (own["length"] - real["length"]).abs()[1:]
    assert float((off / own["standard_error"].hypot(real["standard_error"])[1:]).max()) < 4
    assert not torch.equal(own["length"], real["length"])
    with pytest.raises(InputError, match="dataset: states=trajectory reads no data"):
        CumulativeLength(states="trajectory")(replace(subject, data=data))
    with pytest.raises(InputError, match=r"images of made are \(1, 8, 8\), the checkpoint's are \(1, 4, 4\)"):
        CumulativeLength(levels=60)(replace(subject, data=data, shape=(1, 4, 4)))
