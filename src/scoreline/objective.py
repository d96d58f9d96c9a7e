"""The training objective: a density of noise levels, a weight and a target."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.schedules.base import Schedule
from scoreline.targets import Reference, Target

Weight = Callable[[Tensor], Tensor]
"""lambda(rho): (B,) -> (B,)."""


@dataclass(frozen=True)
class InverseVariance:
    """lambda = 1 / rho^2: the squared error of eps, DDPM's simple loss.

    Source: Ho et al. (2020), arXiv:2006.11239, Eq. 14.
    """

    def __call__(self, rho: Tensor) -> Tensor:
        return rho**-2


@dataclass(frozen=True)
class EDMWeight:
    """lambda = (rho^2 + s^2) / (rho s)^2 = 1 / out^2, s = sigma_data, for networks with `EDMPreconditioning`.

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1.
    """

    sigma_data: float = 0.5

    def __call__(self, rho: Tensor) -> Tensor:
        return (rho**2 + self.sigma_data**2) / (rho * self.sigma_data) ** 2


@dataclass(frozen=True)
class Batch:
    """A batch of training images with the random numbers that noise them.

    Attributes:
        clean: (B, C, H, W) in [-1, 1].
        u: (B,) float64, uniform on [0, 1]: the coordinate of the noise level.
        eps: (B, C, H, W), standard normal.
        label: the network's class labels (B,), negative for none; None for an unconditional network.
        augment: augmentation labels (B, A) or None.
        reference: the images that a stable target averages over.
    """

    clean: Tensor
    u: Tensor
    eps: Tensor
    label: Tensor | None = None
    augment: Tensor | None = None
    reference: Reference | None = None

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield parts of at most `size` images, each with the whole reference."""
        for start in range(0, len(self.clean), size):
            yield self.rows(slice(start, start + size))

    def rows(self, rows: slice) -> "Batch":
        """Return some of the images, with the whole reference."""
        label, augment = (None if part is None else part[rows] for part in (self.label, self.augment))
        whole = self.reference
        reference = None if whole is None else replace(whole, source=whole.source[rows])
        return Batch(self.clean[rows], self.u[rows], self.eps[rows], label, augment, reference)


@dataclass(frozen=True)
class DenoisingObjective:
    """The denoising objective L = E lambda(rho) |D(x_0 + rho eps, rho) - target|^2 / d.

    rho = density.inverse(u), u ~ U(0, 1), and d is the number of pixels times channels: under `InverseVariance`,
    predicting eps = 0 has the loss 1. Levels and targets are in float64, the error and its mean in float32, whatever
    precision the network computes in.

    Attributes:
        density: the map from u to noise levels.
        weight: lambda.
        target: `Denoising` (plain DSM) or `StableTarget` (STF).
    """

    density: Schedule
    weight: Weight
    target: Target

    def __call__(self, denoiser: Denoiser, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the per-image loss (B,) float32 and the noise levels rho (B,) float64."""
        rho = self.density.inverse(batch.u)
        x = batch.clean + rho.to(batch.clean.dtype).reshape(-1, 1, 1, 1) * batch.eps
        with torch.no_grad():
            target = self.target(x, rho, batch.clean, batch.label, batch.reference)
        condition = {} if batch.augment is None else {"augment": batch.augment}
        error = (denoiser(x, rho, label=batch.label, **condition) - target).flatten(1).square().mean(1)
        return self.weight(rho).to(error.dtype) * error, rho
