"""Reconstructed averages: profiles against quadrature, weights against averages that were tracked."""

import json
from dataclasses import replace
from itertools import product as pairs
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from torch import nn

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.commands import ema as command
from scoreline.commands import inspect
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.objective import DenoisingObjective, InverseVariance, UniformTime
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising
from scoreline.training.ema import EMA, PowerFunctionEMA, RunningAverage, gamma_of
from scoreline.training.ema_snapshots import combine, drop_later, list_snapshots, save_snapshot, snapshot_path
from scoreline.training.fixed_loss import data_loss
from scoreline.training.post_hoc_ema import (
    PowerProfile,
    Profile,
    StepProfile,
    exact_profile,
    exponential,
    fit,
    product,
    products,
)

POWERS = [PowerProfile(16.97, 96e3), PowerProfile(6.94, 96e3), PowerProfile(6.94, 41e3), PowerProfile(0.0, 70e3)]
BATCH, STEPS, EVERY = 64, 3000, 120
IMAGES = BATCH * STEPS


def density(profile: PowerProfile, tau: float) -> float:
    return (profile.gamma + 1) * tau**profile.gamma / profile.images ** (profile.gamma + 1)


def test_products_of_power_functions_against_quadrature() -> None:
    for a, b in pairs(POWERS, POWERS):
        end = min(a.images, b.images)
        expected, _ = quad(lambda tau: density(a, tau) * density(b, tau), 0, end, epsabs=0, epsrel=1e-12, limit=200)  # noqa: B023
        assert product(a, b) == pytest.approx(expected, rel=1e-11)


def test_products_of_step_profiles_against_quadrature() -> None:
    """Step by step: the density of one is constant there."""
    step, power = exponential(3, 640 * 20, 640), PowerProfile(6.94, 640 * 13 + 100)
    expected = 0.0
    for k, share in enumerate(step.shares):
        stop = max(min(640 * (k + 1), power.images), 640 * k)
        expected += share / 640 * quad(lambda tau: density(power, tau), 640 * k, stop, epsabs=0, epsrel=1e-12)[0]
    assert product(step, power) == product(power, step) == pytest.approx(expected, rel=1e-11)
    other = exponential(5, 640 * 11, 640)
    expected = sum(p / 640 * q / 640 * 640 for p, q in zip(step.shares, other.shares, strict=False))
    assert product(step, other) == pytest.approx(expected, rel=1e-13)
    with pytest.raises(ValueError, match="batches of 640 and 64"):
        product(step, exponential(5, 640, 64))


def test_products_with_many_are_those_with_each() -> None:
    """Ends on and between steps, before, at and after the target's, unsorted, two within one step; narrow ones too."""
    ends = [640.0 * 20, 640.0 * 3, 640.0 * 26, 333.0, 640.0 * 3 + 17, 640.0 * 3 + 18, 640.0 * 11, 640.0]
    known = [PowerProfile(gamma, end) for end in ends for gamma in (0.0, 6.94, 400.0)]
    for target in (exponential(3, 640 * 20, 640), PowerProfile(2.0, 640 * 20)):
        each = [product(target, profile) for profile in known]
        np.testing.assert_allclose(products(target, known), each, rtol=1e-12)


@pytest.mark.parametrize("average", [EMA(10, 0.2), EMA(1, float("inf")), PowerFunctionEMA(0.1), PowerFunctionEMA(0.2)])
def test_the_tracked_profile_is_what_the_average_does(average: RunningAverage) -> None:
    """Weights that are 1 at one step and 0 at the others pick out that step's share."""
    module = nn.Linear(50, 1, bias=False).double()
    average.start(module)
    for step in range(50):
        with torch.no_grad():
            module.weight.copy_(torch.eye(50)[step])
        average.update(module, step * 64, 64)
    found = exact_profile(average, 50 * 64, 64)
    assert found.shares.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.shares, average.weights["weight"].flatten().numpy(), rtol=1e-11)


def test_power_function_by_steps_is_its_integral() -> None:
    step = exact_profile(PowerFunctionEMA(0.1), 64 * 300, 64)
    np.testing.assert_allclose(step.shares, PowerProfile(gamma_of(0.1), 64 * 300).masses(step.edges), atol=1e-15)


