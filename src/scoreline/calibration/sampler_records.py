"""Calibration records that are parts of a sampler: each is the solver, the schedule or the scale that it measured."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from scoreline.calibration.closed_forms import closed_forms
from scoreline.calibration.ranking import Families
from scoreline.calibration.score_scale import ScoreScale, scale_in
from scoreline.calibration.search import Recommendation, recommendation_in
from scoreline.errors import InputError, did_you_mean
from scoreline.records import Record, read_record
from scoreline.schedules.base import Schedule
from scoreline.schedules.score_optimal import ScoreOptimal, schedule_in
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.learned import Learned, learned_in
from scoreline.solvers.tableau import Solver, Tableau, build_tableau


class ScoreNormRecord(Record):
    """A `score_norm` record, and the scale that it holds: `DEIS(3, variable, scale=record)` is DEIS-SN.

    Use this for any solver that takes a `Scale`.

    Attributes:
        scale: the scale alone.
    """

    @cached_property
    def scale(self) -> ScoreScale:
        return scale_in(self)

    def __call__(self, rho: Tensor) -> Tensor:
        """Return w(rho), the mean of |eps|."""
        return self.scale(rho)

    def knots(self) -> Tensor:
        """Return the measured noise levels, increasing."""
        return self.scale.knots()


class ScoreOptimalRecord(Record, Schedule):
    """A `score_optimal` record, and the schedule that it holds, for any number of steps.

    Use this where a solver takes a schedule.

    Attributes:
        schedule: the schedule alone.
    """

    @cached_property
    def schedule(self) -> ScoreOptimal:
        return schedule_in(self)

    def __call__(self, rho: Tensor) -> Tensor:
        return self.schedule(rho)

    def inverse(self, u: Tensor) -> Tensor:
        return self.schedule.inverse(u)

    def on(self, sigma_max: float, sigma_min: float) -> Schedule:
        """Return the map itself; refuse a run that leaves the measured range."""
        return self.schedule.on(sigma_max, sigma_min)

    def knots(self) -> Tensor:
        return self.schedule.knots()


class LearnedRecord(Record):
    """A `tableau` record, and the solver that it holds, which brings its own noise levels and reads no schedule.

    Use this where `sample` takes a solver, at the budgets and on the range that were learned.

    Attributes:
        learned: the solver alone; its `held_out` compares each tableau with the best closed form.
    """

    convergence = 1.0
    own_levels = True

    @cached_property
    def learned(self) -> Learned:
        return learned_in(self)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """Return the tableau of the budget."""
        return self.learned(schedule, sigma_max, sigma_min, nfe)


class SearchRecord(Record):
    """A `search` record, and a solver: at each budget the pair of solver and schedule that the search found closest.

    It brings its own schedule and reads no other. Use this where `sample` takes a solver; `pair` gives the two names.
    The file holds names only; the objects are those of `families`, for a loaded record `closed_forms`.

    Attributes:
        recommendation: the names for each budget.
        families: the solvers and schedules that the names stand for.
    """

    convergence = 1.0
    own_levels = True

    @cached_property
    def recommendation(self) -> Recommendation:
        return recommendation_in(self, "search")

    @cached_property
    def families(self) -> Families:
        return closed_forms(self.provenance.get("sigma_data"))

    def using(self, families: Families) -> "SearchRecord":
        """Return the record with these solvers and schedules behind its names."""
        record = replace(self)
        record.__dict__["families"] = families
        return record

    def pair(self, nfe: int) -> tuple[str, str]:
        """Return the names of solver and schedule at the searched budget next to `nfe`."""
        return self.recommendation.at(nfe, self.recommendation.span)

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """Return the tableau of the pair that the search found for this budget.

        Raises:
            InputError: for another range than the searched one, or a name that `families` lacks.
        """
        solver_name, schedule_name = self.recommendation.at(nfe, (sigma_max, sigma_min))
        solver: Solver | Adaptive = _named("solver", self.families.solvers, solver_name)
        own: Schedule = _named("schedule", self.families.schedules, schedule_name)
        return build_tableau(solver, own, (sigma_max, sigma_min), nfe, "none")  # type: ignore[arg-type]


T = TypeVar("T")


def _named(key: str, choices: Mapping[str, T], name: str) -> T:
    if name not in choices:
        raise InputError(
            f"{key}={name}: this record names a {key} that is not known here{did_you_mean(name, choices)}; give the "
            f"objects of the search, as in load(path, {key}s={{'{name}': ..}})"
        )
    return choices[name]


KINDS: dict[str, type[Record]] = {
    "score_norm": ScoreNormRecord,
    "score_optimal": ScoreOptimalRecord,
    "search": SearchRecord,
    "tableau": LearnedRecord,
}
"""The class of each kind of record."""


def as_sampler(record: Record) -> Record:
    """Return a record as the part of a sampler that its kind is."""
    return KINDS[record.kind](record.kind, record.values, record.provenance)


def load(
    path: str | Path,
    *,
    digest: str | None = None,
    solvers: Mapping[str, Solver | Adaptive] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
) -> Record:
    """Load a record of any kind that is a part of a sampler, whichever program measured it.

    Use it for records of the functions of this module and of calibrate.py. Nothing in the file is executed, and its
    names only choose among the given solvers and schedules.

    Args:
        path: the file.
        digest: SHA-256 of the model that the record must belong to; None compares nothing.
        solvers: solvers by name for a `search` record that was made with solvers of your own; None is the closed forms.
        schedules: schedules by name, likewise.

    Returns:
        A `ScoreNormRecord`, `ScoreOptimalRecord`, `SearchRecord` or `LearnedRecord`.

    Raises:
        InputError: if the file is missing, of another kind or damaged, or belongs to another model.
    """
    record = as_sampler(read_record(path, tuple(KINDS), digest))
    if isinstance(record, SearchRecord) and (solvers or schedules):
        known = record.families
        return record.using(Families(solvers or known.solvers, schedules or known.schedules))
    if isinstance(record, LearnedRecord):
        try:
            record.learned  # noqa: B018
        except ValueError as error:
            raise InputError(f"record={path}: not a record of tableaus ({error}); learn it again") from error
    return record
