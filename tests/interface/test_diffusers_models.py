"""Models of diffusers, with random weights, beside what the library's own schedulers make of them."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

import scoreline
from scoreline import predictions

U_NET = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8, "layers_per_block": 1}


def unet() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**U_NET, **blocks), torch.randn(2, 3, 8, 8), {}


def conditional_unet() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "mid_block_type": "UNetMidBlock2DCrossAttn"}
    up = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 8, "attention_head_dim": 4}
    model = UNet2DConditionModel(**U_NET, **blocks, **up)
    return model, torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}


def dit() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Its output holds a learned variance."""
    sizes = {"sample_size": 8, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "patch_size": 2}
    model = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=10)
    return model, torch.randn(2, 4, 8, 8), {"class_labels": torch.tensor([1, 7])}


MODELS = {"unet": unet, "conditional unet": conditional_unet, "dit": dit}


def built(name: str) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    model, x, condition = MODELS[name]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # layers of zeros would hide the label
    return model.eval(), x, condition


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_denoised_image_is_that_of_ddim(name: str, kind: str) -> None:
    model, x, condition = built(name)
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, beta_schedule="scaled_linear")
    scheduler.set_timesteps(1000)
    denoise = predictions.diffusers(model, scheduler)
    for t in (3, 250, 999):
        abar = scheduler.alphas_cumprod[t].double()
        output = model(x, timestep=torch.tensor([t, t]), **condition).sample[:, : x.shape[1]]
        expected = scheduler.step(output, t, x).pred_original_sample
        found = denoise(x / abar.sqrt(), float(((1 - abar) / abar).sqrt()), **condition)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4 * float(expected.abs().max()))


@torch.no_grad()
def test_whole_labels_in_half_precision() -> None:
    model, x, condition = built("dit")
    seen = []
    model.to(torch.bfloat16).register_forward_pre_hook(lambda *call: seen.append(call[2]["timestep"]), with_kwargs=True)
    scheduler = DDIMScheduler()
    for round_labels in (False, True):
        denoise = predictions.diffusers(model, scheduler.config, round_labels=round_labels)
        assert denoise(x, 10.0, **condition).dtype == torch.float32
    assert [label.dtype for label in seen] == [torch.float32, torch.int64]
    assert 0 < abs(float(seen[0][0]) - int(seen[1][0])) <= 0.5


@torch.no_grad()
def test_denoised_image_is_that_of_edm() -> None:
    model, x, _ = built("unet")
    for kind in ("epsilon", "v_prediction"):
        scheduler = EDMEulerScheduler(prediction_type=kind)
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[2]
        output = model(scheduler.scale_model_input(x, t), t).sample
        expected = scheduler.step(output, t, x).pred_original_sample
        found = predictions.diffusers(model, scheduler)(x, float(scheduler.sigmas[2]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def flux() -> tuple[nn.Module, Tensor, dict[str, Any], float]:
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    text_sizes = {"joint_attention_dim": 8, "pooled_projection_dim": 8}
    model = FluxTransformer2DModel(
        **sizes, **text_sizes, in_channels=4, guidance_embeds=False, axes_dims_rope=(4, 4, 8)
    )
    places = {"txt_ids": torch.zeros(3, 3), "img_ids": torch.zeros(6, 3)}
    text = {"encoder_hidden_states": torch.randn(2, 3, 8), "pooled_projections": torch.randn(2, 8)}
    return model, torch.randn(2, 6, 4), {**places, **text}, 1.0


def sd3() -> tuple[nn.Module, Tensor, dict[str, Any], float]:
    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "sample_size": 8, "patch_size": 2}
    text_sizes = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "caption_projection_dim": 16}
    model = SD3Transformer2DModel(**sizes, **text_sizes, in_channels=4, out_channels=4, pos_embed_max_size=8)
    text = {"encoder_hidden_states": torch.randn(2, 3, 8), "pooled_projections": torch.randn(2, 8)}
    return model, torch.randn(2, 4, 8, 8), text, 1000.0


@pytest.mark.parametrize("make", [flux, sd3])
@torch.no_grad()
def test_flow_transformers(make: Any) -> None:
    """The pipelines of FLUX give t in [0, 1], those of Stable Diffusion 3 give 1000 t; both begin at pure noise."""
    torch.manual_seed(0)
    model, z, condition, scale = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoise = predictions.diffusers(model.eval(), scheduler)
    for t in (0.2, 0.9):
        velocity = model(z, timestep=torch.full((2,), scale * t), **condition).sample
        found = denoise(z / (1 - t), t / (1 - t), **condition)
        torch.testing.assert_close(found, z - t * velocity, rtol=1e-4, atol=1e-4)
    velocity = model(z, timestep=torch.full((2,), scale), **condition).sample
    torch.testing.assert_close(denoise(z, float("inf"), **condition), z - velocity, rtol=1e-4, atol=1e-4)
    assert denoise.noise_schedule == scoreline.RectifiedFlow(3.0)
