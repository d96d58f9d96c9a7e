import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel
from filled import filled_state, image
from folders import CONFIG, SCHEDULER, TINY, changed, converted, saved, unet
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoreline.config.compose import plain_config
from scoreline.config.model_source import read_source
from scoreline.errors import InputError
from scoreline.foreign.diffusers_folder import read_model, recognises, table
from scoreline.foreign.families import load
from scoreline.foreign.translation import skeleton
from scoreline.networks.diffusers_unet import DiffusersUNet

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
CIFAR10_NARROW = {**CIFAR10, "sample_size": 16, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4}
STEPS = [0, 3, 15, 52, 147, 360, 657, 857, 944, 978, 991, 999]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny", unet(TINY), DDPMScheduler())


def same(found: dict[str, Tensor], network: UNet2DModel) -> bool:
    expected = network.state_dict()
    return set(found) == {f"model.{name}" for name in expected} and all(
        torch.equal(found[f"model.{name}"], value) for name, value in expected.items()
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "scheduler"),
    [
        (CIFAR10_NARROW, DDPMScheduler(clip_sample=False)),
        (
            {**CIFAR10_NARROW, "num_class_embeds": 5},
            DDPMScheduler(clip_sample=False, beta_schedule="squaredcos_cap_v2"),
        ),
        (
            {**TINY, "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8, "num_class_embeds": 5},
            DDPMScheduler(
                clip_sample=False,
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                prediction_type="v_prediction",
            ),
        ),
        (
            {**TINY, "out_channels": 6, "downsample_type": "resnet", "upsample_type": "resnet"},
            DDPMScheduler(clip_sample=False, variance_type="learned_range"),
        ),
        (
            {**TINY, "in_channels": 1, "out_channels": 1, "center_input_sample": True, "add_attention": False},
            DDPMScheduler(clip_sample=False, trained_betas=torch.linspace(1e-4, 0.05, 1000).tolist()),
        ),
    ],
    ids=["cifar10", "conditional-cosine", "velocity-scaled_linear", "learned-variance", "listed-grey"],
)
def test_denoiser_is_that_of_diffusers(config: dict[str, Any], scheduler: Any, tmp_path: Path) -> None:
    """Its scheduler's own betas, multiplied in float64 instead of float32, in which 1 - alpha^2 is off by 5e-4
    at t = 0; 1 - 0.999, the last of the cosine schedule, stays off by 1.3e-5 and D by half of that.

    The network itself differs by rounding only, as kernels do between weights that are mapped from a file and aligned.
    """
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    network = unet(config)
    checkpoint = converted(saved(tmp_path / "pipeline", network, scheduler))
    denoiser, process = checkpoint.denoiser, checkpoint.noise_schedule
    channels, size = network.config.in_channels, network.config.sample_size
    assert checkpoint.card.shape == (channels, size, size)
    assert checkpoint.card.num_classes == denoiser.network.num_classes == (config.get("num_class_embeds") or 0)
    label = torch.tensor([0, 4]) if checkpoint.card.num_classes else None
    picture = image(2, channels, size)
    for step in STEPS:
        t = torch.tensor(float(step), dtype=torch.float64)
        x = picture * (1 + float(process.inverse(t)))
        state = x * float(process.alpha(t))
        output = network(state, step, class_labels=label).sample
        ours = denoiser.network(state, t.float().expand(2), label=label)
        torch.testing.assert_close(ours, output, rtol=0, atol=1e-6 * float(output.abs().max()))
        expected = scheduler.step(output, step, state).pred_original_sample
        found = denoiser(x, float(process.inverse(t)), label=label)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_published_size() -> None:
    """google/ddpm-cifar10-32 is the network of Ho et al., 35.7 M parameters."""
    network = skeleton(
        {"_target_": "scoreline.networks.diffusers_unet.DiffusersUNet", **json.loads(json.dumps(CIFAR10))}
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 35_746_307


@torch.no_grad()
def test_no_class_is_a_zero_embedding() -> None:
    theirs = unet({**TINY, "num_class_embeds": 3})
    ours = DiffusersUNet(**TINY, num_class_embeds=3).eval()
    ours.load_state_dict({f"model.{name}": value for name, value in theirs.state_dict().items()})
    x, noise = image(2, 3, 8), torch.tensor([7.0, 400.5])
    theirs.class_embedding.weight[1] = 0
    expected = theirs(x, noise, class_labels=torch.tensor([1, 2])).sample
    assert torch.equal(ours(x, noise, torch.tensor([-1, 2])), expected)
    assert torch.equal(ours(x, noise)[0], expected[0])
    assert not torch.allclose(ours(x, noise, torch.tensor([1, 2]))[0], expected[0], rtol=1e-3)
    assert (ours.label_dropout, ours.augment_dim, ours.resolution) == (0.0, 0, 8)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        theirs(x, noise)


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        network = DiffusersUNet(**TINY, checkpointing=checkpointing)
        network.load_state_dict(filled_state({name: value.shape for name, value in network.state_dict().items()}))
        network(image(1, 3, 8), torch.tensor([7.0])).square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))  # type: ignore[union-attr]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6 * float(found[0].abs().max()))


