"""Group normalisation whose groups follow from the number of channels."""

from torch import nn


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """min(32, channels // 4) groups, or the next smaller number that divides the channels.

    Source: Wu & He (2018), arXiv:1803.08494; this number: Karras et al. (2022), arXiv:2206.00364.
    """
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)
