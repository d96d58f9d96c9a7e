"""The cumulative length of a model's score along the noise levels: the measure of score-optimal steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline import noise
from scoreline.calibration.record import Record
from scoreline.calibration.score_cost import corrector, predictor, predictor_probed
from scoreline.calibration.subject import Part, Subject
from scoreline.denoiser import Denoising
from scoreline.errors import InputError, did_you_mean
from scoreline.sampling import Eps, Progress
from scoreline.schedules.base import grid
from scoreline.schedules.score_optimal import ScoreOptimal
from scoreline.schedules.spacings import LogSNR

WEIGHTS = {"destination": 0.0, "geometric": 0.5, "source": 1.0}
"""Where between the two levels of a step, in ln rho, the velocity v is taken; the published one is the destination."""

EXPONENTS = {"corrector": 0.5, "predictor": 0.25}
"""Costs that fall as h^2 or h^4 with the step h add up to a length that does not depend on the levels measured."""

FLOOR = 1e-12
"""Of the largest cost: least cost of a step, so that lengths increase."""

EXACT = 16
"""Entries per image up to which the predictor's cost is exact; beyond it is probed."""


class Images(NamedTuple):
    """A batch of clean images x_0 (B, C, H, W) with the seeds and labels that they were drawn with."""

    seeds: list[int]
    clean: Tensor
    label: Tensor | None


@dataclass(frozen=True)
class CumulativeLength:
    """Lambda(rho_k) = sum_{j<k} L_j^p, L_j = v^2 E|..|^2 the cost of the step from rho_{j+1} to rho_j.

    States are x_0 + rho eps: x_0 images that the model itself draws (the tableau's run, ended by the denoiser's mean),
    eps the same at all levels, so that noise cancels between neighbours. Costs are averaged over the images before the
    power is taken. The first pass measures even steps in ln rho; each further one moves the levels towards equal
    costs. One last measurement, at levels of equal length and with fresh noise, only tells how equal they came out.

    Many passes with few levels and the published weight collapse: the last step is nearly free where data are smooth
    at sigma_min, so it grows at every pass. Prefer many levels, one pass.

    Attributes:
        cost: `corrector`, two evaluations a step, p = 1/2; or `predictor` (an Euler step), two and several
            derivatives, p = 1/4 because this cost falls as h^4 for exact scores. Derivatives of float32 networks are
            noisy for close levels: use about 40.
        levels: noise levels, both ends included.
        velocity: v = rho^velocity; 1 is the published one, 0 leaves the work unscaled.
        weight: v^2 of a step is that of its `destination`, of its `source`, or the `geometric` mean.
        passes: measurements that move the levels, the first one included.
        damping: share in (0, 1] of the way, in ln rho, that levels go in a further pass.

    Source: Williams et al. (2024), arXiv:2412.07877, Sec. 3 and Algorithm 1 (PCHIP there, linear in ln rho here).

    Raises:
        InputError: for an unknown cost or weight, fewer than 3 levels, no pass, or damping outside (0, 1].
    """

    kind = "score_optimal"
    key = "schedule.path"

    cost: str = "corrector"
    levels: int = 200
    velocity: float = 1.0
    weight: str = "destination"
    passes: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (("cost", self.cost, EXPONENTS), ("weight", self.weight, WEIGHTS)):
            if value not in known:
                raise InputError(f"calibration.{name}={value}: no such {name}{did_you_mean(value, known)}")
        if self.levels < 3:
            raise InputError(f"calibration.levels={self.levels}: a length needs 3 noise levels or more; 200 is usual")
        if self.passes < 1:
            raise InputError(f"calibration.passes={self.passes}: at least one pass measures; use calibration.passes=1")
        if not 0 < self.damping <= 1:
            raise InputError(f"calibration.damping={self.damping:g}: choose 0 < damping <= 1; 1 is undamped")

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Tensor]:
        """Tensors `rho`, `length`, `standard_error` (K,), `cost` (K - 1,) and `spread` (passes + 1,), float64.

        `rho` increases, `length` starts at 0; the standard error is that over images, their steps being correlated;
        `spread` is the standard deviation of L^p over its mean, without the lowest step, at each measurement.

        Args:
            subject: its run draws the images and sets the ends of the range.
            progress: called as work is done with the images' worth of it.

        Raises:
            InputError: if fewer than two images are asked for, or the run ends at rho = 0.
        """
        high, low = subject.span
        if len(subject.seeds) < 2:
            raise InputError("seeds: a standard error needs at least two images")
        if low <= 0:
            raise InputError("sigma_min=0: no score at noise level 0; choose sigma_min > 0, or leave the key out")
        nfe = subject.run.nfe
        work = nfe + 2 * (self.levels - 1) * (self.passes + 1)

        def done(evaluations: float) -> None:
            progress(evaluations / work)

        runs = zip(subject.drawn(subject.run, lambda n: done(n * nfe)), subject.batches(), strict=True)
        images = [_clean(subject.denoiser, batch.x, part, low) for batch, part in runs]
        return self._lengths(subject.denoiser, images, grid(LogSNR(), high, low, self.levels - 1).flip(0), done)

    def _lengths(
        self, denoiser: Denoising, images: list[Images], rho: Tensor, done: Callable[[float], None]
    ) -> dict[str, Tensor]:
        spreads, values = [], {}
        for number in range(self.passes + 1):
            measured = self._accumulate(rho, self._measure(denoiser, images, rho, number, done))
            spreads.append(_spread(measured["cost"] ** EXPONENTS[self.cost]))
            if number == self.passes:
                break
            values = measured
            rho = _equalised(values, self.damping if number + 1 < self.passes else 1.0)
        return {**values, "spread": torch.stack(spreads)}

    def _accumulate(self, rho: Tensor, per_image: Tensor) -> dict[str, Tensor]:
        """Lengths and, by the delta method, their standard errors from the costs (K - 1, images)."""
        power, mean = EXPONENTS[self.cost], per_image.mean(1)
        if not float(mean.max()) > 0:
            raise InputError("calibration: no step has a positive cost; use more seeds, or fewer calibration.levels")
        cost = mean.clamp(min=FLOOR * float(mean.max()))
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
        """v^2 times the cost of every step for every image, (K - 1, images) float64."""
        parts = [torch.stack(list(self._steps(denoiser, batch, rho.tolist(), number, done))) for batch in images]
        middle = torch.lerp(rho[:-1].log(), rho[1:].log(), WEIGHTS[self.weight])
        return (2 * self.velocity * middle).exp()[:, None] * torch.cat(parts, dim=1)

    def _steps(
        self, denoiser: Denoising, images: Images, rho: list[float], number: int, done: Callable[[float], None]
    ) -> Iterator[Tensor]:
        device = next(denoiser.parameters()).device
        clean = images.clean.to(device).double()
        fresh = noise.normal(images.seeds, tuple(clean.shape[1:]), "score_optimal", number).to(clean)

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
        first, second = (_signs(seeds, x, 2 * place + probe) for probe in (0, 1))
        return predictor_probed(eps, x, *step, (first, second))

    def summary(self, values: dict[str, Tensor]) -> str:
        """One line: the whole length, and how unequal steps were, and are with this schedule."""
        length, error = float(values["length"][-1]), float(values["standard_error"][-1])
        spreads = " -> ".join(f"{100 * spread:.2g} %" for spread in values["spread"].tolist())
        return f"length {length:.4g} +- {error:.1g}, spread of the steps' lengths {spreads}"

    def plot(self, record: Record, path: Path) -> None:
        """Cumulative length with its standard error, and its density in ln rho, against rho."""
        _plot(record, path)


