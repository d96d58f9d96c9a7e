"""`calibration=score_optimal`: the cumulative length of a model's score, the measure of score-optimal steps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.score_cost import corrector, predictor, predictor_probed
from scoreline.calibration.subject import Part, Subject
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.runtime import seeded_noise
from scoreline.sampling import Eps, Progress, trajectory
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.score_optimal import ScoreOptimal
from scoreline.schedules.spacings import LogSNR
from scoreline.storage.figures import COLUMN, figure, plain_ticks
from scoreline.values import check_choice

WEIGHTS = {"destination": 0.0, "geometric": 0.5, "source": 1.0}
"""The point between the two levels of a step, in ln rho, of the velocity v; the published one is the destination."""

EXPONENTS = {"corrector": 0.5, "predictor": 0.25}
"""The power p of a cost: costs that fall as h^2 or h^4 with the step h add up to a length independent of the levels."""

STATES = ("noised", "trajectory")
"""The states at which costs are measured: noised images, or those of the model's own run."""

FLOOR = 1e-12
"""Least cost of a step, as a share of the largest, so that lengths increase."""

EXACT = 16
"""Entries per image up to which the predictor's cost is exact; beyond, it is probed."""

PROBES = 4
"""Probes in each of the two factors of a probed cost."""

CONVERGED = 0.05
"""Greatest spread of the steps' lengths, and greatest change of sigma_1 / sigma_min, of a converged schedule."""


class Images(NamedTuple):
    """A batch of clean images x_0 (B, C, H, W) with their seeds and labels."""

    seeds: list[int]
    clean: Tensor
    label: Tensor | None


