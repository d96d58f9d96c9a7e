"""Denoised images kept in range. Every solver feels it: eps follows from the D that was clipped."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from scoreline.denoiser import Denoising, per_image
from scoreline.errors import InputError


class Thresholded(Denoising):
    """clip(D), and eps of it: (x - clip(D)) / rho = eps + (D - clip(D)) / rho with D = x - rho eps.

    So eps is that of the denoiser to the bit where clip leaves D alone, and changed elsewhere: it acts in data- and
    noise-prediction solvers alike. It takes no network call.
    """

    def __init__(self, denoiser: Denoising) -> None:
        super().__init__()
        self.denoiser = denoiser

    @abstractmethod
    def clip(self, clean: Tensor) -> Tensor:
        """What becomes of D (B, *)."""

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self.clip(self.denoiser(x, rho, **condition))

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        eps, level = self.denoiser.eps(x, rho, **condition), per_image(rho, x)
        clean = x - level * eps
        return eps + (clean - self.clip(clean)) / level

    def calls(self, rho: float) -> int:
        """Those of the denoiser."""
        return self.denoiser.calls(rho)


class Clip(Thresholded):
    """D clamped to [low, high], images being in [-1, 1].

    Raises:
        InputError: if low < high does not hold.

    Source: static thresholding in Saharia et al. (2022), arXiv:2205.11487, Sec. 2.3.
    """

    def __init__(self, denoiser: Denoising, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        if not (isinstance(low, int | float) and isinstance(high, int | float) and low < high):
            raise InputError(f"threshold.low={low}, threshold.high={high}: choose numbers with low < high")
        self.low, self.high = low, high

    def clip(self, clean: Tensor) -> Tensor:
        return clean.clamp(self.low, self.high)


class DynamicThreshold(Thresholded):
    """D <- clip(D, -s, s) / s, s = min(max(q, 1), ceiling), q the quantile of |D| over one image.

    An image whose q is at most 1 is clipped to [-1, 1]; a more saturated one is clipped less, and scaled down to
    [-1, 1]. q is interpolated linearly between order statistics. Without a ceiling s is unbounded.

    Raises:
        InputError: if not 0 < quantile <= 1, or ceiling < 1.

    Source: Saharia et al. (2022), arXiv:2205.11487, Sec. 2.3.
    """

    def __init__(self, denoiser: Denoising, quantile: float = 0.995, ceiling: float = math.inf) -> None:
        super().__init__(denoiser)
        if not (isinstance(quantile, int | float) and 0 < quantile <= 1):
            raise InputError(f"threshold.quantile={quantile}: must be a number above 0, at most 1")
        if not (isinstance(ceiling, int | float) and ceiling >= 1):
            raise InputError(f"threshold.ceiling={ceiling}: must be a number, at least 1; 1 is threshold=clip")
        self.quantile, self.ceiling = float(quantile), float(ceiling)

    def clip(self, clean: Tensor) -> Tensor:
        flat = clean.flatten(1)
        order = flat.abs().sort(dim=1).values  # torch.quantile refuses batches above 16 million values
        at = self.quantile * (flat.shape[1] - 1)
        low, high = order[:, math.floor(at), None], order[:, math.ceil(at), None]
        scale = torch.lerp(low, high, at - math.floor(at)).clamp(1, self.ceiling)
        return (flat.clamp(-scale, scale) / scale).view_as(clean)


def unclipped(denoiser: Denoising) -> Denoising:
    """threshold=none: the denoiser itself."""
    return denoiser
