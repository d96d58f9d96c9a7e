"""Pipelines of diffusers with random weights, built from configs in memory, and one call of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderOobleck,
    DanceDiffusionPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    IPNDMScheduler,
    LDMPipeline,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TWO_BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
CODER = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def picture(size: int = 16) -> Tensor:
    return torch.rand(1, 3, size, size, generator=generator())


def autoencoder(latent: int = 4, **options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 2, "layers_per_block": 1}
    return AutoencoderKL(latent_channels=latent, **sizes, **CODER, **options).eval()


def unet(size: int = 16) -> UNet2DModel:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    return UNet2DModel(sample_size=size, **sizes, **TWO_BLOCKS).eval()


def conditional_unet(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(**sizes, **CROSS, **options).eval()


def ddpm(kind: type = DDPMPipeline, scheduler: Any = None) -> Any:
    return kind(unet=unet(), scheduler=scheduler or DDPMScheduler(clip_sample=False))


def ldm() -> LDMPipeline:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "num_vq_embeddings": 16}
    decoder = VQModel(latent_channels=3, **sizes, **CODER).eval()
    return LDMPipeline(vqvae=decoder, unet=unet(8), scheduler=DDIMScheduler(clip_sample=False))


def dit() -> DiTPipeline:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    adaptive = {"num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    network = DiTTransformer2DModel(in_channels=4, out_channels=8, attention_bias=True, **sizes, **adaptive)
    return DiTPipeline(network.eval(), autoencoder(), DDIMScheduler(clip_sample=False))


def text_parts() -> dict[str, Any]:
    """A tokenizer of letters and a text encoder."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=64, max_position_embeddings=77, **sizes, **marks))
    return {"tokenizer": tokenizer, "text_encoder": encoder.eval()}


def sd(kind: type = StableDiffusionPipeline, **parts: Any) -> Any:
    network = conditional_unet(attention_head_dim=8, cross_attention_dim=32)
    scheduler = DDIMScheduler(**LATENT_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts = {"vae": autoencoder(), "unet": network, "scheduler": scheduler, **nothing, **parts}
    return kind(requires_safety_checker=False, **parts)


def sdxl(kind: type = StableDiffusionXLPipeline) -> Any:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": 1}
    width = {"projection_class_embeddings_input_dim": 6 * 8 + 32, "cross_attention_dim": 64}
    network = conditional_unet(attention_head_dim=(1, 2), use_linear_projection=True, **added, **width)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = EulerDiscreteScheduler(**LATENT_BETAS, steps_offset=1, timestep_spacing="leading")
    return kind(vae=autoencoder(), unet=network, scheduler=scheduler, add_watermarker=False, **nothing)


FLOW_CODER = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}


def sd3(kind: type = StableDiffusion3Pipeline, **scheduler: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 1, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4}
    widths = {"caption_projection_dim": 32, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    network = SD3Transformer2DModel(in_channels=4, out_channels=4, **sizes, **widths).eval()
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, **scheduler)
    return kind(transformer=network, vae=autoencoder(**FLOW_CODER), scheduler=flow, **dict.fromkeys(names))


def flux(kind: type = FluxPipeline) -> Any:
    torch.manual_seed(0)
    sizes = {"patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    widths = {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8)}
    network = FluxTransformer2DModel(in_channels=16, num_attention_heads=2, guidance_embeds=True, **sizes, **widths)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return kind(transformer=network.eval(), vae=autoencoder(**FLOW_CODER), scheduler=flow, **nothing)


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **marks)


def stable_audio() -> StableAudioPipeline:
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "in_channels": 3, "out_channels": 3, "num_layers": 1, "attention_head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_attention_heads": 2}
    widths = {"cross_attention_dim": 4, "cross_attention_input_dim": 4, "time_proj_dim": 8}
    network = StableAudioDiTModel(global_states_input_dim=8, **sizes, **heads, **widths).eval()
    rates = {"downsampling_ratios": [1, 2], "channel_multiples": [2, 4], "sampling_rate": 4}
    decoder = AutoencoderOobleck(encoder_hidden_size=6, decoder_channels=3, decoder_input_channels=3, **rates).eval()
    text = T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=1)).eval()
    times = StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32).eval()
    edm = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"}
    scheduler = EDMDPMSolverMultistepScheduler(**edm)
    return StableAudioPipeline(decoder, text, times, word_tokenizer(), network, scheduler)


