"""Running averages of weights: the EMA with a half-life, and power-function averages. Time is counted in images."""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scoreline.errors import InputError
from scoreline.training.sharding import own_part

NARROWEST, UNIFORM = 1e-4, 1 / math.sqrt(12)
"""Limits of sigma_rel. The upper one, gamma = 0, is the plain mean of all weights."""


class RunningAverage(ABC):
    """W_avg <- beta W_avg + (1 - beta) W after every step; beta is 0 at the first step, which copies W.

    Floating-point parameters are averaged in float32, or in float64 if they are float64, whatever the precision of the
    network; buffers are copied. Updates are in place, so a network that shares the memory follows. A process that holds
    a shard of the weights averages its shard.

    Attributes:
        weights: the averaged state dict, with the module's names.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def name(self) -> str:
        """Names the average among those of a run, in files and states."""

    @abstractmethod
    def beta(self, images: int, batch: int) -> float:
        """Decay of the step that raises the images seen from `images` to images + batch."""

    def start(self, module: nn.Module) -> None:
        """Start as a copy of the module's state."""
        for name, value in module.state_dict(keep_vars=True).items():
            dtype = torch.promote_types(value.dtype, torch.float32) if _is_averaged(value) else value.dtype
            self.weights[name] = value.detach().to(dtype, copy=True)

    @torch.no_grad()
    def update(self, module: nn.Module, images: int, batch: int) -> None:
        """Average in the module's weights after a step on `batch` images, with `images` seen before it."""
        current = module.state_dict(keep_vars=True)
        averages, ends = [], []
        for name, value in current.items():
            own = own_part(self.weights[name])
            if _is_averaged(value):
                averages.append(own)
                ends.append(own_part(value).to(own.dtype))
            else:
                own.copy_(value)
        get_ema_multi_avg_fn(self.beta(images, batch))(averages, ends, None)  # type: ignore[no-untyped-call]


def _is_averaged(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and value.is_floating_point()


class EMA(RunningAverage):
    """Exponential moving average with a half-life H in images, W_avg <- beta W_avg + (1 - beta) W:

        beta = 0.5^(batch / H),    H = min(half_life, rampup * images seen),    beta = 0 at the first step.

    Weights of H images ago count half as much as the current ones; during the ramp H grows with the images seen, so
    the random initialisation is soon forgotten. Where the initial weights are trained ones, the images seen include
    those of the step, so that an average without a ramp keeps them. Use it unless you want to choose the width after
    the training (`PowerFunctionEMA`).

    Attributes:
        half_life_kimg: H after the ramp, in thousands of images.
        rampup: ratio of H to the images seen during the ramp; infinity means no ramp.
        trained: whether the initial weights are trained ones.

    Source: Karras et al. (2022), arXiv:2206.00364, App. F.2; released recipe 500 kimg, ratio 0.05.
    """

    def __init__(self, half_life_kimg: float, rampup: float = 0.05) -> None:
        super().__init__()
        self.half_life_kimg, self.rampup, self.trained = half_life_kimg, rampup, False

    @property
    def name(self) -> str:
        return f"ema{self.half_life_kimg:g}kimg"

    def beta(self, images: int, batch: int) -> float:
        seen = images + batch if self.trained else images
        half_life = min(self.half_life_kimg * 1000, self.rampup * seen) if seen else 0.0
        return 0.5 ** (batch / half_life) if half_life else 0.0


class PowerFunctionEMA(RunningAverage):
    """Power-function average: beta = (1 - batch / t)^(gamma + 1), where t counts the images seen with this batch.

    The weights after step k of K have the share (k / K)^(gamma+1) - ((k - 1) / K)^(gamma+1), the integral of the
    profile p(tau) = (gamma + 1) tau^gamma / t^(gamma+1) over the images of that step. Its width grows with the
    training: the standard deviation of tau under p is sigma_rel t. Use it to choose the width of an average after the
    training, by post-hoc EMA (`scoreline ema`).

    Source: Karras et al. (2024), arXiv:2312.02696, equations 2 and 3, with t in images instead of steps.

    Raises:
        InputError: if no gamma >= 0 has this sigma_rel.
    """

    def __init__(self, sigma_rel: float) -> None:
        super().__init__()
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)

    @property
    def name(self) -> str:
        return f"sigma{self.sigma_rel:g}"

    def beta(self, images: int, batch: int) -> float:
        return float((images / (images + batch)) ** (self.gamma + 1))


def gamma_of(sigma_rel: float) -> float:
    """Exponent of a relative width: the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.

    Source: Karras et al. (2024), arXiv:2312.02696, equation 4, squared.

    Raises:
        InputError: if sigma_rel is not in [0.0001, 0.288675], whose upper end is 1 / sqrt(12).
    """
    if not NARROWEST <= sigma_rel <= UNIFORM:
        raise InputError(
            f"sigma_rel={sigma_rel}: must be from {NARROWEST:g} to {UNIFORM:.6f}, the width of a plain mean"
        )
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real.max()), 0.0)