@dataclass(frozen=True)
class CumulativeLength:
    """Measure Lambda(rho_k) = sum_{j<k} L_j^p, L_j = v^2 E|..|^2 the cost (`score_cost`) of the step to rho_j.

    Use this for `schedule=score_optimal`.

    Noised states are x_0 + rho eps. x_0 are real images if the subject has data, else images that the model draws (the
    subject's run, ended by the denoiser's mean); eps is the same at all levels, so that noise cancels between
    neighbours. Costs are averaged over the images before the power is taken. The first pass measures even steps in
    ln rho; each further one moves the levels towards equal costs. A last measurement, at levels of equal length and
    with fresh noise, shows how equal they are, and how another pass would move them.

    States on the trajectory are those of the run itself, at the levels that it evaluates and its end. The score that
    the run has computed there is used again, so a step costs one evaluation more. They need no assumption that the
    run's states are distributed as noised images; the last measurement, of noised states, checks that too.

    Many passes with few levels and the published weight collapse: the last step is nearly free where data are smooth
    at sigma_min, so it grows at every pass. Prefer many levels and one pass.

    Attributes:
        cost: `corrector`, two evaluations a step, p = 1/2; or `predictor` (an Euler step), p = 1/4 because this cost
            falls as h^4 for exact scores. It takes two evaluations, and d backward passes and a second derivative
            through each for images of d <= 16 entries; beyond, eight second derivatives and some 50 backward passes at
            40 levels, whatever d. The noise of their probes grows with the number of levels: use 20 to 40.
        levels: number of noise levels, both ends included.
        velocity: v = rho^velocity; 1 is the published one, 0 leaves the work unscaled.
        weight: v^2 of a step is that of its `destination`, of its `source`, or the `geometric` mean.
        passes: number of measurements that move the levels, the first one included.
        damping: share in (0, 1] of the way, in ln rho, that levels go in a further pass.
        states: `noised`, or `trajectory`, which measures the levels of the run in place of `levels`.

    Source: Williams et al. (2024), arXiv:2412.07877, Sec. 3 and Algorithm 1 (PCHIP there, linear in ln rho here).

    Raises:
        InputError: for an unknown cost, weight or kind of states, fewer than 3 levels, no pass, damping outside
            (0, 1], or several passes or the predictor's cost on the trajectory.
    """

    kind = "score_optimal"
    key = "schedule.path"

    cost: str = "corrector"
    levels: int = 200
    velocity: float = 1.0
    weight: str = "destination"
    passes: int = 1
    damping: float = 1.0
    states: str = "noised"

    def __post_init__(self) -> None:
        for name, known in (("cost", EXPONENTS), ("weight", WEIGHTS), ("states", STATES)):
            check_choice(f"calibration.{name}", known, getattr(self, name))
        self._check_numbers()
        if self.states == "trajectory" and (self.cost, self.passes) != ("corrector", 1):
            raise InputError(
                f"calibration.states=trajectory: measures a run's own levels once, the corrector's cost only, not "
                f"cost={self.cost} passes={self.passes}; use calibration.cost=corrector calibration.passes=1"
            )

    def _check_numbers(self) -> None:
        if self.levels < 3:
            raise InputError(f"calibration.levels={self.levels}: a length needs 3 noise levels or more; 200 is usual")
        if self.passes < 1:
            raise InputError(f"calibration.passes={self.passes}: at least one pass measures; use calibration.passes=1")
        if not 0 < self.damping <= 1:
            raise InputError(f"calibration.damping={self.damping:g}: choose 0 < damping <= 1; 1 is undamped")

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Tensor]:
        """Return tensors `rho`, `length`, `standard_error` (K,), `cost` (K - 1,); `spread`, `lowest`, `change`.

        `rho` increases and `length` starts at 0; the standard error is that over images, whose steps are correlated.
        The others have one entry for each measurement: `spread` is the standard deviation of L^p over its mean, without
        the lowest step; `lowest` is sigma_1 / sigma_min of K levels of equal length; `change` is max |d ln rho| of ten
        steps' levels between one measurement and the next. All are float64.

        Args:
            subject: its run draws the images and sets the ends of the range.
            progress: called with the images' worth of work done.

        Raises:
            InputError: for fewer than two images, a run that ends at rho = 0 or data of another shape; for states on
                the trajectory also if the run's levels do not strictly decrease or data are given.
        """
        subject.check_seeds()
        if subject.span[1] <= 0:
            raise InputError("sigma_min=0: no score at noise level 0; choose sigma_min > 0, or leave the key out")
        subject.check_data(self.states)
        measure = self._on_trajectory if self.states == "trajectory" else self._noised
        measured = list(measure(subject, progress))
        chosen = measured[-2]  # the last measurement only checks this one
        equal = [equal_lengths(values["rho"], values["length"]) for values in measured]
        return {
            **chosen,
            "spread": torch.stack([spread_of(values["cost"] ** EXPONENTS[self.cost]) for values in measured]),
            "lowest": torch.stack([levels[1] / levels[0] for levels in equal]),
            "change": torch.stack([_change(one, two) for one, two in pairwise(measured)]),
        }

    def _noised(self, subject: Subject, progress: Progress) -> Iterator[dict[str, Tensor]]:
        """Yield the passes, and the measurement that checks the last of them (Algorithm 1)."""
        high, low = subject.span
        nfe = subject.run.nfe
        done = _share(progress, nfe + 2 * (self.levels - 1) * (self.passes + 1))
        images = list(_real(subject) if subject.data else _own(subject, lambda n: done(n * nfe)))
        rho = grid(LogSNR(), high, low, self.levels - 1).flip(0)
        for number in range(self.passes + 1):
            measured = self._accumulate(rho, self._measure(subject.denoiser, images, rho, number, done))
            yield measured
            rho = equal_lengths(rho, measured["length"], self.damping if number + 1 < self.passes else 1.0)

    def _on_trajectory(self, subject: Subject, progress: Progress) -> Iterator[dict[str, Tensor]]:
        """Yield the measurement of the run's own states, then that of noised ones, which checks it."""
        rho, done = _visited(subject), _share(progress, 4 * subject.run.nfe)
        walks = [self._walk(subject, part, done) for part in subject.batches()]
        measured = self._accumulate(rho, self._scaled(rho, torch.cat([costs for costs, _ in walks], dim=1)))
        yield measured
        rho = equal_lengths(rho, measured["length"])
        images = [image for _, image in walks]
        yield self._accumulate(rho, self._measure(subject.denoiser, images, rho, 1, done))

    @torch.no_grad()
    def _walk(self, subject: Subject, part: Part, done: Callable[[float], None]) -> tuple[Tensor, Images]:
        """Return the costs (K - 1, images) of the steps along a run, lowest first, and the images at its end."""
        model, costs = subject.eps(part.label), list[Tensor]()
        lower = dict(pairwise(_visited(subject).flip(0).tolist()))

        def eps(x: Tensor, level: float) -> Tensor:
            known = model(x, level)
            costs.append(corrector(lambda x, at: known if at == level else model(x, at), x, level, lower[level]))
            done(2.0 * len(x))
            return known

        x = subject.noise(part.seeds, "initial").double() * subject.run.initial_scale
        for state in trajectory(eps, x, subject.run, lambda k: subject.noise(part.seeds, "solver", k).double()):
            x = state.x
        return torch.stack(costs).flip(0).cpu(), _clean(subject.denoiser, x, part, subject.span[1])

    def _accumulate(self, rho: Tensor, per_image: Tensor) -> dict[str, Tensor]:
        """Return lengths and, by the delta method, their standard errors from the costs (K - 1, images)."""
        power, mean = EXPONENTS[self.cost], per_image.mean(1)
        if not float(mean.max()) > 0:
            raise InputError("calibration: no step has a positive cost; use more seeds, or fewer calibration.levels")
        cost = mean.clamp(min=FLOOR * float(mean.max()))
        # delta method: an image's share in sum_j L_j^p, whose scatter over images is the error of the length
        influence = power * cost[:, None] ** (power - 1) * (per_image - mean[:, None])
        error = influence.cumsum(0).std(1) / per_image.shape[1] ** 0.5
        length = (cost**power).cumsum(0)
        first = torch.zeros(1, dtype=torch.float64)
        return {
            "rho": rho,
            "length": torch.cat([first, length]),
            "standard_error": torch.cat([first, error]),
            "cost": cost,
        }

    def _measure(
        self, denoiser: Denoising, images: list[Images], rho: Tensor, number: int, done: Callable[[float], None]
    ) -> Tensor:
        """Return v^2 times the cost of every step for every image, (K - 1, images) float64."""
        parts = [torch.stack(list(self._steps(denoiser, batch, rho.tolist(), number, done))) for batch in images]
        return self._scaled(rho, torch.cat(parts, dim=1))

    def _scaled(self, rho: Tensor, costs: Tensor) -> Tensor:
        return velocity_squared(rho, self.velocity, self.weight)[:, None] * costs

    def _steps(
        self, denoiser: Denoising, images: Images, rho: list[float], number: int, done: Callable[[float], None]
    ) -> Iterator[Tensor]:
        device = denoiser.device
        clean = images.clean.to(device).double()
        fresh = seeded_noise.normal(images.seeds, tuple(clean.shape[1:]), "score_optimal", number).to(clean)

        def eps(x: Tensor, level: float) -> Tensor:
            return denoiser.eps(x, level, label=None if images.label is None else images.label.to(device))

        for place in range(len(rho) - 1):
            low, high = rho[place], rho[place + 1]
            yield self._one(eps, clean + high * fresh, (high, low), images.seeds, place).detach().cpu()
            done(2.0 * len(clean))

    def _one(self, eps: Eps, x: Tensor, step: tuple[float, float], seeds: list[int], place: int) -> Tensor:
        if self.cost == "corrector":
            with torch.no_grad():
                return corrector(eps, x, *step)
        if x[0].numel() <= EXACT:
            return predictor(eps, x, *step)
        signs = [_signs(seeds, x, 2 * PROBES * place + probe) for probe in range(2 * PROBES)]
        return predictor_probed(eps, x, *step, signs)

    def summary(self, values: dict[str, Tensor]) -> str:
        """Return two lines: the length and its error; whether the schedule has converged, and why."""
        length, error = float(values["length"][-1]), float(values["standard_error"][-1])
        spreads = " -> ".join(f"{100 * spread:.2g} %" for spread in values["spread"].tolist())
        changes = " -> ".join(f"{100 * change:.2g} %" for change in values["change"].tolist())
        before, after = values["lowest"].tolist()[-2:]
        return (
            f"length {length:.4g} +- {error:.1g}, spread of the steps' lengths {spreads}\n"
            f"{_verdict(float(values['spread'][-1]), after / before)}: sigma_1 / sigma_min {before:.4g}, {after:.4g} "
            f"on fresh noise; levels of ten steps move by {changes} from one measurement to the next"
        )

    def plot(self, record: Record, path: Path, noise_schedule: Schedule | None = None) -> None:
        """Plot the cumulative length with its standard error, and its density in ln rho, against rho."""
        rho, length, error = (record.values[name].numpy() for name in ("rho", "length", "standard_error"))
        density = record.values["length"].diff() / record.values["rho"].log().diff()
        with figure(path, 2, sharex=True, figsize=(COLUMN, 3.6)) as (_, (top, bottom)):
            top.fill_between(rho, length - error, length + error, alpha=0.3, label="standard error")
            top.semilogx(rho, length, label="length")
            top.set(ylabel="cumulative length", title=f"{record.provenance['images']} images")
            top.legend()
            bottom.step(rho[1:], density.numpy())
            bottom.set(xlabel="noise level rho", ylabel="length per ln rho")
            plain_ticks(bottom.xaxis)


