"""Self-attention over the positions of an image."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from scoreline.networks.layers import group_norm, zero_weights


class Attention(nn.Module):
    """x + proj(softmax(q k^T / sqrt(d)) v) over all positions; (B, C, H, W) -> (B, C, H, W).

    q, k and v are thirds of the channels of `qkv`, heads are blocks of a third.
    """

    def __init__(self, channels: int, head_channels: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero_weights(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(-1, -2)
        mixed = scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        out: Tensor = x + self.proj(mixed.transpose(-1, -2).reshape(b, c, h, w))
        return out


QKV_ORDERS = {"interleaved": "hdp", "heads_first": "hpd", "qkv_first": "phd"}
"""Order of the channels of (q, k, v), slowest index first: head h, part p of the three, channel d of a head."""


def qkv_attention(qkv: Tensor, heads: int, order: str = "interleaved", twice: bool = False) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v over all positions; (B, 3 C, H, W) -> (B, C, H, W), d = C / heads.

    Channel c of part p (0, 1, 2: q, k, v) of head h is channel h 3 d + 3 c + p of `qkv` if interleaved, as in EDM's
    checkpoints; h 3 d + p d + c with heads_first and p C + h d + c with qkv_first, as in those of Dhariwal & Nichol,
    who call them the legacy and the new order. With one head the latter two are the same.

    Args:
        qkv: the channels of q, k and v.
        heads: number of heads.
        order: a key of QKV_ORDERS.
        twice: whether the result must be differentiable twice, which fused kernels are not.
    """
    b, channels, height, width = qkv.shape
    sizes, letters = {"h": heads, "d": channels // (3 * heads), "p": 3}, QKV_ORDERS[order]
    split = qkv.reshape(b, *(sizes[letter] for letter in letters), height * width)
    axes = {letter: 1 + letters.index(letter) for letter in letters}
    # (part, B, head, position, channel), whatever the order in the weights is
    split = split.permute(axes["p"], 0, axes["h"], 4, axes["d"]).contiguous()
    with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
        mixed = scaled_dot_product_attention(split[0], split[1], split[2])
    return mixed.transpose(-1, -2).reshape(b, channels // 3, height, width)


def may_be_differentiated_twice(module: nn.Module) -> bool:
    """Return whether gradients are recorded outside of training, where calibrations take second derivatives."""
    return torch.is_grad_enabled() and not module.training
