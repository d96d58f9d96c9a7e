"""ADM, the U-Net of Dhariwal & Nichol."""

from collections.abc import Sequence

from torch import nn

from scoreline.errors import InputError
from scoreline.networks.checks import check_sizes
from scoreline.networks.embeddings import Sinusoidal
from scoreline.networks.initialisation import zeroed
from scoreline.networks.levels import Kinds, Plan
from scoreline.networks.plain_unet import PlainUNet
from scoreline.networks.residual_block import ResidualBlock, Style


class DhariwalUNet(PlainUNet):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C, R, R).

    Residual blocks scaled and shifted by the embedding, `blocks` per level of width `width * multipliers[level]`, which
    attend at the resolutions in `attention` and in the bottleneck with width / head_channels heads, and change the
    resolution by means of 2x2 pixels. A class that is None or negative, and an augmentation that is None, are zeros.
    Names and layouts of the weights are those of EDM's checkpoints.

    Args:
        label_dropout: probability of hiding the class; the training module does so.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: while training, compute the activations of residual blocks twice instead of keeping them.

    Raises:
        InputError: if the resolution cannot be halved so often, or heads do not divide a width that attends.

    Source: Dhariwal & Nichol (2021), arXiv:2105.05233, Sec. 3; as in Karras et al. (2022), arXiv:2206.00364, App. F.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention: Sequence[int] = (32, 16, 8),
        head_channels: int = 64,
        dropout: float = 0.1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        checkpointing: bool = False,
    ) -> None:
        check_sizes(resolution, width, multipliers, blocks)
        widths = tuple(width * multiplier for multiplier in multipliers)
        style = Style(4 * width, dropout)

        def block(inputs: int, outputs: int, attends: bool) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, style, _heads(outputs, head_channels) if attends else 0)

        kinds = Kinds(
            block,
            down=lambda size: ResidualBlock(size, size, style, direction="down"),
            up=lambda size: ResidualBlock(size, size, style, direction="up"),
        )
        plan = Plan(channels, resolution, widths[0], widths, blocks, tuple(attention))
        super().__init__(
            plan,
            kinds,
            Sinusoidal(width),
            width,
            style.eps,
            num_classes,
            label_dropout,
            augment_dim,
            checkpointing,
        )
        if self.map_augment is not None:
            zeroed(self.map_augment)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)


def _heads(channels: int, head_channels: int) -> int:
    if head_channels < 1 or channels % head_channels:
        raise InputError(
            f"model.network.head_channels={head_channels}: must divide the {channels} channels of a level that attends"
        )
    return channels // head_channels
