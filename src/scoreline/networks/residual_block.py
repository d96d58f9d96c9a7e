"""The residual block of the U-Nets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from scoreline.networks.arguments import check_probability
from scoreline.networks.attention import QKV_ORDERS, may_be_differentiated_twice, qkv_attention
from scoreline.networks.fir_resampling import Direction, Resample, ResampledConv
from scoreline.networks.layers import group_norm, zero_weights
from scoreline.values import check_choice


@dataclass(frozen=True)
class Style:
    """Settings that all residual blocks of a network share.

    Attributes:
        embedding: number of entries of the embedding.
        dropout: probability before the second convolution.
        adaptive: whether the embedding scales and shifts the second normalisation, instead of being added before it.
        residual_scale: factor of every sum of a branch and its bypass.
        eps: constant of the normalisations.
        taps: filter of blocks that change the resolution.
        project_resampled: whether such blocks have a 1x1 convolution on the bypass even if the channels stay the same.
        qkv_order: order of the channels that attend, see `qkv_attention`.
    """

    embedding: int
    dropout: float = 0.0
    adaptive: bool = True
    residual_scale: float = 1.0
    eps: float = 1e-5
    taps: Sequence[float] = (1.0, 1.0)
    project_resampled: bool = False
    qkv_order: str = "interleaved"


class ResidualBlock(nn.Module):
    """s (bypass(x) + conv1(drop(h))), then s (x + proj(attention(qkv(norm2(x))))) with `heads` > 0; s = residual_scale.

    a = conv0(silu(norm0(x))); h = silu(norm1(a) (1 + scale) + shift), (scale, shift) = affine(embedding), if adaptive,
    else h = silu(norm1(a + affine(embedding))). Images (B, inputs, H, W), embedding (B, E) -> (B, outputs, H', W').
    With a `direction` conv0 and the bypass change the resolution first. conv1 and proj start at zero.

    Source: Song et al. (2021), arXiv:2011.13456, App. H; adaptive: Dhariwal & Nichol (2021), arXiv:2105.05233, Sec. 3.
    """

    def __init__(
        self, inputs: int, outputs: int, style: Style, heads: int = 0, direction: Direction | None = None
    ) -> None:
        super().__init__()
        check_probability("dropout", style.dropout)
        check_choice("model.network.qkv_order", QKV_ORDERS, style.qkv_order)
        self.adaptive, self.scale = style.adaptive, style.residual_scale
        self.heads, self.qkv_order = heads, style.qkv_order
        self.norm0 = group_norm(inputs, style.eps)
        self.conv0 = _convolution(inputs, outputs, 3, style, direction)
        self.affine = nn.Linear(style.embedding, 2 * outputs if style.adaptive else outputs)
        self.norm1 = group_norm(outputs, style.eps)
        self.conv1 = zero_weights(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(style.dropout)
        self.skip = _bypass(inputs, outputs, style, direction)
        if heads:
            self.norm2 = group_norm(outputs, style.eps)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = zero_weights(nn.Conv2d(outputs, outputs, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv0(silu(self.norm0(x)))
        hidden = silu(self._conditioned(hidden, self.affine(embedding)[:, :, None, None]))
        x = self._scaled(self.skip(x) + self.conv1(self.dropout(hidden)))
        return self._scaled(x + self._attended(x)) if self.heads else x

    def _conditioned(self, hidden: Tensor, vector: Tensor) -> Tensor:
        if not self.adaptive:
            added: Tensor = self.norm1(hidden + vector)
            return added
        scale, shift = vector.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm1(hidden), scale + 1)

    def _attended(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm2(x))
        mixed = qkv_attention(qkv, self.heads, self.qkv_order, may_be_differentiated_twice(self))
        out: Tensor = self.proj(mixed)
        return out

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale


def run(layer: nn.Module, x: Tensor, embedding: Tensor, recompute: bool) -> Tensor:
    """Apply a residual block to (x, embedding), or any other layer to x.

    Args:
        layer: the layer.
        x: the image.
        embedding: the embedding of all conditions.
        recompute: recompute the activations of residual blocks in the backward pass instead of keeping them.
    """
    if not isinstance(layer, ResidualBlock):
        out: Tensor = layer(x)
    elif recompute and torch.is_grad_enabled():
        out = checkpoint(layer, x, embedding, use_reentrant=False)
    else:
        out = layer(x, embedding)
    return out


def _convolution(inputs: int, outputs: int, size: int, style: Style, direction: Direction | None) -> nn.Conv2d:
    if direction is None:
        return nn.Conv2d(inputs, outputs, size, padding=size // 2)
    return ResampledConv(inputs, outputs, size, direction, style.taps)


def _bypass(inputs: int, outputs: int, style: Style, direction: Direction | None) -> nn.Module:
    if inputs != outputs or (direction is not None and style.project_resampled):
        return _convolution(inputs, outputs, 1, style, direction)
    return nn.Identity() if direction is None else Resample(direction, style.taps)
