"""The split of a subject's seeds: some train a learned tableau, the others are held out."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.distances import Ends, distances
from scoreline.calibration.learned.linearisation import LevelEps
from scoreline.calibration.learned.neighbourhood import Neighbourhood
from scoreline.calibration.subject import Part, Subject
from scoreline.solvers.tableau import Tableau

HELD_OUT = 3
"""Every third seed is held out: it stops the descent and chooses the tableau, and never makes a step."""


class Trial(NamedTuple):
    """A tableau and its mean distance on the seeds held out."""

    tableau: Tableau
    held_out: float


class SeedGroup(NamedTuple):
    """Some of a subject's seeds, and where the fine run ends for them."""

    subject: Subject
    ends: Ends

    def distances(self, tableau: Tableau) -> Tensor:
        """Return the distance of every seed's image from that of the fine run, (n,) float64."""
        return distances(self.subject, tableau, self.ends)

    def mean(self, tableau: Tableau) -> float:
        """Return the mean distance over the seeds."""
        return float(self.distances(tableau).mean())

    def distances_near(self, near: Neighbourhood, theta: Tensor) -> Tensor:
        """Return `distances` of the tableau at theta; infinite if there is none."""
        try:
            tableau = near(theta)
        except ValueError:  # levels or weights that overflow
            return torch.full((len(self.subject.seeds),), torch.inf, dtype=torch.float64)
        return self.distances(tableau)

    def select(self, numbers: Tensor) -> "SeedGroup":
        """Return the group of the seeds with these numbers."""
        labels = None if self.subject.labels is None else self.subject.labels[numbers]
        seeds = [self.subject.seeds[number] for number in numbers.tolist()]
        ends = Ends(self.ends.noisy[numbers], self.ends.clean[numbers])
        return SeedGroup(replace(self.subject, seeds=seeds, labels=labels), ends)

    def groups(self, count: int) -> list["SeedGroup"]:
        """Return groups of `count` seeds each, the last one perhaps smaller."""
        return [self.select(numbers) for numbers in torch.split(torch.arange(len(self.subject.seeds)), count)]


def split_seeds(subject: Subject, ends: Ends) -> tuple[SeedGroup, SeedGroup]:
    """Return the seeds that train, and every third seed, which is held out."""
    held_out = torch.arange(len(subject.seeds)) % HELD_OUT == HELD_OUT - 1
    train, held = (SeedGroup(subject, ends).select(side.nonzero().flatten()) for side in (~held_out, held_out))
    return train, held


def start_of(subject: Subject, part: Part) -> tuple[LevelEps, Tensor]:
    """Return eps(x, rho) for the images of a part, and their noise at the first level."""
    return subject.eps(part.label), subject.noise(part.seeds, "initial") * subject.span[0]
