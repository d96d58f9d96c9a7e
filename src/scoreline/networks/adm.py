"""ADM, the U-Net of Dhariwal & Nichol, with the options of its released code."""

from collections.abc import Callable, Sequence

from torch import nn

from scoreline.errors import InputError
from scoreline.networks.arguments import check_factor, check_sizes
from scoreline.networks.embeddings import Sinusoidal
from scoreline.networks.fir_resampling import Resample
from scoreline.networks.layers import Down, Up, zero_weights
from scoreline.networks.plain_unet import PlainUNet
from scoreline.networks.residual_block import ResidualBlock, Style
from scoreline.networks.unet_levels import Kinds, Plan
from scoreline.values import check_choice

RESAMPLING = ("residual", "convolution", "plain")


class DhariwalUNet(PlainUNet):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C', R, R).

    Residual blocks scaled and shifted by the embedding, `blocks` per level of width `width * multipliers[level]`, which
    attend at the resolutions in `attention` and in the bottleneck with width / head_channels heads, and change the
    resolution by means of 2x2 pixels. A class that is None or negative, and an augmentation that is None, are zeros.
    The defaults are the network of Karras et al., and its weights have the names and layouts of their checkpoints;
    the other options are those of Nichol & Dhariwal and of Dhariwal & Nichol.

    When to use it: for ImageNet and LSUN at 64 pixels and more, and to import checkpoints of EDM, guided-diffusion and
    improved-diffusion.

    Args:
        channels: C.
        resolution: R.
        width: channels at the first level before its multiplier.
        multipliers: channels of each level over `width`; fractions that make whole widths, such as 0.5, are allowed.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention: resolutions at which blocks attend.
        head_channels: channels of a head.
        dropout: probability in the residual blocks.
        num_classes: number of classes, 0 for an unconditional network.
        label_dropout: probability with which the training module hides the class.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: recompute the activations of residual blocks in the backward pass instead of keeping them.
        heads: number of heads of every attention; 0 derives it from head_channels.
        decoder_heads: number of heads at the levels of the decoder; 0 takes `heads`.
        scale_shift_norm: False adds the embedding before the second normalisation.
        resampling: between levels: `residual` blocks, `convolution` of stride 2 or after the nearest neighbour, or
            `plain` means and nearest neighbours.
        qkv_order: order of the channels that attend, interleaved | heads_first | qkv_first, see `qkv_attention`.
        output_factor: C' / C, 2 for networks with a learned variance; the parameterisation takes the same value.

    Raises:
        InputError: if the resolution cannot be halved that often, heads do not divide a width that attends, or an
            option is none of the above.

    Source: Nichol & Dhariwal (2021), arXiv:2102.09672, Sec. 3 and App. A; Dhariwal & Nichol (2021), arXiv:2105.05233,
    Sec. 3; as in Karras et al. (2022), arXiv:2206.00364, App. F.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 192,
        multipliers: Sequence[float] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        head_channels: int = 64,
        dropout: float = 0.1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        checkpointing: bool = False,
        heads: int = 0,
        decoder_heads: int = 0,
        scale_shift_norm: bool = True,
        resampling: str = "residual",
        qkv_order: str = "interleaved",
        output_factor: int = 1,
    ) -> None:
        check_sizes(resolution, width, multipliers, blocks, fractions=True)
        check_choice("model.network.resampling", RESAMPLING, resampling)
        check_factor(output_factor)
        widths = tuple(int(width * multiplier) for multiplier in multipliers)
        style = Style(4 * width, dropout, adaptive=scale_shift_norm, qkv_order=qkv_order)
        down, up = _resamplers(resampling, style)

        def blocks_with(key: str, count: int) -> Callable[[int, int, bool], ResidualBlock]:
            def block(inputs: int, outputs: int, attends: bool) -> ResidualBlock:
                return ResidualBlock(
                    inputs, outputs, style, _heads(outputs, head_channels, key, count) if attends else 0
                )

            return block

        encoder_block = blocks_with("heads", heads)
        decoder_block = blocks_with("decoder_heads", decoder_heads) if decoder_heads else encoder_block
        super().__init__(
            Plan(channels, resolution, widths[0], widths, blocks, tuple(attention)),
            Kinds(encoder_block, down, up, decoder_block),
            Sinusoidal(width),
            width,
            style.eps,
            num_classes,
            label_dropout,
            augment_dim,
            checkpointing,
            output_factor,
        )
        if self.map_augment is not None:
            zero_weights(self.map_augment)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)


def _resamplers(kind: str, style: Style) -> tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]:
    if kind == "convolution":
        return Down, Up
    if kind == "plain":
        return lambda size: Resample("down", style.taps), lambda size: Resample("up", style.taps)
    return (
        lambda size: ResidualBlock(size, size, style, direction="down"),
        lambda size: ResidualBlock(size, size, style, direction="up"),
    )


def _heads(channels: int, head_channels: int, key: str, heads: int) -> int:
    name, number = (key, heads) if heads else ("head_channels", head_channels)
    if number < 1 or channels % number:
        raise InputError(f"model.network.{name}={number}: must divide the {channels} channels of a level that attends")
    return heads or channels // head_channels
