"""Latent pipelines of diffusers: the loop and the decoder beside LDMPipeline, and what is written of their samples."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LDMPipeline, VQModel
from filled import filled_state
from folders import TINY, changed, converted, parts, unet
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoreline.checkpoints import Checkpoint
from scoreline.errors import InputError
from scoreline.foreign.diffusers_folder import read_model
from scoreline.foreign.families import load
from scoreline.sampling import integrate
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build_tableau

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
}


def kl(**options: Any) -> AutoencoderKL:
    return _with_weights(AutoencoderKL(**{**BLOCKS, "latent_channels": 3, "sample_size": 16, **options}))


def vq(**options: Any) -> VQModel:
    model = _with_weights(VQModel(**{**BLOCKS, "latent_channels": 3, "num_vq_embeddings": 32, **options}))
    # codes far apart, as trained ones are: between close ones rounding, which differs by processor, decides
    model.quantize.embedding.weight.data.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    return model


def _with_weights(model: Any) -> Any:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(filled_state(shapes))
    return model.eval()


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)


def pipeline(folder: Path, autoencoder: Any) -> Path:
    LDMPipeline(vqvae=autoencoder, unet=unet(TINY), scheduler=scheduler()).save_pretrained(folder)
    return folder


def run(checkpoint: Checkpoint, noise: Tensor, steps: int) -> Tensor:
    """The latents of DDIM's loop from native noise."""
    process = checkpoint.noise_schedule
    times = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (1000 // steps)
    levels = process.inverse(times).tolist()
    tableau = build_tableau(DDIM(), Tabulated(tuple(levels)), (levels[0], levels[-1]), steps, "denoise")
    return integrate(checkpoint.denoiser.estimate, noise / float(process.alpha(times[0])), tableau)


@torch.no_grad()
@pytest.mark.parametrize(
    "autoencoder",
    [
        kl(),
        kl(scaling_factor=0.5, use_quant_conv=False, use_post_quant_conv=False),
        kl(out_channels=1, in_channels=1, mid_block_add_attention=False),
        vq(),
        vq(scaling_factor=1.0, vq_embed_dim=3),
        vq(norm_type="spatial", num_vq_embeddings=7, block_out_channels=(32, 32)),
    ],
    ids=["kl", "kl-scaled", "kl-grey", "vq", "vq-plain", "vq-spatial"],
)
def test_loop_and_decoder_are_those_of_the_pipeline(autoencoder: Any, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "ldm", autoencoder)
    theirs = LDMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    checkpoint = converted(folder)
    assert checkpoint.card.shape == (3, 8, 8)
    assert checkpoint.image_shape == (autoencoder.config.out_channels, 16, 16)
    steps = torch.arange(1000, dtype=torch.float64)
    theirs.scheduler.alphas_cumprod = checkpoint.noise_schedule.alpha(steps) ** 2  # float64
    noise = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(3))
    expected = theirs(2, torch.manual_seed(3), num_inference_steps=5, output_type="np").images
    decoder = checkpoint.decoder
    assert decoder is not None
    found = decoder(run(checkpoint, noise, 5))
    pictures = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(pictures - expected).max() < 1e-5 * float(found.abs().max())
    assert expected.std() > 0.05


def test_a_shift_of_latents(tmp_path: Path) -> None:
    autoencoder = kl(shift_factor=0.3, scaling_factor=0.7)
    checkpoint = converted(parts(tmp_path / "f", unet=unet(TINY), scheduler=scheduler(), vae=autoencoder))
    latents = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = autoencoder.decode(latents / 0.7 + 0.3).sample
        assert checkpoint.decoder is not None
        torch.testing.assert_close(checkpoint.decoder(latents), expected, rtol=1e-5, atol=1e-6)


def test_weights_of_every_kind(tmp_path: Path) -> None:
    """`vae` in .bin files and half precision, without an index; attention by its old names."""
    plain = converted(parts(tmp_path / "plain", unet=unet(TINY), scheduler=scheduler(), vae=kl()))
    folder = parts(tmp_path / "half", unet=unet(TINY), scheduler=scheduler())
    kl().half().save_pretrained(folder / "vae", safe_serialization=False)
    latents = torch.randn(1, 3, 8, 8)
    outputs = [checkpoint.decoder(latents) for checkpoint in (plain, converted(folder)) if checkpoint.decoder]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0.05)
    file = tmp_path / "plain" / "vae" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, weight in load_file(file).items():
        for now, once in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{now}.", f".{once}.")
        old[name] = weight
    assert any(".proj_attn." in name for name in old)
    save_file(old, file)
    again = converted(tmp_path / "plain")
    assert again.decoder is not None
    assert torch.equal(again.decoder(latents), outputs[0])


