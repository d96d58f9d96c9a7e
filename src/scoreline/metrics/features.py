"""Feature extractors: the interface, and the two in the package, for 1x8x8 digits and 3x32x32 emoji."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.metrics.classifier import CHUNK, Card, Classifier, DigitClassifier, EmojiClassifier
from scoreline.storage.pictures import PICTURES, to_unit


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


class ClassifierFeatures(FeatureExtractor):
    """The last hidden activations of a small classifier, of mean square 1 on its training images.

    They are float64, so that the batch of an image changes its features by rounding only, about 1e-15. Distances in
    these features compare only with one another, never with a published FID. The network was trained on the training
    images; it does not penalise a model that memorises them.

    When to use it: by its subclasses, one for each shipped file.

    Args:
        weights: a file written by `python -m scoreline.metrics.classifier`; by default the one in the package.

    Attributes:
        kind: the class of the network.
        shipped: the file in the package.
        card: provenance and held-out accuracy of the weights.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    kind: ClassVar[type[Classifier]]
    shipped: ClassVar[str]

    def __init__(self, weights: str | None = None) -> None:
        from safetensors import SafetensorError

        content = _read(weights, self.shipped)
        self.shape, self.dimension = self.kind.shape, self.kind.dimension
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._network, self.card = _network(content, self.kind), _card(content)
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            command = self.kind.facts["command"]
            raise InputError(
                f"metrics.extractor.weights={weights or self.shipped}: not the weights of {self.kind.__name__} "
                f"({' '.join(str(error).split())[:120]}); make such a file with {command}"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._network.features(to_unit(part).double()) for part in torch.split(images, CHUNK)])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Map images uint8 (N, C, H, W) to class scores float64 (N, 10), of which softmax makes probabilities."""
        return torch.cat([self._network(to_unit(part).double()) for part in torch.split(images, CHUNK)])


class DigitFeatures(ClassifierFeatures):
    """The 32 last hidden activations of `DigitClassifier`, as `ClassifierFeatures` describes them.

    When to use it: for 8x8 digits only.
    """

    name = "digits-cnn"
    kind = DigitClassifier
    shipped = "assets/digits_features.safetensors"


class EmojiFeatures(ClassifierFeatures):
    """The 64 last hidden activations of `EmojiClassifier`, as `ClassifierFeatures` describes them.

    When to use it: for 32x32 colour pictures like emoji, beside features of photographs.
    """

    name = "emoji-cnn"
    kind = EmojiClassifier
    shipped = "assets/emoji_features.safetensors"


def by(shape: Sequence[int]) -> str:
    """Return a shape as in 3x32x32."""
    return "x".join(map(str, shape))


def _read(weights: str | None, shipped: str) -> bytes:
    if weights is None:
        return files("scoreline").joinpath(shipped).read_bytes()
    if not Path(weights).is_file():
        raise InputError(f"metrics.extractor.weights={weights}: no such file; leave it out for the one in the package")
    return Path(weights).read_bytes()


def _network(content: bytes, kind: type[Classifier]) -> Classifier:
    from safetensors.torch import load

    network = kind()
    network.load_state_dict(load(content))
    return network.double().eval().requires_grad_(False)


def _card(content: bytes) -> Card:
    """Return the JSON card in a safetensors header: 8 bytes of little-endian length, then the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about: Card = json.loads(header["__metadata__"]["card"])
    return about
