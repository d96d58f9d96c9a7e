"""What `metrics=` is: a set of generated images goes in, named numbers with their errors come out."""

from abc import ABC, abstractmethod
from typing import TypedDict

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.statistics import Statistics
from scoreline.parts import Parts
from scoreline.sampling import Progress

HIGHER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage", "inception_score"})
ALONE = Parts()
"""One process that keeps features in memory."""


class Score(TypedDict):
    """One number about `n` generated images, with the standard error that another `n` would leave it with."""

    value: float
    error: float
    n: int


class Metrics(ABC):
    """A fixed measuring instrument; two scores compare only if their instruments have equal protocols.

    Attributes:
        keeps_features: whether features take so long that they are worth a folder in `parts`.
    """

    keeps_features: bool = False

    @property
    @abstractmethod
    def protocol(self) -> dict[str, str | int]:
        """Everything besides the generated images on which the scores depend; rows of a table must agree on it."""

    @abstractmethod
    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Refuse `n` images of `shape` before anybody spends time on making them.

        Raises:
            InputError: naming the key, what is wrong and what to use instead.
        """

    def fingerprint(self, n: int) -> dict[str, str | int]:
        """`protocol` as a row about `n` images records it: what only fits some n is said to fit or not."""
        return self.protocol

    @abstractmethod
    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        """Scores of images by name.

        Images are read a few hundred at a time, by each process its own; all processes get all scores, equal to the
        bit for any number of them. Callers that hold a tensor wrap it in a `datasets.base.ArrayDataset`.

        Args:
            parts: the processes that share the work, and the folder that keeps the features of these images: as
                long as it is there, other scores of the same images take no second pass. Its stamp adds to ours.
            progress: is told each time how many more images went through the extractor.

        Raises:
            InputError: for images that `check` refuses.
        """

    def statistics(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> Statistics:
        """Mean and covariance of the features of reference images, for a file.

        Raises:
            InputError: where there are no features, or they cannot be had of such images.
        """
        raise InputError(
            "metrics: these have no features to take statistics of; use metrics=digits or metrics=inception"
        )

    @abstractmethod
    def warnings(self, n: int) -> list[str]:
        """What a reader must know before trusting the scores of `n` images; empty when there is nothing."""
