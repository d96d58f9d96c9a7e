"""Losses of a run's end: its distance from the end of the fine run, of images or of their features."""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(x_K (B, *), x_fine (B, *)) -> the loss of every image (B,), differentiable in x_K."""


def distance(x: Tensor, end: Tensor) -> Tensor:
    """Return sqrt(mean over channels and pixels of (x - end)^2), (B,), with derivative zero where it is zero."""
    square = (x - end).flatten(1).square().mean(1)
    return square.clamp(min=torch.finfo(x.dtype).tiny).sqrt()
