"""Check that the network does best with the label of its input's noise level."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.parameterisations import IDDPM, NoisePrediction, Parameterisation
from scoreline.sampling import Progress
from scoreline.schedules.discrete import DiscreteVP
from scoreline.verification.changes import Change, change_scalings
from scoreline.verification.loss import FACTORS, Losses, RealImages, losses
from scoreline.verification.verdicts import RELEVANT, SURE, Verdict, mean

HEARD = 3
"""Fewest levels at which the label has to matter for a verdict."""

SHIFTS = (0, -1, 1)
"""Numbers that are added to small labels."""

SMALL_LABELS = (1, 5, 20)
"""Labels at which a shift of one is measured, for models of discrete time."""


def best_factors(losses: Losses) -> Tensor:
    """For each level the factor with the least loss, (K,), if it is clearly less than that of factor 1.

    This means less by more than `SURE` standard errors of the paired difference and by more than `RELEVANT` of the
    loss; otherwise the factor is 1.
    """
    right = losses.by_factor[0]
    gain = mean(right - losses.by_factor)
    counts = (gain.value > SURE * gain.error) & (gain.value > RELEVANT * right.mean(-1))
    size = torch.where(counts, gain.value, 0.0)
    return torch.tensor(FACTORS, dtype=torch.float64)[size.argmax(0)]


def _indifferent(losses: Losses) -> Tensor:
    """Return levels (K,) at which no factor changes the loss by more than `RELEVANT` of it."""
    right = losses.by_factor[0].mean(-1)
    change = (losses.by_factor.mean(-1) - right).abs().nan_to_num(0.0)
    return change.amax(0) <= RELEVANT * right


def judge_labels(losses: Losses) -> Verdict:
    """Fail if at half of the levels or more the network prefers labels of one side, and at few those of the other.

    Few means a quarter as many. Levels at which it is `_indifferent` do not count: with EDM's preconditioning these are
    many, since the other scalings carry most of the information. E[x_0 | x] has the least loss of all functions of x,
    so the label of another noise level than the state's can only raise it; but networks are not perfect, and least so
    at the ends of the range. Warn if fewer than `HEARD` levels count; skip if losses are not finite.
    """
    if not bool(losses.by_factor[0].isfinite().all()):
        return Verdict("labels", "skip", "the loss is not finite")
    best, total = best_factors(losses), int((~_indifferent(losses)).sum())
    if total < HEARD:
        text = f"the label hardly matters, at {total} of {len(best)} levels; look at label_scale"
        return Verdict("labels", "warn", text)
    sides = {"lower": best < 1, "higher": best > 1}
    name, side = max(sides.items(), key=lambda item: int(item[1].sum()))
    count = int(side.sum())
    other = int((best != 1).sum()) - count
    if 2 * count >= total and 4 * other <= count:
        typical = float(best[side].median())
        return Verdict(
            "labels",
            "fail",
            f"labels look off: at {count} of the {total} levels where they matter the network does better with that "
            f"of a {name} rho, typically {typical:g} times it; look at label_scale, label_shift and ln(rho) or "
            "ln(rho / 2)",
        )
    return Verdict("labels", "pass", f"no other label is better at {total - count - other} of {total} levels")


def levels_of_labels(parameterisation: Parameterisation, labels: Sequence[int]) -> list[float] | None:
    """Noise levels of whole labels for models of discrete time, None for the others."""
    if isinstance(parameterisation, IDDPM):
        return [float(parameterisation.levels[parameterisation.M - 1 - label]) for label in labels]
    if isinstance(parameterisation, NoisePrediction) and isinstance(parameterisation.noise_schedule, DiscreteVP):
        return [float(parameterisation.noise_schedule.inverse(torch.tensor(float(t)).double())) for t in labels]
    return None


def measure_shifts(
    denoiser: Denoiser,
    real: RealImages,
    rho: Sequence[float],
    batch_size: int,
    progress: Progress = lambda images: None,
) -> Tensor:
    """Measure losses (S, K, n) with SHIFTS added to the labels of the levels rho."""
    models = [change_scalings(denoiser, _labels_plus(shift)) for shift in SHIFTS]
    return torch.stack(
        [torch.stack([losses(model, real, level, batch_size, progress) for level in rho]) for model in models]
    )


def _labels_plus(shift: float) -> Change:
    return lambda rho, scalings: scalings._replace(noise=scalings.noise + shift)
