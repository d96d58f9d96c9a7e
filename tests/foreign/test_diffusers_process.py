"""Processes and predictions of diffusers' schedulers: our loop beside theirs on the same noise, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from filled import image
from folders import CONFIG, SCHEDULER, TINY, changed, converted, parts, saved, unet
from torch import Tensor

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.commands import import_checkpoint, inspect
from scoreline.config import script
from scoreline.config.compose import plain_config
from scoreline.errors import InputError
from scoreline.foreign.conversion import Options, convert
from scoreline.foreign.diffusers_folder import read_model, recognises
from scoreline.foreign.diffusers_settings import sentences, settings
from scoreline.foreign.families import is_diffusers, load
from scoreline.sampling import integrate
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build_tableau


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny", unet(TINY), DDPMScheduler())


def theirs(network: Any, scheduler: Any, noise: Tensor, steps: int, label: Tensor | None, **how: Any) -> Tensor:
    """diffusers' own loop."""
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, t, class_labels=label).sample
        x = scheduler.step(output, t, x, **how).prev_sample
    return x


def levels_of(scheduler: Any, checkpoint: Checkpoint) -> list[float]:
    """Our levels of the steps that a scheduler has set, without the last one, 0."""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return [s / (1 - s) if s < 1 else math.inf for s in scheduler.sigmas.double().tolist() if s > 0]
    if name.startswith(("EDM", "Euler")):
        return [sigma for sigma in scheduler.sigmas.tolist() if sigma > 0]
    return checkpoint.noise_schedule.inverse(scheduler.timesteps.double()).tolist()


def ours(checkpoint: Checkpoint, denoiser: Any, levels: list[float], start: Tensor, label: Tensor | None) -> Tensor:
    """DDIM through these levels and on to clean data."""
    schedule, ends = Tabulated(tuple(levels)), (levels[0], levels[-1])
    tableau = build_tableau(DDIM(), schedule, ends, len(levels), "denoise")
    return integrate(lambda x, rho: denoiser.estimate(x, rho, label=label), start, tableau)


def start_of(scheduler: Any, checkpoint: Checkpoint, noise: Tensor, level: float) -> Tensor:
    """x at the first level whose native state is the scheduler's first state."""
    if level == math.inf:
        return noise
    process = checkpoint.noise_schedule
    alpha = float(process.alpha(process(torch.tensor(level, dtype=torch.float64))))
    return noise * getattr(scheduler, "init_noise_sigma", 1.0) / alpha


