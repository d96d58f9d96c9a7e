"""The UNet2DModel of the diffusers library behind the interface of the networks here."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from scoreline.errors import InputError
from scoreline.networks.arguments import check_probability
from scoreline.networks.embeddings import indices
from scoreline.values import check_choice, is_whole

REFUSED = (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError)
"""Exceptions of its constructor for values that do not go together."""


class DiffusersUNet(nn.Module):
    """F(image (B, C, H, W), noise label (B,), class (B,) or None, augmentation None) -> (B, out_channels, H, W).

    Arguments and defaults are those of UNet2DModel's configuration, and the weights have the same names behind
    `model.`. Time labels may be fractional, since they enter sines and cosines. A class that is None or negative is a
    vector of zeros in the place of the class's embedding. diffusers requires a class, so that a model of its training
    scripts has never seen those zeros and cannot be guided (label_dropout=0).

    When to use it: to sample from folders of diffusers; `foreign.diffusers_folder` fills in all arguments.

    Args:
        sample_size: H = W, or [H, W].
        num_class_embeds: number of classes; None for an unconditional network.
        label_dropout: probability with which the training module hides the class.
        checkpointing: recompute activations in the backward pass instead of keeping them.

    Raises:
        InputError: without the diffusers package, for arguments that it refuses, and for embeddings of time or class
            other than sines and a table: a learned embedding has whole steps only, and a Fourier network takes sigma.

    Source: Ho et al. (2020), arXiv:2006.11239; blocks also of Song et al. (2021), arXiv:2011.13456, and of Dhariwal &
    Nichol (2021), arXiv:2105.05233.
    """

    augment_dim = 0

    def __init__(
        self,
        sample_size: int | Sequence[int],
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        label_dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in OURS}
        super().__init__()
        check_probability("label_dropout", label_dropout)
        check_choice("model.network.time_embedding_type", ("positional",), time_embedding_type)
        check_choice("model.network.class_embed_type", ("None",), str(class_embed_type))
        _check_sizes(sample_size, block_out_channels, num_class_embeds)
        self.model = _built(config)
        self.resolution, self.num_classes, self.label_dropout = sample_size, num_class_embeds or 0, label_dropout
        if num_class_embeds is not None:
            self.model.class_embedding = _OrZeros(*self.model.class_embedding.weight.shape)
        if checkpointing:
            self.model.enable_gradient_checkpointing()

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        classes = indices(label, -1, len(x), x.device) if self.num_classes else None
        out: Tensor = self.model(x, noise, class_labels=classes, return_dict=False)[0]
        return out


OURS = ("self", "label_dropout", "checkpointing", "__class__")
"""Names in the constructor that are not part of the configuration."""


class _OrZeros(nn.Embedding):
    """Rows of zeros for negative indices."""

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index.clamp(min=0), self.weight) * (index >= 0)[:, None]


def _check_sizes(size: int | Sequence[int], widths: Sequence[int], classes: int | None) -> None:
    if not _listed(widths) or not widths:
        raise InputError(f"model.network.block_out_channels={widths}: give the channels of every level")
    halvings = len(widths) - 1
    sides = (size, size) if isinstance(size, int) else size
    if len(sides) != 2 or not all(is_whole(side) and side % 2**halvings == 0 for side in sides):
        raise InputError(
            f"model.network.sample_size={size}: give the side of square images or [height, width], whole numbers that "
            f"can be halved {halvings} times"
        )
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise InputError(f"model.network.num_class_embeds={classes}: give the number of classes, or null for none")


def _built(config: dict[str, Any]) -> Any:
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError as error:
        raise InputError("network DiffusersUNet needs one more package: pip install 'scoreline[diffusers]'") from error
    plain = {name: tuple(value) if _listed(value) else value for name, value in config.items()}
    try:
        return UNet2DModel(**plain)
    except REFUSED as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"model.network: diffusers' UNet2DModel refuses these arguments ({reason:.200})") from error


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
