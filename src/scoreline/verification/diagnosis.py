"""Find the usual mistake that explains a loss that is too high."""

from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.sampling import Progress
from scoreline.verification.changes import Change, change_scalings, with_label_of
from scoreline.verification.loss import RealImages, failed_levels, linear_losses, losses


def _labels_times(factor: float) -> Change:
    return lambda rho, scalings: scalings._replace(noise=factor * scalings.noise)


class Mistake(NamedTuple):
    """A mistake and the change that mends it: other scalings, or None for images in [0, 1]."""

    name: str
    change: Change | None


MISTAKES = (
    Mistake("the output negated (its sign is wrong)", lambda rho, scalings: scalings._replace(out=-scalings.out)),
    Mistake("labels times 999 (label_scale)", _labels_times(999)),
    Mistake("labels divided by 999 (label_scale)", _labels_times(1 / 999)),
    Mistake(
        "the network's input not scaled by alpha (it is no VP model)",
        lambda rho, scalings: scalings._replace(in_=torch.ones_like(scalings.in_)),
    ),
    Mistake(
        "the network's input divided by sqrt(1 + rho^2) (it is a VP model)",
        lambda rho, scalings: scalings._replace(in_=(1 + rho**2).rsqrt()),
    ),
    Mistake("images in [0, 1] (it was not trained on [-1, 1])", None),
)

OTHER_LABELS = (0.5, 2.0)
"""Factors of rho whose labels are tried."""

TRIED = 3 * (len(MISTAKES) + len(OTHER_LABELS))
"""Losses that `remedies` measures at most, each on all images."""


def remedies(
    denoiser: Denoiser, real: RealImages, rho: Tensor, batch_size: int, progress: Progress = lambda images: None
) -> list[str]:
    """Name the mistakes, labels of rho / 2 and 2 rho among them, whose repair makes no level of rho (K,) fail.

    It tries at most three of the levels, the first, the middle and the last: `TRIED` losses.
    """
    tried = rho[torch.tensor(sorted({0, len(rho) // 2, len(rho) - 1}))]
    unit = RealImages((real.clean + 1) / 2, real.eps, real.labels)
    cases = [
        (m.name, denoiser if m.change is None else change_scalings(denoiser, m.change), real if m.change else unit)
        for m in MISTAKES
    ]
    cases += [(f"labels of {factor:g} rho", with_label_of(denoiser, factor), real) for factor in OTHER_LABELS]
    return [name for name, model, images in cases if _sound(model, images, tried, batch_size, progress)]


def _sound(denoiser: Denoiser, real: RealImages, rho: Tensor, batch_size: int, progress: Progress) -> bool:
    loss = torch.stack([losses(denoiser, real, level, batch_size, progress) for level in rho.tolist()])
    scatter = real.scatter()
    return not bool(failed_levels(loss, linear_losses(scatter, rho), rho, float(scatter.mean())).any())
