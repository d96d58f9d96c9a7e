"""`scoreline verify`: right models pass, every mistake is found by the check that is meant for it."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.checkpoints import Card, Checkpoint, load_model, save_model
from scoreline.commands import verify
from scoreline.config.run_names import model_path
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.networks.unet import UNet
from scoreline.parameterisations import (
    IDDPM,
    EDMPreconditioning,
    NoisePrediction,
    Parameterisation,
    VarianceExploding,
    VelocityPrediction,
)
from scoreline.runtime.seeded_noise import normal
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.sub_vp import SubVP
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import LinearVP
from scoreline.storage.pictures import to_unit
from scoreline.verification.changes import Change, change_scalings
from scoreline.verification.channels import judge_channels, measure_reversed
from scoreline.verification.convergence import Convergence, Runs, judge_convergence, measure_convergence
from scoreline.verification.ddim import ddim, ddim_differences, judge_ddim
from scoreline.verification.diagnosis import remedies
from scoreline.verification.loss import (
    FACTORS,
    Losses,
    RealImages,
    failed_levels,
    judge_losses,
    levels,
    linear_losses,
    losses,
    measure_losses,
)
from scoreline.verification.measurement_plan import header, real_images
from scoreline.verification.noise_labels import judge_labels, levels_of_labels, measure_shifts
from scoreline.verification.scale import Scale, judge_scale, measure_scale
from scoreline.verification.sections import loss_section

FEW = ("images=32", "levels=8", "seeds=0-3", "nfe=160", "device=cpu")


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_model(model_path("digits_vp"))


Make = Callable[..., str]


@pytest.fixture
def make(shipped: Checkpoint, tmp_path: Path) -> Make:
    """The path of the shipped model with other weights, or other arguments on its card."""

    def made(weights: dict[str, Tensor] | None = None, data: dict[str, Any] | None = None, **parts: Any) -> str:
        model = copy.deepcopy(shipped.card.model)
        for part, arguments in parts.items():
            model[part].update(arguments)
        state = shipped.denoiser.network.state_dict() | (weights or {})
        card = replace(shipped.card, model=model, data=shipped.card.data if data is None else data)
        save_model(tmp_path / "model.safetensors", state, card)
        return str(tmp_path)

    return made


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, {check: (status, text)} and all that was printed."""
    code = verify.main([*words])
    printed = capsys.readouterr().out
    verdicts = {}
    for line in printed.splitlines():
        status, _, rest = line.partition(" ")
        if status in ("pass", "warn", "fail", "skip"):
            check, text = rest.split(maxsplit=1)
            verdicts[check] = (status, text)
    return code, verdicts, printed


