"""Weights and images that follow from names and shapes by a formula, so that any program can make the same ones."""

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def filled(name: str, shape: Sequence[int]) -> Tensor:
    """cos(0.7 (i + 1) + crc32(name) mod 1000) over the flat index i, times sqrt(2 / fan in) or, for vectors, 0.1.

    Vectors whose name ends in `weight` have 1 added: the gain of a normalisation. float64 arithmetic, float32 out.
    """
    numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    waves = torch.cos(0.7 * numbers + zlib.crc32(name.encode()) % 1000)
    scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    return (waves * scale + gain).reshape(tuple(shape)).float()


def filled_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A state dict of weights of these names and shapes."""
    return {name: filled(name, shape) for name, shape in shapes.items()}


def image(count: int, channels: int, size: int, scale: float = 1.0) -> Tensor:
    """(count, channels, size, size) float32: scale * filled("image", ..) without its factor for the fan in."""
    numbers = torch.arange(1, count * channels * size * size + 1, dtype=torch.float64)
    return (scale * torch.cos(0.7 * numbers + 3)).reshape(count, channels, size, size).float()
