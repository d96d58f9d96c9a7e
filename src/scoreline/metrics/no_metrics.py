"""`metrics=none`: sampling without evaluation."""

from scoreline.datasets.base import ImageDataset
from scoreline.metrics.base import ALONE, Metrics, Score
from scoreline.sampling import Progress
from scoreline.storage.resumable import Parts


class NoMetrics(Metrics):
    """No scores, for images of any shape. When to use it: to sample now and evaluate later.

    Args:
        note: a sentence for the results on why nothing is measured; empty for none.
    """

    def __init__(self, note: str = "") -> None:
        self.note = note

    @property
    def protocol(self) -> dict[str, str | int]:
        return {}

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        """Accept any images."""

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        return {}

    def warnings(self, n: int) -> list[str]:
        return [self.note] if self.note else []
