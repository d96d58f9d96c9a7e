"""The one place where bytes become numbers and numbers become bytes."""

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]: x / 127.5 - 1. Any shape.

    Source: Karras et al. (2022), arXiv:2206.00364, reference training recipe.
    """
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8: floor(clip(127.5 x + 128, 0, 255)), round-half-up of 127.5 (x + 1). Any shape.

    The rounding rule of EDM's published protocol; another rule changes FID.
    """
    return (x.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)
