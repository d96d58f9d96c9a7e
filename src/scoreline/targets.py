"""What the denoiser regresses on, given the clean image x_0, the noisy x = x_0 + rho eps and a reference batch."""

from collections.abc import Callable

from torch import Tensor

Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x (B, *), rho (B,), clean (B, *), reference (R, *)) -> regression target (B, *)."""


def denoising(x: Tensor, rho: Tensor, clean: Tensor, reference: Tensor) -> Tensor:
    """Plain denoising score matching: the target is the clean image itself.

    Source: Vincent (2011), doi:10.1162/NECO_a_00142.
    """
    return clean
