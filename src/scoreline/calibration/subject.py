"""What an estimator measures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from scoreline import noise
from scoreline.datasets.base import ImageDataset
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation.batches import Batch, generate
from scoreline.parts import Parts
from scoreline.pictures import to_unit
from scoreline.sampling import Progress
from scoreline.solvers.tableau import Tableau


class Part(NamedTuple):
    """Seeds that are measured at a time, with their class labels (len(seeds),) or None."""

    seeds: list[int]
    label: Tensor | None


@dataclass(frozen=True)
class Subject:
    """A model, a run of it, and the images to measure, one for each seed.

    Attributes:
        denoiser: the model, on the device of its parameters.
        run: of many evaluations; its ends are the range that is measured.
        shape: (C, H, W) of an image.
        seeds: one image per seed.
        batch_size: images at a time.
        labels: class labels (len(seeds),) in the order of the seeds, or None.
        parts: where the work on each of the `batches` is kept, and which of them this process does.
        data: real images, for estimators that are asked for them.
    """

    denoiser: Denoising
    run: Tableau
    shape: tuple[int, int, int]
    seeds: Sequence[int]
    batch_size: int
    labels: Tensor | None = None
    parts: Parts = field(default_factory=Parts)
    data: ImageDataset | None = None

    @property
    def done(self) -> int:
        """Images whose batches were found done."""
        batches = list(self.batches())
        return sum(len(batches[number].seeds) for number in self.parts.found(len(batches)))

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_max, sigma_min) of the run."""
        return float(self.run.rho[0]), float(self.run.rho[-1])

    def batches(self) -> Iterator[Part]:
        """The seeds in order, `batch_size` at a time."""
        for start in range(0, len(self.seeds), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield Part(list(self.seeds[chosen]), None if self.labels is None else self.labels[chosen])

    def check_data(self, states: str) -> None:
        """Refuse real images that nobody would look at, or of another shape.

        Raises:
            InputError: naming the key.
        """
        if self.data is None:
            return
        if states != "noised":
            raise InputError(f"dataset: states={states} reads no data; use calibration.states=noised, or no dataset")
        if self.data.shape != self.shape:
            raise InputError(
                f"dataset: images of {self.data.name} are {self.data.shape}, the checkpoint's are {self.shape}"
            )

    def real(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) in [-1, 1] that belong to the seeds, with their own labels if the run is conditional.

        They are drawn with replacement, so that images of different seeds are independent.

        Raises:
            InputError: if a conditional run meets an image without a label.
        """
        assert self.data is not None
        chosen = noise.integers(part.seeds, len(self.data), "calibration_image").tolist()
        images, labels = self.data.read(chosen)
        if part.label is not None and bool((labels < 0).any()):
            raise InputError(f"dataset: {self.data.name} has images without a label; use labels=none")
        return to_unit(images), None if part.label is None else labels

    def drawn(self, run: Tableau, progress: Progress = lambda images: None, whole: bool = False) -> Iterator[Batch]:
        """What `run` makes of the subject's seeds, batch by batch (`generation.batches.generate`).

        Args:
            whole: call the network on whole batches; images then depend on the batch size by rounding.
        """
        args = (self.denoiser, run, self.shape, self.seeds, self.batch_size, self.labels)
        return generate(*args, network_batch=self.batch_size if whole else 64, progress=progress)
