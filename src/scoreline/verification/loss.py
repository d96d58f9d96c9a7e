"""Compare the loss at each noise level with bounds that are known without a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.sampling import Progress
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import LogSNR
from scoreline.verification.changes import with_label_of
from scoreline.verification.verdicts import SURE, Verdict, mean

FACTORS = (1.0, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0)
"""Noise levels whose label the network gets, in units of rho; 1 first. ln(rho) for ln(rho / 2) is a factor of 2."""

EPS_ERROR = 0.05
"""Relative error of eps by which a correct network may exceed the best linear denoiser."""


@dataclass(frozen=True)
class RealImages:
    """Real images and their noise, the same at every level and for every change of a convention.

    Attributes:
        clean: images in [-1, 1], (n, C, H, W) float32.
        eps: standard normal noise, (n, C, H, W) float32.
        labels: (n,) or None.
    """

    clean: Tensor
    eps: Tensor
    labels: Tensor | None = None

    def scatter(self) -> Tensor:
        """Return |x_0 - m|^2 / d of each image, (n,) float64, where m is the mean of each channel."""
        clean = self.clean.double()
        return (clean - clean.mean((0, 2, 3), keepdim=True)).flatten(1).square().mean(1)


@torch.inference_mode()
def losses(
    denoiser: Denoiser, real: RealImages, rho: float, batch_size: int, progress: Progress = lambda images: None
) -> Tensor:
    """Return |D(x_0 + rho eps, rho) - x_0|^2 / d of each image, (n,) float64 on the CPU."""
    device, values = denoiser.device, []
    for start in range(0, len(real.clean), batch_size):
        part = slice(start, start + batch_size)
        clean, eps = real.clean[part].to(device), real.eps[part].to(device)
        label = None if real.labels is None else real.labels[part].to(device)
        error = denoiser(clean + rho * eps, rho, label=label) - clean
        values.append(error.cpu().double().flatten(1).square().mean(1))
        progress(len(clean))
    return torch.cat(values)


def linear_losses(scatter: Tensor, rho: Tensor) -> Tensor:
    """Expected loss of the best linear denoiser m + k (x - m), k = s^2 / (s^2 + rho^2), of each image: (K, n).

    s^2 is the mean of `scatter` (n,), so that the mean over images is s^2 rho^2 / (s^2 + rho^2), the least possible
    for white Gaussian data with this mean and variance. E[x_0 | x] of other data is below it.
    """
    square = rho[:, None] ** 2
    kept = scatter.mean() / (scatter.mean() + square)
    return (1 - kept) ** 2 * scatter + kept**2 * square


@dataclass(frozen=True)
class Losses:
    """Losses on the same images and noise at K levels.

    Attributes:
        rho: (K,) float64, decreasing.
        by_factor: (F, K, n), with the label of FACTORS[f] rho; NaN where that leaves the range of the model.
        linear: (K, n), `linear_losses`.
        variance: s^2 of the images.
    """

    rho: Tensor
    by_factor: Tensor
    linear: Tensor
    variance: float


def levels(span: tuple[float, float], count: int) -> Tensor:
    """Return `count` noise levels, uniform in ln rho over (sigma_max, sigma_min), both included."""
    return grid(LogSNR(), *span, count - 1)


def in_range(rho: float, factor: float, span: tuple[float, float]) -> bool:
    """Return whether factor * rho lies in the range of the model."""
    return span[1] * (1 - 1e-9) <= factor * rho <= span[0] * (1 + 1e-9)


def measure_losses(
    denoiser: Denoiser,
    real: RealImages,
    rho: Tensor,
    batch_size: int,
    progress: Progress = lambda images: None,
) -> Losses:
    """Measure losses at the levels rho, from the model's sigma_max to its sigma_min, with right and wrong labels."""
    span, scatter = (float(rho[0]), float(rho[-1])), real.scatter()
    by_factor = torch.full((len(FACTORS), len(rho), len(real.clean)), torch.nan, dtype=torch.float64)
    for f, factor in enumerate(FACTORS):
        model = denoiser if factor == 1 else with_label_of(denoiser, factor)
        for k, level in enumerate(rho.tolist()):
            if in_range(level, factor, span):
                by_factor[f, k] = losses(model, real, level, batch_size, progress)
    return Losses(rho, by_factor, linear_losses(scatter, rho), float(scatter.mean()))


def failed_levels(loss: Tensor, linear: Tensor, rho: Tensor, variance: float) -> Tensor:
    """Return levels (K,) at which no correct network has the losses `loss` (K, n).

    Where rho >= s, the standard deviation of the data: mean loss above the best linear denoiser's by more than `SURE`
    standard errors of the paired difference and (`EPS_ERROR` rho)^2. There D = x - rho eps, so that a relative error
    of eps costs its square times rho^2: a small one at sigma_max is usual for networks that predict eps.
    Where rho < s: mean loss above 2 rho^2 by more than `SURE` standard errors. D = x has rho^2; 2 rho^2 is what an
    eps of the right size has that is independent of the noise; eps with the wrong sign has up to 4 rho^2.
    Losses that are not finite fail.
    """
    excess, own = mean(loss - linear), mean(loss)
    high = excess.value > SURE * excess.error + (EPS_ERROR * rho) ** 2
    low = own.value > SURE * own.error + 2 * rho**2
    return torch.where(rho >= math.sqrt(variance), high, low) | ~own.value.isfinite()


def above_linear(losses: Losses) -> Tensor:
    """Return levels (K,) at which the loss is significantly above the best linear denoiser's."""
    excess = mean(losses.by_factor[0] - losses.linear)
    return excess.value > SURE * excess.error


UNKNOWN = (
    "none of the usual mistakes of sign, label or scale explains it, so look at the weights (swapped, missing, "
    "another network, another data set)"
)


def judge_losses(losses: Losses, cures: Callable[[Tensor], Sequence[str]]) -> Verdict:
    """Judge losses: `failed_levels` fail, levels that are only `above_linear` warn.

    Args:
        losses: the losses.
        cures: noise levels that fail -> changes that would mend them, see `mending`.
    """
    wrong = failed_levels(losses.by_factor[0], losses.linear, losses.rho, losses.variance)
    high = above_linear(losses) & ~wrong
    if bool(wrong.any()):
        mended = cures(losses.rho[wrong])
        says = f"it falls with {' or with '.join(mended)}" if mended else UNKNOWN
        where = _where(losses.rho, wrong)
        return Verdict("loss", "fail", f"higher than that of any right network {where}; {says}")
    if bool(high.any()):
        size = float((mean(losses.by_factor[0] - losses.linear).value[high].sqrt() / losses.rho[high]).max())
        text = f"above the best linear denoiser {_where(losses.rho, high)}, by {size:.1%} of eps; usual at the ends"
        return Verdict("loss", "warn", text)
    return Verdict("loss", "pass", f"below the best linear denoiser, or level with it, at all {len(losses.rho)} levels")


def _where(rho: Tensor, marked: Tensor) -> str:
    chosen = [f"{level:.3g}" for level in rho[marked].tolist()]
    return f"at all {len(rho)} levels" if bool(marked.all()) else f"at rho = {', '.join(chosen)}"
