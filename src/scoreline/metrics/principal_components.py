"""The principal components of features, for Frechet distances between few images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError


@dataclass(frozen=True)
class PrincipalComponents:
    """f (N, d) -> (f - mean) V / scale (N, k), of mean square 1 on the sets that it was fitted to.

    A Gaussian of d = 1280 features has 820,000 numbers, so that a Frechet distance between a thousand images is mostly
    their bias. The first k components keep the directions in which real images vary most.

    When to use it: with features of more dimensions than there are images.

    Attributes:
        mean: (d,).
        directions: V, (d, k), orthonormal columns in the order of their variance.
        scale: root mean square of all components.
    """

    mean: Tensor
    directions: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, sets: Sequence[Tensor], count: int) -> "PrincipalComponents":
        """Fit `count` components to sets of features (N, d), each of equal weight whatever its N.

        Returns:
            components in the precision in which `to_safetensors` keeps them.
        """
        mean = torch.stack([rows.double().mean(0) for rows in sets]).mean(0).float().double()
        spread = [(rows.double() - mean).T @ (rows.double() - mean) / len(rows) for rows in sets]
        # eigenvalues ascend
        values, vectors = torch.linalg.eigh(torch.stack(spread).mean(0))
        directions = vectors[:, -count:].flip(1)
        # the sign of an eigenvector is arbitrary: its largest entry is positive
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        return cls(mean, (directions * largest.sign()).half().double(), values[-count:].mean().sqrt().float().double())

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) @ self.directions / self.scale

    def first(self, count: int) -> "PrincipalComponents":
        """Return the components of largest variance.

        Raises:
            InputError: if there are not so many.
        """
        most = self.directions.shape[1]
        if not 1 <= count <= most:
            raise InputError(f"metrics.extractor.components={count}: from 1 to {most}, or null for all features")
        return PrincipalComponents(self.mean, self.directions[:, :count], self.scale)

    def kept(self, features: Tensor) -> float:
        """Return the share of the variance of features (N, d) round their own mean that the components keep."""
        centred = features.double() - features.double().mean(0)
        return float((centred @ self.directions).square().sum() / centred.square().sum())

    @property
    def digest(self) -> str:
        """SHA-256 over the numbers."""
        parts = (self.mean, self.directions, self.scale)
        return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()

    def to_safetensors(self) -> bytes:
        """Write the mean in float32 and the directions in float16."""
        from safetensors.torch import save

        return save(
            {"mean": self.mean.float(), "directions": self.directions.half().contiguous(), "scale": self.scale.float()}
        )

    @classmethod
    def from_safetensors(cls, content: bytes) -> "PrincipalComponents":
        """Read what `to_safetensors` wrote."""
        from safetensors.torch import load

        tensors = load(content)
        return cls(*(tensors[name].double() for name in ("mean", "directions", "scale")))
