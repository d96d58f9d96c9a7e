"""Halving and doubling images by learned convolutions."""

from torch import Tensor, nn
from torch.nn.functional import interpolate, pad


class Down(nn.Module):
    """3x3 convolution of stride 2.

    Args:
        one_sided: a row of zeros below and a column to the right, in the place of one on every side.
    """

    def __init__(self, channels: int, one_sided: bool = False) -> None:
        super().__init__()
        self.one_sided = one_sided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad(x, (0, 1, 0, 1)) if self.one_sided else x)
        return out


class Up(nn.Module):
    """Nearest neighbour twice as large, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
