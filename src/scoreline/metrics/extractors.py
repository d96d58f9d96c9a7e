"""Extractors of `modular_metrics` made of networks of other interfaces: one's own, Inception, and classes they see."""

import hashlib

import torch
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.metrics.classifier import CLASSES
from scoreline.metrics.features import ClassifierFeatures, DigitFeatures, FeatureExtractor
from scoreline.metrics.inception_features import InceptionFeatures

Extractor = FeatureExtractor | InceptionFeatures | nn.Module


class ModuleFeatures(FeatureExtractor):
    """The output (N, d) of a network of your own for images uint8 (N, C, H, W).

    The network runs in evaluation mode without gradients, where its parameters are. Its owner is this object, not the
    metric, so that it is in no optimiser and no checkpoint of the module that has the metric.

    When to use it: as the extractor of `Fidelity`; the metrics of `modular_metrics` take the network itself.

    Args:
        network: the network, with an attribute `num_features`, d, as torchmetrics asks for.

    Attributes:
        digest: SHA-256 of the class and the weights; of the code it knows the name alone.

    Raises:
        InputError: if the network has no `num_features`.
    """

    shape = None

    def __init__(self, network: nn.Module) -> None:
        self.network, self.name = network, type(network).__name__
        dimension = getattr(network, "num_features", None)
        if not isinstance(dimension, int):
            raise InputError(
                f"extractor: {self.name} has no whole number num_features; set it to the length of its feature vectors"
            )
        self.dimension = dimension
        sha = hashlib.sha256(f"{type(network).__module__}.{type(network).__qualname__}".encode())
        for name, value in network.state_dict().items():
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.digest = sha.hexdigest()

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        """Accept images of any shape; the network knows."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        weight = next(self.network.parameters(), images)
        features: Tensor = self.network.eval()(images.to(weight.device))
        return features.flatten(1).cpu().double()


class PoolFeatures(FeatureExtractor):
    """The pool features of `InceptionFeatures`, as a `FeatureExtractor`.

    When to use it: the metrics of `modular_metrics` take `InceptionFeatures` itself.

    Args:
        inception: the network.
    """

    shape, slow = None, True

    def __init__(self, inception: InceptionFeatures) -> None:
        self.inception, self.name, self.resize = inception, inception.name, inception.resize
        self.digest = inception.digest
        _ = inception.network
        self.dimension = inception.dimension

    def __call__(self, images: Tensor) -> Tensor:
        return self.inception(images, spatial=False)["features"].double()


class ClassProbabilities(FeatureExtractor):
    """Probabilities p(y | x) of K classes (N, K) by a classifier.

    When to use it: `modular_metrics.InceptionScore` takes the classifier itself.

    Args:
        extractor: Inception (softmax of its last layer's weights times the pool features, without bias, as in the
            literature), a classifier of digits or emoji, or a network whose output is logits.

    Raises:
        InputError: if the extractor is no classifier.
    """

    shape = None

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor, self.name, self.resize = extractor, extractor.name, extractor.resize
        self.digest, self.slow = extractor.digest, extractor.slow
        self._weights = extractor.inception.classifier() if isinstance(extractor, PoolFeatures) else None
        if self._weights is not None:
            self.dimension = len(self._weights)
        elif isinstance(extractor, ClassifierFeatures | ModuleFeatures):
            self.dimension = CLASSES if isinstance(extractor, ClassifierFeatures) else extractor.dimension
        else:
            raise InputError(
                f"extractor: {extractor.name} is no classifier; use InceptionFeatures, or a network that returns logits"
            )

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        self.extractor.check(shape, what)

    def __call__(self, images: Tensor) -> Tensor:
        if isinstance(self.extractor, ClassifierFeatures):
            return torch.softmax(self.extractor.logits(images), 1)
        rows = self.extractor(images)
        return torch.softmax(rows if self._weights is None else rows @ self._weights.T, 1)


def extractor_of(given: Extractor | None) -> FeatureExtractor:
    """Return an extractor of features, by default that of digits.

    Raises:
        InputError: for a network without `num_features`, and for anything else.
    """
    if isinstance(given, nn.Module):
        return ModuleFeatures(given)
    if isinstance(given, InceptionFeatures):
        return PoolFeatures(given)
    if given is not None and not isinstance(given, FeatureExtractor):
        raise InputError(f"extractor: {given!r} is neither a FeatureExtractor nor an nn.Module")
    return DigitFeatures() if given is None else given
