"""The split of a subject's seeds: some train a learned tableau, the others are held out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.distances import Ends, distances
from scoreline.calibration.learned.adjoint import LevelEps
from scoreline.calibration.learned.losses import Loss, distance
from scoreline.calibration.subject import Subject
from scoreline.errors import NotFiniteError
from scoreline.solvers.tableau import Tableau

HELD_OUT = 3
"""Every third seed is held out: it chooses among tableaus, and never makes a step."""


class Images(NamedTuple):
    """Images that fit in memory together: eps(x, q), their noise at the first level and the ends of their fine run."""

    seeds: Sequence[int]
    eps: LevelEps
    x: Tensor
    end: Tensor


class SeedGroup(NamedTuple):
    """Some of a subject's seeds, and where the fine run ends for them."""

    subject: Subject
    ends: Ends

    def distances(self, tableau: Tableau) -> Tensor:
        """Return the distance of every seed's image from that of the fine run, (n,) float64."""
        return distances(self.subject, tableau, self.ends)

    def mean(self, tableau: Tableau, loss: Loss = distance) -> float:
        """Return the mean loss over the seeds; infinite if a sample is not finite."""
        ends = torch.split(self.ends.noisy, self.subject.batch_size)
        try:
            batches = zip(self.subject.samples(tableau, whole=True), ends, strict=True)
            return float(torch.cat([loss(batch.x.cpu(), end).double() for batch, end in batches]).mean())
        except NotFiniteError:
            return math.inf

    def select(self, numbers: Tensor) -> "SeedGroup":
        """Return the group of the seeds with these numbers."""
        labels = None if self.subject.labels is None else self.subject.labels[numbers]
        seeds = [self.subject.seeds[number] for number in numbers.tolist()]
        ends = Ends(self.ends.noisy[numbers], self.ends.clean[numbers])
        return SeedGroup(replace(self.subject, seeds=seeds, labels=labels), ends)

    def turn(self, step: int, count: int) -> "SeedGroup":
        """Return the group of the `count` seeds of a step; all seeds take their turns."""
        total = len(self.subject.seeds)
        return self.select((step * count + torch.arange(min(count, total))) % total)

    def images(self) -> Iterator[Images]:
        """Yield the images, `Subject.batch_size` at a time, on the device of the model."""
        subject = self.subject
        for part, end in zip(subject.batches(), torch.split(self.ends.noisy, subject.batch_size), strict=True):
            x = subject.initial(part.seeds)
            yield Images(part.seeds, subject.eps(part.label), x, end.to(subject.device))


def split_seeds(subject: Subject, ends: Ends) -> tuple[SeedGroup, SeedGroup]:
    """Return the seeds that train, and every third seed, which is held out."""
    held_out = torch.arange(len(subject.seeds)) % HELD_OUT == HELD_OUT - 1
    train, held = (SeedGroup(subject, ends).select(side.nonzero().flatten()) for side in (~held_out, held_out))
    return train, held
