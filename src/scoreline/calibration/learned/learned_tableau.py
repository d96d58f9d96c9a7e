"""`calibration=tableau`: a tableau learned for one model and NFE, the one that comes closest to its own fine run."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.distances import fine_ends, fine_work
from scoreline.calibration.learned.curve import Curve
from scoreline.calibration.learned.descent import BACKWARDS, LINKS, Plan, Turn, descend
from scoreline.calibration.learned.family import Family, Fixed, Free, decreasing, theory_of
from scoreline.calibration.learned.losses import Loss, SoftTarget, distance
from scoreline.calibration.learned.seed_groups import HELD_OUT, SeedGroup, split_seeds
from scoreline.calibration.learned.tableau_record import TableauEstimator, budget_line, found_tableau, record_values
from scoreline.calibration.ranking import Candidate, Families, candidates, place_of, rank, work
from scoreline.calibration.search import check_budgets
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.runtime.device import free_memory
from scoreline.sampling import Progress
from scoreline.schedules.tabulated import SAME
from scoreline.solvers.tableau import Solver, Tableau
from scoreline.storage.resumable import Parts, Tensors
from scoreline.values import is_number, is_whole

RANKED_ON = 64
"""Images that rank the closed forms: their order matters less than that the first ones are good."""

SHORT = 5
"""NFE up to which the rate holds; beyond, it falls as NFE^-1.5, since closed forms are ever nearer to the best."""

TRIALS = 0.2
"""Share of the evaluations that goes to short trials of all starts, where there are several."""

GIGABYTE = 1e9

SHARE = 0.5
"""Share of the free memory that a step's activations may take where `memory` is None."""

UNKNOWN = 0.5
"""Gigabytes of it where the system does not report what is free."""

RANKING, TRIAL, DESCENT, CURVE = "ranking_{}", "trial_{}_{}", "descent_{}", "curve_descent"
"""Folders of the parts that one process keeps: of a budget, of a budget and a start, and of all budgets."""

Groups = tuple[SeedGroup, SeedGroup]
"""Seeds that train, and seeds held out."""

Pools = Mapping[int, list[Candidate]]
"""The closed forms of each budget."""


class Start(NamedTuple):
    """A closed form with its names, and the family around it."""

    names: tuple[str, str]
    family: Family


class _EvaluationProgress:
    """Progress in evaluations, of which there may be fewer than planned."""

    def __init__(self, progress: Progress, images: int, planned: float) -> None:
        self.progress, self.unit, self.done = progress, images / max(planned, 1.0), 0.0
        self.left = float(images)

    def __call__(self, evaluations: float) -> None:
        self.done += evaluations
        self.left -= evaluations * self.unit
        self.progress(evaluations * self.unit)

    def reach(self, evaluations: float) -> None:
        """Count evaluations that were not needed as done."""
        self(evaluations - self.done)

    def finish(self) -> None:
        """Report all images as done."""
        self.progress(max(self.left, 0.0))


