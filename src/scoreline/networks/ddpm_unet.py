"""The U-Net of Ho et al."""

import math
from collections.abc import Sequence

from scoreline.networks.arguments import check_sizes
from scoreline.networks.embeddings import Sinusoidal
from scoreline.networks.layers import Down, Up, xavier
from scoreline.networks.plain_unet import PlainUNet
from scoreline.networks.residual_block import ResidualBlock, Style
from scoreline.networks.unet_levels import Kinds, Plan

SCALES = {"conv1": 1e-5, "proj": 1e-5, "out_conv": 1e-5, "qkv": math.sqrt(2)}
"""Nearly zero where a branch ends; q, k and v as three layers of their own."""


class DDPMUNet(PlainUNet):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C, R, R).

    Residual blocks to which the embedding is added, `blocks` per level of width `width * multipliers[level]`, which
    attend with one head at the resolutions in `attention` and in the bottleneck, and convolutions between the levels.
    A class that is None or negative, and an augmentation that is None, are zeros; Ho et al. have neither. The defaults
    are the network for CIFAR-10.

    Args:
        label_dropout: probability of hiding the class; the training module does so.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: while training, compute the activations of residual blocks twice instead of keeping them.

    Raises:
        InputError: if the resolution cannot be halved so often.

    Source: Ho et al. (2020), arXiv:2006.11239, App. B.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        checkpointing: bool = False,
    ) -> None:
        check_sizes(resolution, width, multipliers, blocks)
        style = Style(4 * width, dropout, adaptive=False, eps=1e-6)
        widths = tuple(width * multiplier for multiplier in multipliers)
        kinds = Kinds(
            block=lambda inputs, outputs, attends: ResidualBlock(inputs, outputs, style, heads=int(attends)),
            down=lambda size: Down(size, one_sided=True),
            up=Up,
        )
        plan = Plan(channels, resolution, width, widths, blocks, tuple(attention))
        embedding = Sinusoidal(width, endpoint=True, sine_first=True)
        super().__init__(
            plan,
            kinds,
            embedding,
            width,
            style.eps,
            num_classes,
            label_dropout,
            augment_dim,
            checkpointing,
        )
        xavier(self, SCALES)
