"""`metrics=none`: images are made and not measured."""

from torch import Tensor

from scoreline.metrics.base import Metrics, Score


class NoMetrics(Metrics):
    """Measures nothing, on images of any shape."""

    @property
    def protocol(self) -> dict[str, str | int]:
        return {}

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Any images will do."""

    def __call__(self, images: Tensor) -> dict[str, Score]:
        return {}

    def warnings(self, n: int) -> list[str]:
        return []
