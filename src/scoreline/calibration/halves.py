"""Seeds to learn a table from, and seeds held out."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline import noise
from scoreline.calibration.distances import Ends, distances
from scoreline.calibration.linearisation import LevelEps
from scoreline.calibration.neighbourhood import Neighbourhood
from scoreline.calibration.subject import Part, Subject
from scoreline.solvers.tableau import Tableau

HELD_OUT = 3
"""Every third seed is held out: it stops the descent and chooses the table, and never makes a step."""


class Learned(NamedTuple):
    """A table and its mean distance on the seeds held out."""

    table: Tableau
    held_out: float


class Half(NamedTuple):
    """Seeds of one kind, and where the fine run ends for them."""

    subject: Subject
    ends: Ends

    def distances(self, table: Tableau) -> Tensor:
        """From the fine run, for every seed; (n,) float64."""
        return distances(self.subject, table, self.ends)

    def mean(self, table: Tableau) -> float:
        """Mean distance over the seeds."""
        return float(self.distances(table).mean())

    def distances_near(self, near: Neighbourhood, theta: Tensor) -> Tensor:
        """`distances` of the table at theta; infinite if there is none."""
        try:
            table = near(theta)
        except ValueError:  # levels or weights that overflow
            return torch.full((len(self.subject.seeds),), torch.inf, dtype=torch.float64)
        return self.distances(table)

    def selected(self, chosen: Tensor) -> "Half":
        """The seeds with these numbers."""
        labels = None if self.subject.labels is None else self.subject.labels[chosen]
        seeds = [self.subject.seeds[number] for number in chosen.tolist()]
        ends = Ends(self.ends.noisy[chosen], self.ends.clean[chosen])
        return Half(replace(self.subject, seeds=seeds, labels=labels), ends)

    def groups(self, count: int) -> list["Half"]:
        """The seeds, `count` at a time."""
        return [self.selected(chosen) for chosen in torch.split(torch.arange(len(self.subject.seeds)), count)]


def halves(subject: Subject, ends: Ends) -> tuple[Half, Half]:
    """Seeds that train, and every third, which is held out."""
    number = torch.arange(len(subject.seeds))
    sides = (number % HELD_OUT != HELD_OUT - 1, number % HELD_OUT == HELD_OUT - 1)
    train, held = (Half(subject, ends).selected(side.nonzero().flatten()) for side in sides)
    return train, held


def beginning(subject: Subject, part: Part) -> tuple[LevelEps, Tensor]:
    """eps(x, rho) of the images of a part, and their noise at the first level."""
    device = next(subject.denoiser.parameters()).device
    label = None if part.label is None else part.label.to(device)
    x = noise.normal(part.seeds, subject.shape, "initial").to(device) * subject.span[0]
    return lambda x, rho: subject.denoiser.eps(x, rho, label=label), x
