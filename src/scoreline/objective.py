"""The training objective: density of noise levels, weight, target."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from scoreline.denoiser import Denoiser
from scoreline.schedules.base import Schedule
from scoreline.targets import Target

Weight = Callable[[Tensor], Tensor]
"""lambda(rho): (B,) -> (B,)."""


@dataclass(frozen=True)
class InverseVariance:
    """lambda = 1 / rho^2: the squared error of eps. Source: Ho et al. (2020), arXiv:2006.11239, Eq. 14."""

    def __call__(self, rho: Tensor) -> Tensor:
        return rho**-2


@dataclass(frozen=True)
class EDMWeight:
    """lambda = (rho^2 + s^2) / (rho s)^2 = 1 / out^2. Source: Karras et al. (2022), arXiv:2206.00364, Table 1."""

    sigma_data: float = 0.5

    def __call__(self, rho: Tensor) -> Tensor:
        return (rho**2 + self.sigma_data**2) / (rho * self.sigma_data) ** 2


@dataclass(frozen=True)
class DenoisingObjective:
    """L = E lambda(rho) |D(x_0 + rho eps, rho) - target|^2 / d, rho = density.inverse(u), u ~ U(0, 1).

    d is the number of pixels times channels: a loss of 1 is what predicting nothing scores under `InverseVariance`.
    """

    density: Schedule
    weight: Weight
    target: Target

    def __call__(
        self, denoiser: Denoiser, clean: Tensor, label: Tensor | None, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Per-image loss (B,) float32 and noise levels rho (B,) float64.

        Args:
            clean: images (B, C, H, W) in [-1, 1].
            label: class labels (B,) or None.
            generator: source of u and eps, on the device of `clean`.
        """
        u = torch.rand(len(clean), dtype=torch.float64, device=clean.device, generator=generator)
        rho = self.density.inverse(u)
        eps = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device, generator=generator)
        x = clean + rho.to(clean.dtype).reshape(-1, 1, 1, 1) * eps
        target = self.target(x, rho, clean, clean)
        error = (denoiser(x, rho, label=label) - target).flatten(1).square().mean(1)
        return self.weight(rho).to(error.dtype) * error, rho
