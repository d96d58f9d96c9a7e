"""What `metrics=` is: a set of generated images goes in, named numbers with their errors come out."""

from abc import ABC, abstractmethod
from typing import TypedDict

from torch import Tensor

HIGHER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage"})


class Score(TypedDict):
    """One number about `n` generated images, with the standard error that another `n` would leave it with."""

    value: float
    error: float
    n: int


class Metrics(ABC):
    """A fixed measuring instrument; two scores compare only if their instruments have equal protocols."""

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

    @abstractmethod
    def __call__(self, images: Tensor) -> dict[str, Score]:
        """Scores of images uint8 (N, C, H, W) by name."""

    @abstractmethod
    def warnings(self, n: int) -> list[str]:
        """What a reader must know before trusting the scores of `n` images; empty when there is nothing."""