CONFIG = "vqvae/config.json"


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (
            CONFIG,
            {"_class_name": "AutoencoderTiny"},
            r"^vqvae: config\.json is of 'AutoencoderTiny'; latents are",
        ),
        (CONFIG, {"_class_name": "os.system"}, r"^vqvae: config\.json is of 'os\.system'"),
        (CONFIG, {"_class_name": None}, r"^vqvae: config\.json is of None"),
        (CONFIG, {"_class_name": ["VQModel"]}, r"^vqvae: config\.json is of \['VQModel'\]"),
        (CONFIG, {"latent_channels": 4}, r"^vqvae: config\.json: latent_channels=4, but the U-Net has 3 channels"),
        (CONFIG, {"latent_channels": "3"}, r"^vqvae: config\.json: latent_channels='3', but the U-Net"),
        (CONFIG, {"scaling_factor": 0}, r"^vqvae: .*scaling_factor is 0, not a number above 0"),
        (CONFIG, {"scaling_factor": "1"}, r"^vqvae: .*scaling_factor is '1', not float"),
        (CONFIG, {"latents_mean": [0, 0, 0]}, r"^vqvae: config\.json: latents_mean scales each channel"),
        (
            CONFIG,
            {"act_fn": {"_target_": "os.system"}},
            r"description names os\.system, which is not part of",
        ),
        (CONFIG, {"act_fn": "nope"}, r"^vqvae: model\.decoder: diffusers' VQModel refuses these arguments"),
        (CONFIG, {"up_block_types": ["nope", "nope"]}, r"^vqvae: model\.decoder: diffusers' VQModel refuses"),
        (CONFIG, {"block_out_channels": [4, 16]}, r"^vqvae: weight .* has shape"),
        (CONFIG, {"num_vq_embeddings": 10**9}, r"^vqvae: .*num_vq_embeddings is 1000000000"),
        (CONFIG, {"num_vq_embeddings": 33}, r"^vqvae: weight quantize\.embedding\.weight has shape"),
        (CONFIG, {"hidden": 1}, r"^vqvae: config\.json: 'hidden' is no argument of VQModel that is known here"),
        ("model_index.json", {"bert": ["transformers", "X"]}, r"works with 'bert' besides a U-Net"),
    ],
)
def test_hostile_autoencoders(file: str, values: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "ldm", vq())
    changed(folder, **values)(file)
    with pytest.raises(InputError, match=said) as error:
        read_model(folder, None, "ema")
    assert "\n" not in str(error.value)


def test_autoencoders_that_are_missing_or_damaged(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "ldm", vq())
    weights = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    content = load_file(weights)
    save_file({name: value for name, value in content.items() if name != "decoder.conv_in.bias"}, weights)
    with pytest.raises(InputError, match=r"^vqvae: weight decoder\.conv_in\.bias is not in the file"):
        read_model(folder, None, "ema")
    weights.unlink()
    with pytest.raises(InputError, match=r"^vqvae: diffusion_pytorch_model\.safetensors and .* are not there"):
        read_model(folder, None, "ema")
    shutil.rmtree(folder / "vqvae")
    with pytest.raises(InputError, match=r"^vqvae/config\.json is not there, though the pipeline names it"):
        read_model(folder, None, "ema")
    (folder / "model_index.json").unlink()
    assert "decoder" not in load(folder, None, None, "ema")[1].model


def test_a_tiny_autoencoder_is_refused(tmp_path: Path) -> None:
    tiny = AutoencoderTiny(latent_channels=3, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    with pytest.raises(InputError, match=r"^vae: config\.json is of 'AutoencoderTiny'"):
        read_model(parts(tmp_path / "f", unet=unet(TINY), scheduler=scheduler(), vae=tiny), None, "ema")


def test_the_unet_alone_is_a_model_of_latents_too(tmp_path: Path) -> None:
    """Both ways to name it find the autoencoder, if the folder has one and no index says otherwise."""
    folder = parts(tmp_path / "f", unet=unet(TINY), scheduler=scheduler(), vae=kl())
    for path in (folder, folder / "unet"):
        assert "decoder" in load(path, "diffusers", None, "ema")[1].model
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "decoder" not in load(folder, "diffusers", None, "ema")[1].model
