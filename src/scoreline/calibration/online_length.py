"""Score-optimal levels that adapt during training."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoreline.calibration.score_optimal import FLOOR, WEIGHTS, equal_lengths, spread_of, velocity_squared
from scoreline.denoiser import Denoising, per_image
from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.score_optimal import ScoreOptimal
from scoreline.schedules.spacings import LogSNR
from scoreline.values import check_choice, is_whole

KEY = "callbacks.online_schedule"

NARROWEST = 1e-3
"""Least width of an interval in ln rho, as a share of an even one, so that levels never coincide."""


@dataclass(frozen=True)
class Adaptation:
    """The rule ln rho_i <- (1 - gamma) ln rho_i + gamma ln rho_i*, rho* the levels of equal length; the ends stay.

    An update takes place once every interval has had its images, so its costs belong to scores a few hundred steps
    apart. Use this with `callbacks=online_schedule`.

    The destination's velocity, as published, makes the lowest interval nearly free, and hundreds of updates widen it:
    for a Gaussian with 100 levels and gamma = 0.05 the largest error of Lambda / Lambda(sigma_max) is 0.06 after 200
    updates and 0.31 after 1000. The source's velocity has a fixed point close to the closed form: 0.007 after 200 and
    after 1000. The released code makes up for the destination's by 1000 levels. Few levels shift the fixed point of
    either: for a digits model 40 moved those of ten steps by up to 22 % from those that 200 gave.

    Attributes:
        gamma: share of the way that levels go at an update; 0.05 to 0.1 in the paper, 0.01 for its CIFAR-10 code.
        levels: number of noise levels, both ends included.
        visits: images that every interval needs before an update; 24 in the code for CIFAR-10.
        velocity: as in `score_optimal.CumulativeLength`.
        weight: as in `score_optimal.CumulativeLength`.

    Source: Williams et al. (2024), arXiv:2412.07877, Algorithm 2.

    Raises:
        InputError: for gamma outside (0, 1], fewer than 3 levels, no visit, a velocity that is not finite, or an
            unknown weight.
    """

    gamma: float = 0.05
    levels: int = 100
    visits: int = 24
    velocity: float = 1.0
    weight: str = "source"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise InputError(f"{KEY}.gamma={self.gamma}: choose 0 < gamma <= 1; 0.05 is usual")
        if not is_whole(self.levels, 3):
            raise InputError(f"{KEY}.levels={self.levels}: a length needs 3 noise levels or more; 100 is usual")
        if not is_whole(self.visits):
            raise InputError(f"{KEY}.visits={self.visits}: every interval needs an image at least; 24 is usual")
        if not math.isfinite(self.velocity):
            raise InputError(f"{KEY}.velocity={self.velocity}: must be a finite number; 1 is the published one")
        check_choice(f"{KEY}.weight", WEIGHTS, self.weight)

    def update(self, rho: Tensor, cost: Tensor) -> Tensor:
        """Return the levels (K,) after an update.

        Args:
            rho: increasing levels (K,).
            cost: mean costs (K - 1,) of the steps between them, finite, the largest above 0.
        """
        steps = (cost / cost.max()).clamp(min=FLOOR).sqrt()
        target = _separate(equal_lengths(rho, torch.cat([steps.new_zeros(1), steps.cumsum(0)])).log())
        levels = torch.lerp(rho.log(), target, self.gamma).exp()
        levels[0], levels[-1] = rho[0], rho[-1]
        return levels


def _separate(log: Tensor) -> Tensor:
    """Blend levels ln rho with even ones, only as far as `NARROWEST` requires."""
    even = torch.linspace(float(log[0]), float(log[-1]), len(log), dtype=torch.float64)
    width = float(even[-1] - even[0]) / (len(log) - 1)
    lacking = NARROWEST * width - float(log.diff().min())
    return torch.lerp(log, even, lacking / (lacking + (1 - NARROWEST) * width)) if lacking > 0 else log


def step_costs(
    denoiser: Denoising, clean: Tensor, fresh: Tensor, high: Tensor, low: Tensor, label: Tensor | None
) -> Tensor:
    """Return |s(x, low) - s(x, high)|^2 at x = x_0 + high eps, one step for each image: (B,) float64.

    This is the corrector's cost of `score_cost`, from one network call on 2 B images.

    Args:
        denoiser: the model.
        clean: x_0 (B, *).
        fresh: eps (B, *).
        high: noise levels before the steps, (B,) float64.
        low: noise levels after the steps, (B,) float64.
        label: class labels (B,) or None.
    """
    x = clean.double() + per_image(high, clean.double()) * fresh
    twice = None if label is None else torch.cat([label, label])
    below, above = denoiser.eps(torch.cat([x, x]), torch.cat([low, high]), label=twice).chunk(2)
    return (below - per_image(low / high, x) * above).flatten(1).square().sum(1) / low**2


@dataclass
class OnlineLength:
    """The levels of an online schedule, and the costs measured between them since their last update.

    Costs stay on their device until an update may be due, so measuring never waits for a GPU. A cost that is not finite
    in float32 is dropped, and its interval waits for another.

    Attributes:
        rule: how levels are updated.
        rho: levels (K,) float64, increasing.
        sums: sums of the costs, (K - 1,) float64, without v^2.
        counts: numbers of the costs, (K - 1,) int64.
        drawn: images measured since the last update, dropped ones included.
        images: images measured since the start of training.
        dropped: costs dropped since the start of training.
        updates: updates since the start of training, without those that had no positive cost.
        initial: share (1 - gamma)^updates of the initial levels in ln rho.
        cost: v^2 times the mean costs (K - 1,) at the last update, NaN before.
    """

    rule: Adaptation
    rho: Tensor
    sums: Tensor = field(init=False)
    counts: Tensor = field(init=False)
    cost: Tensor = field(init=False)
    drawn: int = 0
    images: int = 0
    dropped: int = 0
    updates: int = 0
    initial: float = 1.0
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    @classmethod
    def even(cls, rule: Adaptation, sigma_max: float, sigma_min: float) -> "OnlineLength":
        """Return levels even in ln rho, without measurements."""
        return cls(rule, grid(LogSNR(), sigma_max, sigma_min, rule.levels - 1).flip(0))

    def __post_init__(self) -> None:
        self.cost = torch.full((len(self.rho) - 1,), math.nan, dtype=torch.float64)
        self._clear()

    @property
    def intervals(self) -> int:
        """Number of steps between levels."""
        return len(self.rho) - 1

    def add(self, places: Tensor, costs: Tensor) -> None:
        """Add costs (B,), without v^2, of steps from rho[places + 1] to rho[places], places (B,) int64."""
        self._waiting.append((places, costs.detach().double()))
        self.drawn, self.images = self.drawn + len(places), self.images + len(places)

    def update(self) -> bool:
        """Update the levels if every interval has had its visits; return whether they changed."""
        if self.drawn < self.intervals * self.rule.visits:
            return False
        self._settle()
        if int(self.counts.min()) < self.rule.visits:
            return False
        cost = self.sums / self.counts * velocity_squared(self.rho, self.rule.velocity, self.rule.weight)
        self._clear()
        if not 0 < float(cost.max()) < math.inf:
            return False
        self.cost = cost
        self.rho, self.updates = self.rule.update(self.rho, cost), self.updates + 1
        self.initial *= 1 - self.rule.gamma
        return True

    def _settle(self) -> None:
        for places, costs in self._waiting:
            good = costs.float().isfinite().cpu()
            self.sums.index_add_(0, places.cpu()[good], costs.cpu()[good])
            self.counts += torch.bincount(places.cpu()[good], minlength=self.intervals)
            self.dropped += int((~good).sum())
        self._waiting = []

    def _clear(self) -> None:
        self.sums = torch.zeros(self.intervals, dtype=torch.float64)
        self.counts = torch.zeros(self.intervals, dtype=torch.int64)
        self.drawn, self._waiting = 0, []

    def schedule(self) -> ScoreOptimal:
        """Return the map u = i / (K - 1) at level i; steps even in u are equally long once the levels have settled."""
        even = torch.linspace(0, 1, len(self.rho), dtype=torch.float64)
        return ScoreOptimal(tuple(self.rho.tolist()), tuple(even.tolist()))

    @property
    def steps(self) -> Tensor:
        """Lengths (K - 1,) of the steps just before the last update."""
        return self.cost.clamp(min=FLOOR * float(self.cost.max())).sqrt()

    def values(self) -> dict[str, Tensor]:
        """Return the tensors of a `score_optimal` record: `rho`, `length`, `standard_error` (K,), `cost`, `spread`.

        Lengths are even parts of the whole length at the last update; `cost` and `spread` belong to the levels before
        it. Levels average many updates and scores, so the standard error is unknown: NaN.
        """
        whole = float(self.steps.sum())
        return {
            "rho": self.rho,
            "length": torch.linspace(0, whole, len(self.rho), dtype=torch.float64),
            "standard_error": torch.full_like(self.rho, math.nan),
            "cost": self.cost,
            "spread": spread_of(self.steps)[None],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and numbers from which `load_state_dict` continues to the bit."""
        self._settle()
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            InputError: for a state with another number of levels.
        """
        if len(state["rho"]) != self.rule.levels:
            held = len(state["rho"])
            raise InputError(f"{KEY}.levels={self.rule.levels}: the run to go on with has {held}; use {held}")
        for name in STATE:
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)


STATE = ("rho", "sums", "counts", "cost", "drawn", "images", "dropped", "updates", "initial")


@dataclass(frozen=True)
class LengthDensity(Schedule):
    """A score-optimal map as a training density, u uniform on [0, 1], for tensors on any device."""

    schedule: ScoreOptimal

    def __call__(self, rho: Tensor) -> Tensor:
        return self.schedule(rho.cpu()).to(rho.device)

    def inverse(self, u: Tensor) -> Tensor:
        return self.schedule.inverse(u.cpu()).to(u.device)
