"""Check the size of eps at the start of a run, and the range of its images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.verification.convergence import Runs
from scoreline.verification.verdicts import SURE, Verdict

OUTSIDE = 0.05
"""A pixel whose magnitude exceeds 1 by more than this is out of range."""


@dataclass(frozen=True)
class Scale:
    """Sizes of eps, D and images at both ends of a run.

    Attributes:
        eps_size: root mean square of eps(sigma_max z, sigma_max) over images and pixels, in units of that of z.
        denoised: mean of D there, by channel (C,).
        mean: of the final images, by channel (C,).
        std: of the final images, by channel (C,).
        by_image: mean of each image, (B, C).
        outside: share of pixels beyond +-(1 + `OUTSIDE`).
        negative: share of pixels below -`OUTSIDE`.
        finite: whether all final images are.
    """

    eps_size: float
    denoised: Tensor
    mean: Tensor
    std: Tensor
    by_image: Tensor
    outside: float
    negative: float
    finite: bool


@torch.inference_mode()
def measure_scale(runs: Runs, final: Tensor) -> Scale:
    """Measure sizes at sigma_max, from the seeds' own noise, and of the final images (B, C, H, W)."""
    z, label = runs.start()
    rho, estimates, clean = runs.span[0], [], []
    for start in range(0, len(z), runs.batch_size):
        part = slice(start, start + runs.batch_size)
        x = z[part] * rho
        eps = runs.denoiser.eps(x, rho, label=None if label is None else label[part]).double()
        estimates.append(eps)
        clean.append((x.double() - rho * eps).mean((2, 3)))
    return Scale(
        float(torch.cat(estimates).norm() / z.double().norm()),
        torch.cat(clean).mean(0).cpu(),
        final.mean((0, 2, 3)),
        final.std((0, 2, 3)),
        final.mean((2, 3)),
        float((final.abs() > 1 + OUTSIDE).double().mean()),
        float((final < -OUTSIDE).double().mean()),
        bool(final.isfinite().all()),
    )


def judge_scale(scale: Scale, data: Tensor | None) -> Verdict:
    """Fail if values are not finite, eps at sigma_max is off 1 by 30 %, or most pixels are out of range.

    Warn if eps is off 1 by 5 %, 5 % of the pixels are out of range, none is negative, or, beside real images `data`
    (n, C, H, W), a channel's mean is off by more than `SURE` standard errors over images and a quarter of the data's
    standard deviation, its standard deviation by half, or its mean of D at sigma_max by more than the data's standard
    deviation.
    """
    wrong = _absurd(scale)
    odd = _odd(scale) + ([] if data is None or not scale.finite else _unlike(scale, data))
    if wrong or odd:
        return Verdict("scale", "fail" if wrong else "warn", "; ".join(wrong + odd))
    return Verdict(
        "scale",
        "pass",
        f"eps at sigma_max is {scale.eps_size:.3f} times as large as the noise, images have the range of images",
    )


def _absurd(scale: Scale) -> list[str]:
    wrong = []
    if not scale.finite:
        wrong.append("images are not finite")
    if not abs(scale.eps_size - 1) <= 0.3:
        wrong.append(
            f"eps at sigma_max is {scale.eps_size:.3g} times as large as the noise: label, alpha or scale of the output"
        )
    if scale.outside > 0.5:
        wrong.append(f"{scale.outside:.0%} of the pixels are out of [-1, 1]: the scale of the images or of the output")
    return wrong


def _odd(scale: Scale) -> list[str]:
    odd = []
    if 0.05 < abs(scale.eps_size - 1) <= 0.3:
        odd.append(f"eps at sigma_max is {scale.eps_size:.3f} times as large as the noise")
    if 0.05 < scale.outside <= 0.5:
        odd.append(f"{scale.outside:.1%} of the pixels are out of [-1, 1]")
    if scale.finite and scale.negative == 0:
        odd.append("no pixel is negative: trained on images in [0, 1]?")
    return odd


def _unlike(scale: Scale, data: Tensor) -> list[str]:
    centre, spread, odd = data.double().mean((0, 2, 3)), data.double().std((0, 2, 3)), []
    error = scale.by_image.std(0) / len(scale.by_image) ** 0.5
    offset = (scale.mean - centre).abs()
    if bool(((offset > SURE * error) & (offset > spread / 4)).any()):
        odd.append("the images' mean is not the data's")
    if bool(((scale.std / spread - 1).abs() > 0.5).any()):
        odd.append("the images' standard deviation is not the data's")
    if bool(((scale.denoised - centre).abs() > spread).any()):
        odd.append("D at sigma_max is far from the data's mean")
    return odd
