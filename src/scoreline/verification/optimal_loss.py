"""The least possible loss on a training set, that of its exact denoiser, which is known without a network."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.objective import Batch, DenoisingObjective
from scoreline.targets import posterior_mean


@torch.no_grad()
def optimal_losses(
    objective: DenoisingObjective, batch: Batch, images: Tensor, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of the exact denoiser of the training images on a batch, and the noise levels of the batch.

    The exact denoiser is E[x_0 | x] for x_0 uniform on the images (`targets.posterior_mean`, in float64). If the target
    is the clean image, the expectation of its loss is the minimum over all denoisers,

        min_D E lambda(rho) |D(x, rho) - x_0|^2 / d = E lambda(rho) Tr Cov[x_0 | x] / d,

    and the difference between the loss of a model and this one on the same batch estimates
    E lambda(rho) |D(x, rho) - E[x_0 | x]|^2 / d, the distance of the model from the optimum, without bias and with less
    variance than either loss has. Use it where the training images are few, to see at which noise levels a model has
    still to learn. A model that reaches the optimum samples copies of its training images, so compare the loss on
    held-out images as well.

    Args:
        objective: the density of noise levels, the weight, and the target, which should be `Denoising`.
        batch: B images out of `images`, not augmented, with their noise.
        images: all n training images (n, C, H, W), uint8 or floating point in [-1, 1].
        classes: their classes (n,) for a conditional model: the minimum is then that over the images of a label, and
            over all of them for a negative label. None for an unconditional model.

    Returns:
        The losses (B,) float32 and the levels rho (B,) float64.

    Source: Xu, Luo, Wang, He & Liu (2025), arXiv:2506.13763.
    """
    return objective(cast(Denoiser, _Exact(images, classes)), batch)


@dataclass(frozen=True)
class _Exact:
    """E[x_0 | x] over images, or over those of a label."""

    images: Tensor
    classes: Tensor | None

    def __call__(self, x: Tensor, rho: Tensor, label: Tensor | None) -> Tensor:
        allowed = None
        if label is not None and self.classes is not None:
            allowed = (label[:, None] == self.classes) | (label < 0)[:, None]
        return posterior_mean(x, rho, self.images, allowed)
