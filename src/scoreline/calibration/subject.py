"""The subject of a calibration: a model, a run of it and the images to measure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation.batches import Batch, generate
from scoreline.runtime import seeded_noise
from scoreline.sampling import Progress
from scoreline.solvers.tableau import Tableau
from scoreline.storage.pictures import to_unit
from scoreline.storage.resumable import Parts


class Part(NamedTuple):
    """A batch of seeds with their class labels (len(seeds),) or None."""

    seeds: list[int]
    label: Tensor | None


@dataclass(frozen=True)
class Subject:
    """A model, a run of it, and the images to measure, one for each seed.

    Every calibration takes one. Use it to measure a model in your own code; `calibrate.py` builds it from its config.

    Attributes:
        denoiser: the model, on the device of its parameters.
        run: a run of many evaluations, whose ends are the range to measure.
        shape: shape of an image, (C, H, W) or any other.
        seeds: one for each image.
        batch_size: number of images at a time.
        labels: class labels (len(seeds),) in the order of the seeds, or None.
        parts: keeps the work on each of the `batches`, and assigns them to processes.
        data: real images, for estimators that need them.
        network_batch: images of a network call where results must not depend on `batch_size`; see `generate`.
        draw: source of noise by seed.
        report: called with a line for each result of a long calibration, as soon as it is there.
    """

    denoiser: Denoising
    run: Tableau
    shape: tuple[int, ...]
    seeds: Sequence[int]
    batch_size: int
    labels: Tensor | None = None
    parts: Parts = field(default_factory=Parts)
    data: ImageDataset | None = None
    network_batch: int = 64
    draw: seeded_noise.Noise = seeded_noise.normal
    report: Callable[[str], object] = lambda line: None

    @property
    def done(self) -> int:
        """Number of images in batches that an earlier process finished."""
        batches = list(self.batches())
        return sum(len(batches[number].seeds) for number in self.parts.existing(len(batches)))

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_max, sigma_min) of the run."""
        return float(self.run.rho[0]), float(self.run.rho[-1])

    @property
    def levels(self) -> Tensor:
        """Noise levels at which the run is evaluated, in its order."""
        return self.run.query_levels[torch.tensor(self.run.calls)]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.denoiser.device

    def budget_parts(self, count: int) -> Parts:
        """Return the parts of a calibration whose parts are budgets; report how many an earlier start finished."""
        parts = self.parts.inside("by_budget")
        if kept := len(parts.existing(count)):
            self.report(f"{kept} of {count} budgets are finished by an earlier start")
        return parts

    def eps(self, label: Tensor | None) -> Callable[[Tensor, Tensor | float], Tensor]:
        """Return eps(x, rho) of the model for images with these class labels, `Denoising.estimate` for a float rho."""
        label = None if label is None else label.to(self.device)

        def eps(x: Tensor, rho: Tensor | float) -> Tensor:
            if isinstance(rho, Tensor):
                return self.denoiser.eps(x, rho, label=label)
            return self.denoiser.estimate(x, rho, label=label)

        return eps

    def noise(self, seeds: Sequence[int], purpose: str, step: int = 0) -> Tensor:
        """Return the noise of these seeds' images, on the device of the model."""
        return self.draw(seeds, self.shape, purpose, step).to(self.device)

    def initial(self, seeds: Sequence[int]) -> Tensor:
        """Return the initial states of these seeds, as `generation.batches.generate` makes them."""
        return self.noise(seeds, "initial") * self.run.initial_scale

    def check_seeds(self) -> None:
        """Refuse a single image.

        Raises:
            InputError: naming the key.
        """
        if len(self.seeds) < 2:
            raise InputError("seeds: a standard error needs at least two images")

    def batches(self) -> Iterator[Part]:
        """Yield the seeds in order, `batch_size` at a time."""
        for start in range(0, len(self.seeds), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield Part(list(self.seeds[chosen]), None if self.labels is None else self.labels[chosen])

    def check_data(self, states: str) -> None:
        """Refuse real images that the estimator would not read, or of another shape.

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
        """Return real images (B, C, H, W) in [-1, 1] for the seeds, with their own labels if the run is conditional.

        They are drawn with replacement, so that images of different seeds are independent.

        Raises:
            InputError: if a conditional run meets an image without a label.
        """
        assert self.data is not None
        chosen = seeded_noise.integers(part.seeds, len(self.data), "calibration_image").tolist()
        images, labels = self.data.read(chosen)
        if part.label is not None and bool((labels < 0).any()):
            raise InputError(f"dataset: {self.data.name} has images without a label; use labels=none")
        return to_unit(images), None if part.label is None else labels

    def samples(self, run: Tableau, progress: Progress = lambda images: None, whole: bool = False) -> Iterator[Batch]:
        """Sample the subject's seeds by `run`, batch by batch (`generation.batches.generate`).

        Args:
            run: the tableau.
            progress: called with the images' worth of work done.
            whole: call the network on whole batches, without padding where fewer images are asked for; images then
                depend on the batch size by rounding.
        """
        args = (self.denoiser, run, self.shape, self.seeds, self.batch_size, self.labels)
        size = None if whole else self.network_batch
        return generate(*args, network_batch=size, progress=progress, noise=self.draw)