def test_an_exponential_against_bias_correction() -> None:
    """W_avg / (1 - beta^k), from W_avg = 0, at constant beta."""
    rng, beta = np.random.default_rng(0), 0.5 ** (64 / 2000)
    course, average = rng.normal(size=100), 0.0
    for weight in course:
        average = beta * average + (1 - beta) * weight
    assert exponential(2, 6400, 64).shares @ course == pytest.approx(average / (1 - beta**100), rel=1e-12)


class Course:
    """A random walk of 30 weights with a constant far away, and the two tracked averages along it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        steps = torch.randn(STEPS, 30, generator=generator, dtype=torch.float64)
        self.weights = (100 + steps.cumsum(0)).numpy()
        self.images = np.arange(EVERY, STEPS + 1, EVERY) * BATCH
        self.known = [PowerProfile(gamma_of(sigma), float(t)) for t in self.images for sigma in (0.05, 0.10)]
        self.saved = np.stack([self.direct(profile) for profile in self.known])

    def direct(self, profile: Profile) -> np.ndarray:
        """The average by the recursion itself for a power function, by the sum over all weights for others."""
        if isinstance(profile, StepProfile):
            return profile.shares @ self.weights[: len(profile.shares)]
        average = np.zeros(30)
        for k in range(1, round(profile.images / BATCH) + 1):
            beta = (1 - 1 / k) ** (profile.gamma + 1)
            average = beta * average + (1 - beta) * self.weights[k - 1]
        return average


@pytest.fixture(scope="module")
def course() -> Course:
    return Course()


TARGETS: list[tuple[Profile, float, float]] = [
    (PowerProfile(gamma_of(0.05), IMAGES), 2e-8, 1e-12),
    (PowerProfile(gamma_of(0.04), IMAGES), 5e-3, 1e-3),
    (PowerProfile(gamma_of(0.07), IMAGES), 2e-3, 2e-4),
    (PowerProfile(gamma_of(0.15), IMAGES), 4e-3, 2e-4),
    (PowerProfile(gamma_of(0.20), IMAGES), 1.1e-2, 2e-3),
    (PowerProfile(gamma_of(0.15), EVERY * BATCH * 18), 8e-3, 1e-3),
    (exponential(20, IMAGES, BATCH), 3e-3, 2e-3),
    (exact_profile(EMA(20, 0.2), IMAGES, BATCH), 2e-3, 3e-4),
    (exact_profile(EMA(10, 0.05), IMAGES, BATCH), 2.5e-3, 3e-4),
]
"""Profile; the most its fit may miss of it; the most its weights may miss of the way from average to last weights."""


@pytest.mark.parametrize(("target", "residual", "error"), TARGETS)
def test_reconstruction_of_what_was_tracked(course: Course, target: Profile, residual: float, error: float) -> None:
    found = fit(target, course.known)
    direct, rebuilt = course.direct(target), found.coefficients @ course.saved
    assert found.residual < residual
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)
    last = course.weights[(len(target.shares) if isinstance(target, StepProfile) else int(target.images) // BATCH) - 1]
    assert np.linalg.norm(rebuilt - direct) < error * np.linalg.norm(direct - last)
    spread = np.sqrt(BATCH * ((course.weights - 100) ** 2).sum())
    bound = found.residual * np.sqrt(product(target, target)) * spread
    assert np.linalg.norm(rebuilt - direct) <= bound + 1e-9


def test_the_residual_is_the_distance_of_the_profiles(course: Course) -> None:
    """By a sum over a fine grid of images."""
    target = PowerProfile(gamma_of(0.2), IMAGES)
    found = fit(target, course.known[:20:3])
    tau = (np.arange(400_000) + 0.5) / 400_000 * IMAGES
    wanted = np.array([density(target, 1.0)]) * tau**target.gamma
    missed = wanted.copy()
    for coefficient, known in zip(found.coefficients, course.known[:20:3], strict=True):
        missed -= coefficient * np.where(tau <= known.images, density(known, 1.0) * tau**known.gamma, 0)
    assert found.residual == pytest.approx(np.sqrt((missed**2).sum() / (wanted**2).sum()), rel=1e-4)


def test_no_other_sum_is_nearer(course: Course) -> None:
    target, known = PowerProfile(gamma_of(0.2), IMAGES), course.known[-6:]
    found, rng = fit(target, known), np.random.default_rng(0)

    def missed(coefficients: np.ndarray) -> float:
        total = product(target, target)
        for i, a in enumerate(known):
            total -= 2 * coefficients[i] * product(a, target)
            total += sum(coefficients[i] * coefficients[j] * product(a, b) for j, b in enumerate(known))
        return total

    least = missed(found.coefficients)
    for _ in range(30):
        change = rng.normal(size=6) * 1e-2
        assert missed(found.coefficients + change - change.mean()) > least


def test_snapshots_alike_do_no_harm() -> None:
    """Two widths that differ in the tenth digit, and one width twice: the normal equations are singular."""
    known = [PowerProfile(gamma, t * 1e3) for t in range(10, 101, 10) for gamma in (16.97, 16.97, 16.97000001, 6.94)]
    found = fit(PowerProfile(9.0, 1e5), known)
    assert found.residual < 2e-2
    assert np.abs(found.coefficients).max() < 10


SPEC = {"_target_": "scoreline.schedules.vp.LinearVP"}
SIZES = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1}
MODEL = {
    "network": {"_target_": "scoreline.networks.unet.UNet", **SIZES},
    "noise_schedule": SPEC,
    "parameterisation": {"_target_": "scoreline.parameterisations.NoisePrediction", "noise_schedule": SPEC},
}
CARD = Card(MODEL, (1, 8, 8), 0, {"name": "toy"}, {"kimg": 1.28, "seed": 0, "ema_half_life_kimg": 10})
SAVED = (0.05, 0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 steps of 64 images with random updates, snapshots every 10, and averages tracked directly."""
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = UNet(1, 8, width=8, blocks=1)
    powers = [PowerFunctionEMA(sigma) for sigma in SAVED]
    direct: dict[str, RunningAverage] = {"sigma": PowerFunctionEMA(0.15), "ramp": EMA(2, 0.2)}
    for average in (*powers, *direct.values()):
        average.start(net)
    for step in range(200):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=1e-2)
        for average in (*powers, *direct.values()):
            average.update(net, step * 64, 64)
        if (step + 1) % 10 == 0:
            for power in powers:
                save_snapshot(root, power, (step + 1) * 64, 64)
    save_model(root / "model.safetensors", net.state_dict(), CARD)
    for name, average in direct.items():
        save_model(root / f"direct-{name}.safetensors", average.weights, CARD)
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    for path in trained.rglob("*.safetensors"):
        copy = tmp_path / "run" / path.relative_to(trained)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "run"


