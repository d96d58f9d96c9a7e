"""A compact U-Net for images of 8x8 to 64x64."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scoreline.networks.arguments import check_probability, check_sizes
from scoreline.networks.attention import Attention
from scoreline.networks.embeddings import Fourier, Sinusoidal, indices, or_zeros
from scoreline.networks.layers import Down, Up, group_norm, zero_weights
from scoreline.networks.residual_block import ResidualBlock, Style, run
from scoreline.values import check_choice

EMBEDDINGS = {"sinusoidal": Sinusoidal, "fourier": Fourier}


class Block(ResidualBlock):
    """`ResidualBlock`, then attention with several heads."""

    def __init__(self, inputs: int, outputs: int, style: Style, attention: bool) -> None:
        super().__init__(inputs, outputs, style)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.attention(super().forward(x, embedding))
        return out


class UNet(nn.Module):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C, R, R).

    Residual blocks with GroupNorm and SiLU, `blocks` per level of width `width * multipliers[level]`, self-attention at
    the resolutions in `attention` and in the bottleneck, additive noise and class embeddings. With `num_classes` > 0
    a class that is None or negative is the null class, an embedding of its own, so that one network serves
    unconditional, conditional and guided use; an augmentation that is None is zeros.

    When to use it: for small experiments; the shipped digits model is one. For published results use `SongUNet`.

    Args:
        channels: C.
        resolution: R.
        width: channels at the first level before its multiplier.
        multipliers: channels of each level over `width`.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention: resolutions at which blocks attend.
        embedding: sinusoidal, for noise labels up to 1000, or fourier, for labels of order one.
        dropout: probability in the residual blocks.
        num_classes: number of classes, 0 for an unconditional network.
        label_dropout: probability with which the training module, never the network, hides the class.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: recompute the activations of residual blocks in the backward pass instead of keeping them.

    Raises:
        InputError: if the resolution is not divisible by 2^(levels - 1), or the embedding is unknown.

    Source: Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239; scale-shift conditioning
    and attention at several resolutions after Dhariwal & Nichol (2021), arXiv:2105.05233.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        embedding: str = "sinusoidal",
        dropout: float = 0.0,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_dim: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(resolution, width, multipliers, blocks)
        check_choice("model.network.embedding", EMBEDDINGS, embedding)
        check_probability("label_dropout", label_dropout)
        self.resolution, self.num_classes, self.label_dropout = resolution, num_classes, label_dropout
        self.augment_dim, self.checkpointing = augment_dim, checkpointing
        features = 4 * width
        self.embed = EMBEDDINGS[embedding](width)
        self.map = nn.Sequential(nn.Linear(width, features), nn.SiLU(), nn.Linear(features, features))
        self.classes = nn.Embedding(num_classes + 1, features) if num_classes else None
        widths = [width * m for m in multipliers]
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()

        style = Style(features, dropout)

        def block(inputs: int, outputs: int, level: int) -> Block:
            return Block(inputs, outputs, style, resolution >> level in attention)

        skips, current = [width], width
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                self.encoder.append(block(current, outputs, level))
                skips.append(current := outputs)
            if level < len(widths) - 1:
                self.encoder.append(Down(outputs))
                skips.append(outputs)
        self.middle = nn.ModuleList(Block(current, current, style, a) for a in (True, False))
        for level, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.decoder.append(block(current + skips.pop(), outputs, level))
                current = outputs
            if level:
                self.decoder.append(Up(outputs))
        self.norm, self.head = group_norm(current), zero_weights(nn.Conv2d(current, channels, 3, padding=1))
        self.augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        embedding = self._embed(noise, label, augment)
        recompute = self.checkpointing and self.training
        x = self.stem(x)
        skips = [x]
        for layer in self.encoder:
            x = run(layer, x, embedding, recompute)
            skips.append(x)
        for layer in self.middle:
            x = run(layer, x, embedding, recompute)
        for layer in self.decoder:
            x = run(layer, x if isinstance(layer, Up) else torch.cat([x, skips.pop()], dim=1), embedding, recompute)
        out: Tensor = self.head(silu(self.norm(x)))
        return out

    def _embed(self, noise: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        vector: Tensor = self.map(self.embed(noise))
        if self.classes is not None:
            vector = vector + self.classes(indices(label, self.num_classes, len(noise), noise.device))
        if self.augment is not None:
            vector = vector + self.augment(or_zeros(augment, self.augment_dim, vector))
        return silu(vector)