def _verdict(spread: float, growth: float) -> str:
    """Judge by the growth of the last step too: in a collapse it is nearly free and grows, but the spread is small."""
    if spread >= CONVERGED:
        return f"not converged (spread {100 * spread:.2g} %, not below {100 * CONVERGED:g} %)"
    if abs(math.log(growth)) >= math.log1p(CONVERGED):
        moves = "grows" if growth > 1 else "shrinks"
        return f"not converged (costs are even, but the last step still {moves}, by a factor of {growth:.3g} a pass)"
    return "converged"


def velocity_squared(rho: Tensor, velocity: float, weight: str) -> Tensor:
    """Return v^2 = rho^(2 velocity) of the steps between neighbours of rho (K,), at the point of `weight`: (K - 1,)."""
    middle = torch.lerp(rho[:-1].log(), rho[1:].log(), WEIGHTS[weight])
    return (2 * velocity * middle).exp()


def _share(progress: Progress, work: float) -> Callable[[float], None]:
    """Convert evaluations to images, `work` evaluations each, and report them."""

    def done(evaluations: float) -> None:
        progress(evaluations / work)

    return done


def _visited(subject: Subject) -> Tensor:
    """Return the levels that a run evaluates, and its end, increasing."""
    run, levels = subject.run, subject.levels
    steady = len(levels) > 1 and bool((levels.diff() < 0).all()) and bool(levels[-1] > run.rho[-1])
    if not steady or run.query is not None:
        raise InputError(
            "solver: calibration.states=trajectory needs a run of strictly decreasing noise levels, nfe >= 2; "
            "use solver=deis_tab2"
        )
    return torch.cat([levels, run.rho[-1:]]).flip(0)