def flat(path: Path) -> torch.Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(load_file(path).items())])


@pytest.mark.parametrize(
    ("words", "direct", "error"),
    [(["sigma_rel=0.15"], "sigma", 3e-3), (["half_life_kimg=2", "rampup=0.2"], "ramp", 1e-2)],
)
def test_the_command_writes_the_tracked_average(
    words: list[str], direct: str, error: float, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "new" / "model-post.safetensors"
    command.main([str(trained), *words, str(destination)])
    wanted, last, found = (
        flat(path) for path in (trained / f"direct-{direct}.safetensors", trained / "model.safetensors", destination)
    )
    assert float((found - wanted).norm()) < error * float((wanted - last).norm())
    card = load_model(destination).card
    assert (card.model, card.shape, card.data) == (CARD.model, CARD.shape, CARD.data)
    assert card.training.keys() == {"kimg", "seed", "ema"}, "not the half-life of the other average"
    assert card.training["kimg"] == 12.8
    origin = card.training["ema"]["reconstructed_from"]
    assert (origin["snapshots"], origin["sigma_rel"], origin["kimg"][-1]) == (40, [0.05, 0.1], 12.8)
    assert 0 < origin["residual"] < 0.02
    key, _, value = words[0].partition("=")
    assert card.training["ema"][key] == float(value)
    assert (
        f"{words[0]} at 12.8 kimg from 40 snapshots, residual {100 * origin['residual']:.2g} %"
        in capsys.readouterr().out
    )
    assert "reconstructed_from" in inspect.text(destination)


def test_half_the_bytes_with_the_loss_of_both(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16 in the file; losses of held-out digits, of each type as a model file of that type has it."""
    records = [{"kimg": k, "loss": 1 / k} for k in range(1, 41)]
    records += [{"kimg": k, "fixed_loss": 2 / k} for k in range(1, 41)]
    records.sort(key=lambda it: it["kimg"])
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    words = [str(run), "sigma_rel=0.1", "experiment=digits_vp", "dataset.split=test"]
    command.main([*words, str(tmp_path / "whole.safetensors")])
    command.main([*words, "dtype=bfloat16", str(tmp_path / "half.safetensors")])
    whole, half = (load_model(tmp_path / f"{name}.safetensors") for name in ("whole", "half"))
    assert {weight.dtype for weight in load_file(half.path).values() if weight.is_floating_point()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.denoiser.parameters()} == {torch.float32}
    for name, weight in whole.denoiser.network.state_dict().items():
        assert torch.equal(half.denoiser.network.state_dict()[name], weight.bfloat16().float())
    held_out = half.card.training["held_out"]
    assert (held_out["data"], held_out["images"]) == ("digits-test", len(Digits("test")))
    assert whole.card.training["held_out"]["losses"] == {"float32": held_out["losses"]["float32"]}
    objective = DenoisingObjective(UniformTime(LinearVP()), InverseVariance(), Denoising())
    for model, name in ((whole, "float32"), (half, "bfloat16")):
        loss = data_loss(model.denoiser, objective, Digits("test"), conditional=False)
        assert held_out["losses"][name] == {"loss": pytest.approx(loss.loss), "error": pytest.approx(loss.error)}
    assert (
        f"held-out loss of the bfloat16 weights {held_out['losses']['bfloat16']['loss']:.5f}" in capsys.readouterr().out
    )
    rows = half.card.training["curve"]["rows"]
    assert rows == [[k, pytest.approx(1 / k, abs=1e-5), pytest.approx(2 / k, abs=1e-5)] for k in range(1, 13)]
    assert "curve" in inspect.text(half.path)


def test_held_out_images_are_others_of_that_shape(run: Path, tmp_path: Path) -> None:
    words = [str(run), "sigma_rel=0.1", "experiment=digits_vp", str(tmp_path / "new.safetensors")]
    checkpoint = load_model(run / "model.safetensors")
    data = {"name": "digits-train", "sha256": Digits("train").digest}
    save_model(run / "model.safetensors", checkpoint.denoiser.network.state_dict(), replace(CARD, data=data))
    with pytest.raises(InputError, match="experiment=digits_vp: those of the training; choose held-out ones"):
        command.main(words)


def test_an_earlier_moment_uses_snapshots_until_then_only(run: Path, tmp_path: Path) -> None:
    command.main([str(run), "sigma_rel=0.05", "kimg=6.4", str(tmp_path / "then.safetensors")])
    saved, found = load_file(run / "ema/0000006400-0.05.safetensors"), load_file(tmp_path / "then.safetensors")
    for name, value in saved.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert load_model(tmp_path / "then.safetensors").card.training["ema"]["reconstructed_from"]["kimg"][-1] == 6.4


def test_a_snapshot_file_says_what_it_is(trained: Path) -> None:
    path = trained / "ema/0000012800-0.1.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "scoreline/ema-snapshot/1", "sigma_rel": "0.1", "images": "12800", "batch": "64",
        }  # fmt: skip
    found = list_snapshots(trained)
    assert [(it.images, it.sigma_rel) for it in found] == [(640 * k, s) for k in range(1, 21) for s in SAVED]
    assert not list((trained / "ema").glob(".*")), "no temporary file is left"


def test_snapshots_are_float32_and_keep_whole_numbers(tmp_path: Path) -> None:
    net, average = nn.BatchNorm1d(3).double(), PowerFunctionEMA(0.1)
    average.start(net)
    written = set()
    for _ in range(8):
        save_snapshot(tmp_path, average, 64, 64)
        written.add(snapshot_path(tmp_path, average, 64).read_bytes())
    assert len(written) == 1, "equal snapshots are equal bytes"
    kept = load_file(snapshot_path(tmp_path, average, 64))
    assert kept["weight"].dtype == kept["running_mean"].dtype == torch.float32
    assert kept["num_batches_tracked"].dtype == torch.int64


def test_buffers_are_those_of_the_last_snapshot(tmp_path: Path) -> None:
    net, average = nn.BatchNorm1d(2), PowerFunctionEMA(0.1)
    average.start(net)
    for step in range(3):
        nn.init.constant_(net.weight, step + 1.0)
        net.running_mean.fill_(step)
        average.update(net, step * 64, 64)
        save_snapshot(tmp_path, average, 64 * (step + 1), 64)
    found = list_snapshots(tmp_path)
    first, _, last = (load_file(it.path) for it in found)
    mixed = combine(found, [0.25, 0.0, 0.75], net)
    torch.testing.assert_close(mixed["weight"], 0.25 * first["weight"] + 0.75 * last["weight"])
    assert mixed["running_mean"].tolist() == [2, 2]
    assert mixed.keys() == net.state_dict().keys()


def test_later_snapshots_are_dropped_and_nothing_else(run: Path) -> None:
    (run / "ema" / "notes.safetensors").write_bytes(b"")
    drop_later(run, 6400)
    assert {it.images for it in list_snapshots(run)} == {640 * k for k in range(1, 11)}
    assert (run / "ema" / "notes.safetensors").exists()
    drop_later(run / "nothing", 0)


WRONG = [
    ([], r"0 paths: "),
    (["RUN", "sigma_rel=0.15"], r"1 paths: "),
    (["RUN", "NEW"], r"sigma_rel=\.\.\. and half_life_kimg=\.\.\."),
    (["RUN", "sigma_rel=0.1", "half_life_kimg=2", "NEW"], r"sigma_rel and half_life_kimg"),
    (["RUN", "sigma_rl=0.1", "NEW"], r"sigma_rl: .* 'sigma_rel'"),
    (["RUN", "sigma_rel=abc", "NEW"], r"sigma_rel=abc: "),
    (["RUN", "sigma_rel=nan", "NEW"], r"sigma_rel=nan: "),
    (["RUN", "sigma_rel=0.5", "NEW"], r"sigma_rel=0.5: .* 0.0001 to 0.288675"),
    (["RUN", "half_life_kimg=0", "NEW"], r"half_life_kimg=0.0: "),
    (["RUN", "sigma_rel=0.1", "rampup=0.05", "NEW"], r"rampup=0.05: "),
    (["RUN", "half_life_kimg=2", "rampup=-1", "NEW"], r"rampup=-1.0: "),
    (["RUN", "sigma_rel=0.1", "kimg=13", "NEW"], r"kimg=13: .* 0.064, .* 12.8"),
    (["RUN", "sigma_rel=0.1", "kimg=0.01", "NEW"], r"kimg=0.01: .* 0.064"),
    (["RUN", "sigma_rel=0.1", "kimg=soon", "NEW"], r"kimg=soon: "),
    (["nowhere", "sigma_rel=0.1", "NEW"], r"nowhere: "),
    (["RUN", "sigma_rel=0.1", "model.pt"], r"model.pt: .* \.safetensors"),
    (["RUN", "sigma_rel=0.1", "RUN/model.safetensors"], r"model.safetensors: "),
    (["RUN", "sigma_rel=0.1", "dtype=half", "NEW"], r"dtype=half: must be float32 or bfloat16"),
    (["RUN", "sigma_rel=0.1", "dataset.split=test", "NEW"], r"dataset.split=test: give experiment= too"),
    (["RUN", "sigma_rel=0.004", "NEW"], r"\d+ % by the 40 snapshots, .* 5 %; sigma_rel from 0.02"),
    (["RUN", "half_life_kimg=0.1", "NEW"], r"half_life_kimg=0.1: .* half_life_kimg from 0\.\d+ to \d+\.?\d*"),
    (["RUN", "sigma_rel=0.1", "kimg=6.08", "NEW"], r"0.1: its profile at 6.08 .* 5.76 or 6.4"),
    (["RUN", "sigma_rel=0.1", "kimg=0.32", "NEW"], r"0.64"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_a_mistake_names_key_and_remedy(words: list[str], sentence: str, trained: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    words = [word.replace("RUN", str(trained)).replace("NEW", str(new)) for word in words]
    with pytest.raises(InputError, match=sentence) as caught:
        command.main(words)
    assert "\n" not in str(caught.value)
    assert not new.exists()


@pytest.mark.parametrize("key", ["sigma_rel", "half_life_kimg"])
def test_the_stated_range_is_the_usable_one(key: str, trained: Path) -> None:
    snapshots = list_snapshots(trained)
    asked = {"sigma_rel": "", "half_life_kimg": "", "rampup": "", key: "0.004" if key == "sigma_rel" else "0.001"}
    target = command.target_of(asked, 12800, 64)
    works = command.working_range(target, snapshots)
    assert works is not None
    known = command.profiles(snapshots)
    for width in np.geomspace(*works, 15):
        assert fit(target.profile(float(width)), known).residual <= command.MOST * (1 + 1e-9)
    assert fit(target.profile(works[0] / 1.3), known).residual > command.MOST


def test_where_nothing_works_that_is_told(run: Path, tmp_path: Path) -> None:
    """One snapshot represents itself and its neighbours; one of a width that is none of those tried, itself alone."""
    for path in (run / "ema").glob("*.safetensors"):
        if path.name != "0000000640-0.05.safetensors":
            path.unlink()
    target = command.target_of({"sigma_rel": "0.2", "half_life_kimg": "", "rampup": ""}, 640, 64)
    snapshots = list_snapshots(run)
    works = command.working_range(target, snapshots)
    assert works is not None
    assert works[0] <= 0.05 <= works[1] * 1.1
    never = replace(target, limits=(0.2, 0.28))
    assert command.working_range(never, snapshots) is None
    assert "as is any other width there; choose a later kimg, or train with a smaller" in command.refusal(
        never, 640, snapshots, 0.9
    )


def test_damaged_and_foreign_snapshots(run: Path, tmp_path: Path) -> None:
    words = [str(run), "sigma_rel=0.15", str(tmp_path / "new.safetensors")]
    path = run / "ema/0000006400-0.1.safetensors"
    good = path.read_bytes()
    weights = {name: value.clone() for name, value in load_file(path).items()}
    name = next(name for name, value in weights.items() if value.is_floating_point())
    metadata = {"format": "scoreline/ema-snapshot/1", "sigma_rel": "0.1", "images": "6400", "batch": "64"}

    def spoilt(tensors: dict[str, torch.Tensor], **changes: str) -> None:
        save_file(tensors, path, {**metadata, **changes})

    def refused(sentence: str) -> None:
        with pytest.raises(InputError, match=rf"0000006400-0.1.safetensors: {sentence}"):
            command.main(words)

    path.write_bytes(good[: len(good) // 2])
    refused("not a readable safetensors file")
    spoilt({**weights, name: weights[name] * float("nan")})
    refused(f"weight {name} is not finite")
    spoilt({name: weights[name]})
    refused("its tensors are not those of the run's model.safetensors")
    spoilt({**weights, name: weights[name][..., None]})
    refused("its tensors are not those of the run's model.safetensors")
    spoilt(weights, format="scoreline/model/1")
    refused("its format is 'scoreline/model/1', not 'scoreline/ema-snapshot/1'")
    spoilt(weights, images="many")
    refused("its metadata is damaged")
    spoilt(weights, batch="32")
    with pytest.raises(InputError, match=r"snapshots of trainings with batch_size \[32, 64\]"):
        command.main(words)
    path.write_bytes(good)
    command.main(words)


def test_a_run_without_snapshots(run: Path, tmp_path: Path) -> None:
    drop_later(run, 0)
    with pytest.raises(InputError, match=r"ema: .* ema.post_hoc="):
        command.main([str(run), "sigma_rel=0.15", str(tmp_path / "new.safetensors")])


def test_a_path_with_an_equals_sign(run: Path, tmp_path: Path) -> None:
    destination = tmp_path / "seed=0,sigma=0.15.safetensors"
    run.rename(tmp_path / "seed=0")
    command.main([str(tmp_path / "seed=0"), "sigma_rel=0.15", str(destination)])
    assert destination.is_file()