PLAIN = {"clip_sample": False}
TRAILING = {**PLAIN, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
NON_SQUARE = {**TINY, "sample_size": (8, 16)}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "sample": (TINY, DDIMScheduler(prediction_type="sample", **PLAIN)),
    "sample-cosine-classes": (
        {**TINY, "num_class_embeds": 5},
        DDIMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2", **PLAIN),
    ),
    "sample-zero-snr": (
        TINY,
        DDIMScheduler(prediction_type="sample", **TRAILING),
    ),
    "v-zero-snr": (
        TINY,
        DDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", **PLAIN
        ),
    ),
    "v-zero-snr-scaled-four": (
        {**TINY, "in_channels": 4, "out_channels": 4, "num_class_embeds": 3},
        DDIMScheduler(
            prediction_type="v_prediction",
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            **TRAILING,
        ),
    ),
    "epsilon-non-square": (NON_SQUARE, DDIMScheduler(**PLAIN)),
    "flow": (TINY, FlowMatchEulerDiscreteScheduler()),
    "flow-shift-non-square": (NON_SQUARE, FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "flow-classes-grey": (
        {**TINY, "in_channels": 1, "out_channels": 1, "num_class_embeds": 4},
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
    ),
    "edm": (TINY, EDMEulerScheduler()),
    "edm-v": (TINY, EDMEulerScheduler(prediction_type="v_prediction")),
    "edm-other-data": (
        {**TINY, "in_channels": 5, "out_channels": 5},
        EDMEulerScheduler(sigma_data=1.3, sigma_max=20.0, sigma_min=0.01),
    ),
    "edm-v-classes": (
        {**TINY, "num_class_embeds": 4},
        EDMEulerScheduler(prediction_type="v_prediction", sigma_data=0.7, sigma_schedule="exponential"),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_loop_is_that_of_diffusers(name: str, tmp_path: Path) -> None:
    """Their first-order loop on the same noise; our betas in float64 stand in their scheduler."""
    config, scheduler = CASES[name]
    network = unet(config)
    checkpoint = converted(parts(tmp_path / "folder", unet=network, scheduler=scheduler))
    if hasattr(scheduler, "alphas_cumprod"):
        steps = torch.arange(len(scheduler.alphas_cumprod), dtype=torch.float64)
        products = checkpoint.noise_schedule.alpha(steps) ** 2
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), products, rtol=1e-4, atol=1e-7)
        scheduler.alphas_cumprod = products
    channels, height, width = checkpoint.card.shape
    noise = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 2]) if checkpoint.card.num_classes else None
    expected = theirs(network, scheduler, noise, 5, label)
    levels = levels_of(scheduler, checkpoint)
    assert (levels[0] == math.inf) == ("zero-snr" in name or "flow" in name)
    found = ours(checkpoint, checkpoint.denoiser, levels, start_of(scheduler, checkpoint, noise, levels[0]), label)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_learned_variance_is_left_out_of_every_prediction(prediction: str, tmp_path: Path) -> None:
    network = unet({**TINY, "out_channels": 6})
    scheduler = DDPMScheduler(variance_type="learned_range", prediction_type=prediction, clip_sample=False)
    checkpoint = converted(saved(tmp_path / "folder", network, scheduler))
    t = torch.tensor(400.0, dtype=torch.float64)
    x = image(2, 3, 8) * 2
    state = x * float(checkpoint.noise_schedule.alpha(t))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    expected = scheduler.step(network(state, 400).sample, 400, state).pred_original_sample
    found = checkpoint.denoiser(x, float(checkpoint.noise_schedule.inverse(t)))
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_sample_range": 0.6},
        {"thresholding": True},
        {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.8},
        {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
    ],
    ids=lambda options: "-".join(f"{key}-{value}" for key, value in options.items()) or "clip",
)
def test_the_named_key_follows_the_setting(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is diffusers' loop with use_clipped_model_output=True, and far from the loop without the key."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # its kernels, and their rounding, differ by processor
    network, scheduler = unet(TINY), DDIMScheduler(**options)
    checkpoint = converted(saved(tmp_path / "folder", network, scheduler))
    scheduler.alphas_cumprod = checkpoint.noise_schedule.alpha(torch.arange(1000, dtype=torch.float64)) ** 2
    (sentence,) = sentences(checkpoint.card.training["imported"])
    words = [word for word in sentence.split() if word.startswith(("threshold=", "threshold."))]
    cfg = plain_config(words)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = theirs(network, scheduler, noise, 5, None, use_clipped_model_output=True)
    levels = levels_of(scheduler, checkpoint)
    start = start_of(scheduler, checkpoint, noise, levels[0])
    found = ours(checkpoint, script.apply(cfg.threshold, checkpoint.denoiser), levels, start, None)
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    if options.get("prediction_type") != "sample":
        without = ours(checkpoint, checkpoint.denoiser, levels, start, None)
        assert float((without - expected).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (DDPMScheduler(), ["clip_sample=true", "threshold=clip follows it"]),
        (DDPMScheduler(clip_sample=False), []),
        (DDIMScheduler(clip_sample_range=2.0), ["threshold=clip threshold.low=-2 threshold.high=2"]),
        (DDIMScheduler(thresholding=True), ["threshold=dynamic threshold.quantile=0.995 threshold.ceiling=1 "]),
        (EulerDiscreteScheduler(use_karras_sigmas=True), ["schedule=karras"]),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), ["shift=3 of", "schedule=flow_time schedule.shift=3 "]),
        (FlowMatchEulerDiscreteScheduler(), []),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), ["use_dynamic_shifting=true", "K = exp(mu)"]),
        (
            UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5),
            ["flow_shift=2.5 of", "schedule=flow_time schedule.shift=2.5 "],
        ),
        (EDMEulerScheduler(), []),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else "",
)
def test_settings_and_their_keys(scheduler: Any, said: list[str], tmp_path: Path) -> None:
    folder = parts(tmp_path, unet=unet(TINY), scheduler=scheduler)
    notes = json.loads(json.dumps(read_model(folder, None, "ema").notes))
    found = sentences(notes)
    assert len(found) == bool(said)
    assert all(part in found[0] for part in said)
    kept = [sentence for sentence in found if "schedule=" in sentence]
    assert sentences(notes, "clip(high=1.0)", "time_uniform", 1.0) == kept
    assert sentences(notes, "dynamic", "karras", _shift_of(kept)) == []


