"""`calibration=gits`: the levels of a closed form chosen by dynamic programming among those of the fine run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned.seed_groups import split_seeds
from scoreline.calibration.learned.tableau_record import TableauEstimator, found_tableau, record_values
from scoreline.calibration.ranking import Candidate, Families
from scoreline.calibration.search import check_budgets
from scoreline.calibration.subject import Part, Subject
from scoreline.errors import InputError
from scoreline.sampling import Progress, trajectory
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.tableau import Tableau
from scoreline.values import is_number


@dataclass(frozen=True)
class GITS(TableauEstimator):
    """Choose the levels of a solver among those of the fine run, for every budget K, so that they minimise

        sum_k weight^k C(n_k, n_{k+1}),    C(i, j) = mean over images of d(x_i + (rho_j - rho_i) eps_i) - d(x_j),

    with n_0 = 0 and n_K the last level, x_i the states and eps_i the estimates of the fine run and d(x) the root mean
    square distance of x from the straight line through the ends of its run: what one Euler step adds to the deviation
    of the run from that line (`pairwise_costs`). Among all choices of K - 1 levels, `cheapest_path` finds the best.

    Nothing is learned but levels, by no derivative; use it where a network cannot be differentiated. `LearnedTableau`
    reaches smaller distances.

    Attributes:
        budgets: NFE to choose levels for, at most that of the fine run.
        families: one solver by name with one call a step, whose weights are computed on the chosen levels; and one
            schedule, on which the record compares it with the same solver.
        weight: of a step's cost in units of that of the step before it, as published.

    Source: Chen et al. (2024), arXiv:2405.11326, Sec. 4, and the authors' code for d, the weight, 60 steps of the fine
    run and 256 images.

    Raises:
        InputError: for invalid budgets, a weight that is not positive, or more than one solver or schedule.
    """

    budgets: Sequence[int]
    families: Families
    weight: float = 1.15

    def __post_init__(self) -> None:
        check_budgets(self.budgets)
        if not (is_number(self.weight) and 0 < self.weight < 10):
            raise InputError(f"calibration.weight={self.weight}: must be a number between 0 and 10; 1.15 is published")
        for name, found in (("solvers", self.families.solvers), ("schedules", self.families.schedules)):
            if len(found) != 1:
                raise InputError(f"calibration.{name}: GITS takes one, not {len(found)}; give a list of one name")

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """Return the tensors that `LearnedTableau` returns, with the solver on the schedule as their start.

        Args:
            subject: its run is the fine one.
            progress: called with the images' worth of work done.

        Raises:
            InputError: for a budget beyond that of the fine run, or one that the solver cannot spend.
        """
        began = time.process_time()
        train, held = split_seeds(subject, fine_ends(subject, lambda images: progress(images / 2)))
        costs = pairwise_costs(train.subject, lambda images: progress(images / 2))
        pools = {nfe: [self._start(subject.span, nfe)] for nfe in self.budgets}
        found = [found_tableau(held, pool, pool[0], self._chosen(costs, nfe)) for nfe, pool in pools.items()]
        values = record_values(pools, found)
        return values | {"span": subject.span, "seconds": round(time.process_time() - began, 1)}

    @property
    def _names(self) -> tuple[str, str]:
        return next(iter(self.families.solvers)), next(iter(self.families.schedules))

    def _start(self, span: tuple[float, float], nfe: int) -> Candidate:
        (schedule,) = self.families.schedules.values()
        return Candidate([self._names], self._tableau(schedule, span, nfe))

    def _chosen(self, costs: "Costs", nfe: int) -> Tableau:
        if nfe >= len(costs.rho):
            raise InputError(f"nfe={len(costs.rho) - 1}: the fine run has too few levels for NFE {nfe}; use nfe=60")
        levels = costs.rho[cheapest_path(costs.cost, nfe, self.weight)].tolist()
        return self._tableau(Tabulated(tuple(levels)), (levels[0], levels[-1]), nfe).unrolled()

    def _tableau(self, schedule: Schedule, span: tuple[float, float], nfe: int) -> Tableau:
        (solver,) = self.families.solvers.values()
        tableau, rho = solver(schedule, *span, nfe), grid(schedule, *span, nfe)
        if not isinstance(tableau, Tableau) or not torch.equal(tableau.unrolled().rho, rho):
            raise InputError(f"calibration.solvers={self._names[0]}: makes no {nfe} steps of one call; use ipndm4")
        return tableau


class Costs(NamedTuple):
    """Levels (P + 1,), and the cost of a step from level i to level j > i, else infinity, (P + 1, P + 1) float64."""

    rho: Tensor
    cost: Tensor


@torch.inference_mode()
def pairwise_costs(subject: Subject, progress: Progress = lambda images: None) -> Costs:
    """Return the costs C(i, j) of Euler steps between all levels of the subject's run, from its own states.

    A batch holds all states and estimates of its run at once.
    """
    rho = torch.cat([subject.levels, subject.run.rho[-1:]])
    cost = torch.zeros(len(rho), len(rho), dtype=torch.float64)
    for part in subject.batches():
        x, eps = _run(subject, part)
        along = (x[-1] - x[0]) / (x[-1] - x[0]).norm(dim=1, keepdim=True)
        own = _deviation(x, x[-1], along)
        for i in range(len(rho) - 1):
            reached = x[i] + (rho[i + 1 :] - rho[i]).to(x)[:, None, None] * eps[i]
            added = _deviation(reached, x[-1], along) - own[i + 1 :]
            cost[i, i + 1 :] += added.sum(1, dtype=torch.float64).cpu() / len(subject.seeds)
        progress(len(part.seeds))
    return Costs(rho, cost.masked_fill(torch.ones_like(cost, dtype=torch.bool).tril(), torch.inf))


def _deviation(x: Tensor, end: Tensor, along: Tensor) -> Tensor:
    """Return the root mean square distance of x (n, B, d) from lines through `end` with direction `along`, (n, B)."""
    off = end - x
    return (off - (off * along).sum(2, keepdim=True) * along).square().mean(2).sqrt()


def _run(subject: Subject, part: Part) -> tuple[Tensor, Tensor]:
    """Return the states x_0 .. x_P and estimates eps_0 .. eps_{P-1} of a batch, (P + 1, B, d) and (P, B, d)."""
    model = subject.eps(part.label)
    states, estimates = list[Tensor](), list[Tensor]()

    def eps(x: Tensor, rho: float) -> Tensor:
        states.append(x)
        estimates.append(model(x, rho))
        return estimates[-1]

    for state in trajectory(eps, subject.initial(part.seeds), subject.run):
        end = state.x
    return torch.stack([*states, end]).flatten(2), torch.stack(estimates).flatten(2)


def cheapest_path(cost: Tensor, steps: int, weight: float = 1.0) -> list[int]:
    """Return the numbers n_0 = 0 < n_1 < .. < n_K = P that minimise sum_k weight^k cost[n_k, n_{k+1}].

    The best rest of a path from i in k steps, V_k(i) = min_j cost[i, j] + weight V_{k-1}(j), takes O(K P^2) sums.

    Args:
        cost: (P + 1, P + 1) float64, infinite unless j > i.
        steps: K, at most P.
        weight: of a step's cost in units of that of the step before it.

    Source: Bellman (1957), Dynamic Programming.
    """
    rest, choices = cost[:, -1], list[Tensor]()
    for _ in range(steps - 1):
        rest, best = (cost + weight * rest).min(1)
        choices.append(best)
    path = [0]
    for best in reversed(choices):
        path.append(int(best[path[-1]]))
    return [*path, len(cost) - 1]