@pytest.mark.parametrize(
    "how",
    [
        {"safe_serialization": False},
        {"max_shard_size": "20KB"},
        {"safe_serialization": False, "max_shard_size": "20KB"},
    ],
    ids=["bin", "shards", "bin-shards"],
)
def test_files_of_every_kind_hold_the_same_weights(how: dict[str, Any], tmp_path: Path) -> None:
    network = unet(TINY)
    folder = tmp_path / "pipeline"
    DDPMScheduler().save_pretrained(folder)
    network.save_pretrained(folder / "unet", **how)
    found = read_model(folder, None, "ema")
    assert same(found.weights, network)
    assert (len(found.notes["files"]) > 1) == ("max_shard_size" in how)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    network = unet(TINY).half()
    found = read_model(saved(tmp_path / "half", network, DDPMScheduler(), variant="fp16"), None, "ema")
    assert same(found.weights, network.float())
    assert {weight.dtype for weight in found.weights.values()} == {torch.float32}
    assert found.notes["stored_as"] == ["float16"]
    assert found.notes["files"] == ["diffusion_pytorch_model.fp16.safetensors"]


def test_names_of_attention_before_diffusers_0_15(tiny: Path) -> None:
    path = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, weight in load_file(path).items():
        for now, once in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{now}.", f".{once}.")
        old[name] = weight
    assert any(".proj_attn." in name for name in old)
    save_file(old, path)
    assert same(read_model(tiny, None, "ema").weights, unet(TINY))


def test_averages_beside_the_weights_are_chosen_by_name(tiny: Path) -> None:
    average = unet(TINY)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    average.register_to_config(decay=0.9999, optimization_step=7, power=0.75)
    average.save_pretrained(tiny / "unet_ema")
    ema, raw = read_model(tiny, None, "ema"), read_model(tiny, None, "raw")
    assert same(ema.weights, average)
    assert same(raw.weights, unet(TINY))
    assert (ema.notes["which"], raw.notes["which"]) == ("ema", "raw")
    assert ema.notes["average"] == {"decay": 0.9999, "optimization_step": 7, "power": 0.75}
    with pytest.raises(InputError, match=r"^weights=raw: unet_ema holds averages; use weights=ema"):
        read_model(tiny / "unet_ema", None, "raw")
    shutil.rmtree(tiny / "unet_ema")
    assert read_model(tiny, None, "raw").notes["which"].startswith("the only weights of the folder")


