"""Losses of a run's end: its distance from the end of the fine run, of images or of their features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.storage.resumable import Tensors
from scoreline.values import is_number

Loss = Callable[[Tensor, Tensor], Tensor]
"""(x_K (B, *), x_fine (B, *)) -> the loss of every image (B,), differentiable in x_K."""


def distance(x: Tensor, end: Tensor) -> Tensor:
    """Return sqrt(mean over channels and pixels of (x - end)^2), (B,), with derivative zero where it is zero."""
    square = (x - end).flatten(1).square().mean(1)
    return square.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


@dataclass(frozen=True)
class FeatureDistance:
    """The root mean square distance of features, sqrt(mean over features of (f(x) - f(x_fine))^2).

    Use this to learn what a metric of the same features measures; distances of images may then gain less.

    Attributes:
        features: images (B, C, H, W) in [-1, 1] -> (B, d), differentiable.
    """

    features: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, end: Tensor) -> Tensor:
        return distance(self.features(x), self.features(end))


class SoftTarget:
    """A ball round the noise of every image: the loss is the least over starts x_0' with |x_0' - x_0| <= r rho_0.

    |..| is the root mean square over channels and pixels. The starts are learned along with the tableau, each by a
    step down its own derivative whenever its image takes part. A student then need not copy the teacher's map from
    noise to images, only its images, of which Frechet distances know more than distances do.

    Attributes:
        radius: r, in units of the noise; 0 is the distance itself.
        rate: length of a step as a share of the radius.

    Source: Tong et al. (2024), arXiv:2405.15506 (LD3), Eq. 9; Frankel et al. (2025), arXiv:2502.17423 (S4S).

    Raises:
        InputError: for a radius that is not a number from 0 to 1.
    """

    def __init__(self, radius: float, rate: float = 0.3) -> None:
        if not (is_number(radius) and 0 <= radius < 1):
            raise InputError(f"calibration.radius={radius}: must be a number, 0 or greater and below 1")
        self.radius, self.rate = radius, rate
        self._shifts: dict[int, Tensor] = {}

    def shifted(self, seeds: Sequence[int], x: Tensor) -> Tensor:
        """Return the starts (B, *) of these seeds, in the units of x."""
        return x + torch.stack([self._shift(seed, row) for seed, row in zip(seeds, x, strict=True)])

    def follow(self, seeds: Sequence[int], by_noise: Tensor, rho: float) -> None:
        """Move the starts of these seeds down the derivatives of their losses by x_0 (B, *), within the ball."""
        length = self.radius * rho
        for seed, slope in zip(seeds, by_noise, strict=True):
            moved = self._shift(seed, slope) - self.rate * length * slope / _size(slope)
            self._shifts[seed] = moved * (length / _size(moved)).clamp(max=1)

    def state_dict(self) -> Tensors:
        """Return the starts, from which `load_state_dict` goes on to the bit."""
        if not (self.radius and self._shifts):
            return {}  # starts that did not move
        return {"seeds": torch.tensor(list(self._shifts)), "shifts": torch.stack(list(self._shifts.values())).cpu()}

    def load_state_dict(self, state: Tensors) -> None:
        """Take the starts of another target."""
        if "seeds" in state:
            self._shifts = dict(zip(state["seeds"].tolist(), state["shifts"], strict=True))

    def _shift(self, seed: int, like: Tensor) -> Tensor:
        shift = self._shifts.get(seed)
        return torch.zeros_like(like) if shift is None else shift.to(like.device)


def _size(x: Tensor) -> Tensor:
    return x.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
