"""`metrics=none`: images are made and not measured."""

from scoreline.datasets.base import ImageDataset
from scoreline.metrics.base import ALONE, Metrics, Score
from scoreline.parts import Parts
from scoreline.sampling import Progress


class NoMetrics(Metrics):
    """Measures nothing, on images of any shape."""

    @property
    def protocol(self) -> dict[str, str | int]:
        return {}

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Any images will do."""

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        return {}

    def warnings(self, n: int) -> list[str]:
        return []