def test_weights_without_average_are_a_variant(tiny: Path) -> None:
    plain = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    halved = {name: value / 2 for name, value in load_file(plain).items()}
    save_file(halved, plain.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert same(read_model(tiny, None, "ema").weights, unet(TINY))
    raw = read_model(tiny, None, "raw")
    assert torch.equal(raw.weights["model.conv_in.weight"], halved["conv_in.weight"])
    assert raw.notes["which"] == "raw"
    plain.unlink()
    with pytest.raises(InputError, match=r"^weights=ema: .*non_ema.*; use weights=raw$"):
        read_model(tiny, None, "ema")


def test_every_way_to_name_a_folder(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    unet(TINY).save_pretrained(bare)
    DDIMScheduler().save_pretrained(bare)
    ways = [tiny, tiny / "model_index.json", tiny / "unet", tiny / "unet" / "config.json", bare, bare / "config.json"]
    for path in ways:
        family, found = load(path, "diffusers", None, "ema")
        assert family == "diffusers"
        assert same(found.weights, unet(TINY))
    assert recognises(tiny)
    assert recognises(bare)
    assert not recognises(tmp_path)
    assert not recognises({"state_dict": {}})
    assert load(bare, "diffusers", None, "ema")[1].notes["scheduler"] == "DDIMScheduler"


def test_what_the_card_says(tiny: Path) -> None:
    found = read_model(tiny, None, "ema")
    process = {
        "_target_": "scoreline.schedules.discrete.DiscreteVP",
        "steps": 1000,
        "beta_min": 1e-4,
        "beta_max": 0.02,
        "betas": "linear",
    }
    assert found.model["noise_schedule"] == process
    assert found.model["parameterisation"] == {
        "_target_": "scoreline.parameterisations.NoisePrediction",
        "noise_schedule": process,
        "label_scale": 1.0,
        "round_labels": False,
    }
    assert found.notes["pipeline"] == "DDPMPipeline"
    assert json.loads(json.dumps(found.notes)) == found.notes
    assert set(table(skeleton(found.model["network"]), {})) == set(found.weights)


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (
            SCHEDULER,
            {"_class_name": "ScoreSdeVeScheduler"},
            r"of 'ScoreSdeVeScheduler', which is no process known here",
        ),
        (SCHEDULER, {"_class_name": "KarrasVeScheduler"}, r"of 'KarrasVeScheduler', which is no process known here"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, r"with prediction_type=epsilon predicts nothing at pure noise"),
        (
            SCHEDULER,
            {"prediction_type": "score"},
            r"prediction_type='score' cannot be imported here; known: eps",
        ),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, r"beta_schedule='sigmoid' is not known; known: linear, scaled"),
        (SCHEDULER, {"beta_start": "absent"}, r"beta_start is not there; write the value"),
        (SCHEDULER, {"beta_start": -0.1}, r"beta_start=-0\.1 beta_end=0\.02 give no betas between 0 and 1"),
        (SCHEDULER, {"beta_end": 2.0}, r"beta_start=0\.0001 beta_end=2\.0 give no betas between 0 and 1"),
        (SCHEDULER, {"beta_end": math.nan}, r"beta_end=nan give no betas between 0 and 1"),
        (SCHEDULER, {"beta_schedule": []}, r"beta_schedule=\[\] is not known; known: linear"),
        (SCHEDULER, {"use_flow_sigmas": True}, r"prediction_type='epsilon' cannot be imported here; known: flow_pred"),
        (
            SCHEDULER,
            {"timestep_type": "continuous"},
            r"another process, .*; only models of whole time",
        ),
        (
            SCHEDULER,
            {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2},
            r"betas: 2\.0",
        ),
        (SCHEDULER, {"trained_betas": [0.1, 0.2]}, r"betas: 2 numbers for steps=1000"),
        (CONFIG, {"_class_name": "UNet2DConditionModel"}, r"is of 'UNet2DConditionModel'; only UNet2DModel, without"),
        (CONFIG, {"sample_size": None}, r"sample_size=None is no size of images; give it with import\.size=64"),
        (CONFIG, {"out_channels": 4}, r"in_channels=3 and out_channels=4; a denoiser returns as many"),
        (CONFIG, {"time_embedding_type": "fourier"}, r"time_embedding_type=fourier: .*positional"),
        (CONFIG, {"class_embed_type": "timestep"}, r"class_embed_type=timestep: .*None"),
        (CONFIG, {"shortcut": 1}, r"'shortcut' is no argument of UNet2DModel that is known here; .*later diffusers"),
        (CONFIG, {"label_dropout": 0.5}, r"'label_dropout' is no argument of UNet2DModel that is known here"),
        (CONFIG, {"act_fn": "nope"}, r"UNet2DModel refuses these arguments \(activation function nope not found"),
        (CONFIG, {"block_out_channels": 8}, r"block_out_channels is 8, not Sequence\[int\]"),
        (CONFIG, {"block_out_channels": [8, 24]}, r"has shape \(16,\), our .* needs \(24,\)"),
        (
            CONFIG,
            {"act_fn": {"_target_": "os.system"}},
            r"description names os\.system, which is not part of scoreline",
        ),
        (
            "model_index.json",
            {"vqvae": ["diffusers", "VQModel"]},
            r"^vqvae/config\.json is not there, though the pipeline names it",
        ),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "CLIPTextModel"]},
            r"works with 'text_encoder' besides a U-Net; only models of",
        ),
    ],
)
def test_refuses_what_it_cannot_honour(file: str, values: dict[str, Any], said: str, tiny: Path) -> None:
    changed(tiny, **values)(file)
    with pytest.raises(InputError, match=said):
        read_model(tiny, None, "ema")


