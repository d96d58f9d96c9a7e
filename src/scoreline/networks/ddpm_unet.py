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
"""Scales of the initial weights: nearly zero at the end of a branch; q, k and v as if in three layers."""


class DDPMUNet(PlainUNet):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C, R, R).

    Residual blocks to which the embedding is added, `blocks` per level of width `width * multipliers[level]`, which
    attend with one head at the resolutions in `attention` and in the bottleneck, and convolutions between the levels.
    A class that is None or negative, and an augmentation that is None, are zeros; Ho et al. have neither. The defaults
    are the network for CIFAR-10.

    When to use it: to import the checkpoints of DDPM, DDIM and PNDM. `SongUNet` trains to lower FID at the same size.

    Args:
        channels: C.
        resolution: R.
        width: channels at the first level before its multiplier.
        multipliers: channels of each level over `width`.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention: resolutions at which blocks attend.
        dropout: probability in the residual blocks.
        num_classes: number of classes, 0 for an unconditional network.
        label_dropout: probability with which the training module hides the class.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: recompute the activations of residual blocks in the backward pass instead of keeping them.

    Raises:
        InputError: if the resolution cannot be halved that often.

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
