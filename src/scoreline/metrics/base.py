"""The interface of every choice of `metrics=`: generated images go in, named scores with their errors come out."""

from abc import ABC, abstractmethod
from typing import TypedDict

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError, check_kind
from scoreline.metrics.reference_statistics import Statistics
from scoreline.sampling import Progress
from scoreline.storage.resumable import Parts
from scoreline.values import is_number

HIGHER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage", "inception_score"})
OF_SEVERAL = "/"
"""Stands between the name of a set of metrics and that of a score (`representations.Representations`)."""
ALONE = Parts()
"""One process that keeps features in memory."""


class Score(TypedDict):
    """A score of `n` generated images and its standard error over other sets of `n` images.

    Use it in a metric of your own, which returns one for each name.
    """

    value: float
    error: float
    n: int


class Metrics(ABC):
    """A set of scores with fixed settings; two scores compare only if their protocols are equal.

    When to use it: derive from it to add a metric, and name the class as `_target_` in conf/metrics/NAME.yaml.

    Attributes:
        keeps_features: whether features are so slow to compute that they are kept in the folder of `parts`.
    """

    keeps_features: bool = False

    @property
    @abstractmethod
    def protocol(self) -> dict[str, str | int]:
        """Everything besides the generated images on which the scores depend; rows of a table must agree on it."""

    @abstractmethod
    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Check, before any image is sampled, that `n` images of `shape` can be scored.

        Raises:
            InputError: naming the key, the problem and the remedy.
        """

    def fingerprint(self, n: int) -> dict[str, str | int]:
        """Return `protocol` as the row of `n` images records it, with the verdict on a named protocol."""
        return self.protocol

    @abstractmethod
    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        """Return scores of images by name.

        Each process reads its own share, a few hundred images at a time; all processes return all scores, equal to
        the bit for any number of processes. Wrap a tensor in a `datasets.base.ArrayDataset`.

        Args:
            images: the generated images.
            parts: the processes that share the work, and the folder that keeps the features: while it is there,
                further scores of the same images take no second pass. Its stamp is added to the metric's own.
            progress: called with the number of images that have just passed through the extractor.

        Raises:
            InputError: for images that `check` refuses.
        """

    def statistics(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> Statistics:
        """Mean and covariance of the features of reference images, to be written to a file.

        Raises:
            InputError: if the metric has no features, or none of such images.
        """
        raise InputError(
            "metrics: these have no features to take statistics of; use metrics=digits or metrics=inception"
        )

    @abstractmethod
    def warnings(self, n: int) -> list[str]:
        """Return warnings that a reader needs before trusting the scores of `n` images."""


def check_metrics(metrics: object) -> Metrics:
    """Return metrics if their class and protocol are what the interface says; call it before sampling.

    Raises:
        InputError: saying what they are.
    """
    own: Metrics = check_kind("metrics", metrics, Metrics)
    if not isinstance(own.protocol, dict) or not all(isinstance(value, str | int) for value in own.protocol.values()):
        raise InputError(
            f"metrics: {type(own).__name__}.protocol is {own.protocol!r:.80}; it must be a dict of texts and numbers"
        )
    return own


def check_scores(metrics: Metrics, scores: object) -> dict[str, Score]:
    """Return the scores of metrics, with plain numbers in them.

    Raises:
        InputError: unless they are a `Score` for each name.
    """
    name = type(metrics).__name__
    if not isinstance(scores, dict) or not all(isinstance(key, str) for key in scores):
        raise InputError(
            f"metrics: {name} returned a {type(scores).__name__}, not a dict of scores by name; return "
            '{"name": Score(value=.., error=.., n=..)}'
        )
    for key, score in scores.items():
        if not isinstance(score, dict) or score.keys() != Score.__annotations__.keys():
            raise InputError(f"metrics: {name} returned {key}={score!r:.60}; return Score(value=.., error=.., n=..)")
        for part, number in score.items():
            if not is_number(number):
                raise InputError(f"metrics: {name} returned {key} with {part}={number!r:.60}; return a float")
    return scores


def higher_is_better(name: str) -> bool:
    """Return whether larger values of the score of this name are better."""
    return name.rpartition(OF_SEVERAL)[2] in HIGHER_IS_BETTER


def check_least(key: str, value: int, least: int) -> None:
    """Check a setting of a metric.

    Raises:
        InputError: if metrics.`key` is smaller than `least`.
    """
    if value < least:
        raise InputError(f"metrics.{key}={value}: must be at least {least}")


def sample_warnings(n: int, dimension: int, groups: int) -> list[str]:
    """Warn of `n` images that are too few for `dimension` features or for `groups` groups of the jackknife."""
    few = {
        f"{n} images leave the covariance of {dimension} features singular": n <= dimension,
        f"{n} images are fewer than two a jackknife group: the errors are rough": n < 2 * groups,
    }
    return [warning for warning, holds in few.items() if holds]
