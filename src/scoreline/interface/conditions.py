"""Denoisers of other programs' functions, with conditions bound to them and known parts of the sample."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoreline.denoiser import Denoising, function_dtype, per_image
from scoreline.errors import InputError
from scoreline.interface.outputs import check_denoised

Denoise = Callable[..., Tensor]
"""denoise(x (B, *), sigma, **condition) -> E[x_0 | x_0 + sigma eps = x] (B, *)."""


class PlainDenoiser(Denoising):
    """A function denoise(x, sigma, **condition) as a denoiser; sigma is a tensor () or (B,) of x's dtype.

    Args:
        denoise: the function.
    """

    def __init__(self, denoise: Denoise) -> None:
        super().__init__()
        self.denoise = denoise
        self.noise_schedule = getattr(denoise, "noise_schedule", None)

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        y = x.to(function_dtype(x))
        y = y if torch.is_grad_enabled() else y.detach()  # it may ask for gradients of its own
        sigma = rho.to(y) if isinstance(rho, Tensor) else torch.full((), rho, dtype=y.dtype, device=x.device)
        return check_denoised(self.denoise(y, sigma, **condition), y).to(x.dtype)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        denoised: Tensor = self(x, rho, **condition)
        return (x - denoised) / per_image(rho, x)

    def calls(self, rho: float) -> int:
        """Return one."""
        return 1


def as_denoiser(denoise: Denoise) -> Denoising:
    """Return a denoiser as it is, and a function as a `PlainDenoiser`."""
    return denoise if isinstance(denoise, Denoising) else PlainDenoiser(denoise)


class Conditional(Denoising):
    """A denoiser with conditions bound to it; those of a call win.

    Args:
        denoiser: the denoiser.
        condition: keywords and their values, any tree, passed on as they are.
    """

    def __init__(self, denoiser: Denoising, condition: Mapping[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.condition = denoiser, dict(condition)
        self.noise_schedule = denoiser.noise_schedule

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        result: Tensor = self.denoiser(x, rho, **{**self.condition, **condition})
        return result

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        return self.denoiser.eps(x, rho, **{**self.condition, **condition})

    def calls(self, rho: float) -> int:
        """Return the calls of the denoiser."""
        return self.denoiser.calls(rho)


class Known(Denoising):
    """D where the sample is unknown, the image where it is known: m image + (1 - m) D.

    Args:
        denoiser: D.
        image: the known values, of a shape that expands to x's.
        mask: m, 1 or true where the image is known, of a shape that expands to x's.
    """

    def __init__(self, denoiser: Denoising, image: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.denoiser, self.image, self.mask = denoiser, image, mask
        self.noise_schedule = denoiser.noise_schedule

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        image, mask = self._like(x)
        return torch.lerp(self.denoiser(x, rho, **condition), image, mask)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Any) -> Tensor:
        image, mask = self._like(x)
        return torch.lerp(self.denoiser.eps(x, rho, **condition), (x - image) / per_image(rho, x), mask)

    def calls(self, rho: float) -> int:
        """Return the calls of the denoiser."""
        return self.denoiser.calls(rho)

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and mask in x's shape, dtype and device."""
        try:
            return self.image.to(x).expand_as(x), self.mask.to(x).expand_as(x)
        except RuntimeError as error:
            raise InputError(
                f"known: image {tuple(self.image.shape)} and mask {tuple(self.mask.shape)} do not expand to x's shape "
                f"{tuple(x.shape)}; give one image, or one for each of the batch"
            ) from error
