"""Thresholding: denoised images are clipped to the range of the data, and eps is recomputed from the clipped D."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from scoreline.denoiser import Denoising, per_image
from scoreline.errors import InputError


class Thresholded(Denoising):
    """A denoiser with clip(D) for D, and eps = (x - clip(D)) / rho = eps + (D - clip(D)) / rho with D = x - rho eps.

    Where clip leaves D alone, eps is that of the denoiser to the bit. It acts in data- and noise-prediction solvers
    alike and takes no network call. Subclass this for a rule of your own.
    """

    def __init__(self, denoiser: Denoising) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.noise_schedule = denoiser.noise_schedule

    @abstractmethod
    def clip(self, clean: Tensor) -> Tensor:
        """Return the clipped D (B, *)."""

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        return self.clip(self.denoiser(x, rho, **condition))

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        eps, level = self.denoiser.eps(x, rho, **condition), per_image(rho, x)
        clean = x - level * eps
        return eps + (clean - self.clip(clean)) / level

    def calls(self, rho: float) -> int:
        """Return the calls of the denoiser."""
        return self.denoiser.calls(rho)


class Clip(Thresholded):
    """Static thresholding: D clamped to [low, high], images being in [-1, 1].

    Use this to keep pixel-space models in range at few evaluations; not for latents, which have no range.

    Args:
        denoiser: D.
        low: smallest pixel.
        high: largest pixel.

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
    """Dynamic thresholding: D <- clip(D, -s, s) / s, s = min(max(q, 1), ceiling), q the quantile of |D| over one image.

    Use this with strong guidance, which saturates images. An image whose q is at most 1 is clipped to [-1, 1]; a more
    saturated one is clipped less, and scaled down to [-1, 1]. q is interpolated linearly between order statistics.

    Args:
        denoiser: D.
        quantile: of |D| over the pixels and channels of an image.
        ceiling: largest s; infinite for none.

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
        return dynamic_threshold(clean, self.quantile, self.ceiling)


def dynamic_threshold(clean: Tensor, quantile: float, ceiling: float) -> Tensor:
    """Return images (B, *) clipped and scaled as `DynamicThreshold` says, without a denoiser."""
    flat = clean.flatten(1)
    order = flat.abs().sort(dim=1).values  # torch.quantile refuses batches above 16 million values
    at = quantile * (flat.shape[1] - 1)
    low, high = order[:, math.floor(at), None], order[:, math.ceil(at), None]
    scale = torch.lerp(low, high, at - math.floor(at)).clamp(1, ceiling)
    return (flat.clamp(-scale, scale) / scale).view_as(clean)


def unclipped(denoiser: Denoising) -> Denoising:
    """Return the denoiser itself (threshold=none)."""
    return denoiser
