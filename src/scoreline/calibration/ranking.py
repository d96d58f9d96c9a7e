"""Rank solvers and schedules by their distance to a fine run of the same model."""

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
"""For each round the number of images (None: all), and the share of all candidates that takes part."""

FINALISTS = 8
"""Least number of candidates in a round."""

SAME = 1e-9
"""Largest difference of two tableaus, relative to the highest level, up to which they are one method."""


@dataclass(frozen=True)
class Families:
    """The solvers and schedules that a search combines, by their names in the config."""

    solvers: Mapping[str, Solver | Adaptive]
    schedules: Mapping[str, Schedule]


class Candidate(NamedTuple):
    """A solver on a schedule at some NFE; `names` are all pairs that make its tableau, in the order of the families."""

    names: list[tuple[str, str]]
    tableau: Tableau


class Measurement(NamedTuple):
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
    """Return every deterministic tableau of exactly `nfe` calls; tableaus that agree to rounding are one candidate.

    Pairs that are impossible at this budget or range are left out, and so are adaptive and stochastic solvers.

    Raises:
        InputError: if nothing is left.
    """
    pool: dict[tuple[int, ...], Candidate] = {}
    for (solver_name, solver), (schedule_name, schedule) in product(
        families.solvers.items(), families.schedules.items()
    ):
        tableau = _tableau(solver, schedule, span, nfe)
        if tableau is not None:
            pool.setdefault(_fingerprint(tableau), Candidate([], tableau)).names.append((solver_name, schedule_name))
    if not pool:
        raise InputError(
            f"nfe={nfe}: no solver and schedule of this search can spend it; use other calibration.budgets"
        )
    return list(pool.values())


def _tableau(solver: Solver | Adaptive, schedule: Schedule, span: tuple[float, float], nfe: int) -> Tableau | None:
    try:
        run = build(solver, schedule, span, nfe, "none")
    except InputError:
        return None
    return run if isinstance(run, Tableau) and run.nfe == nfe and not bool(run.B.any()) else None


def _fingerprint(tableau: Tableau) -> tuple[int, ...]:
    """Round levels and weights to multiples of `SAME`; two equal methods at the edge of a multiple may stay apart."""
    plain = tableau.unrolled()
    numbers = torch.cat([plain.rho, plain.N.flatten()]) / (SAME * float(tableau.rho[0]))
    return tuple(numbers.round().to(torch.int64).tolist())


def rank(
    subject: Subject, ends: Ends, pool: list[Candidate], progress: Progress = lambda images: None
) -> list[Measurement]:
    """Return the finalists, least mean distance first, measured on all images.

    This is successive halving: all candidates are measured on few images, the better ones on more, all on the same
    noise. The order is by the mean of distances, not of squares, which few images that end in another mode would
    dominate.

    Args:
        subject: the model and its images.
        ends: of the subject's fine run.
        pool: the candidates.
        progress: called with the evaluations spent, in images' worth of the tableau's NFE.

    Source: Jamieson & Talwalkar (2016), arXiv:1502.07943.
    """
    ranked = [Measurement(candidate, torch.empty(0)) for candidate in pool]
    for count, share in ROUNDS:
        images = min(count or len(subject.seeds), len(subject.seeds))
        kept = ranked[: max(FINALISTS, round(share * len(pool)))]
        few, few_ends = first_images(subject, images), ends.first(images)
        ranked = sorted(_measure(few, few_ends, kept, progress), key=lambda entry: entry.mean)
    return ranked


def _measure(subject: Subject, ends: Ends, kept: list[Measurement], progress: Progress) -> Iterator[Measurement]:
    for entry in kept:
        yield Measurement(entry.candidate, distances(subject, entry.candidate.tableau, ends))
        progress(len(subject.seeds))


def place_of(pool: list[Candidate], candidate: Candidate) -> Tensor:
    """Return the place of a candidate in its pool, () int64."""
    return torch.tensor([each is candidate for each in pool].index(True))


def work(count: int, images: int) -> int:
    """Return the images' worth of runs that `rank` spends on so many candidates and images."""
    shares = [(min(few or images, images), max(FINALISTS, round(share * count))) for few, share in ROUNDS]
    return sum(few * min(kept, count) for few, kept in shares)
