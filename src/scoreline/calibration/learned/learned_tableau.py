"""`calibration=tableau`: a tableau learned for one model and NFE, the one that comes closest to its own fine run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned.halves import HELD_OUT, SeedGroup, Trial, split_seeds, start_of
from scoreline.calibration.learned.least_distance import Linear, descend
from scoreline.calibration.learned.linearisation import STEP, linearise
from scoreline.calibration.learned.neighbourhood import Neighbourhood
from scoreline.calibration.learned.polish import Plan, cost
from scoreline.calibration.learned.polish import polish as adam_polish
from scoreline.calibration.plots import figure
from scoreline.calibration.ranking import Candidate, Families, Measurement, candidates, rank, work
from scoreline.calibration.search import check_budgets
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.tabulated import SAME
from scoreline.solvers.tableau import Tableau
from scoreline.values import is_number, is_whole

NUMBERS = 40
"""Least number of residuals for each parameter in the derivatives of a step."""

FEWER = 3
"""The starts are tried on the first third of the training seeds."""

PATIENCE = 8
"""Steps without a better held-out distance after which a descent stops."""


def _held_out(trial: Trial) -> float:
    return trial.held_out


class _EvaluationProgress:
    """Progress in evaluations, of which there may be fewer than planned."""

    def __init__(self, progress: Progress, images_per_evaluation: float) -> None:
        self.progress, self.unit, self.done = progress, images_per_evaluation, 0.0

    def __call__(self, evaluations: float) -> None:
        self.done += evaluations
        self.progress(evaluations * self.unit)

    def reach(self, evaluations: float) -> None:
        """Count evaluations that were not needed as done."""
        self(evaluations - self.done)


@dataclass(frozen=True)
class LearnedTableau:
    """Learn, for every budget K, rho_1 .. rho_{K-1} and N of x_{k+1} = x_k + sum_{j<=k} N_kj eps_j that minimise

        mean over seeds of sqrt(mean over channels and pixels of (x_K - x_fine)^2),

    x_fine the end of the subject's fine run from the same noise. Use this for `solver=learned` where one checkpoint
    draws many images at a small fixed budget; on the shipped digits model the learned tableau is closer to the fine run
    than the closed forms at every budget from 5 to 20.

    All deterministic solvers whose rows of S sum to one have this form; it stays exact for constant eps
    (`Neighbourhood`). The descent (`descend`, steps from `linearise`, which only evaluates the model) begins at the
    best tableaus of `rank`: `starts` of them take `first` steps each on a third of the seeds, and the `finals` best on
    held-out seeds go on for `steps` or until these stop improving. The best of all is then polished: `polish` steps of
    Adam on all its weights, by exact derivatives of `batch` images (`adjoint.slope`) and at a rate that falls to zero,
    which helps where a network's roughness in the noise level misleads the descent; its end is taken unless it is worse
    on held-out seeds. On held-out seeds the tableau is never worse than the best closed form; since these seeds choose
    it, expect slightly less on others.

    A step costs about K^2 history / 2 evaluations of `derivatives` images and K of all; memory is that of about
    K^2 history states for each image of a batch. A step of the polish costs about 4 K evaluations of `batch` images; it
    takes memory for 3 K states of each and for the activations of one call.

    Attributes:
        budgets: NFE to learn tableaus for.
        families: solvers and schedules by name, from which the starts are chosen.
        starts: number of closed-form tableaus to begin at.
        finals: number of them that go on; descents end in different places, most so in few dimensions.
        first: steps from each of the starts.
        steps: steps from each of those that go on.
        derivatives: number of images in a step's derivatives, in turns if there are more; all of them decide whether
            the step is good. Half as many make a step twice as cheap and the tableau somewhat worse.
        history: number of estimates whose weights in a row are learned; older ones keep those of the start.
        ridge: penalty on theta^2 / 2 in units of the start's mean distance, for parameters that data do not determine.
        difference: length of the difference quotients, in units of the noise level; longer ones smooth a network
            that is rough in the noise level.
        polish: steps of Adam at the end; 0 for models that cannot be differentiated.
        batch: images of each of these steps.
        rate: rate of the first of these steps.

    Source: the idea of learning such coefficients is that of Shaul et al. (2024), Bespoke Non-Stationary Solvers,
    arXiv:2403.01329; the method here is its own. Adam: Kingma & Ba (2015), arXiv:1412.6980.

    Raises:
        InputError: for invalid budgets, counts below 1, or a rate, ridge or difference out of range.
    """

    budgets: Sequence[int]
    families: Families
    starts: int = 6
    finals: int = 1
    first: int = 2
    steps: int = 40
    derivatives: int = 512
    history: int = 8
    ridge: float = 1e-4
    difference: float = STEP
    polish: int = 200
    batch: int = 128
    rate: float = 0.01

    kind = "tableau"
    key = "solver.path"
    states = "trajectory"

    def __post_init__(self) -> None:
        check_budgets(self.budgets)
        for name in ("starts", "finals", "first", "steps", "derivatives", "history", "batch", "polish"):
            value, least = getattr(self, name), int(name != "polish")
            if not is_whole(value, least):
                raise InputError(f"calibration.{name}={value}: must be a whole number, at least {least}")
        for name, usual in (("rate", 0.01), ("difference", STEP)):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < 1):
                raise InputError(
                    f"calibration.{name}={value}: must be a number between 0 and 1; {usual} suits most models"
                )
        if not (is_number(self.ridge) and 0 <= self.ridge < math.inf):
            raise InputError(f"calibration.ridge={self.ridge}: must be a number, 0 or greater")

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """Return, for every budget K, `rho_K` (K + 1,) and `N_K` (K, K), and the distances on held-out seeds.

        These are `budgets` (B,); `start` and `learned`, the mean distances of the closed-form start and of the learned
        tableau, `start_error` and `learned_error`, their standard errors, and `ratio_of_medians`, all (B,) float64;
        and as text `starts` and `span`.

        Args:
            subject: its run is the fine one.
            progress: called with the images' worth of work done.

        Raises:
            InputError: for fewer than six seeds, or a budget that no solver can spend.
        """
        if len(subject.seeds) < 2 * HELD_OUT:
            raise InputError(f"seeds: {len(subject.seeds)} are too few to learn from and hold out; use 192 or more")
        pools = {nfe: _closed_forms(self.families, subject.span, nfe) for nfe in self.budgets}
        costs = {nfe: self._cost(subject, nfe, len(pool)) for nfe, pool in pools.items()}
        spent = float(len(subject.seeds) * subject.run.nfe)
        count_evaluations = _EvaluationProgress(progress, len(subject.seeds) / (spent + sum(costs.values())))
        groups = split_seeds(subject, fine_ends(subject, lambda images: count_evaluations(images * subject.run.nfe)))
        values: dict[str, Any] = {"budgets": torch.tensor(list(pools)), "starts": [], "span": subject.span}
        rows = []
        for nfe, pool in pools.items():
            start, learned = self._learn(groups, pool, count_evaluations)
            values |= {f"rho_{nfe}": learned.rho, f"N_{nfe}": learned.N}
            values["starts"].append(start.candidate.names[0])
            rows.append(_held_out_row(groups[1], start.candidate.tableau.unrolled(), learned))
            spent += costs[nfe]
            count_evaluations.reach(spent)
        return values | dict(zip(_ROW, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))

    def _cost(self, subject: Subject, nfe: int, count: int) -> float:
        """Return the evaluations that a budget takes at most."""
        steps = self.starts * self.first / FEWER + self.finals * self.steps
        last = cost(self._polish, nfe, len(subject.seeds) - len(subject.seeds) // HELD_OUT)
        return nfe * work(count, len(subject.seeds)) + steps * self._step_cost(subject, nfe) + last

    @property
    def _polish(self) -> Plan:
        return Plan(self.polish, self.batch, self.rate)

    def _step_cost(self, subject: Subject, nfe: int) -> float:
        turn = self._turn(subject, nfe * self.history)
        return nfe * (2 * len(subject.seeds) + turn * nfe * self.history / 2)

    def _turn(self, subject: Subject, parameters: int) -> int:
        """Return the number of images of a group."""
        needed = -(-NUMBERS * parameters // math.prod(subject.shape))
        return min(len(subject.seeds), max(self.derivatives, needed))

    def _learn(
        self, groups: tuple[SeedGroup, SeedGroup], pool: list[Candidate], count_evaluations: _EvaluationProgress
    ) -> tuple[Measurement, Tableau]:
        """Return the best closed-form start on the training seeds, and the learned tableau."""
        train, held = groups
        # 1. rank the closed forms; 2. a few steps from each start on few seeds; 3. the best of them go on; 4. polish
        ranked = rank(*train, pool, lambda images: count_evaluations(images * pool[0].tableau.nfe))
        starts = [entry.candidate.tableau.unrolled() for entry in ranked]
        few = train.select(torch.arange(-(-len(train.subject.seeds) // FEWER)))
        trials = [self._descend((few, held), start, self.first, count_evaluations) for start in starts[: self.starts]]
        finals = sorted(trials, key=_held_out)[: self.finals]
        further = [self._descend(groups, trial.tableau, self.steps, count_evaluations) for trial in finals]
        unchanged = Trial(starts[0], held.mean(starts[0]))
        best = min((unchanged, *trials, *further), key=_held_out)
        last = adam_polish(train, held, best, self._polish, count_evaluations)
        return ranked[0], (last if last.held_out <= unchanged.held_out else best).tableau

    def _descend(
        self, groups: tuple[SeedGroup, SeedGroup], start: Tableau, steps: int, count_evaluations: _EvaluationProgress
    ) -> Trial:
        """Return the best tableau on held-out seeds among the start and the steps from it."""
        train, held = groups
        near = Neighbourhood(start, self.history)
        theta = torch.zeros(near.size, dtype=torch.float64)
        ridge = self.ridge * train.mean(start)
        best, since = Trial(start, held.mean(start)), 0
        if not near.size:
            return best

        turns = cycle(train.groups(self._turn(train.subject, near.size)))

        def linear(theta: Tensor) -> Iterator[Linear]:
            return _linearise(next(turns), near, theta, self.difference)

        def distances(theta: Tensor) -> Tensor:
            return train.distances_near(near, theta)

        for step in descend(linear, distances, theta, ridge, steps):
            tableau = near(step.theta)
            trial = Trial(tableau, held.mean(tableau))
            since = 0 if trial.held_out < best.held_out else since + 1
            best = min(best, trial, key=_held_out)
            count_evaluations(self._step_cost(train.subject, start.nfe))
            if since == PATIENCE:
                break
        return best

    def summary(self, values: dict[str, Any]) -> str:
        """Return a line for each budget: held-out distance of the start and of the learned tableau."""
        lines = []
        for place, nfe in enumerate(values["budgets"].tolist()):
            before, error, after, left, median = (values[name][place] for name in _ROW)
            lines.append(
                f"NFE {nfe}: {' / '.join(values['starts'][place])} {before:.4g} +- {error:.1g} -> learned {after:.4g} "
                f"+- {left:.1g} on held-out noise, ratio of means {after / before:.2f}, of medians {median:.2f}"
            )
        return "\n".join(lines)

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule | None = None) -> None:
        """Plot the held-out distances, and the learned levels."""
        values, budgets = record.values, record.values["budgets"].tolist()
        with figure(path, 1, 2, figsize=(10, 4)) as (_, (left, right)):
            for name, label in (("start", "best closed form"), ("learned", "learned")):
                left.errorbar(budgets, values[name], values[f"{name}_error"], label=label, marker="o", capsize=3)
            left.set(xlabel="NFE", ylabel="RMS distance to the fine run, held-out noise", yscale="log")
            left.legend()
            for nfe in budgets:
                rho = values[f"rho_{nfe}"]
                right.plot([nfe] * len(rho), rho, "o", markersize=3)
            right.set(xlabel="NFE", ylabel="learned noise levels", yscale="log")


_ROW = ("start", "start_error", "learned", "learned_error", "ratio_of_medians")


def _closed_forms(families: Families, span: tuple[float, float], nfe: int) -> list[Candidate]:
    """Return the `candidates` that end where the subject's run does, without tableaus learned before.

    Raises:
        InputError: if nothing is left.
    """
    solvers = {name: solver for name, solver in families.solvers.items() if not hasattr(solver, "own_levels")}
    pool = candidates(Families(solvers, families.schedules), span, nfe)
    kept = [each for each in pool if math.isclose(float(each.tableau.rho[-1]), span[1], rel_tol=SAME)]
    if not kept:
        raise InputError(
            f"nfe={nfe}: no tableau of calibration.solvers ends at sigma_min={span[1]:.6g}; name others, or all"
        )
    return kept


@torch.inference_mode()
def _linearise(group: SeedGroup, near: Neighbourhood, theta: Tensor, difference: float) -> Iterator[Linear]:
    """Yield the residuals of the run's ends and their derivatives by theta, batch by batch."""
    subject = group.subject
    with torch.inference_mode(False):
        tableau, slopes = near(theta), near.slopes(theta)
    for part, end in zip(subject.batches(), torch.split(group.ends.noisy, subject.batch_size), strict=True):
        eps, x = start_of(subject, part)
        x, d_x = linearise(eps, x, tableau, slopes, difference)
        yield Linear((x - end.to(x.device)).flatten(1), d_x.flatten(2))


def _held_out_row(held: SeedGroup, start: Tableau, learned: Tableau) -> list[float]:
    before, after = (held.distances(tableau) for tableau in (start, learned))
    root = len(before) ** 0.5
    ratio = float(after.median() / before.median())
    return [*(float(v) for d in (before, after) for v in (d.mean(), d.std() / root)), ratio]
