"""Solvers and schedules in order of how close they come to a fine run of the same model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.distances import Ends, distances, first_images
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.sampling import Progress
from scoreline.schedules.base import Schedule
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.tableau import Solver, Tableau, build

ROUNDS = ((16, 1.0), (64, 0.25), (None, 0.05))
"""Images that a round measures (None: all), and the share of all candidates that takes part in it."""

FINALISTS = 8
"""Least number of candidates in a round."""

SAME = 1e-9
"""Largest difference of two tables, relative to the highest level, up to which they are one method."""


@dataclass(frozen=True)
class Families:
    """What a search may combine, by the names of the configuration."""

    solvers: Mapping[str, Solver | Adaptive]
    schedules: Mapping[str, Schedule]


class Candidate(NamedTuple):
    """A solver on a schedule at some NFE; `names` are all pairs that make this table, in the order of the families."""

    names: list[tuple[str, str]]
    table: Tableau


class Ranked(NamedTuple):
    """A candidate and its distances from the fine run (n,), one for each of the first n images."""

    candidate: Candidate
    distances: Tensor

    @property
    def mean(self) -> float:
        """Mean distance."""
        return float(self.distances.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.distances.std() / len(self.distances) ** 0.5)


def candidates(families: Families, span: tuple[float, float], nfe: int) -> list[Candidate]:
    """Every deterministic table of exactly `nfe` calls, tables that agree to rounding once.

    Pairs that are impossible at this budget or range are left out, and so are adaptive and stochastic solvers.

    Raises:
        InputError: if nothing is left.
    """
    found: dict[tuple[int, ...], Candidate] = {}
    for (solver_name, solver), (schedule_name, schedule) in product(
        families.solvers.items(), families.schedules.items()
    ):
        table = _table(solver, schedule, span, nfe)
        if table is not None:
            found.setdefault(_fingerprint(table), Candidate([], table)).names.append((solver_name, schedule_name))
    if not found:
        raise InputError(
            f"nfe={nfe}: no solver and schedule of this search can spend it; use other calibration.budgets"
        )
    return list(found.values())


def _table(solver: Solver | Adaptive, schedule: Schedule, span: tuple[float, float], nfe: int) -> Tableau | None:
    try:
        run = build(solver, schedule, span, nfe, "none")
    except InputError:
        return None
    return run if isinstance(run, Tableau) and run.nfe == nfe and not bool(run.B.any()) else None


def _fingerprint(table: Tableau) -> tuple[int, ...]:
    """Levels and weights in steps of `SAME`; neighbours on either side of a step's edge stay apart, at worst."""
    plain = table.unrolled()
    numbers = torch.cat([plain.rho, plain.N.flatten()]) / (SAME * float(table.rho[0]))
    return tuple(numbers.round().to(torch.int64).tolist())


def rank(
    subject: Subject, ends: Ends, found: list[Candidate], progress: Progress = lambda images: None
) -> list[Ranked]:
    """The finalists, least mean distance first, measured on all images.

    Successive halving: all candidates are measured on few images, the better ones on more, all on the same noise. The
    mean of distances, not of squares: few images that end in another mode would decide a sum of squares.

    Args:
        ends: of the subject's fine run.
        progress: told the evaluations that were spent, in images' worth of the table's NFE.

    Source: Jamieson & Talwalkar (2016), arXiv:1502.07943.
    """
    ranked = [Ranked(candidate, torch.empty(0)) for candidate in found]
    for count, share in ROUNDS:
        images = min(count or len(subject.seeds), len(subject.seeds))
        kept = ranked[: max(FINALISTS, round(share * len(found)))]
        few, few_ends = first_images(subject, images), ends.first(images)
        ranked = sorted(_measured(few, few_ends, kept, progress), key=lambda entry: entry.mean)
    return ranked


def _measured(subject: Subject, ends: Ends, kept: list[Ranked], progress: Progress) -> Iterator[Ranked]:
    for entry in kept:
        yield Ranked(entry.candidate, distances(subject, entry.candidate.table, ends))
        progress(len(subject.seeds))


def work(count: int, images: int) -> int:
    """Images' worth of runs that `rank` spends on so many candidates and images."""
    shares = [(min(few or images, images), max(FINALISTS, round(share * count))) for few, share in ROUNDS]
    return sum(few * min(kept, count) for few, kept in shares)
