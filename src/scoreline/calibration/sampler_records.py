"""Calibration records that are parts of a sampler: each is the solver, the schedule or the scale that it measured."""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from scoreline.calibration.closed_forms import Schedules, Solvers
from scoreline.calibration.ranking import Families
from scoreline.calibration.score_scale import ScoreScale, scale_in
from scoreline.calibration.search import Recommendation, recommendation_in
from scoreline.errors import InputError
from scoreline.interface.named_choices import schedule_named, solver_named
from scoreline.records import Record, read_record
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.score_optimal import ScoreOptimal, schedule_in
from scoreline.solvers.learned import Learned, learned_in
from scoreline.solvers.tableau import Solver, Tableau, build_tableau
from scoreline.values import is_number


class SamplerRecord(Record, ABC):
    """A record that is a part of a sampler.

    Attributes:
        part: that part alone, without the record's numbers.
    """

    @property
    @abstractmethod
    def part(self) -> Any: ...


class ScoreNormRecord(SamplerRecord):
    """A `score_norm` record, and the scale that it holds: `DEIS(3, variable, scale=record)` is DEIS-SN.

    Use this for any solver that takes a `Scale`.
    """

    @cached_property
    def part(self) -> ScoreScale:
        return scale_in(self)

    def __call__(self, rho: Tensor) -> Tensor:
        """Return w(rho), the mean of |eps|."""
        return self.part(rho)

    def knots(self) -> Tensor:
        """Return the measured noise levels, increasing."""
        return self.part.knots()


class ScoreOptimalRecord(SamplerRecord, Schedule):
    """A `score_optimal` record, and the schedule that it holds, for any number of steps.

    Use this where a solver takes a schedule.
    """

    @cached_property
    def part(self) -> ScoreOptimal:
        return schedule_in(self)

    def __call__(self, rho: Tensor) -> Tensor:
        return self.part(rho)

    def inverse(self, u: Tensor) -> Tensor:
        return self.part.inverse(u)

    def on(self, sigma_max: float, sigma_min: float) -> Schedule:
        """Return the map itself; refuse a run that leaves the measured range."""
        return self.part.on(sigma_max, sigma_min)

    def knots(self) -> Tensor:
        return self.part.knots()


class LearnedRecord(SamplerRecord):
    """A `tableau` record, and the solver that it holds, which brings its own noise levels and reads no schedule.

    Use this where `sample` takes a solver, at the budgets and on the range that were learned. `part.held_out` compares
    each tableau with the best closed form.
    """

    convergence = 1.0
    own_levels = True
    from_infinity = True

    @cached_property
    def part(self) -> Learned:
        return learned_in(self)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """Return the tableau of the budget."""
        return self.part(schedule, sigma_max, sigma_min, nfe)


class SearchRecord(SamplerRecord):
    """A `search` record, and a solver: at each budget the pair of solver and schedule that the search found closest.

    It brings its own schedule and reads no other. Use this where `sample` takes a solver; `pair` gives the two names.
    The file holds names only, which choose among the objects of `choices`, else among those of `scoreline.sample`.

    Attributes:
        choices: solvers and schedules of the caller's, by name.
        noise_schedule: the process for other names that step in its time.
    """

    convergence = 1.0
    own_levels = True
    from_infinity = True
    choices: Families = Families({}, {})
    noise_schedule: NoiseSchedule | None = None

    @cached_property
    def part(self) -> Recommendation:
        return recommendation_in(self, "search")

    def using(self, choices: Families, noise_schedule: NoiseSchedule | None) -> "SearchRecord":
        """Return the record with these objects behind its names."""
        record = replace(self)
        record.__dict__.update(choices=choices, noise_schedule=noise_schedule)
        return record

    def pair(self, nfe: int) -> tuple[str, str]:
        """Return the names of solver and schedule at the searched budget next to `nfe`."""
        return self.part.at(nfe, self.part.span)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """Return the tableau of the pair that the search found for this budget.

        Raises:
            InputError: for another range than the searched one, or a name that is not known.
        """
        solver_name, schedule_name = self.part.at(nfe, (sigma_max, sigma_min))
        solver, own = self._solver(solver_name), self.choices.schedules.get(schedule_name)
        if own is None:
            own = schedule_named(schedule_name, self.noise_schedule)
        first = self.part.span[0] if sigma_max == math.inf else sigma_max  # as for learned tableaus
        return build_tableau(solver, own, (first, sigma_min), nfe, "none")

    def _solver(self, name: str) -> Solver:
        solver = self.choices.solvers.get(name)
        if solver is None:
            s = self.provenance.get("sigma_data")
            solver = solver_named(name, self.noise_schedule, float(s) if is_number(s) else None)
        return cast(Solver, solver)  # `build_tableau` refuses others


KINDS: dict[str, type[SamplerRecord]] = {
    "score_norm": ScoreNormRecord,
    "score_optimal": ScoreOptimalRecord,
    "search": SearchRecord,
    "tableau": LearnedRecord,
}
"""The class of each kind of record."""


def as_sampler(record: Record) -> SamplerRecord:
    """Return a record as the part of a sampler that its kind is."""
    return KINDS[record.kind](record.kind, record.values, record.provenance)


def load(
    path: str | Path,
    *,
    digest: str | None = None,
    solvers: Solvers | None = None,
    schedules: Schedules | None = None,
    noise_schedule: NoiseSchedule | None = None,
) -> SamplerRecord:
    """Load a record of any kind that is a part of a sampler, whichever program measured it.

    Use it for records of the functions of this module and of calibrate.py. Nothing in the file is executed, and its
    names only choose among the given solvers and schedules and those that `scoreline.sample` knows by name.

    Args:
        path: the file.
        digest: SHA-256 of the model that the record must belong to; None compares nothing.
        solvers: solvers by name, for a `search` record that was made with solvers of your own.
        schedules: schedules by name, likewise.
        noise_schedule: the model's process, for a `search` record whose choices step in its time.

    Returns:
        A `ScoreNormRecord`, `ScoreOptimalRecord`, `SearchRecord` or `LearnedRecord`.

    Raises:
        InputError: if the file is missing, of another kind or damaged, or belongs to another model.
    """
    record = as_sampler(read_record(path, tuple(KINDS), digest))
    try:
        record.part  # noqa: B018  a record that makes no part is refused here, not at its first use
    except ValueError as error:
        raise InputError(f"record={path}: it makes no {record.kind} ({error}); measure it again") from error
    if isinstance(record, SearchRecord):
        return record.using(Families(solvers or {}, schedules or {}), noise_schedule)
    return record
