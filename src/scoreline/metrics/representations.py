"""Several sets of scores of the same images: distances in more than one representation beside each other."""

from collections.abc import Mapping
from typing import TypeVar

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.base import ALONE, OF_SEVERAL, Metrics, Score
from scoreline.sampling import Progress
from scoreline.storage.resumable import Parts

Value = TypeVar("Value")


class Representations(Metrics):
    """The scores of several `Metrics`, each under the name of its own: `imagenet/frechet_distance`.

    When to use it: an order of samplers that holds in the features of one network only says as much about the network
    as about the samplers. Images are sampled once for all.

    Args:
        parts: the metrics by name; a null leaves one out.

    Raises:
        InputError: if none is left.
    """

    def __init__(self, parts: Mapping[str, Metrics | None]) -> None:
        self.parts = {str(name): metrics for name, metrics in parts.items() if metrics is not None}
        if not self.parts:
            raise InputError("metrics.parts: is empty; give at least one, or use metrics=none")
        self.keeps_features = any(metrics.keeps_features for metrics in self.parts.values())

    @property
    def protocol(self) -> dict[str, str | int]:
        return _joined({name: it.protocol for name, it in self.parts.items()})

    def fingerprint(self, n: int) -> dict[str, str | int]:
        return _joined({name: it.fingerprint(n) for name, it in self.parts.items()})

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        for metrics in self.parts.values():
            metrics.check(shape, n)

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        def share(count: float) -> None:
            progress(count / len(self.parts))

        folders = {name: parts.folder and parts.folder / name for name in self.parts}
        return _joined(
            {name: it(images, parts.at(folders[name], parts.stamp), share) for name, it in self.parts.items()}
        )

    def warnings(self, n: int) -> list[str]:
        return [f"{name}: {warning}" for name, metrics in self.parts.items() for warning in metrics.warnings(n)]


def _joined(parts: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    return {f"{name}{OF_SEVERAL}{key}": value for name, part in parts.items() for key, value in part.items()}
