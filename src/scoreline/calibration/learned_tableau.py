"""A table learned for one model and NFE: the nodes and weights that come closest to its own fine run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.halves import HELD_OUT, Half, Learned, beginning, halves
from scoreline.calibration.least_distance import Linear, descend
from scoreline.calibration.linearisation import STEP, linearise
from scoreline.calibration.neighbourhood import Neighbourhood
from scoreline.calibration.polish import Plan, cost
from scoreline.calibration.polish import polish as polished
from scoreline.calibration.ranking import Candidate, Families, Ranked, candidates, rank, work
from scoreline.calibration.record import Record
from scoreline.calibration.search import check_budgets
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.tabulated import SAME
from scoreline.solvers.tableau import Tableau

NUMBERS = 40
"""Residuals for each parameter, at least, from which the derivatives of a step are taken."""

FEWER = 3
"""The first third of the training seeds serves to try the starts."""

PATIENCE = 8
"""Steps without a better held-out distance after which a descent stops."""


def _held_out(learned: Learned) -> float:
    return learned.held_out


class _Told:
    """Progress in evaluations, of which there may turn out to be fewer than planned."""

    def __init__(self, progress: Progress, images_per_evaluation: float) -> None:
        self.progress, self.unit, self.done = progress, images_per_evaluation, 0.0

    def __call__(self, evaluations: float) -> None:
        self.done += evaluations
        self.progress(evaluations * self.unit)

    def reach(self, evaluations: float) -> None:
        """What was not needed counts as done."""
        self(evaluations - self.done)


@dataclass(frozen=True)
class LearnedTableau:
    """For every budget K, rho_1 .. rho_{K-1} and N of x_{k+1} = x_k + sum_{j<=k} N_kj eps_j that minimise

        mean over seeds of sqrt(mean over channels and pixels of (x_K - x_fine)^2),

    x_fine the end of the subject's fine run from the same noise. All deterministic solvers whose rows of S sum to one
    have this form; it stays exact for constant eps (`Neighbourhood`). The descent (`descend`, steps from `linearise`:
    evaluations of the model only) begins at the best tables of `rank`: `starts` of them take `first` steps each on a
    third of the seeds, and the `finals` best on held-out seeds go on for `steps` or until these stop improving. The
    best of all is then polished: `polish` steps of Adam on all its weights, by exact derivatives of `batch` images
    (`adjoint.slope`) and at a rate that falls to zero, which get past what misleads the descent on a network that is
    rough in the noise level; its end is taken unless held-out seeds tell that it is worse. On held-out seeds the table
    is never worse than the best closed form; since these seeds choose it, expect slightly less on others.

    A step costs about K^2 history / 2 evaluations of `derivatives` images and K of all; memory is that of about
    K^2 history states for each image of a batch. A step of the polish costs about 4 K evaluations of `batch` images; it
    takes memory for 3 K states of each and for what the network keeps for the derivative of one call.

    Attributes:
        budgets: NFE to learn tables for.
        families: solvers and schedules by name, from which the starts are chosen.
        starts: closed-form tables to begin at.
        finals: how many of them go on; descents end in different places, most so in few dimensions.
        first: steps from each of the starts.
        steps: steps from each of those that go on.
        derivatives: images from which a step's derivatives are taken, in turns if there are more; all of them say
            whether the step is good. Half as many make a step twice as cheap and the table somewhat worse.
        history: estimates that a row may change the weights of; older ones keep those of the start.
        ridge: penalty on theta^2 / 2 in units of the start's mean distance, which holds what data do not decide.
        difference: length of the differences that derivatives are taken by, in units of the noise level; longer ones
            smooth a network that is rough in the noise level.
        polish, batch, rate: steps of Adam at the end (0: none, for models that cannot be differentiated), images of
            each, and its first rate.

    Source: the idea of learning such coefficients is that of Shaul et al. (2024), Bespoke Non-Stationary Solvers,
    arXiv:2403.01329; the method here is its own. Adam: Kingma & Ba (2015), arXiv:1412.6980.

    Raises:
        InputError: for budgets that are none, or counts below 1.
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
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"calibration.{name}={value}: must be a whole number, at least {least}")
        rate: Any = self.rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise InputError(f"calibration.rate={rate}: must be a number between 0 and 1; 0.01 suits most models")
        ridge: Any = self.ridge
        if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
            raise InputError(f"calibration.ridge={self.ridge}: must be a number, 0 or greater")
        length: Any = self.difference
        if isinstance(length, bool) or not isinstance(length, int | float) or not 0 < length < 1:
            raise InputError(
                f"calibration.difference={length}: must be a number between 0 and 1; 0.003 suits most models"
            )

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """For every budget K: `rho_K` (K + 1,), `N_K` (K, K); and what was reached on held-out seeds.

        `budgets` (B,); `start`, `learned` mean distances of the closed-form start and of the table, `start_error`,
        `learned_error` their standard errors, `ratio_of_medians`, (B,) float64; `starts`, `span`: text.

        Raises:
            InputError: for fewer than six seeds, or a budget that no solver can spend.
        """
        if len(subject.seeds) < 2 * HELD_OUT:
            raise InputError(f"seeds: {len(subject.seeds)} are too few to learn from and hold out; use 192 or more")
        found = {nfe: _closed_forms(self.families, subject.span, nfe) for nfe in self.budgets}
        costs = {nfe: self._cost(subject, nfe, len(each)) for nfe, each in found.items()}
        spent = float(len(subject.seeds) * subject.run.nfe)
        told = _Told(progress, len(subject.seeds) / (spent + sum(costs.values())))
        both = halves(subject, fine_ends(subject, lambda images: told(images * subject.run.nfe)))
        values: dict[str, Any] = {"budgets": torch.tensor(list(found)), "starts": [], "span": subject.span}
        rows = []
        for nfe, each in found.items():
            start, learned = self._learn(both, each, told)
            values |= {f"rho_{nfe}": learned.rho, f"N_{nfe}": learned.N}
            values["starts"].append(start.candidate.names[0])
            rows.append(_reached(both[1], start.candidate.table.unrolled(), learned))
            spent += costs[nfe]
            told.reach(spent)
        return values | dict(zip(_ROW, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))

    def _cost(self, subject: Subject, nfe: int, count: int) -> float:
        """Evaluations that a budget takes at most."""
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
        """Images of a group."""
        needed = -(-NUMBERS * parameters // math.prod(subject.shape))
        return min(len(subject.seeds), max(self.derivatives, needed))

    def _learn(self, both: tuple[Half, Half], found: list[Candidate], told: "_Told") -> tuple[Ranked, Tableau]:
        """The best closed-form start on the seeds that train, and the table."""
        train, held = both
        ranked = rank(*train, found, lambda images: told(images * found[0].table.nfe))
        starts = [entry.candidate.table.unrolled() for entry in ranked]
        few = train.selected(torch.arange(-(-len(train.subject.seeds) // FEWER)))
        begun = [self._descend((few, held), start, self.first, told) for start in starts[: self.starts]]
        finals = sorted(begun, key=_held_out)[: self.finals]
        further = [self._descend(both, each.table, self.steps, told) for each in finals]
        unchanged = Learned(starts[0], held.mean(starts[0]))
        best = min((unchanged, *begun, *further), key=_held_out)
        last = polished(train, held, best, self._polish, told)
        return ranked[0], (last if last.held_out <= unchanged.held_out else best).table

    def _descend(self, both: tuple[Half, Half], start: Tableau, steps: int, told: "_Told") -> Learned:
        """The best table on held-out seeds among the start and the steps from it."""
        train, held = both
        near = Neighbourhood(start, self.history)
        theta = torch.zeros(near.size, dtype=torch.float64)
        ridge = self.ridge * train.mean(start)
        best, since = Learned(start, held.mean(start)), 0
        if not near.size:
            return best

        groups = cycle(train.groups(self._turn(train.subject, near.size)))

        def linear(theta: Tensor) -> Iterator[Linear]:
            return _linearised(next(groups), near, theta, self.difference)

        def reached(theta: Tensor) -> Tensor:
            return train.distances_near(near, theta)

        for step in descend(linear, reached, theta, ridge, steps):
            table = near(step.theta)
            found = Learned(table, held.mean(table))
            since = 0 if found.held_out < best.held_out else since + 1
            best = min(best, found, key=_held_out)
            told(self._step_cost(train.subject, start.nfe))
            if since == PATIENCE:
                break
        return best

    def summary(self, values: dict[str, Any]) -> str:
        """Held-out distance of the start and of the table at every budget."""
        lines = []
        for place, nfe in enumerate(values["budgets"].tolist()):
            before, error, after, left, median = (values[name][place] for name in _ROW)
            lines.append(
                f"NFE {nfe}: {' / '.join(values['starts'][place])} {before:.4g} +- {error:.1g} -> learned {after:.4g} "
                f"+- {left:.1g} on held-out noise, ratio of means {after / before:.2f}, of medians {median:.2f}"
            )
        return "\n".join(lines)

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule | None = None) -> None:
        """Held-out distances, and the learned levels."""
        _plot(record, path)


_ROW = ("start", "start_error", "learned", "learned_error", "ratio_of_medians")


def _closed_forms(families: Families, span: tuple[float, float], nfe: int) -> list[Candidate]:
    """`candidates` that end where the subject's run does, without tables that were learned before.

    Raises:
        InputError: if nothing is left.
    """
    solvers = {name: solver for name, solver in families.solvers.items() if not hasattr(solver, "own_levels")}
    found = candidates(Families(solvers, families.schedules), span, nfe)
    kept = [each for each in found if math.isclose(float(each.table.rho[-1]), span[1], rel_tol=SAME)]
    if not kept:
        raise InputError(
            f"nfe={nfe}: no table of calibration.solvers ends at sigma_min={span[1]:.6g}; name others, or all"
        )
    return kept


@torch.inference_mode()
def _linearised(half: Half, near: Neighbourhood, theta: Tensor, difference: float) -> Iterator[Linear]:
    """Residuals of the run's ends, and how they change with theta, batch by batch."""
    subject = half.subject
    with torch.inference_mode(False):
        table, slopes = near(theta), near.slopes(theta)
    for part, end in zip(subject.batches(), torch.split(half.ends.noisy, subject.batch_size), strict=True):
        eps, x = beginning(subject, part)
        x, moved = linearise(eps, x, table, slopes, difference)
        yield Linear((x - end.to(x.device)).flatten(1), moved.flatten(2))


def _reached(held: Half, start: Tableau, learned: Tableau) -> list[float]:
    before, after = (held.distances(table) for table in (start, learned))
    root = len(before) ** 0.5
    ratio = float(after.median() / before.median())
    return [*(float(v) for d in (before, after) for v in (d.mean(), d.std() / root)), ratio]


def _plot(record: Record, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values, budgets = record.values, record.values["budgets"].tolist()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, label in (("start", "best closed form"), ("learned", "learned")):
        left.errorbar(budgets, values[name], values[f"{name}_error"], label=label, marker="o", capsize=3)
    left.set(xlabel="NFE", ylabel="RMS distance to the fine run, held-out noise", yscale="log")
    left.legend()
    for nfe in budgets:
        rho = values[f"rho_{nfe}"]
        right.plot([nfe] * len(rho), rho, "o", markersize=3)
    right.set(xlabel="NFE", ylabel="learned noise levels", yscale="log")
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
