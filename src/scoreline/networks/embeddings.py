"""Vectors for scalars: how a network is told the noise level."""

import math

import torch
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    """(cos(f_k c), sin(f_k c)), f_k = 10000^(-k / (dim / 2)), k = 0 .. dim / 2 - 1; suits labels 0 .. 1000.

    (B,) -> (B, dim). Source: Vaswani et al. (2017), arXiv:1706.03762, Sec. 3.5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        exponent = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * exponent), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        angle = c[:, None] * self.frequencies.to(c.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Fourier(nn.Module):
    """(cos(2 pi f_k c), sin(2 pi f_k c)) with fixed f_k ~ N(0, scale^2); suits labels of order one.

    (B,) -> (B, dim). Source: Tancik et al. (2020), arXiv:2006.10739; Song et al. (2021), arXiv:2011.13456, App. C.
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(dim // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        angle = 2 * math.pi * c[:, None] * self.frequencies.to(c.dtype)
        return torch.cat([angle.cos(), angle.sin()], dim=1)