@torch.no_grad()
def _clean(denoiser: Denoising, x: Tensor, part: Part, rho: float) -> Images:
    """The denoiser's mean at the end of a run."""
    noisy, label = x.clone(), None if part.label is None else part.label.to(x.device)
    return Images(part.seeds, denoiser(noisy, rho, label=label).cpu(), part.label)


def _signs(seeds: list[int], x: Tensor, step: int) -> Tensor:
    return noise.normal(seeds, tuple(x.shape[1:]), "score_optimal_probe", step).sign().to(x)


def _equalised(values: dict[str, Tensor], damping: float) -> Tensor:
    """Levels at equal lengths, or part of the way there in ln rho; the ends stay."""
    rho = values["rho"]
    schedule = ScoreOptimal(tuple(rho.tolist()), tuple(values["length"].tolist()))
    even = grid(schedule, float(rho[-1]), float(rho[0]), len(rho) - 1).flip(0)
    moved = torch.lerp(rho.log(), even.log(), damping).exp()
    moved[0], moved[-1] = rho[0], rho[-1]
    return moved


def _spread(lengths: Tensor) -> Tensor:
    """The lowest step is left out: it stays cheap at whatever width where data are smooth at sigma_min."""
    return lengths[1:].std() / lengths[1:].mean()


def _plot(record: Record, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rho, length, error = (record.values[name].numpy() for name in ("rho", "length", "standard_error"))
    density = record.values["length"].diff() / record.values["rho"].log().diff()
    figure, (top, bottom) = pyplot.subplots(2, sharex=True, figsize=(6, 6), layout="constrained")
    top.fill_between(rho, length - error, length + error, alpha=0.3, label="standard error")
    top.semilogx(rho, length, label="length")
    top.set(ylabel="cumulative length", title=f"{record.provenance['images']} images")
    top.legend()
    bottom.step(rho[1:], density.numpy())
    bottom.set(xlabel="noise level rho", ylabel="length per ln rho: density of steps")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
