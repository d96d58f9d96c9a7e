"""EDM's non-leaky augmentation: random geometric operations on images, and labels that tell the network of them."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from scoreline.errors import InputError
from scoreline.runtime.device import to_device
from scoreline.training.wavelets import CENTRE, HISTORY, downsample, upsample
from scoreline.values import is_number

LABELS = 9
"""Length of an augmentation label."""

CACHED = 64
"""The number of images that a CPU resamples at a time; the enlarged copies of more do not fit in its cache."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """The operations on n images in their order, in float64; 0 leaves an image as it is.

    Args:
        x_flip: bool (n,), swaps left and right.
        y_flip: bool (n,), swaps top and bottom.
        scale: (n,), in standard deviations of log2.
        angle: (n,), in radians, counter-clockwise as seen.
        stretch: (n,), in standard deviations of log2.
        axis: (n,), direction of the stretch in radians, counter-clockwise from the rows.
        shift: (n, 2), to the right and down, in standard deviations.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    axis: Tensor
    shift: Tensor

    @property
    def labels(self) -> Tensor:
        """Labels for the network as in EDM, (n, 9) float32: x_flip, y_flip, scale, cos(angle) - 1, sin(angle),
        stretch (cos, sin)(axis), shift.

        The stretches (s, axis) and (-s, axis + pi) share a label although one is the inverse of the other.
        """
        turn = (self.angle.cos() - 1, self.angle.sin())
        stretch = (self.stretch * self.axis.cos(), self.stretch * self.axis.sin())
        columns = (self.x_flip, self.y_flip, self.scale, *turn, *stretch, *self.shift.unbind(1))
        return torch.stack([column.to(torch.float32) for column in columns], 1)

    @property
    def resampled(self) -> Tensor:
        """bool (n,), True for images that need more than flips."""
        return (self.scale != 0) | (self.angle != 0) | (self.stretch != 0) | (self.shift != 0).any(1)

    def rows(self, index: slice | Tensor) -> "Parameters":
        """Select some images."""
        return Parameters(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> "Parameters":
        """Move to a device."""
        return Parameters(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Augmentation:
    """EDM's augmentation: independent operations of equal probability, apart from x_flip with probability 1/2.

    Use it for small data sets, where a network overfits: the labels keep augmented images out of the samples.

    `draw` is separate from the call, so processes that share a seed draw for the whole batch and apply their own rows.
    An image without operations stays the same to the bit, and flips are exact. The other images (a share of 0.40 at
    probability 0.12) are resampled, whereas the released code filters every image.

    Args:
        probability: of each operation but x_flip; y_flip then takes every second image.
        x_flip: swaps left and right.
        y_flip: swaps top and bottom.
        scale: scales by 2^(scale w), w ~ N(0, 1). 0 switches the operation off, here and below.
        rotation: rotates by an angle uniform in +-pi rotation.
        anisotropy: stretches by 2^(anisotropy w) along one direction and the inverse across, w ~ N(0, 1); the direction
            is that of the rows for half of the images, uniform for the others.
        translation: shifts by translation (width w, height w'), w, w' ~ N(0, 1).
        told: gives the network the labels. Older recipes flip without labels.

    Raises:
        InputError: if the probability is outside [0, 1], a switch is no boolean, or a strength is negative.

    Source: Karras et al. (2022), arXiv:2206.00364, App. F.2, after Karras et al. (2020), arXiv:2006.06676, App. B.
    """

    probability: float = 0.12
    x_flip: bool = True
    y_flip: bool = True
    scale: float = 0.2
    rotation: float = 1.0
    anisotropy: float = 0.2
    translation: float = 0.125
    told: bool = True

    @property
    def dim(self) -> int:
        """The length of the labels that the network takes, its `augment_dim`."""
        return LABELS if self.told else 0

    def __post_init__(self) -> None:
        if not (is_number(self.probability) and 0 <= self.probability <= 1):
            raise InputError(f"augmentation.probability={self.probability}: must be a number from 0 to 1")
        for key in ("x_flip", "y_flip", "told"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(f"augmentation.{key}={getattr(self, key)}: must be true or false")
        for key in ("scale", "rotation", "anisotropy", "translation"):
            value = getattr(self, key)
            if not (is_number(value) and 0 <= value < math.inf):
                raise InputError(f"augmentation.{key}={value}: must be a finite number, at least 0; 0 switches it off")

    def draw(self, count: int, generator: Generator, device: torch.device | str) -> Parameters:
        """Draw the parameters of `count` images, a function of the generator's state and `count`.

        An operation that is switched off consumes its random numbers too, so the others do not change. Parameters on
        the CPU spare a synchronisation with a CUDA device over the number of images to resample.
        """
        where = generator.device
        uniform = torch.rand(10, count, dtype=torch.float64, device=where, generator=generator)
        normal = torch.randn(4, count, dtype=torch.float64, device=where, generator=generator)
        gates, coins, (turn, axis) = uniform[:5], uniform[5:8] < 0.5, uniform[8:] * 2 - 1
        strengths = (self.y_flip, self.scale, self.rotation, self.anisotropy, self.translation)
        passed = [gate < (self.probability if strength else 0) for gate, strength in zip(gates, strengths, strict=True)]
        drawn = Parameters(
            x_flip=coins[0] & self.x_flip,
            y_flip=coins[1] & passed[0],
            scale=normal[0].where(passed[1], 0.0),
            angle=(math.pi * self.rotation * turn).where(passed[2], 0.0),
            stretch=normal[1].where(passed[3], 0.0),
            axis=(math.pi * axis).where(coins[2] & passed[3], 0.0),
            shift=normal[2:].where(passed[4], 0.0).T,
        )
        return drawn.to(device)

    def __call__(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Apply the operations in float32, or in float64 for float64 images; shape and dtype stay.

        Args:
            images: (B, C, H, W) in [-1, 1]; the result overshoots at sharp edges, as any linear filter does.
            parameters: those of B images, on any device.
        """
        x_flip, y_flip = (
            to_device(flip, images.device).reshape(-1, 1, 1, 1) for flip in (parameters.x_flip, parameters.y_flip)
        )
        result = torch.where(x_flip, images.flip(3), images)
        result = torch.where(y_flip, result.flip(2), result)
        index = parameters.resampled.nonzero().squeeze(1)
        if len(index):
            chosen, rows = parameters.rows(index), to_device(index, images.device)
            size = torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float64, device=index.device)
            inverse, shift = self._inverse(chosen), self.translation * size * chosen.shift
            inverse, shift = to_device(inverse, images.device), to_device(shift, images.device)
            at_once = CACHED if images.device.type == "cpu" else len(index)
            for start in range(0, len(index), at_once):
                part = slice(start, start + at_once)
                result[rows[part]] = _resample(result[rows[part]], inverse[part], shift[part])
        return result

    def _inverse(self, parameters: Parameters) -> Tensor:
        """Inverse (n, 2, 2) of Stretch Rotate Scale, on columns (x to the right, y down)."""
        along = torch.exp2(-self.anisotropy * parameters.stretch)
        squeeze = torch.diag_embed(torch.stack([along, 1 / along], 1))
        stretch = _rotation(parameters.axis) @ squeeze @ _rotation(-parameters.axis)
        return torch.exp2(-self.scale * parameters.scale).reshape(-1, 1, 1) * _rotation(-parameters.angle) @ stretch


def unaugmented() -> None:
    """Return None: no augmentation (augmentation=none)."""


@torch.no_grad()
def _resample(images: Tensor, inverse: Tensor, shift: Tensor) -> Tensor:
    """Compute y(p) = x(A^-1 (p - t)), p in pixels from the centre of the image, x continued periodically by reflection.

    The sym6 low-pass doubles the resolution, bilinear interpolation resamples one period of the reflected image, which
    has no border however large A and t are, and the reversed filter halves the resolution.

    Args:
        images: x (n, C, H, W).
        inverse: A^-1 (n, 2, 2) on (x to the right, y down), float64.
        shift: t (n, 2), float64.

    Source: Karras et al. (2020), arXiv:2006.06676, App. B.
    """
    with torch.autocast(images.device.type, enabled=False):
        fine = images if images.dtype == torch.float64 else images.to(torch.float32)
        for dim in (2, 3):
            fine = upsample(fine.index_select(dim, _one_period(images.shape[dim], images.device)), dim)
        grid = _sources(images.shape[2], images.shape[3], inverse, shift)
        warped = grid_sample(fine, grid.to(fine.dtype), mode="bilinear", padding_mode="border", align_corners=True)
        return downsample(downsample(warped, 2), 3).to(images.dtype)


def _one_period(size: int, device: torch.device) -> Tensor:
    """Return indices of the pixels at -HISTORY .. period of a line reflected about its first and last pixel."""
    period = _period(size)
    place = torch.arange(-HISTORY, period + 1, device=device) % period
    return torch.minimum(place, period - place)


def _period(size: int) -> int:
    return max(2 * size - 2, 1)


def _sources(height: int, width: int, inverse: Tensor, shift: Tensor) -> Tensor:
    """Return grid_sample's coordinates of the result's 2 H + 2 HISTORY by 2 W + 2 HISTORY pixels: (n, *, *, 2)."""
    size = inverse.new_tensor([width, height])
    period = inverse.new_tensor([2 * _period(width), 2 * _period(height)])
    columns, rows = (torch.arange(2 * (side + HISTORY), device=inverse.device) for side in (width, height))
    fine = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).to(inverse.dtype)
    place = ((fine - CENTRE) / 2 - (size - 1) / 2).reshape(-1, 2)
    source = (place - shift[:, None]) @ inverse.mT
    index = (2 * source + (size - 1) + CENTRE).remainder(period)
    return (index * 2 / (period + 1) - 1).reshape(-1, *fine.shape)


def _rotation(angle: Tensor) -> Tensor:
    """Rotation matrices (n, 2, 2), counter-clockwise as seen, on columns (x to the right, y down)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