def dance() -> DanceDiffusionPipeline:
    torch.manual_seed(0)
    sizes = {"sample_size": 512, "sample_rate": 16000, "block_out_channels": (32, 32), "extra_in_channels": 64}
    times = {"flip_sin_to_cos": True, "use_timestep_embedding": False, "time_embedding_type": "fourier"}
    down, up = ("DownBlock1DNoSkip", "DownBlock1D"), ("UpBlock1D", "UpBlock1DNoSkip")
    kinds = {"down_block_types": down, "up_block_types": up, "mid_block_type": "UNetMidBlock1D"}
    return DanceDiffusionPipeline(UNet1DModel(**sizes, **times, **kinds).eval(), IPNDMScheduler())


TEXT = {
    "sd": lambda: _embeds(noise(2, 1, 77, 32)),
    "sdxl": lambda: _embeds(noise(2, 1, 77, 64), noise(2, 1, 32)),
    "sd3": lambda: _embeds(noise(2, 1, 93, 64), noise(2, 1, 64)),
    "flux": lambda: {"prompt_embeds": noise(1, 16, 32), "pooled_prompt_embeds": noise(1, 32)},
}
"""Embeddings in place of prompts."""


def _embeds(words: Tensor, pooled: Tensor | None = None) -> dict[str, Tensor]:
    embeds = {"prompt_embeds": words[0], "negative_prompt_embeds": words[1]}
    if pooled is not None:
        embeds |= {"pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1]}
    return embeds


@dataclass(frozen=True)
class Tiny:
    """A pipeline, how it is called, and what its network call does.

    Attributes:
        build: the pipeline.
        options: of its call.
        network: name of its network.
        guidance: scale of the guidance between the two halves of a doubled batch; None for one batch.
        output: name of the output.
        level: scale of the network's timestep against the scheduler's.
    """

    build: Callable[[], Any]
    options: Callable[[], dict[str, Any]] = dict
    network: str = "unet"
    guidance: float | None = None
    output: str = "images"
    level: float = 1.0
    size: dict[str, int] = field(default_factory=dict)

    def pipeline(self) -> Any:
        pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, steps: int = 5, **options: Any) -> Any:
        guided = {} if self.guidance is None else {"guidance_scale": self.guidance}
        kind = {} if isinstance(pipe, DanceDiffusionPipeline) else {"output_type": "np"}
        options = {"generator": generator(), **self.options(), **self.size, **guided, **kind, **options}
        return getattr(pipe(num_inference_steps=steps, **options), self.output)


SQUARE = {"height": 16, "width": 16}
TINY = {
    "ddpm": Tiny(ddpm),
    "ddim": Tiny(lambda: ddpm(DDIMPipeline, DDIMScheduler(clip_sample=False))),
    "ldm": Tiny(ldm),
    "dit": Tiny(dit, lambda: {"class_labels": [1, 2]}, "transformer", 4.0),
    "sd": Tiny(sd, TEXT["sd"], guidance=5.0),
    "sdxl": Tiny(sdxl, TEXT["sdxl"], guidance=5.0),
    "sd3": Tiny(sd3, TEXT["sd3"], "transformer", 5.0, size=SQUARE),
    "sd3_dynamic": Tiny(lambda: sd3(use_dynamic_shifting=True), TEXT["sd3"], "transformer", 5.0, size=SQUARE),
    "flux": Tiny(flux, TEXT["flux"], "transformer", level=1e-3, size=SQUARE),
    "stable_audio": Tiny(stable_audio, lambda: {"prompt": "a cat"}, "transformer", 5.0, "audios"),
    "dance": Tiny(dance, output="audios"),
}

STRENGTH = {"strength": 0.6}
FROM_PICTURE = {
    "sd": Tiny(
        lambda: sd(StableDiffusionImg2ImgPipeline),
        lambda: {**TEXT["sd"](), "image": picture(), **STRENGTH},
        guidance=5.0,
    ),
    "sdxl": Tiny(
        lambda: sdxl(StableDiffusionXLImg2ImgPipeline),
        lambda: {**TEXT["sdxl"](), "image": picture(), **STRENGTH},
        guidance=5.0,
    ),
    "sd3": Tiny(
        lambda: sd3(StableDiffusion3Img2ImgPipeline),
        lambda: {**TEXT["sd3"](), "image": picture(), **STRENGTH},
        "transformer",
        5.0,
        size=SQUARE,
    ),
    "flux": Tiny(
        lambda: flux(FluxImg2ImgPipeline),
        lambda: {**TEXT["flux"](), "image": picture(), **STRENGTH},
        "transformer",
        level=1e-3,
        size=SQUARE,
    ),
}
"""img2img, from step 2 of 5 on."""
