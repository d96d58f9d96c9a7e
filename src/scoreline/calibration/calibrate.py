"""Calibration of any model in a program of your own: no checkpoint, no config.

Each function measures a model and returns a record that is the part of a sampler which it measured: `learn` and
`search` return solvers, `score_optimal` a schedule, `score_norm` a scale for `DEIS`. `record.save(path)` writes it,
`load(path)` reads it. calibrate.py measures the same for checkpoints.

    record = scoreline.calibrate.learn(denoise, (3, 32, 32), sigma_min=0.002, sigma_max=80, budgets=[5])
    images = scoreline.sample(denoise, x_init, record, nfe=5, sigma_min=0.002, sigma_max=80)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack, cast

from scoreline.calibration.closed_forms import (
    COMPARED,
    IN_VELOCITY,
    SCHEDULES,
    START_SCHEDULES,
    STARTS,
    Schedules,
    Solvers,
    named_families,
)
from scoreline.calibration.function_subject import FineRun, MeasuredModel, Model, Settings, Start, process_of
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.sampler_records import (
    LearnedRecord,
    ScoreNormRecord,
    ScoreOptimalRecord,
    SearchRecord,
    load,
)
from scoreline.calibration.score_norm import ScoreNorm
from scoreline.calibration.score_optimal import CumulativeLength
from scoreline.calibration.search import Search
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.unipc import UniPC

__all__ = [
    "LearnedRecord",
    "ScoreNormRecord",
    "ScoreOptimalRecord",
    "SearchRecord",
    "Settings",
    "learn",
    "load",
    "score_norm",
    "score_optimal",
    "search",
]


def score_norm(
    denoise: Model, start: Start, *, nfe: int = 1000, statistic: str = "mean", **settings: Unpack[Settings]
) -> ScoreNormRecord:
    """Measure the mean size of eps at `nfe` noise levels along the model's own runs.

    Use this for DEIS-SN, `DEIS(3, variable, scale=record)`.

    Args:
        denoise: the model.
        start: shape of one image, of any rank, or initial states (B, *): sigma_max times standard normal noise, and
            that noise itself at infinity.
        nfe: evaluations of the run, and so levels of the scale.
        statistic: `mean` or `median` over the images.
        settings: `Settings`; `seeds` is 0-63 by default.

    Returns:
        A record that is the scale.

    Raises:
        InputError: for an impossible range or budget, fewer than two images, or a function that does not return finite
            numbers of x's shape.
    """
    work = MeasuredModel(denoise, start, _along(denoise, nfe), "0-63", settings)
    return cast(ScoreNormRecord, work(ScoreNorm(statistic), {"statistic": statistic}))


def score_optimal(
    denoise: Model,
    start: Start,
    *,
    nfe: int = 50,
    levels: int = 200,
    cost: str = "corrector",
    passes: int = 1,
    **settings: Unpack[Settings],
) -> ScoreOptimalRecord:
    """Measure the cumulative length of the score, on images that the model draws.

    Use this for a schedule whose steps cost the same.

    Args:
        denoise: the model.
        start: as in `score_norm`.
        nfe: evaluations of the run that draws the images.
        levels: number of noise levels.
        cost: `corrector`, or `predictor`, which follows derivatives and needs fewer levels, 20 to 40.
        passes: measurements that each move the levels.
        settings: `Settings`; `seeds` is 0-63 by default.

    Returns:
        A record that is the schedule.

    Raises:
        InputError: as `score_norm`.
    """
    work = MeasuredModel(denoise, start, _along(denoise, nfe), "0-63", settings)
    options: dict[str, Any] = {"cost": cost, "levels": levels, "passes": passes}
    return cast(ScoreOptimalRecord, work(CumulativeLength(**options), options))


def search(
    denoise: Model,
    start: Start,
    *,
    budgets: Sequence[int] = (5, 6, 8, 10, 15, 20),
    nfe: int = 200,
    solvers: Solvers | Sequence[str] = (*COMPARED, *IN_VELOCITY),
    schedules: Schedules | Sequence[str] = SCHEDULES,
    sigma_data: float | None = None,
    **settings: Unpack[Settings],
) -> SearchRecord:
    """Find for each budget the solver and schedule whose images are closest to those of a fine run.

    Use this to choose among the known methods without learning anything.

    Args:
        denoise: the model.
        start: as in `score_norm`.
        budgets: evaluations to search at.
        nfe: evaluations of the fine run.
        solvers: names of solvers, or objects by name.
        schedules: names of schedules, or objects by name.
        sigma_data: standard deviation of the data, for solvers in velocity prediction; None measures it.
        settings: `Settings`; `seeds` is 0-255 by default.

    Returns:
        A record that is a solver: at each budget the closest pair.

    Raises:
        InputError: as `score_norm`.
    """
    work = MeasuredModel(denoise, start, FineRun(UniPC(3), Power(7), nfe), "0-255", settings)
    s = None if isinstance(solvers, Mapping) else work.sigma_data(sigma_data)
    families = named_families(solvers, schedules, work.native, s)
    record = cast(SearchRecord, work(Search(_listed(budgets), families), {"sigma_data": s}))
    return record.using(families, work.native)


def learn(
    denoise: Model,
    start: Start,
    *,
    budgets: Sequence[int],
    nfe: int = 150,
    evaluations: int = 55_000,
    batch: int = 24,
    curve: bool = False,
    solvers: Solvers | Sequence[str] = STARTS,
    schedules: Schedules | Sequence[str] = START_SCHEDULES,
    sigma_data: float | None = None,
    **settings: Unpack[Settings],
) -> LearnedRecord:
    """Learn noise levels and weights for each budget, from the distance to a fine run (`LearnedTableau`).

    Use this where one model draws many images at a small fixed budget. On noise that is held out the result is never
    further from the fine run than the closed form that it starts from.

    Args:
        denoise: the model, differentiable in x. Two more calls serve each derivative by sigma, which need not exist.
        start: as in `score_norm`.
        budgets: evaluations to learn for.
        nfe: evaluations of the fine run.
        evaluations: calls, with their derivatives, that learning a budget takes.
        batch: images of each step; more of them where a call costs little more, as for points in the plane.
        curve: whether all budgets share one set of curves.
        solvers: names of the solvers to start from, or objects by name.
        schedules: names of their schedules, or objects by name.
        sigma_data: standard deviation of the data; None measures it.
        settings: `Settings`; `seeds` is 0-767 by default, of which every third is held out.

    Returns:
        A record that is the solver.

    Raises:
        InputError: as `score_norm`, and for fewer than six images.
    """
    work = MeasuredModel(denoise, start, FineRun(UniPC(3), Polynomial(LinearVP(), 2), nfe), "0-767", settings)
    s = work.sigma_data(sigma_data)
    families = named_families(solvers, schedules, work.native, s)
    options: dict[str, Any] = {"sigma_data": s, "evaluations": evaluations, "batch": batch, "curve": curve}
    return cast(LearnedRecord, work(LearnedTableau(_listed(budgets), families, **options), options))


def _along(denoise: Model, nfe: int) -> FineRun:
    """Return the run of calibrate.py for measurements along a run: DEIS with even steps in the model's own time."""
    native = process_of(denoise) or LinearVP()
    return FineRun(DEIS(2, native), Polynomial(native, 1), nfe)


def _listed(budgets: object) -> Any:
    return list(budgets) if isinstance(budgets, tuple | range) else budgets
