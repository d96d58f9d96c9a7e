"""Layers that the U-Nets share: group normalisation, learned resampling, and first values of weights."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zero_weights(layer: Layer) -> Layer:
    """Set weights and biases of the layer to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier(network: nn.Module, scales: Mapping[str, float]) -> None:
    """Draw weights uniform on +-s sqrt(6 / (fan in + fan out)), biases zero, in all convolutions and linear layers.

    Args:
        network: the network.
        scales: ending of a layer's name -> s; 1 for other layers.

    Source: Glorot & Bengio (2010), Eq. 16.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            scale = next((scale for ending, scale in scales.items() if name.endswith(ending)), 1.0)
            nn.init.xavier_uniform_(layer.weight, gain=scale)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation with min(32, channels // 4) groups, or the next smaller number that divides the channels.

    Source: Wu & He (2018), arXiv:1803.08494; this number: Karras et al. (2022), arXiv:2206.00364.
    """
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


class Down(nn.Module):
    """3x3 convolution of stride 2.

    Args:
        channels: number of channels.
        one_sided: pad below and to the right only, instead of on every side.
    """

    def __init__(self, channels: int, one_sided: bool = False) -> None:
        super().__init__()
        self.one_sided = one_sided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad(x, (0, 1, 0, 1)) if self.one_sided else x)
        return out


class Up(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