def test_shipped_model_passes_with_the_announced_evaluations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shipped: Checkpoint
) -> None:
    seen = 0
    forward = UNet.forward

    def counting(self: UNet, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        nonlocal seen
        seen += len(x)
        return forward(self, x, *arguments, **named)

    monkeypatch.setattr(UNet, "forward", counting)
    code, verdicts, printed = run(capsys, "digits_vp", *FEW)
    assert code == 0
    assert set(verdicts) == {"loss", "labels", "ddim", "convergence", "scale"}
    assert {status for status, _ in verdicts.values()} <= {"pass", "warn"}
    assert "real images: 32 of digits-train" in printed
    announced = int(printed.partition("an image: ")[2].split(" = ")[0].replace(",", ""))
    assert seen == announced + 4  # and one at sigma_max for each seed
    assert printed.rstrip().splitlines()[-1].startswith("digits_vp: no check fails")


def negated(shipped: Checkpoint) -> dict[str, Tensor]:
    state = shipped.denoiser.network.state_dict()
    return {name: -state[name] for name in state if name.startswith("head.")}


def swapped(shipped: Checkpoint) -> dict[str, Tensor]:
    state = shipped.denoiser.network.state_dict()
    first, second = "encoder.2.conv0.weight", "decoder.4.conv1.weight"
    return {first: state[second], second: state[first]}


def test_a_negated_output_is_named(make: Make, shipped: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdicts, printed = run(capsys, make(negated(shipped)), *FEW)
    assert code == 1
    assert verdicts["loss"][0] == "fail"
    assert verdicts["loss"][1].endswith("it falls with the output negated (its sign is wrong)")
    assert verdicts["scale"][0] == "fail"
    assert "loss, labels, scale failed; begin with the first" in printed


def test_labels_0_to_1_are_named(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdicts, _ = run(capsys, make(parameterisation={"label_scale": 1.0}), *FEW)
    assert code == 1
    assert verdicts["loss"][0] == "fail"
    assert verdicts["loss"][1].endswith("it falls with labels times 999 (label_scale)")
    assert verdicts["labels"] == (
        "warn",
        "the label hardly matters, at 0 of 8 levels; look at label_scale",
    )


@pytest.mark.parametrize(("shift", "side"), [(30.0, "lower"), (-30.0, "higher"), (100.0, "lower")])
def test_labels_that_are_off_are_found(shift: float, side: str, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that gets the label t + 30 does better with a lower one; the loss alone does not show it."""
    code, verdicts, _ = run(capsys, make(parameterisation={"label_shift": shift}), *FEW)
    assert code == 1
    assert verdicts["labels"][0] == "fail"
    assert f"better with that of a {side} rho" in verdicts["labels"][1]
    assert verdicts["loss"][0] == ("fail" if shift == 100 else "warn")
    assert verdicts["ddim"][0] == "pass"  # the label is off in both alike


def test_swapped_weights_are_no_mistake_of_convention(
    make: Make, shipped: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    code, verdicts, _ = run(capsys, make(swapped(shipped)), *FEW)
    assert code == 1
    assert verdicts["loss"][0] == "fail"
    assert "look at the weights" in verdicts["loss"][1]


def test_ddim_finds_disagreeing_noise_schedules(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdicts, _ = run(capsys, make(noise_schedule={"beta_max": 19.0}), *FEW)
    assert code == 1
    assert verdicts["ddim"][0] == "fail"
    assert "the noise schedule of the card and that of its parameterisation disagree" in verdicts["ddim"][1]


def test_loss_without_real_images_is_skipped(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    place = make(data={"name": "cifar10-train"})
    code, verdicts, printed = run(capsys, place, *FEW)
    assert code == 0
    for check in ("loss", "labels"):
        assert verdicts[check][0] == "skip"
        assert "cifar10-train, which does not ship; give dataset=" in verdicts[check][1]
    assert printed.rstrip().endswith("2 skipped")
    plan = verify.prepare(*verify.split([place, *FEW, "dataset=digits", "dataset.split=test"]))
    assert "real images: 32 of digits-test" in header(plan)
    plan = verify.prepare(*verify.split([place, *FEW, "dataset=none"]))
    verdicts_of_none = {verdict.status: verdict.text for verdict in loss_section(plan).verdicts}
    assert verdicts_of_none == {"skip": "no real images: dataset=none"}


def test_results_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits_vp", *FEW, "levels=4", f"out={tmp_path}")
    code, verdicts, _ = run(capsys, *words)
    found = json.loads((tmp_path / "verify.json").read_text())
    assert code == 0
    assert {v["check"]: (v["status"], v["text"]) for v in found["verdicts"]} == verdicts
    assert found["checkpoint"] == load_model(model_path("digits_vp")).digest
    assert (len(found["rho"]), found["nfe"], found["images"]) == (4, [10, 20], 32)
    assert found["loss"][FACTORS.index(2.0)][0] is None  # twice sigma_max is out of range
    with pytest.raises(InputError, match=r"out=.*is there already"):
        verify.main([*words])


def test_conditional_model_gets_its_images_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    shape = {"channels": 1, "resolution": 8, "width": 8, "blocks": 1, "num_classes": 10}
    model = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **shape},
        "noise_schedule": {"_target_": "scoreline.schedules.ve.EDM"},
        "parameterisation": {"_target_": "scoreline.parameterisations.EDMPreconditioning", "sigma_data": 0.75},
    }
    card = Card(model, (1, 8, 8), 10, {"name": "digits-train"}, {})
    weights = {name: 0.1 * torch.randn_like(weight) for name, weight in UNet(**shape).state_dict().items()}
    save_model(tmp_path / "model.safetensors", weights, card)
    few = {**verify.OWN, "checkpoint": str(tmp_path), "images": "20", "device": "cpu"}
    plan = verify.prepare(few, [], [])
    data = Digits("train")
    assert plan.real is not None
    assert plan.real.labels is not None
    chosen = [round(k * 1499 / 19) for k in range(20)]
    assert plan.real.labels.equal(data.labels[chosen])
    assert plan.real.clean.equal(to_unit(data.images[chosen]))
    with_labels = losses(plan.runs.denoiser, plan.real, 1.0, 7)
    x = plan.real.clean + plan.real.eps
    expected = (plan.runs.denoiser(x, 1.0, label=data.labels[chosen]) - plan.real.clean).square().mean((1, 2, 3))
    assert torch.allclose(with_labels, expected.double(), rtol=1e-5)
    without = verify.prepare(few | {"labels": "none"}, [], [])
    assert without.real is not None
    assert without.real.labels is None
    assert without.runs.labels is None
    code, verdicts, _ = run(capsys, str(tmp_path), *FEW, "labels=balanced")  # an untrained network
    assert code == 1
    assert verdicts["loss"][0] == "fail"


def test_colour_and_discrete_time_have_own_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained network with a last layer of zeros: D = x, so channels and labels make no difference."""
    betas = {"_target_": "scoreline.schedules.discrete.DiscreteVP"}
    shape = {"channels": 3, "resolution": 8, "width": 8, "blocks": 1}
    described = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **shape},
        "noise_schedule": betas,
        "parameterisation": {
            "_target_": "scoreline.parameterisations.NoisePrediction",
            "noise_schedule": betas,
            "label_scale": 1.0,
        },
    }
    weights = {
        name: torch.zeros_like(weight) if name.startswith("head.") else weight
        for name, weight in UNet(**shape).state_dict().items()
    }
    save_model(tmp_path / "model.safetensors", weights, Card(described, (3, 8, 8), 0, {}, {}))
    pixels = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    monkeypatch.setattr(verify, "dataset", lambda choice, words, card: (ArrayDataset("colours", pixels), ""))
    code, verdicts, printed = run(capsys, str(tmp_path), *FEW, f"out={tmp_path / 'found.json'}")
    assert code == 1
    assert verdicts["loss"][0] == "fail"
    assert verdicts["channels"] == ("pass", "BGR images have no less loss than RGB ones (+0.0%)")
    lines = printed.partition("with labels one off")[2].splitlines()[2:5]
    assert [line.split()[1:] for line in lines] == [
        [str(label), *["+0.000%", "+-", "0.000%"] * 2] for label in (1, 5, 20)
    ]
    values = json.loads((tmp_path / "found.json").read_text())
    levels_of = DiscreteVP().inverse(torch.tensor([1.0, 5.0, 20.0]).double())
    assert torch.allclose(torch.tensor(values["loss_shifted_labels"]).double(), levels_of**2, rtol=0.05)
    assert values["loss_reversed_channels"] == pytest.approx(values["loss"][0], rel=1e-6)


BAD = [
    ((), "checkpoint: give one to verify, not 0"),
    (("a", "b"), "checkpoint: give one to verify, not 2"),
    (("digits_vp", "imags=3"), "imags: there is no such key; did you mean 'images'"),
    (("digits_vp", "images=7"), "images=7: must be a whole number, at least 8"),
    (("digits_vp", "images=many"), "images=many: must be a whole number"),
    (("digits_vp", "images=1501"), "images=1501: digits-train has 1500"),
    (("digits_vp", "levels=3"), "levels=3: must be a whole number, at least 4"),
    (("digits_vp", "nfe=159"), "nfe=159: must be a whole number, at least 160"),
    (("digits_vp", "nfe=161"), "nfe=161: the reference spends two evaluations a step"),
    (("digits_vp", "batch_size=0"), "batch_size=0"),
    (("digits_vp", "seeds=0-2"), "seeds=0-2: errors over seeds need at least 4"),
    (("digits_vp", "seeds=3-1"), "seeds=3-1: the range 3-1 runs backwards"),
    (("digits_vp", "labels=fixed:3"), "labels=fixed:3: this checkpoint is unconditional"),
    (("digits_vp", "device=gpu0"), "device=gpu0: not available"),
    (("digits_vp", "dataset.split=test"), "dataset.split=test: give dataset= too"),
    (("digits_vp", "dataset=digits", "dataset.split=tset"), "dataset.split=tset: there is no such choice"),
    (("digits_vp", "dataset=cifar10", "dataset.path=nowhere"), "dataset.path=nowhere: neither"),
    (("nowhere.safetensors",), "checkpoint=nowhere.safetensors: no such file"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused(words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoreline.config.explain import explain

    monkeypatch.setattr(verify, "header", lambda plan: pytest.fail("work was begun"))
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Hydra wraps errors of data sets)
        verify.main([*words])
    assert message in str(explain(caught.value))


def test_images_of_other_shape_or_classes_are_refused(shipped: Checkpoint) -> None:
    card = replace(shipped.card, shape=(3, 8, 8))
    with pytest.raises(InputError, match="images of digits-train are 1x8x8, the checkpoint's are 3x8x8"):
        real_images(Digits("train"), 8, card, "random")
    card = replace(shipped.card, num_classes=7)
    with pytest.raises(InputError, match=r"has 10 classes, the checkpoint 7.*labels=none"):
        real_images(Digits("train"), 8, card, "random")


class Exact(nn.Module):
    """F of any parameterisation whose skip, out and in are known, from the exact denoiser; rho read off the label."""

    def __init__(self, exact: GaussianMixture, parameterisation: Parameterisation, rho: Callable[[Tensor], Tensor]):
        super().__init__()
        self.exact, self.parameterisation, self.rho = exact, parameterisation, rho
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = self.rho(noise.double())
        parts = [part[:, None] for part in self.parameterisation(rho)]
        state = x.flatten(1) / parts[2]
        output = (self.exact.denoise(state, rho[:, None]) - parts[0] * state) / parts[1]
        image = output.reshape(x.shape)
        return torch.cat([image, image], 1) if self.parameterisation.output_factor == 2 else image


@pytest.fixture(scope="module")
def digits() -> GaussianMixture:
    """The training digits, each blurred by Gaussian noise of 0.15: their denoiser is known and is not singular."""
    points = to_unit(Digits("train").images[::10]).flatten(1).double()
    return GaussianMixture(points, torch.full((len(points),), 0.15).double(), torch.ones(len(points)).double())


def real(mixture: GaussianMixture, shape: tuple[int, int, int], count: int = 96) -> RealImages:
    """Draws from the mixture itself, whose denoiser is then the best that there is."""
    clean = mixture.draw(count, torch.Generator().manual_seed(1)).reshape(count, *shape)
    return RealImages(clean, normal(range(count), shape, "test").double())


def iddpm_level(table: Tensor, noise: Tensor) -> Tensor:
    return table[(999 - noise.round().long()).clamp(0, 999)]


COSINE = DiscreteVP(betas="cosine")
CONVENTIONS: dict[str, tuple[Parameterisation, NoiseSchedule, Callable[[Tensor], Tensor]]] = {
    "vp": (NoisePrediction(LinearVP()), LinearVP(), lambda noise: LinearVP().inverse(noise / 999)),
    "discrete": (NoisePrediction(DiscreteVP(), 1.0), DiscreteVP(), DiscreteVP().inverse),
    "learned variance": (NoisePrediction(DiscreteVP(), 1.0, output_factor=2), DiscreteVP(), DiscreteVP().inverse),
    "cosine": (NoisePrediction(COSINE, 1.0), COSINE, COSINE.inverse),
    "sub-vp": (NoisePrediction(SubVP()), SubVP(), lambda noise: SubVP().inverse(noise / 999)),
    "discrete ve": (NoisePrediction(VE(), -999.0, 999.0, True), VE(), lambda noise: VE().inverse(1 - noise / 999)),
    "rounded": (
        NoisePrediction(DiscreteVP(), 1.0, -1.0, True),
        DiscreteVP(),
        lambda noise: DiscreteVP().inverse(noise + 1),
    ),
    "velocity": (VelocityPrediction(LinearVP()), LinearVP(), lambda noise: LinearVP().inverse(noise / 999)),
    "ve": (VarianceExploding(), VE(), lambda noise: 2 * noise.exp()),
    "edm": (EDMPreconditioning(0.75), EDM(), lambda noise: (4 * noise).exp()),
    "iddpm": (IDDPM(), EDM(0.01, 80.0), partial(iddpm_level, IDDPM().levels)),
}


def model(mixture: GaussianMixture, convention: str) -> Denoiser:
    parameterisation, _, rho = CONVENTIONS[convention]
    return Denoiser(Exact(mixture, parameterisation, rho), parameterisation)


def measured(denoiser: Denoiser, convention: str, images: RealImages, count: int = 12) -> Losses:
    process = CONVENTIONS[convention][1]
    rho = levels((process.sigma_max, process.sigma_min), count)
    return measure_losses(denoiser, images, rho, 64)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_exact_denoisers_of_every_convention_pass(convention: str, digits: GaussianMixture) -> None:
    denoiser, process = model(digits, convention), CONVENTIONS[convention][1]
    images = real(digits, (1, 8, 8))
    found = measured(denoiser, convention, images)
    assert judge_losses(found, lambda rho: []).status == "pass"
    assert judge_labels(found).status == "pass"
    z = normal(range(4), (1, 8, 8), "initial")
    differences = ddim_differences(denoiser, process, z, None, lambda images: None)
    assert judge_ddim(differences, torch.float32).status == "pass", differences
    runs = Runs(denoiser, process, (1, 8, 8), range(4), 4)
    short = measure_convergence(runs, 160)
    assert judge_scale(measure_scale(runs, short.reference), images.clean).status != "fail"


WRONG: dict[str, tuple[str, Change, str]] = {
    "ln(rho) for ln(rho / 2)": ("ve", lambda rho, s: s._replace(noise=s.noise + math.log(2)), "labels"),
    "ln(rho / 2) for ln(rho)": ("ve", lambda rho, s: s._replace(noise=s.noise - math.log(2)), "labels"),
    "ln(rho) / 4 of twice rho": ("edm", lambda rho, s: s._replace(noise=s.noise + math.log(2) / 4), "labels"),
    "alpha left out": ("vp", lambda rho, s: s._replace(in_=torch.ones_like(rho)), "alpha (it is a VP"),
    "alpha where there is none": ("ve", lambda rho, s: s._replace(in_=(1 + rho**2).rsqrt()), "alpha (it is no VP"),
    "sign": ("edm", lambda rho, s: s._replace(out=-s.out), "negated"),
    "label_scale 999 for 1": ("discrete", lambda rho, s: s._replace(noise=s.noise * 999), "divided by 999"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_convention_fails_and_is_named(name: str, digits: GaussianMixture) -> None:
    convention, change, says = WRONG[name]
    denoiser, images = change_scalings(model(digits, convention), change), real(digits, (1, 8, 8))
    found = measured(denoiser, convention, images)
    if says == "labels":
        verdict = judge_labels(found)
        factor = "0.5" if "twice" in name or name.startswith("ln(rho) for") else "2"
        assert verdict.status == "fail"
        assert f"typically {factor} times it" in verdict.text
        return
    verdict = judge_losses(found, lambda rho: remedies(denoiser, images, rho, 64))
    assert verdict.status == "fail"
    named = {"alpha (it is a VP": "it is a VP model", "alpha (it is no VP": "it is no VP model"}.get(says, says)
    assert named in verdict.text


def test_model_of_0_to_1_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of VE with its means in [0, 1], as score_sde trains them, imported as if they were in [-1, 1]."""
    points = (to_unit(Digits("train").images[::10]).flatten(1).double() + 1) / 2
    network = GaussianMixtureScore(len(points), 1, 8)
    network.load_state_dict(
        {"means": points, "weights": torch.ones(len(points)), "stds": torch.full((len(points),), 0.1)}
    )
    spec = {"_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore", "components": len(points)}
    described = {
        "network": {**spec, "channels": 1, "resolution": 8},
        "noise_schedule": {"_target_": "scoreline.schedules.ve.VE"},
        "parameterisation": {"_target_": "scoreline.parameterisations.VarianceExploding"},
    }
    card = Card(described, (1, 8, 8), 0, {"name": "digits-train"}, {})
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    code, verdicts, _ = run(capsys, str(tmp_path), *FEW)
    assert code == 1
    assert verdicts["loss"][0] == "fail"
    assert "images in [0, 1] (it was not trained on [-1, 1])" in verdicts["loss"][1]
    assert verdicts["scale"][0] == "warn"
    assert "the images' mean is not the data's" in verdicts["scale"][1]


def test_linear_baseline_is_the_linear_denoisers_loss() -> None:
    """Brute force: k (x - m) + m on many draws of noise, and no other k does better."""
    clean = 0.3 * torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.2
    scatter = RealImages(clean, clean).scatter()
    centre, rho = clean.double().mean((0, 2, 3), keepdim=True), 0.4
    eps = torch.randn(20000, *clean.shape, generator=torch.Generator().manual_seed(1)).double()
    error = {}
    for k in (0.9, 1.0, 1.1):
        share = k * float(scatter.mean() / (scatter.mean() + rho**2))
        denoised = centre + share * (clean.double() + rho * eps - centre)
        error[k] = (denoised - clean).square().mean((0, 2, 3, 4))
    expected = linear_losses(scatter, torch.tensor([rho]).double())[0]
    assert torch.allclose(expected, error[1.0], rtol=5e-3)
    assert float(expected.mean()) == pytest.approx(float(scatter.mean() * rho**2 / (scatter.mean() + rho**2)))
    assert min(error, key=lambda k: float(error[k].mean())) == 1.0


def test_loss_limits_are_those_documented() -> None:
    """Constant losses around the limit: s = 1, two levels, 5 % of eps above the linear denoiser and 2 rho^2."""
    rho = torch.tensor([2.0, 0.5], dtype=torch.float64)
    linear = (rho**2 / (1 + rho**2))[:, None].expand(2, 8)
    limit = torch.stack([linear[0] + (0.05 * 2) ** 2, torch.full((8,), 2 * 0.25).double()])
    assert failed_levels(limit * 1.001, linear, rho, 1.0).tolist() == [True, True]
    assert failed_levels(limit * 0.999, linear, rho, 1.0).tolist() == [False, False]
    scattered = limit + torch.tensor([3.0, -3.0] * 4).double()  # the same mean, never sure
    assert failed_levels(scattered * 1.001, linear, rho, 1.0).tolist() == [False, False]
    assert failed_levels(torch.full((2, 8), torch.nan), linear, rho, 1.0).tolist() == [True, True]


def colours() -> GaussianMixture:
    """Three red-to-orange blots of 3 x 4 x 4: reversed channels are blue."""
    base = torch.tensor([0.8, 0.0, -0.7])[:, None].expand(3, 16)
    wave = torch.sin(torch.arange(48.0)).reshape(3, 16)
    points = torch.stack([(base + 0.4 * wave.roll(shift, 1)).flatten() for shift in (0, 3, 7)]).double()
    return GaussianMixture(points, torch.full((3,), 0.3).double(), torch.ones(3).double())


@pytest.mark.parametrize(("wrong", "status"), [(False, "pass"), (True, "fail")])
def test_reversed_channels_are_found(wrong: bool, status: str) -> None:
    mixture = colours()
    images = real(mixture, (3, 4, 4))
    if wrong:
        images = RealImages(images.clean.flip(1), images.eps.flip(1))
    denoiser, rho = model(mixture, "edm"), levels((80.0, 0.002), 8)
    right = torch.stack([losses(denoiser, images, level, 64) for level in rho.tolist()])
    flipped = measure_reversed(denoiser, images, rho, 64)
    assert judge_channels(right, flipped).status == status


@pytest.mark.parametrize("convention", ["discrete", "iddpm"])
def test_labels_one_off(convention: str, digits: GaussianMixture) -> None:
    """Levels are those of the labels; each shift's loss is that of eps at the noise level of the other label."""
    parameterisation, _, rho_of = CONVENTIONS[convention]
    levels = levels_of_labels(parameterisation, (1, 5, 20))
    assert levels is not None
    assert parameterisation(torch.tensor(levels).double()).noise.tolist() == pytest.approx([1, 5, 20])
    images = real(digits, (1, 8, 8), 64)
    loss = measure_shifts(model(digits, convention), images, levels, 64)
    for k, label in enumerate((1.0, 5.0, 20.0)):
        x = (images.clean + levels[k] * images.eps).flatten(1)
        scale = [parameterisation(rho_of(torch.tensor(label + shift).double())).in_ for shift in (0, -1, 1)]
        for s, shift in enumerate((0, -1, 1)):
            rho = float(rho_of(torch.tensor(label + shift).double()))
            seen = x * scale[0] / scale[s]
            expected = (x - levels[k] * digits.eps(seen, rho) - images.clean.flatten(1)).square().mean(1)
            assert torch.allclose(loss[s, k], expected, rtol=1e-6)
    bent = (loss[1] + loss[2] - 2 * loss[0]).mean(-1)
    assert bool((bent > 0).all())
    assert levels_of_labels(CONVENTIONS["vp"][0], (1,)) is None


def test_ddim_is_the_flow_of_a_gaussian() -> None:
    """N(0, c^2): x(rho) = x(rho_0) sqrt((c^2 + rho^2) / (c^2 + rho_0^2)), approached at first order."""
    one = GaussianMixture(torch.zeros(1, 4).double(), torch.full((1,), 0.5).double(), torch.ones(1).double())
    z, process = normal(range(3), (1, 2, 2), "initial"), LinearVP()
    first, last = process.sigma_max, process.sigma_min
    exact = z.double() * first * math.sqrt((0.25 + last**2) / (0.25 + first**2))
    for convention in ("vp", "velocity"):
        errors = [float((ddim(model(one, convention), process, z, steps) - exact).abs().max()) for steps in (400, 800)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


class Restless(nn.Module):
    """A right network beside noise that depends on every digit of its input, as of dropout that was left on."""

    def __init__(self, network: nn.Module, size: float) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        wild = torch.sin(
            1e7 * x.double().sum((1, 2, 3), keepdim=True) + 1e3 * torch.arange(x[0].numel()).reshape(x[0].shape)
        )
        return self.network(x, noise, label=label) + self.size * wild.to(x.dtype)


def test_network_with_a_random_layer_fails(digits: GaussianMixture) -> None:
    """Errors that are random from step to step leave a slope of about -1/2."""
    right = model(digits, "vp")
    process = LinearVP()
    for size, passes in ((0.0, True), (2.0, False)):
        denoiser = Denoiser(Restless(right.network, size), right.parameterisation)
        runs = Runs(denoiser, process, (1, 8, 8), range(8), 8)
        found = measure_convergence(runs, 320)
        verdict = judge_convergence(found)
        assert (verdict.status == "pass") == passes, verdict
    assert float(found.slopes().mean()) == pytest.approx(-0.5, abs=0.4)
    assert "random layer" in verdict.text


@pytest.mark.parametrize(
    ("lower", "higher", "deaf", "status"),
    [
        (0, 0, 0, "pass"),
        (4, 1, 0, "fail"),
        (4, 2, 0, "pass"),
        (3, 0, 0, "pass"),
        (3, 0, 2, "fail"),
        (1, 4, 0, "fail"),
        (0, 0, 5, "pass"),
        (0, 0, 6, "warn"),
        (2, 0, 6, "warn"),
    ],
)
def test_verdicts_on_labels(lower: int, higher: int, deaf: int, status: str) -> None:
    """Of eight levels some prefer half or twice the noise level by 5 %, the last ones do not hear, the others lose."""
    by_factor = torch.full((len(FACTORS), 8, 16), 1.1).double()
    by_factor[0] = 1.0
    by_factor[FACTORS.index(0.5), :lower] = 0.95
    by_factor[FACTORS.index(2.0), lower : lower + higher] = 0.95
    by_factor[:, 8 - deaf :] = 1.0
    rho = torch.logspace(1, -2, 8, dtype=torch.float64)
    verdict = judge_labels(Losses(rho, by_factor, torch.ones(8, 16).double(), 1.0))
    assert verdict.status == status, verdict


def convergence(*distances: float) -> Convergence:
    """Three images at NFE 10, 20, 40, the same but for a percent."""
    table = torch.tensor(distances).double()[:, None] * torch.tensor([0.99, 1.0, 1.01]).double()
    return Convergence(torch.zeros(3, 1, 2, 2).double(), (10, 20, 40), table)


@pytest.mark.parametrize(
    ("distances", "status", "says"),
    [
        ((0.16, 0.04, 0.01), "pass", "NFE^-2.00"),
        ((0.4, 0.3, 0.22), "warn", "slower than first order"),
        ((0.1, 0.1, 0.1), "fail", "do not come closer"),
        ((0.01, 0.04, 0.16), "fail", "do not come closer"),
        ((1e-6, 1e-6, 1e-6), "pass", "agree to rounding"),
        ((0.1, math.inf, 0.01), "fail", "not finite"),
    ],
)
def test_verdicts_on_convergence(distances: tuple[float, ...], status: str, says: str) -> None:
    verdict = judge_convergence(convergence(*distances))
    assert (verdict.status, says in verdict.text) == (status, True), verdict


class Broken(nn.Module):
    """Returns what no network should."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value), requires_grad=False)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return x * self.value


def test_values_not_finite_fail_without_a_traceback(digits: GaussianMixture) -> None:
    denoiser, images = Denoiser(Broken(math.nan), NoisePrediction(LinearVP())), real(digits, (1, 8, 8), 16)
    found = measured(denoiser, "vp", images, 4)
    assert judge_losses(found, lambda rho: []).status == "fail"
    assert judge_labels(found).status == "skip"
    z = normal(range(4), (1, 8, 8), "initial")
    differences = ddim_differences(denoiser, LinearVP(), z, None, lambda images: None)
    assert judge_ddim(differences, torch.float32).status == "fail"
    runs = Runs(denoiser, LinearVP(), (1, 8, 8), range(4), 4)
    short = measure_convergence(runs, 160)
    assert judge_convergence(short).status == "fail"
    verdict = judge_scale(measure_scale(runs, short.reference), images.clean)
    assert (verdict.status, "images are not finite" in verdict.text) == ("fail", True)


def scale(**changes: Any) -> Scale:
    one = torch.ones(1, dtype=torch.float64)
    right = Scale(1.0, 0 * one, 0 * one, 0.5 * one, torch.tensor([[0.01], [-0.01]]).double(), 0.0, 0.4, True)
    return replace(right, **changes)


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({}, "pass", "1.000 times"),
        ({"eps_size": 1.31}, "fail", "1.31 times as large as the noise"),
        ({"eps_size": 0.69}, "fail", "0.69 times as large as the noise"),
        ({"eps_size": math.nan}, "fail", "nan times"),
        ({"eps_size": 1.06}, "warn", "1.060 times as large"),
        ({"outside": 0.51}, "fail", "51% of the pixels"),
        ({"outside": 0.06}, "warn", "6.0% of the pixels"),
        ({"negative": 0.0}, "warn", "trained on images in [0, 1]?"),
        ({"mean": torch.full((1,), 0.2).double()}, "warn", "mean is not the data's"),
        ({"std": torch.full((1,), 0.2).double()}, "warn", "standard deviation is not the data's"),
        ({"denoised": torch.full((1,), -0.7).double()}, "warn", "D at sigma_max is far"),
    ],
)
def test_verdicts_on_scale(changes: dict[str, Any], status: str, says: str) -> None:
    data = 0.5 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    verdict = judge_scale(scale(**changes), data)
    assert (verdict.status, says in verdict.text) == (status, True), verdict
