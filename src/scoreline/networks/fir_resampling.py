"""Halving and doubling images by a separable low-pass filter (FIR), alone or fused with a convolution.

When to use it: in NCSN++ and DDPM++; taps [1, 1] are means of 2x2 pixels and copies, [1, 3, 3, 1] suppress aliases.

Source: Zhang (2019), arXiv:1904.11486; Karras et al. (2020), arXiv:1912.04958; Song et al. (2021), arXiv:2011.13456,
App. H.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from scoreline.errors import InputError

Direction = Literal["up", "down"]


def fir_kernel(taps: Sequence[float]) -> Tensor:
    """Return the kernel outer(f, f) / sum(f)^2, (1, 1, n, n) float32.

    Raises:
        InputError: unless n is even and the taps do not sum to zero.
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:
        raise InputError(
            f"model.network.resample_filter={list(taps)}: give an even number of taps with a sum other than 0, "
            "as [1, 1] or [1, 3, 3, 1]"
        )
    row = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(row, row) / sum(taps) ** 2)[None, None]


def _halve(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Filter every channel of (B, C, H, W), padded with zeros of that width, at every second position."""
    channels = x.shape[1]
    return conv2d(x, kernel.to(x.dtype).expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


def _double(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Insert zeros between the pixels of (B, C, H, W) and filter every channel with four times the kernel."""
    channels, spread = x.shape[1], 4 * kernel.to(x.dtype)
    return conv_transpose2d(x, spread.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """(B, C, H, W) -> (B, C, 2 H, 2 W) or (B, C, H / 2, W / 2); constants stay constant except at the rim."""

    def __init__(self, direction: Direction, taps: Sequence[float]) -> None:
        super().__init__()
        self.taps, self.direction, self.padding = tuple(taps), direction, (len(taps) - 1) // 2
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", fir_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        change = _double if self.direction == "up" else _halve
        return change(x, self.resample_filter, self.padding)


class ResampledConv(nn.Conv2d):
    """`Resample`, then a convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int, size: int, direction: Direction, taps: Sequence[float]) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.taps, self.direction, self.fir_padding = tuple(taps), direction, (len(taps) - 1) // 2
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", fir_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        change = _double if self.direction == "up" else _halve
        return super().forward(change(x, self.resample_filter, self.fir_padding))


class ConvThenHalve(nn.Conv2d):
    """A 3x3 convolution, then half the size; all zeros around the image are added before the convolution."""

    def __init__(self, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__(inputs, outputs, 3, padding=1 + (len(taps) - 1) // 2)
        self.taps = tuple(taps)
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", fir_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _halve(super().forward(x), self.resample_filter, 0)
