"""First values of weights."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def zeroed(layer: Layer) -> Layer:
    """The layer, with zeros for weights and biases."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier(network: nn.Module, scales: Mapping[str, float]) -> None:
    """Weights uniform on +-s sqrt(6 / (fan in + fan out)), biases zero, of all convolutions and linear layers.

    Args:
        scales: ending of a layer's name -> s, 1 for other layers.

    Source: Glorot & Bengio (2010), Eq. 16.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            scale = next((scale for ending, scale in scales.items() if name.endswith(ending)), 1.0)
            nn.init.xavier_uniform_(layer.weight, gain=scale)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
