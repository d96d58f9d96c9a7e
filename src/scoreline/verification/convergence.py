"""Check that runs with few evaluations approach a run with many."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.errors import NotFiniteError
from scoreline.generation.batches import generate
from scoreline.runtime import seeded_noise
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule, Schedule, VariancePreserving
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau
from scoreline.verification.verdicts import SURE, Verdict, mean

BUDGETS = (10, 20, 40, 80)
"""NFE of the runs that have to approach the reference."""

ROUNDING = 1e-5
"""Distance that rounding alone causes for float32 states from a sigma_max around 100, in units of the images."""

FLAT = 0.1
"""A slope below this, 7 % for a doubling of NFE, counts as no convergence."""


@dataclass(frozen=True)
class Runs:
    """How to draw samples: one image for each seed, on the model's own range.

    Attributes:
        denoiser: the model.
        process: its noise schedule.
        shape: (C, H, W).
        seeds: of the images.
        batch_size: images of a call.
        labels: class labels (len(seeds),) or None.
    """

    denoiser: Denoiser
    process: NoiseSchedule
    shape: tuple[int, int, int]
    seeds: Sequence[int]
    batch_size: int
    labels: Tensor | None = None

    @property
    def span(self) -> tuple[float, float]:
        """(finite_sigma_max, sigma_min)."""
        return self.process.finite_sigma_max, self.process.sigma_min

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def start(self) -> tuple[Tensor, Tensor | None]:
        """Standard normal noise (B, C, H, W) and labels, on the model's device."""
        z = seeded_noise.normal(self.seeds, self.shape, "initial").to(self.device)
        return z, None if self.labels is None else self.labels.to(self.device)

    def ends(self, table: Tableau, progress: Progress) -> Tensor:
        """Return samples (B, C, H, W) float64 on the CPU; NaN from the first batch on that is not finite."""
        states = torch.full((len(self.seeds), *self.shape), torch.nan, dtype=torch.float64)
        done = 0
        args = (self.denoiser, table, self.shape, self.seeds, self.batch_size, self.labels)
        try:
            for batch in generate(*args, network_batch=None, progress=lambda images: progress(images * table.nfe)):
                states[done : done + len(batch.x)] = batch.x.cpu().double()
                done += len(batch.x)
        except NotFiniteError:
            pass
        return states


@dataclass(frozen=True)
class Convergence:
    """Distances of DEIS-tAB3 runs to a reference run from the same noise.

    Attributes:
        reference: samples (B, C, H, W) of Heun's method on EDM's levels.
        nfe: of the runs, increasing.
        distances: root mean square over pixels of the difference to the reference, (R, B) float64.
    """

    reference: Tensor
    nfe: tuple[int, ...]
    distances: Tensor

    def slopes(self) -> Tensor:
        """Slope of ln distance against ln NFE by least squares, for each image, (B,); below `ROUNDING` is rounding."""
        u = torch.tensor(self.nfe, dtype=torch.float64).log()
        u = u - u.mean()
        return u @ self.distances.clamp(min=ROUNDING).log() / u.square().sum()


def budgets(nfe: int) -> tuple[int, ...]:
    """Those of `BUDGETS` that are at most an eighth of the `nfe` evaluations of the reference."""
    return tuple(budget for budget in BUDGETS if 8 * budget <= nfe)


def measure_convergence(runs: Runs, nfe: int, progress: Progress = lambda images: None) -> Convergence:
    """Run the reference of `nfe` evaluations, an even number, and `budgets(nfe)` shorter ones, all from the same noise.

    The reference is another method on other levels, so that what both agree on is the flow and not the method. The
    steps of DEIS are uniform in the square root of time for VP processes, EDM's levels for the others.
    """
    reference = runs.ends(heun()(Power(7), *runs.span, nfe), progress)
    native: Schedule = runs.process
    spacing = Polynomial(native, 2) if isinstance(native, VariancePreserving) else Power(7)
    tables = [DEIS(3, native)(spacing, *runs.span, budget) for budget in budgets(nfe)]
    distances = [
        (runs.ends(table, progress) - reference).flatten(1).square().mean(1).sqrt().nan_to_num(torch.inf)
        for table in tables
    ]
    return Convergence(reference, budgets(nfe), torch.stack(distances))


def judge_convergence(convergence: Convergence) -> Verdict:
    """Fail unless the slope is significantly below 0 and below -`FLAT`, or the last run agrees to rounding.

    Warn if the slope is shallower than -1; errors of eps that are random from step to step leave -1/2. The slope is a
    mean over images, so that one sample that ends elsewhere at few evaluations does not decide.
    """
    if not bool(convergence.distances.isfinite().all() & convergence.reference.isfinite().all()):
        return Verdict("convergence", "fail", "samples are not finite; see the other checks for why")
    slope, last = mean(convergence.slopes()), float(convergence.distances[-1].max())
    text = f"distance falls as NFE^{slope.value:.2f} +- {slope.error:.2f}"
    if last <= ROUNDING:
        return Verdict("convergence", "pass", f"at NFE {convergence.nfe[-1]} runs agree to rounding ({last:.0e})")
    if not float(slope.value) < -max(FLAT, SURE * float(slope.error)):
        return Verdict(
            "convergence",
            "fail",
            f"more evaluations do not come closer to the reference ({text}); the network is no smooth function of x "
            "and rho: dropout or another random layer at work, or coarse labels",
        )
    if float(slope.value) > -1:
        return Verdict("convergence", "warn", f"{text}, slower than first order: rounded labels or a random layer")
    return Verdict("convergence", "pass", text)