def _shift_of(said: list[str]) -> float:
    """The shift of the schedule that the sentence names, which must be a choice; 2 for K."""
    words = [word.replace("=K", "=2") for word in " ".join(said).split() if word.startswith("schedule")]
    return float(getattr(plain_config(words).schedule, "shift", 2.0))


def test_clipping_is_the_default_of_old_files() -> None:
    """Old configurations lack the key, and diffusers clips then."""
    assert settings({"_class_name": "DDPMScheduler"}) == {"clip_sample": True}
    assert settings({"_class_name": "PNDMScheduler"}) == {}
    assert settings({"_class_name": "DDIMScheduler", "thresholding": True}) == {"thresholding": True}


@pytest.mark.parametrize(
    "notes",
    [
        None,
        [],
        {"clip_sample": "true"},
        {"clip_sample": 1},
        {"thresholding": {}},
        {"shift": "3; rm -rf"},
        {"shift": math.nan},
        {"shift": True},
        {"flow_shift": [3]},
        {"use_karras_sigmas": "yes"},
        {"use_dynamic_shifting": None},
    ],
)
def test_hostile_notes_say_nothing(notes: Any) -> None:
    assert sentences(notes) == []


def test_hostile_numbers_fall_back() -> None:
    notes = {"clip_sample": True, "clip_sample_range": "x" * 99}
    assert sentences(notes) == ["clip_sample=true of the folder is not followed; threshold=clip follows it"]
    kept = settings({"_class_name": "DDIMScheduler", "clip_sample_range": {"_target_": "os.system"}, "shift": "9"})
    assert kept == {"clip_sample": True}


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((8, 8), (3, 8, 8)),
        ((16, 8), (3, 16, 8)),
        ((2, 4), (3, 2, 4)),
        ((64, 2), (3, 64, 2)),
        ((10, 12), (3, 10, 12)),
    ],
)
def test_the_user_gives_a_size(size: tuple[int, int], shape: tuple[int, int, int], tiny: Path) -> None:
    changed(tiny, sample_size=None)(CONFIG)
    with pytest.raises(InputError, match=r"sample_size=None is no size of images; give it with import\.size=64"):
        read_model(tiny, None, "ema")
    target = tiny.parent / "model.safetensors"
    _, found = convert(str(tiny), target, Options(size=size))
    assert found.shape == shape
    checkpoint = load_model(target)
    assert checkpoint.card.shape == shape
    x = torch.randn(1, *shape)
    assert checkpoint.denoiser(x, 1.0).shape == x.shape


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((9, 8), r"sample_size=\[9, 8\]: give the side .* halved 1 times"),
        ((7, 7), r"sample_size=7: give the side"),
    ],
)
def test_sizes_that_cannot_be_halved(given: tuple[int, int], said: str, tiny: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_model(tiny, None, "ema", given)


def test_only_folders_take_a_size(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"^import\.size: files of score_sde have one size of images; leave"):
        load(tmp_path / "m.pt", "score_sde", None, "ema", (), (8, 8))


@pytest.mark.parametrize("value", ["8x8", 0, -8, 2.5, True, [8], [8, 8, 8], [8, "8"], {"h": 8}, 2**17, "[8,8]"])
def test_sizes_of_another_kind(value: Any) -> None:
    from scoreline.values import image_size

    with pytest.raises(InputError, match=r"^import\.size=.*: give the side of square images, as 64, or \[hei"):
        image_size("import.size", value)


def test_folders_without_an_index(tmp_path: Path) -> None:
    folder = parts(tmp_path / "parts", unet=unet(TINY), scheduler=DDPMScheduler())
    assert is_diffusers(folder)
    assert recognises(folder)
    assert load(folder, None, None, "ema")[0] == "diffusers"
    shutil.move(folder / "unet", folder / "unet_ema")
    assert load(folder, None, None, "ema")[1].notes["which"] == "ema"
    with pytest.raises(InputError, match=r"config\.json: no readable JSON|config\.json.* is not there"):
        read_model(folder, None, "raw")
    shutil.move(folder / "unet_ema", folder / "transformer")
    assert is_diffusers(folder)
    with pytest.raises(InputError, match=r"transformer: networks of this kind cannot be imported, only UNet2DModel"):
        load(folder, None, None, "ema")
    (tmp_path / "bare" / "scheduler").mkdir(parents=True)
    assert not is_diffusers(tmp_path / "bare")


EDM, FLOW, EULER = EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(), EulerDiscreteScheduler()


@pytest.mark.parametrize(
    ("scheduler", "file", "values", "said"),
    [
        (EDM, SCHEDULER, {"prediction_type": "sample"}, "an EDM scheduler has prediction_type epsilon or v_prediction"),
        (EDM, SCHEDULER, {"sigma_data": "absent"}, "sigma_data is not there; write the value"),
        (EDM, SCHEDULER, {"sigma_data": 0}, "sigma_data=0 is not a number above 0"),
        (EDM, SCHEDULER, {"sigma_data": "0.5"}, "sigma_data='0.5' is not a number above 0"),
        (EDM, SCHEDULER, {"sigma_data": True}, "sigma_data=True is not a number above 0"),
        (EDM, SCHEDULER, {"sigma_data": math.inf}, "sigma_data=inf is not a number above 0"),
        (EDM, SCHEDULER, {"sigma_min": 90}, "sigma_min=90 is not below sigma_max=80"),
        (EDM, SCHEDULER, {"sigma_max": [80]}, r"sigma_max=\[80\] is not a number above 0"),
        (EDM, SCHEDULER, {"prediction_type": {"a": 1}}, r"prediction_type=\{'a': 1\} cannot be imported"),
        (EDM, CONFIG, {"out_channels": 6}, "learned variance is no part of EDM's preconditioning"),
        (FLOW, CONFIG, {"out_channels": 6}, "learned variance is no part of a flow"),
        (FLOW, SCHEDULER, {"num_train_timesteps": "absent"}, "num_train_timesteps is not there"),
        (FLOW, SCHEDULER, {"num_train_timesteps": -1}, "num_train_timesteps=-1 is not a number above 0"),
        (FLOW, SCHEDULER, {"num_train_timesteps": None}, "num_train_timesteps=None is not a number above 0"),
        (EULER, SCHEDULER, {"_class_name": "../../FlowMatch"}, "which is no process known here"),
        (EULER, SCHEDULER, {"_class_name": ["EDMEulerScheduler"]}, "which is no process known here"),
        (EULER, SCHEDULER, {"_class_name": "absent"}, "is of None, which is no process known here"),
        (EULER, SCHEDULER, {"use_flow_sigmas": "yes"}, "use_flow_sigmas must be true or false"),
        (EULER, SCHEDULER, {"rescale_betas_zero_snr": "true"}, "rescale_betas_zero_snr='true' must be true or false"),
        (EULER, SCHEDULER, {"prediction_type": ["epsilon"]}, r"prediction_type=\['epsilon'\] cannot be imported"),
        (EULER, SCHEDULER, {"num_train_timesteps": 10**9}, "give no betas between 0 and 1"),
        (EULER, SCHEDULER, {"num_train_timesteps": 0}, "give no betas between 0 and 1|steps is 0"),
        (EULER, CONFIG, {"sample_size": [8, 8, 8]}, r"sample_size=\[8, 8, 8\] is no size of images"),
        (EULER, CONFIG, {"sample_size": [8, True]}, r"sample_size=\[8, True\] is no size of images"),
        (EULER, CONFIG, {"sample_size": {"h": 8}}, r"sample_size=\{'h': 8\} is no size of images"),
        (EULER, CONFIG, {"sample_size": "8"}, "sample_size='8' is no size of images"),
        (EULER, CONFIG, {"sample_size": -8}, "sample_size=-8 is no size of images"),
        (EULER, CONFIG, {"sample_size": [8, 10**9]}, "sample_size"),
        (EULER, CONFIG, {"in_channels": "3"}, "in_channels='3'"),
        (EULER, CONFIG, {"in_channels": 6}, "in_channels=6 and out_channels=3"),
    ],
)
def test_hostile_values_are_one_sentence(
    scheduler: Any, file: str, values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = parts(tmp_path, unet=unet(TINY), scheduler=scheduler)
    changed(folder, **values)(file)
    with pytest.raises(InputError, match=said) as error:
        read_model(folder, None, "ema")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "process"),
    [
        (EulerDiscreteScheduler(prediction_type="sample"), "DiscreteVP"),
        (EulerDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), "DiscreteVP"),
        (UniPCMultistepScheduler(prediction_type="sample", beta_schedule="scaled_linear"), "DiscreteVP"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "RectifiedFlow"),
        (FlowMatchHeunDiscreteScheduler(shift=2.0), "RectifiedFlow"),
        (EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"), "EDM"),
        (DDPMScheduler(num_train_timesteps=250, beta_end=0.08, prediction_type="sample"), "DiscreteVP"),
    ],
    ids=lambda value: f"{type(value).__name__}" if hasattr(value, "config") else value,
)
def test_half_precision_folders_of_other_schedulers(scheduler: Any, process: str, tmp_path: Path) -> None:
    network = unet({**TINY, "sample_size": (4, 8), "in_channels": 2, "out_channels": 2}).half()
    checkpoint = converted(parts(tmp_path / "folder", unet=network, scheduler=scheduler))
    assert type(checkpoint.noise_schedule).__name__ == process
    assert checkpoint.card.shape == (2, 4, 8)
    for rho in (0.3, 3.0, *[math.inf] * (checkpoint.noise_schedule.sigma_max == math.inf)):
        assert bool(checkpoint.denoiser(torch.randn(1, 2, 4, 8), rho).isfinite().all())


@pytest.mark.parametrize("words", [("size=[8,16]",), ("--size", "[8,16]")])
def test_commands_take_the_size_and_name_the_settings(
    words: tuple[str, ...], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(tiny, sample_size=None)(CONFIG)
    target = tiny.parent / "ours.safetensors"
    import_checkpoint.main([str(tiny), str(target), *words])
    note = "note: clip_sample=true of the folder is not followed; threshold=clip follows it"
    said = capsys.readouterr().out
    assert "images 3x8x16, no classes" in said
    assert said.count(note) == 1
    lines = [" ".join(line.split()) for path in (tiny, target) for line in inspect.text(path).splitlines()]
    assert lines.count(note.replace("note: ", "note ")) == 2


@pytest.mark.parametrize("word", ["size=8x8", "size=[8]", "size=0", "size={}", "size=big"])
def test_commands_refuse_other_sizes(word: str, tiny: Path) -> None:
    with pytest.raises(InputError, match=r"^size=.*: give the side of square images, as 64, or \[height,width\]"):
        import_checkpoint.main([str(tiny), str(tiny.parent / "ours.safetensors"), word])