def _own(subject: Subject, progress: Progress) -> Iterator[Images]:
    """Yield images that the model draws."""
    for batch, part in zip(subject.samples(subject.run, progress), subject.batches(), strict=True):
        yield _clean(subject.denoiser, batch.x, part, subject.span[1])


def _real(subject: Subject) -> Iterator[Images]:
    """Yield images of the subject's data."""
    for part in subject.batches():
        clean, label = subject.real(part)
        yield Images(part.seeds, clean, label)


@torch.no_grad()
def _clean(denoiser: Denoising, x: Tensor, part: Part, rho: float) -> Images:
    """Return the denoiser's mean at the end of a run."""
    noisy, label = x.clone(), None if part.label is None else part.label.to(x.device)
    return Images(part.seeds, denoiser(noisy, rho, label=label).cpu(), part.label)


def _signs(seeds: list[int], x: Tensor, step: int) -> Tensor:
    return seeded_noise.normal(seeds, tuple(x.shape[1:]), "score_optimal_probe", step).sign().to(x)


def equal_lengths(rho: Tensor, length: Tensor, damping: float = 1.0) -> Tensor:
    """Return levels (K,) at equal lengths, or a share `damping` of the way there in ln rho; the ends stay."""
    even = grid(_schedule(rho, length), float(rho[-1]), float(rho[0]), len(rho) - 1).flip(0)
    levels = torch.lerp(rho.log(), even.log(), damping).exp()
    levels[0], levels[-1] = rho[0], rho[-1]
    return levels


def _schedule(rho: Tensor, length: Tensor) -> ScoreOptimal:
    return ScoreOptimal(tuple(rho.tolist()), tuple(length.tolist()))


def _change(one: dict[str, Tensor], two: dict[str, Tensor]) -> Tensor:
    """Return max |d ln rho| over the ten steps' levels of two measurements."""
    ends = float(one["rho"][-1]), float(one["rho"][0])
    first, second = (grid(_schedule(values["rho"], values["length"]), *ends, 10) for values in (one, two))
    return (first.log() - second.log()).abs().max()


def spread_of(lengths: Tensor) -> Tensor:
    """Return standard deviation / mean, without the lowest step, which is cheap at any width where data are smooth."""
    return lengths[1:].std() / lengths[1:].mean()
