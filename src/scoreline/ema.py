"""Exponential moving average of weights, in images rather than steps."""

import torch
from torch import Tensor, nn


class EMA:
    """W_ema <- beta W_ema + (1 - beta) W, beta = 0.5^(batch / H), H = min(half_life, rampup * images seen).

    While no image has been seen H = 0 and the average is a copy. Parameters are averaged in float32, buffers copied.

    Attributes:
        half_life_kimg: H after the ramp, in thousands of images.
        rampup: ratio of H to the images seen during the ramp; infinity means no ramp.
        weights: the averaged state dict, names as in the module's.

    Source: Karras et al. (2022), arXiv:2206.00364, App. F.2; released recipe 500 kimg, ratio 0.05.
    """

    def __init__(self, half_life_kimg: float, rampup: float = 0.05) -> None:
        self.half_life_kimg, self.rampup = half_life_kimg, rampup
        self.weights: dict[str, Tensor] = {}

    def start(self, module: nn.Module) -> None:
        """Begin as a copy of the module's state."""
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def beta(self, images: int, batch: int) -> float:
        """Decay for a batch that brings the count from `images` to images + batch."""
        half_life = min(self.half_life_kimg * 1000, self.rampup * images) if images else 0.0
        return 0.5 ** (batch / half_life) if half_life else 0.0

    @torch.no_grad()
    def update(self, module: nn.Module, images: int, batch: int) -> None:
        """Take in the module's weights after a step on `batch` images, `images` having been seen before it."""
        beta = self.beta(images, batch)
        current = module.state_dict()
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in averaged], [current[name] for name in averaged], 1 - beta)
        for name in current.keys() - set(averaged):
            self.weights[name].copy_(current[name])
