"""Embeddings of the conditions of a network: noise level, class and augmentation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sinusoidal(nn.Module):
    """(cos(f_k c), sin(f_k c)), f_k = 10000^(-k / (dim / 2)), k = 0 .. dim / 2 - 1; (B,) -> (B, dim).

    When to use it: for noise labels from 0 to about 1000, such as indices of steps.

    Args:
        dim: number of entries.
        endpoint: f_k = 10000^(-k / (dim / 2 - 1)) instead, so that the last frequency is 1 / 10000; dim is at least 4.
        sine_first: (sin, cos) instead of (cos, sin).

    Source: Vaswani et al. (2017), arXiv:1706.03762, Sec. 3.5.
    """

    def __init__(self, dim: int, endpoint: bool = False, sine_first: bool = False) -> None:
        super().__init__()
        self.sine_first = sine_first
        self.frequencies: Tensor
        exponent = torch.arange(dim // 2, dtype=torch.float32) / (dim // 2 - endpoint)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * exponent), persistent=False)

    def forward(self, c: Tensor) -> Tensor:
        return _waves(c[:, None] * self.frequencies.to(c.dtype), self.sine_first)


class Fourier(nn.Module):
    """(cos(2 pi f_k c), sin(2 pi f_k c)) with fixed f_k ~ N(0, scale^2); (B,) -> (B, dim).

    When to use it: for noise labels of order one, such as ln(sigma) / 4.

    Args:
        dim: number of entries.
        scale: standard deviation of the frequencies.
        sine_first: (sin, cos) instead of (cos, sin).
        buffer: name of the frequencies in checkpoints.

    Source: Tancik et al. (2020), arXiv:2006.10739; Song et al. (2021), arXiv:2011.13456, App. C.
    """

    def __init__(self, dim: int, scale: float = 1.0, sine_first: bool = False, buffer: str = "frequencies") -> None:
        super().__init__()
        self.sine_first, self.buffer = sine_first, buffer
        self.register_buffer(buffer, torch.randn(dim // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        frequencies = (2 * math.pi * self.get_buffer(self.buffer)).to(c.dtype)  # in EDM's order, for its last bits
        return _waves(c[:, None] * frequencies, self.sine_first)


def _waves(angle: Tensor, sine_first: bool) -> Tensor:
    halves = [angle.sin(), angle.cos()] if sine_first else [angle.cos(), angle.sin()]
    return torch.cat(halves, dim=1)


def one_hot(label: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Encode labels (B,) int64 as (B, classes) with dtype and device of `like` (B, *); None and negatives as zeros."""
    if label is None:
        return like.new_zeros(len(like), classes)
    known = (label >= 0)[:, None]
    return (functional.one_hot(label.clamp(min=0), classes) * known).to(like)


def or_zeros(augment: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Return augmentation labels (B, size) with dtype and device of `like` (B, *); zeros for None."""
    return like.new_zeros(len(like), size) if augment is None else augment.to(like)


def indices(label: Tensor | None, null: int, count: int, device: torch.device) -> Tensor:
    """Return labels (B,) int64 with the index `null` in the place of None and of negative labels."""
    if label is None:
        return torch.full((count,), null, device=device)
    return torch.where(label < 0, null, label)
