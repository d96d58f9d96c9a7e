"""The interface of decoders, which turn the latents of a diffusion model into images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from scoreline.errors import InputError


class LatentDecoder(nn.Module, ABC):
    """Images (B, C', f H, f W) in [-1, 1] of latents z (B, C, H, W): decode(z / scaling_factor + shift_factor).

    The latents are those that the diffusion model was trained on. Subclass this for an autoencoder.

    Args:
        out_channels: C'.
        block_out_channels: channels of each level of the autoencoder; f is 2 for every level after the first.
        scaling_factor: the diffusion model's latents are those of the encoder, less the shift, times this number.
        shift_factor: what is subtracted from the encoder's latents first; None for 0.

    Raises:
        InputError: unless scaling_factor is positive.

    Attributes:
        channels: C', channels of the images.
        factor: f, the ratio of the sides of an image and its latents.
    """

    def __init__(
        self, out_channels: int, block_out_channels: Sequence[int], scaling_factor: float, shift_factor: float | None
    ) -> None:
        super().__init__()
        if not scaling_factor > 0:
            raise InputError(f"model.decoder.scaling_factor={scaling_factor}: must be a number above 0")
        self.channels, self.factor = out_channels, 2 ** (len(block_out_channels) - 1)
        self.scaling, self.shift = scaling_factor, shift_factor or 0.0

    def image_shape(self, latents: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (C', f H, f W) of latents (C, H, W)."""
        return self.channels, latents[1] * self.factor, latents[2] * self.factor

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images of latents, in the precision of the weights and then of the latents."""
        dtype = next(self.parameters()).dtype
        return self._decoded((latents / self.scaling + self.shift).to(dtype)).to(latents.dtype)

    @abstractmethod
    def _decoded(self, latents: Tensor) -> Tensor: ...
