"""Feature extractors: the interface, and the extractor in the package, for 1x8x8 digits."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.metrics.digit_classifier import DigitClassifier
from scoreline.storage.pictures import PICTURES, to_unit

SHIPPED = "assets/digits_features.safetensors"
CHUNK = 512


class FeatureExtractor(ABC):
    """A fixed map from images to vectors.

    When to use it: derive from it to give `Fidelity` features of other images.

    Attributes:
        name: short name for protocols, and for the statistics that ship.
        shape: (C, H, W) of the images; None for any size of one or three channels.
        dimension: d, the length of a vector.
        digest: SHA-256 of everything that the map depends on.
        resize: how images are resized before the map, for protocols.
        slow: whether features are kept, so that an image passes only once.
    """

    name: str
    shape: tuple[int, int, int] | None
    dimension: int
    digest: str
    resize: str = "none"
    slow: bool = False

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        """Check that images of this shape have features.

        Args:
            shape: (C, H, W).
            what: the images, for the message.

        Raises:
            InputError: if they have none, or a file is missing.
        """
        fits = shape[0] in PICTURES if self.shape is None else tuple(shape) == self.shape
        if not fits:
            takes = "1xHxW and 3xHxW" if self.shape is None else by(self.shape)
            raise InputError(
                f"metrics: extractor {self.name} takes {takes} images, {what} are {by(shape)}; use metrics=none, or "
                "metrics=imagenet for pictures"
            )

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Map images uint8 (N, C, H, W) to features float64 (N, d), each a function of its own image alone."""


class DigitFeatures(FeatureExtractor):
    """The 32 last hidden activations of `DigitClassifier`, of mean square 1 on its training images.

    They are float64, so that the batch of an image changes its features by rounding only, about 1e-15. Distances in
    these features compare only with one another, never with a published FID. The network was trained on the training
    digits; it does not penalise a model that memorises them.

    When to use it: for 8x8 digits only.

    Args:
        weights: a file written by `python -m scoreline.metrics.digit_classifier`; by default the one in the package.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    name = "digits-cnn"
    shape = (1, 8, 8)
    dimension = 32

    def __init__(self, weights: str | None = None) -> None:
        from safetensors import SafetensorError

        content = _read(weights)
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._network, self.card = _network(content), _card(content)
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"metrics.extractor.weights={weights or SHIPPED}: not the weights of a DigitClassifier "
                f"({' '.join(str(error).split())[:120]}); "
                "make such a file with python -m scoreline.metrics.digit_classifier PATH"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._network.features(to_unit(part).double()) for part in torch.split(images, CHUNK)])


def by(shape: Sequence[int]) -> str:
    """Return a shape as in 3x32x32."""
    return "x".join(map(str, shape))


def _read(weights: str | None) -> bytes:
    if weights is None:
        return files("scoreline").joinpath(SHIPPED).read_bytes()
    if not Path(weights).is_file():
        raise InputError(f"metrics.extractor.weights={weights}: no such file; leave it out for the one in the package")
    return Path(weights).read_bytes()


def _network(content: bytes) -> DigitClassifier:
    from safetensors.torch import load

    network = DigitClassifier()
    network.load_state_dict(load(content))
    return network.double().eval().requires_grad_(False)


def _card(content: bytes) -> dict[str, str | int | float]:
    """Return the JSON card in a safetensors header: 8 bytes of little-endian length, then the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about: dict[str, str | int | float] = json.loads(header["__metadata__"]["card"])
    return about
