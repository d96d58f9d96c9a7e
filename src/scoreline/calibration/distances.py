"""Distances between the end of a run and that of a fine run from the same noise."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoreline.calibration.subject import Subject
from scoreline.errors import NotFiniteError
from scoreline.sampling import Progress
from scoreline.solvers.tableau import Tableau
from scoreline.storage.resumable import Tensors

FINE = "fine_run"
"""Folder of the parts of the fine run."""


@dataclass(frozen=True)
class Ends:
    """The end of the subject's run for each seed.

    Attributes:
        noisy: samples at the last noise level, (n, C, H, W) float32 on the CPU.
        clean: E[x_0 | sample], for comparison with runs that end at rho = 0.
    """

    noisy: Tensor
    clean: Tensor

    def first(self, count: int) -> "Ends":
        """Return the ends of the first seeds."""
        return Ends(self.noisy[:count], self.clean[:count])

    def of(self, run: Tableau) -> Tensor:
        """Return the ends at the level where a run ends."""
        return self.clean if float(run.rho[-1]) == 0 else self.noisy


def fine_ends(subject: Subject, progress: Progress = lambda images: None) -> Ends:
    """Run the subject's own, fine run and return its ends; each of the subject's batches is a part.

    Args:
        subject: the model, its run and its images.
        progress: called with the images of this process that are done.
    """
    batches = list(subject.batches())

    def ends(number: int) -> Tensors:
        part = batches[number]
        single = replace(subject, seeds=part.seeds, labels=part.label)
        (batch,) = single.samples(subject.run, progress, whole=True)
        return {"noisy": batch.x.cpu(), "clean": _denoised(subject, batch.x, part.label).cpu()}

    parts = subject.parts.inside(FINE)(len(batches), ends)
    return Ends(*(torch.cat([part[name] for part in parts]) for name in ("noisy", "clean")))


def fine_work(subject: Subject) -> int:
    """Return the evaluations that `fine_ends` still takes in this process."""
    batches = list(subject.batches())
    missing = subject.parts.inside(FINE).missing(len(batches))
    return subject.run.nfe * sum(len(batches[number].seeds) for number in missing)


@torch.inference_mode()
def _denoised(subject: Subject, x: Tensor, label: Tensor | None) -> Tensor:
    rho = subject.span[1]
    return x if rho == 0 else subject.denoiser(x, rho, label=None if label is None else label.to(x.device))


def distances(subject: Subject, run: Tableau, ends: Ends) -> Tensor:
    """Return the RMS distance, sqrt(mean over channels and pixels of (x - x_fine)^2), of every image.

    Args:
        subject: the model and its seeds.
        run: the tableau to measure.
        ends: of the fine run.

    Returns:
        (n,) float64; infinite for all if a sample is not finite.
    """
    each = []
    batches = zip(subject.samples(run, whole=True), torch.split(ends.of(run), subject.batch_size), strict=True)
    try:
        for batch, end in batches:
            each.append((batch.x.cpu().double() - end).flatten(1).square().mean(1).sqrt())
    except NotFiniteError:
        return torch.full((len(subject.seeds),), torch.inf, dtype=torch.float64)
    return torch.cat(each)


def first_images(subject: Subject, count: int) -> Subject:
    """Return the subject with its first seeds only."""
    labels = None if subject.labels is None else subject.labels[:count]
    return replace(subject, seeds=subject.seeds[:count], labels=labels)
