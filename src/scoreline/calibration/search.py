"""`calibration=search`: the solver and schedule that suit a checkpoint at a given NFE, by distance to its fine run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoreline.calibration.distances import fine_ends, fine_work
from scoreline.calibration.ranking import Candidate, Families, Measurement, candidates, place_of, rank, work
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.records import Record, load_record
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.tabulated import SAME
from scoreline.storage.figures import PAGE, figure, plain_ticks
from scoreline.storage.resumable import Tensors
from scoreline.values import is_whole

SHOWN = 3
"""Number of candidates of each budget that the summary names."""


@dataclass(frozen=True)
class Search:
    """Find, for every budget, the solvers and schedules whose images are closest to those of the subject's fine run.

    The distance is the root mean square over channels and pixels with the same noise; its mean is over images. Use this
    for `solver=auto`. It ranks how well the ODE is solved, not how good the images are, and compares neither runs of
    another end nor stochastic solvers nor guidance.

    Attributes:
        budgets: NFE to search at.
        families: solvers and schedules by name.

    Raises:
        InputError: for no budget, or one that is not a positive whole number.
    """

    budgets: Sequence[int]
    families: Families

    kind = "search"
    key = "solver.path"
    states = "trajectory"

    def __post_init__(self) -> None:
        check_budgets(self.budgets)

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """Return tensors `budgets` (K,), `mean` and `standard_error` (K, F) float64; `candidates`, K lists; `span`.

        F is the largest number of finalists of a budget; NaN fills the others. They are sorted, best first. A candidate
        has the names of all (solver, schedule) that make the same tableau. Each budget is a part, so that processes
        share them and a restart keeps them.

        Args:
            subject: its run is the fine one.
            progress: called with the images' worth of work done.

        Raises:
            InputError: for fewer than two images, or a budget that nothing can spend.
        """
        subject.check_seeds()
        pools = {nfe: candidates(self.families, subject.span, nfe) for nfe in self.budgets}
        budgets, images = list(pools), len(subject.seeds)
        parts = subject.budget_parts(len(budgets))
        costs = [budgets[number] * work(len(pools[budgets[number]]), images) for number in parts.missing(len(budgets))]
        total = fine_work(subject) + sum(costs)

        def done(nfe: int) -> Progress:
            return lambda spent: progress(images * nfe * spent / total)

        ends = fine_ends(subject, done(subject.run.nfe))

        def measure(number: int) -> Tensors:
            nfe, pool = budgets[number], pools[budgets[number]]
            ranked = rank(subject, ends, pool, done(nfe))
            subject.report(_line(nfe, [(each.candidate.names[0], each.mean, each.error) for each in ranked]))
            places = torch.stack([place_of(pool, entry.candidate) for entry in ranked])
            return {"places": places, "distances": torch.stack([entry.distances for entry in ranked])}

        ranked = [_finalists(pools[nfe], part) for nfe, part in zip(budgets, parts(len(budgets), measure), strict=True)]
        return {**_values(budgets, ranked), "span": subject.span}

    def summary(self, values: dict[str, Any]) -> str:
        """Return a line for each budget with its best candidates."""
        lines = []
        for place, nfe in enumerate(values["budgets"].tolist()):
            names = [names[0] for names in values["candidates"][place]]
            rows = zip(names, values["mean"][place].tolist(), values["standard_error"][place].tolist(), strict=False)
            lines.append(_line(nfe, list(rows)))
        return "\n".join(lines)

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule | None = None) -> None:
        """Plot the distances of the finalists against NFE."""
        mean, error = record.values["mean"], record.values["standard_error"]
        best, budgets = record.provenance["candidates"], record.values["budgets"].tolist()
        with figure(path, figsize=(PAGE, 3.4)) as (_, axes):
            for place, nfe in enumerate(budgets):
                n = len(best[place])
                axes.errorbar([nfe] * n, mean[place, :n], error[place, :n], fmt="o")
                name = " / ".join(best[place][0][0])
                axes.annotate(name, (nfe, float(mean[place, 0])), rotation=30, fontsize="small", va="top")
            axes.set(xlabel="NFE", ylabel="RMS distance to the fine run", yscale="log", xscale="log")
            axes.set_xticks(budgets, [str(nfe) for nfe in budgets])
            axes.xaxis.minorticks_off()
            plain_ticks(axes.yaxis)
            axes.set_title(f"finalists, {record.provenance['images']} images; the best named")


def check_budgets(budgets: object) -> None:
    """Refuse anything but a list of different positive whole numbers.

    Raises:
        InputError: naming the key.
    """
    listed = list(budgets) if isinstance(budgets, Sequence) and not isinstance(budgets, str) else []
    if not listed or not all(map(is_whole, listed)) or len(set(listed)) < len(listed):
        raise InputError(f"calibration.budgets={budgets}: give a list of different whole numbers from 1, as [5,10,20]")


def _line(nfe: int, rows: list[tuple[tuple[str, str], float, float]]) -> str:
    """Return the best candidates of a budget: (solver, schedule), mean distance and its error, best first."""
    best = [f"{' / '.join(names)} {mean:.4g} +- {error:.1g}" for names, mean, error in rows[:SHOWN]]
    return f"NFE {nfe}: {'; '.join(best)}"


def _finalists(pool: list[Candidate], part: Tensors) -> list[Measurement]:
    """Return the finalists of a budget from their places in the pool, (F,), and distances, (F, n)."""
    return [
        Measurement(pool[place], row) for place, row in zip(part["places"].tolist(), part["distances"], strict=True)
    ]


def _values(budgets: list[int], ranked: list[list[Measurement]]) -> dict[str, Any]:
    most = max(map(len, ranked))
    rows = [[(entry.mean, entry.error) for entry in each] for each in ranked]
    filled = torch.tensor([row + [(torch.nan, torch.nan)] * (most - len(row)) for row in rows], dtype=torch.float64)
    names = [[entry.candidate.names for entry in each] for each in ranked]
    mean, error = filled.unbind(-1)
    return {"budgets": torch.tensor(budgets), "mean": mean, "standard_error": error, "candidates": names}


@dataclass(frozen=True)
class Recommendation:
    """The result of a search: for each budget a solver and a schedule, by name, on one range of noise levels."""

    budgets: tuple[int, ...]
    pairs: tuple[tuple[str, str], ...]
    span: tuple[float, float]

    def at(self, nfe: int, span: tuple[float, float]) -> tuple[str, str]:
        """Return (solver, schedule) of the searched budget next to `nfe`, by ratio.

        Raises:
            InputError: for another range of noise levels than the searched one.
        """
        pairs = list(zip(span, self.span, strict=True))
        if not all(end == math.inf or math.isclose(end, has, rel_tol=SAME) for end, has in pairs):
            raise InputError(
                f"sigma_max={span[0]:.6g} sigma_min={span[1]:.6g}: solver=auto was searched from {self.span[0]:.6g} to "
                f"{self.span[1]:.6g}; leave these keys out, or search this range with: "
                f"python calibrate.py calibration=search sigma_max={span[0]:.6g} sigma_min={span[1]:.6g}"
            )
        nearest = min(range(len(self.budgets)), key=lambda k: max(self.budgets[k] / nfe, nfe / self.budgets[k]))
        return self.pairs[nearest]


def load_recommendation(path: str | Path, checkpoint: str) -> Recommendation:
    """Load the recommendation in a `search` record. Use it to look up the closest pair for a budget, as `solver=auto`.

    Args:
        path: the record.
        checkpoint: SHA-256 of the model that it must belong to.

    Raises:
        InputError: as `load_record`, and for candidates that do not belong to the budgets or were not measured.
    """
    return recommendation_in(load_record(path, "search", checkpoint, "solver.path"), f"solver.path={path}")


def recommendation_in(record: Record, source: str) -> Recommendation:
    """Return the recommendation in a `search` record.

    Args:
        record: the record.
        source: the key and the path of its file, for messages.

    Raises:
        InputError: for candidates that do not belong to the budgets or were not measured.
    """
    candidates, span = record.provenance["candidates"], record.provenance["span"]
    budgets = record.values["budgets"].tolist()
    if len(candidates) != len(budgets) or len(set(budgets)) < len(budgets) or not span[0] > span[1]:
        raise InputError(
            f"{source}: {len(candidates)} candidates for {len(budgets)} budgets on the range {span}; give "
            "the record as calibrate.py wrote it"
        )
    if not bool(record.values.get("mean", torch.zeros(1, 1))[:, 0].isfinite().all()):
        raise InputError(f"{source}: its best candidates have no distance; search again")
    pairs = tuple((finalists[0][0][0], finalists[0][0][1]) for finalists in candidates)
    return Recommendation(tuple(budgets), pairs, (float(span[0]), float(span[1])))
