"""The decoders of latents in the diffusers library: AutoencoderKL and VQModel."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.diffusers_unet import REFUSED
from scoreline.networks.latents import LatentDecoder

LISTS = ("down_block_types", "up_block_types", "block_out_channels")


class _Autoencoder(LatentDecoder):
    """A decoder whose `model` is an autoencoder of diffusers."""

    model: Any

    def _decoded(self, latents: Tensor) -> Tensor:
        images: Tensor = self.model.decode(latents, return_dict=False)[0]
        return images


class KLDecoder(_Autoencoder):
    """`LatentDecoder` of diffusers' AutoencoderKL; arguments and defaults are those of its configuration.

    When to use it: for latent diffusion with a KL autoencoder; `foreign.diffusers_folder` fills in all arguments.

    Args:
        latent_channels: C.
        scaling_factor: the diffusion model's latents are those of the encoder, less the shift, times this number.
        shift_factor: what is subtracted from the encoder's latents first; None for 0.

    Raises:
        InputError: without the diffusers package, and for arguments that it refuses.

    Source: Rombach et al. (2022), arXiv:2112.10752.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in OURS}
        super().__init__(out_channels, block_out_channels, scaling_factor, shift_factor)
        self.model = _autoencoder("AutoencoderKL", config)


class VQDecoder(_Autoencoder):
    """`LatentDecoder` of diffusers' VQModel, which first replaces each latent vector by the nearest of its codebook.

    When to use it: for latent diffusion with a VQ autoencoder; `foreign.diffusers_folder` fills in all arguments.

    Args:
        latent_channels: C.
        num_vq_embeddings: vectors of the codebook.
        vq_embed_dim: their length; None for C.
        scaling_factor: the diffusion model's latents are those of the encoder times this number.

    Raises:
        InputError: without the diffusers package, and for arguments that it refuses.

    Source: Rombach et al. (2022), arXiv:2112.10752.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in OURS}
        super().__init__(out_channels, block_out_channels, scaling_factor, None)
        self.model = _autoencoder("VQModel", config)


OURS = ("self", "__class__")
"""Names in the constructors that are not part of the configuration."""


def _autoencoder(kind: str, config: dict[str, Any]) -> Any:
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.autoencoders.vq_model import VQModel
    except ImportError as error:
        raise InputError("latents need one more package: pip install 'scoreline[diffusers]'") from error
    chosen = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}[kind]
    plain = {name: tuple(value) if name in LISTS else value for name, value in config.items()}
    try:
        return chosen(**plain)
    except REFUSED as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"model.decoder: diffusers' {kind} refuses these arguments ({reason:.200})") from error