def test_square_sizes_in_lists_and_other_schedulers_import(tiny: Path) -> None:
    changed(tiny, sample_size=[8, 8])(CONFIG)
    EulerDiscreteScheduler().save_pretrained(tiny / "scheduler")
    found = read_model(tiny, None, "ema")
    assert (found.shape, found.notes["scheduler"]) == ((3, 8, 8), "EulerDiscreteScheduler")


def test_files_that_are_missing_or_damaged(tiny: Path) -> None:
    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said):
            read_model(tiny, None, "ema")

    weights = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(weights)
    save_file({name: value for name, value in held.items() if name != "conv_in.bias"}, weights)
    refused(r"^weight conv_in\.bias is not in the file")
    save_file({**held, "other.weight": torch.zeros(1)}, weights)
    refused(r"^weight other\.weight has no place in this network")
    save_file({**held, "conv_in.bias": torch.full_like(held["conv_in.bias"], math.nan)}, weights)
    refused(r"^weight conv_in\.bias is not finite")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("diffusion_pytorch_model.safetensors: it is damaged")
    weights.unlink()
    refused(r"^diffusion_pytorch_model\.safetensors and diffusion_pytorch_model\.bin are not there")
    torch.save([1, 2], weights.with_suffix(".bin"))
    refused(r"^diffusion_pytorch_model\.bin: is no state dict of tensors")
    (tiny / CONFIG).write_text("[1]")
    refused(r"^config\.json: holds a list, no JSON object")
    (tiny / CONFIG).write_text("{")
    refused(r"^config\.json: no readable JSON")
    (tiny / SCHEDULER).unlink()
    refused(r"^scheduler_config\.json is not there, so the noise schedule is unknown")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "..", 7, "absent.safetensors"])
def test_shards_lie_in_the_folder(name: Any, tiny: Path) -> None:
    plain = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, tiny.parent / "secret.safetensors")
    plain.unlink()
    index = {"weight_map": {"conv_in.weight": name}}
    plain.with_name(f"{plain.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"is no file of this folder; copy the folder again$"):
        read_model(tiny, None, "ema")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_bin_file_is_run(tiny: Path, tmp_path: Path) -> None:
    (tiny / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Touch(tmp_path / "ran")}, tiny / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"pathlib|getattr"):
        load(tiny, "diffusers", None, "ema")
    assert not (tmp_path / "ran").exists()


def test_model_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"^model: a folder of diffusers says itself what it holds; leave model out$"):
        read_model(tiny, {"network": {}}, "ema")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sample_size": 9}, r"sample_size=9: give the side of square images or \[height, width\], .* halved 1 times"),
        ({"num_class_embeds": 0}, r"num_class_embeds=0: give the number of classes"),
        ({"label_dropout": 2.0}, r"label_dropout=2\.0: a probability lies between 0 and 1"),
        ({"up_block_types": ("UpBlock2D",)}, r"UNet2DModel refuses these arguments \(Must provide the same number"),
    ],
)
def test_arguments_of_the_network(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.network.*{said}"):
        DiffusersUNet(**{**TINY, **arguments})


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("diffusers.models.unets")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"^network DiffusersUNet needs one more package: .*'scoreline\[diffusers\]'$"):
        DiffusersUNet(**TINY)


def test_the_package_is_imported_by_its_network_only() -> None:
    code = (
        "import sys, scoreline.foreign.diffusers_folder, scoreline.networks.diffusers_unet; "
        "sys.exit(any(name.partition('.')[0] == 'diffusers' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_folder_is_a_checkpoint_as_it_is(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`checkpoint=FOLDER` of sample.py goes through the same import, into the cache."""
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    opened = read_source(plain_config([], checkpoint=str(tiny))).load()
    assert opened.path.is_relative_to(tmp_path / "cache")
    wanted = converted(tiny).denoiser.network.state_dict()
    found = opened.denoiser.network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    with pytest.raises(InputError, match="says itself what it holds"):
        read_source(plain_config(["model=cifar10_ddpm"], checkpoint=str(tiny))).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such file"):
        read_source(plain_config([], checkpoint=str(tmp_path / "empty"))).load()