@dataclass(frozen=True)
class LearnedTableau(TableauEstimator):
    """Learn, for every budget K, the levels rho_k, query levels q_k and weights W of

        y_{k+1} = y_k + sum_{j<=k} W_kj F(x_j, q_j),    y = x / a(rho),

    in the frame of a closed form (`frames`) that minimise the mean over seeds of a loss of the run's end, by default
    its distance sqrt(mean over channels and pixels of (x_K - x_fine)^2), x_fine the end of the subject's fine run from
    the same noise. Use this for `solver=learned` where one checkpoint draws many images at a small fixed budget.

    Every deterministic linear method has this form. Weights are corrections to a closed form, which is recomputed as
    levels move (`Family`). The closed forms are ranked on a few images; short trials begin at the best `starts` of
    them, one of each frame first, the best of these on held-out seeds goes on (`descend`, by the exact derivatives of
    `adjoint.slope`), and its end is taken unless the best closed form is better on held-out seeds. On these it is never
    worse; since they choose it, expect slightly less on others.

    An evaluation with its derivative costs about 2.5 without. Memory is that of 3 K states of each image of a step, of
    the activations of one call, and of `memory` more.

    Attributes:
        budgets: NFE to learn tableaus for; several processes learn different ones.
        families: solvers and schedules by name, from which the starts are chosen.
        sigma_data: s in the coordinate of the levels, arctan(rho / s), of the size of the data's deviation.
        curve: whether all budgets share one set of curves (`Curve`), which any number of budgets can be drawn from.
        nodes: whether levels are learned.
        query: whether the levels that the network is given are learned apart from those of the states.
        weights: whether weights are learned.
        history: latest slopes whose weights are learned, as in `Free`.
        rows: `free` or `bound`, as in `Free`.
        first_query: as in `Free`.
        moving: whether the closed form is recomputed as levels move; else its weights are in proportion to the steps.
        loss: the loss, such as `FeatureDistance`; None is the distance.
        radius: of the ball round the noise within which a start is as good as the noise itself (`SoftTarget`).
        starts: number of closed forms to begin at.
        evaluations: calls, with their derivatives, that the steps of a budget take: images of a step times its NFE,
            summed over the steps.
        batch: images of each step, in turns.
        rate: largest rate of the steps, up to NFE 5; beyond, it falls as NFE^-1.5.
        memory: gigabytes of activations that a step may keep instead of repeating calls, which costs 1.5 times as long;
            None is half of what is free.

    Source: the idea of learning such coefficients is that of Shaul et al. (2024), Bespoke Non-Stationary Solvers,
    arXiv:2403.01329; query levels apart from the states' are in LD3 (Tong et al., 2024, arXiv:2405.15506) and GS
    (arXiv:2510.17699), corrections to a closed form in the latter. The frame and the method here are its own.

    Raises:
        InputError: for invalid budgets, counts below 1, or a number out of range.
    """

    budgets: Sequence[int]
    families: Families
    sigma_data: float = 0.5
    curve: bool = False
    nodes: bool = True
    query: bool = True
    weights: bool = True
    history: int | None = None
    rows: str = "free"
    moving: bool = True
    loss: Loss | None = None
    radius: float = 0.0
    starts: int = 2
    evaluations: int = 55_000
    batch: int = 24
    rate: float = 0.05
    memory: float | None = None
    first_query: bool = True

    def __post_init__(self) -> None:
        check_budgets(self.budgets)
        SoftTarget(self.radius), self._free
        for name in ("starts", "evaluations", "batch"):
            value = getattr(self, name)
            if not is_whole(value, 1):
                raise InputError(f"calibration.{name}={value}: must be a whole number, at least 1")
        if not (is_number(self.rate) and 0 < self.rate < 1):
            raise InputError(f"calibration.rate={self.rate}: must be a number between 0 and 1; 0.05 suits most models")
        memory = 0.0 if self.memory is None else self.memory
        for name, value, least in (
            ("sigma_data", self.sigma_data, "greater than 0"),
            ("memory", memory, "0 or greater"),
        ):
            if not (is_number(value) and 0 <= value < math.inf and (value > 0 or name == "memory")):
                raise InputError(f"calibration.{name}={value}: must be a number, {least}")

    @property
    def _free(self) -> Free:
        return Free(self.nodes, self.query, self.weights, self.history, self.rows, self.first_query)

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """Return, for every budget K, the tableau and its distances on held-out seeds.

        These are `rho_K` (K + 1,), `N_K` (K, K), the weights of F_j in the frame, `query_K` (K,) if it is learned, and
        `sigma_data_K` (1,) in velocity prediction; `budgets` (B,); `start` and `learned`, the mean distances of the
        best closed form and of the learned tableau, `start_error` and `learned_error`, their standard errors, and
        `ratio_of_medians`, all (B,) float64; and as text `starts`, `span` and `seconds`, the processor time since the
        last start of this process.

        Args:
            subject: its run is the fine one.
            progress: called with the images' worth of work done.

        Raises:
            InputError: for fewer than six seeds, or a budget that no solver can spend.
        """
        if len(subject.seeds) < 2 * HELD_OUT:
            raise InputError(f"seeds: {len(subject.seeds)} are too few to learn from and hold out; use 192 or more")
        began = time.process_time()
        pools = {nfe: _closed_forms(self.families, subject.span, nfe) for nfe in self.budgets}
        parts = subject.budget_parts(len(pools))
        costs = self._curve_cost(subject, pools) if self.curve else self._costs(subject, pools, parts)
        count = _EvaluationProgress(progress, len(subject.seeds), fine_work(subject) + sum(costs.values()))
        groups = split_seeds(subject, fine_ends(subject, lambda images: count(images * subject.run.nfe)))
        learned = self._curve(groups, pools, count) if self.curve else self._apart(groups, pools, costs, count, parts)
        count.finish()
        values = record_values(pools, learned)
        return values | {"span": subject.span, "seconds": round(time.process_time() - began, 1)}

    def _costs(self, subject: Subject, pools: Pools, parts: Parts) -> dict[int, float]:
        """Return the evaluations that each budget still takes in this process."""
        missing = [list(pools)[number] for number in parts.missing(len(pools))]
        return {nfe: self._ranking(subject, pools, nfe) + self._steps(subject.parts, nfe) for nfe in missing}

    def _curve_cost(self, subject: Subject, pools: Pools) -> dict[int, float]:
        """Return the evaluations that each budget's share of the curve still takes in this process."""
        if not subject.parts.inside("curve").missing(1):
            return {}
        left = 1 - subject.parts.alone(CURVE).links(LINKS) / LINKS
        return {nfe: self._ranking(subject, pools, nfe) + left * self.evaluations * BACKWARDS for nfe in pools}

    def _ranking(self, subject: Subject, pools: Pools, nfe: int) -> float:
        """Return the evaluations that the ranking of a budget's closed forms still takes."""
        ranked = work(len(pools[nfe]), min(RANKED_ON, len(subject.seeds)))
        return nfe * ranked * len(subject.parts.alone(RANKING.format(nfe)).missing(1))

    def _steps(self, parts: Parts, nfe: int) -> float:
        """Return the evaluations that the steps of a budget still take."""
        shares = {TRIAL.format(nfe, start): TRIALS / self.starts for start in range(self.starts * (self.starts > 1))}
        shares[DESCENT.format(nfe)] = 1 - sum(shares.values())
        left = sum(share * (1 - parts.alone(name).links(LINKS) / LINKS) for name, share in shares.items())
        return self.evaluations * BACKWARDS * left

    def _plan(self, subject: Subject, share: float, nfe: float) -> Plan:
        """Return the plan that spends a share of the evaluations on tableaus of so many calls."""
        steps = max(1, round(share * self.evaluations / (self.batch * nfe)))
        rate = self.rate * min(1.0, SHORT / nfe) ** 1.5
        return Plan(steps, self.batch, rate, self.loss or distance, self._bytes(subject), self.radius)

    def _bytes(self, subject: Subject) -> float:
        """Return the memory of a step's activations, of which processes on one machine have equal parts."""
        if self.memory is not None:
            return self.memory * GIGABYTE
        free = free_memory(subject.device)
        return UNKNOWN * GIGABYTE if free is None else SHARE * free / subject.parts.size

    def _apart(
        self,
        groups: Groups,
        pools: Pools,
        costs: Mapping[int, float],
        count: _EvaluationProgress,
        parts: Parts,
    ) -> list[Tensors]:
        """Return what `_learn` finds for every budget; each is a part, so that processes share them."""
        subject, budgets = groups[0].subject, list(pools)

        def learn(number: int) -> Tensors:
            nfe, before = budgets[number], count.done
            found = self._learn(groups, nfe, pools[nfe], count)
            count.reach(before + costs[nfe])
            subject.report(budget_line(nfe, pools[nfe][int(found["start"])].names[0], found["row"].tolist()))
            return found

        return parts(len(budgets), learn)

    def _learn(self, groups: Groups, nfe: int, pool: list[Candidate], count: _EvaluationProgress) -> Tensors:
        """Return the learned tableau, and the number of the best closed form in the pool."""
        train, held = groups
        best, starts = self._starts(train, pool, count)
        if not starts:
            return self._found(held, pool, best, best.tableau.unrolled())
        trials = TRIALS * (len(starts) > 1)
        tried = [
            (start, self._descend(train, start, None, trials / len(starts), count, TRIAL.format(nfe, number)))
            for number, start in enumerate(starts)
        ]
        start, theta = min(tried, key=lambda trial: held.mean(trial[0].family(trial[1]), self.loss or distance))
        theta = self._descend(train, start, theta, 1 - trials, count, DESCENT.format(nfe))
        return self._found(held, pool, best, start.family(theta))

    def _descend(
        self, train: SeedGroup, start: Start, theta: Tensor | None, share: float, count: _EvaluationProgress, name: str
    ) -> Tensor:
        family, plan = start.family, self._plan(train.subject, share, start.family.start.nfe)
        theta = torch.zeros(family.size, dtype=torch.float64) if theta is None else theta
        if not (family.size and share):
            return theta
        return descend([Turn(family, 1.0)], theta, train, plan, count, train.subject.parts.alone(name))

    def _starts(
        self, train: SeedGroup, pool: list[Candidate], count: _EvaluationProgress
    ) -> tuple[Candidate, list[Start]]:
        """Return the best closed form, and the best ones that a family exists for: one of each frame, then others."""
        ranked = self._ranked(train, pool, count)
        usable = [each for each in ranked if decreasing(each.tableau.unrolled())]
        firsts = {each.tableau.frame: each for each in reversed(usable)}.values()
        usable.sort(key=lambda each: all(each is not first for first in firsts))
        return ranked[0], [
            Start(each.names[0], self.family(each.tableau, each.names[0][0])) for each in usable[: self.starts]
        ]

    def _ranked(self, train: SeedGroup, pool: list[Candidate], count: _EvaluationProgress) -> list[Candidate]:
        """Return the best closed forms on a few images, best first."""
        few, nfe = train.select(torch.arange(min(RANKED_ON, len(train.subject.seeds)))), pool[0].tableau.nfe

        def order(number: int) -> Tensors:
            ranked = rank(few.subject, few.ends, pool, lambda images: count(images * nfe))
            return {"places": torch.stack([place_of(pool, entry.candidate) for entry in ranked])}

        (part,) = train.subject.parts.alone(RANKING.format(nfe))(1, order)
        return [pool[place] for place in part["places"].tolist()]

    def family(self, run: Tableau, name: str) -> Family:
        """Return the family around the run of a solver of this name."""
        start = run.unrolled()
        solver: Solver = self.families.solvers[name]  # type: ignore[assignment]  # a candidate has a tableau
        theory = theory_of(solver, start) if self.moving else Fixed(start)
        return Family(start, theory, self._free, self.sigma_data)

    def _found(self, held: SeedGroup, pool: list[Candidate], closed: Candidate, learned: Tableau) -> Tensors:
        """Return the `found_tableau`, of the closed form itself if that is better on held-out seeds."""
        either = learned, closed.tableau.unrolled()
        return found_tableau(held, pool, closed, min(either, key=lambda each: held.mean(each, self.loss or distance)))

    def _curve(self, groups: Groups, pools: Pools, count: _EvaluationProgress) -> list[Tensors]:
        """Return what is found for every budget by one curve, which is a part: one process learns it."""

        def learn(number: int) -> Tensors:
            found = self._along(groups, pools, count)
            return {f"{nfe}/{name}": value for nfe, part in found.items() for name, value in part.items()}

        (part,) = groups[0].subject.parts.inside("curve")(1, learn)
        return [
            {name.removeprefix(f"{nfe}/"): value for name, value in part.items() if name.startswith(f"{nfe}/")}
            for nfe in pools
        ]

    def _along(self, groups: Groups, pools: Pools, count: _EvaluationProgress) -> dict[int, Tensors]:
        """Return the tableaus of one curve through all budgets, which take turns in its steps."""
        train, held = groups
        closed = {nfe: self._starts(train, pool, count) for nfe, pool in pools.items()}
        curve = Curve(self._shared(closed[sorted(pools)[len(pools) // 2]][1], pools))
        turns = [Turn(partial(curve, nfe=nfe), train.mean(each.start)) for nfe, each in curve.families.items()]
        plan = self._plan(train.subject, len(pools), sum(pools) / len(pools))
        zero = torch.zeros(curve.size, dtype=torch.float64)
        theta = descend(turns, zero, train, plan, count, train.subject.parts.alone(CURVE))
        return {nfe: self._found(held, pools[nfe], best, curve(theta, nfe)) for nfe, (best, _) in closed.items()}

    def _shared(self, starts: list[Start], pools: Pools) -> dict[int, Family]:
        """Return the families of one closed form at all budgets, the first of the starts that has them.

        Raises:
            InputError: if there is none.
        """
        for start in starts:
            found = {nfe: [each for each in pool if start.names in each.names] for nfe, pool in pools.items()}
            if all(each and decreasing(each[0].tableau.unrolled()) for each in found.values()):
                return {nfe: self.family(each[0].tableau, start.names[0]) for nfe, each in found.items()}
        raise InputError(
            f"calibration.budgets={list(pools)}: no solver has tableaus for all of them; use calibration.curve=false"
        )


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
