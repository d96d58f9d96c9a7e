"""Check the order of the channels of colour images."""

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.sampling import Progress
from scoreline.verification.loss import RealImages, losses
from scoreline.verification.verdicts import RELEVANT, SURE, Verdict, mean


def measure_reversed(
    denoiser: Denoiser, real: RealImages, rho: Tensor, batch_size: int, progress: Progress = lambda images: None
) -> Tensor:
    """Measure losses (K, n) on the same images and noise with their channels reversed, BGR for RGB."""
    flipped = RealImages(real.clean.flip(1), real.eps.flip(1), real.labels)
    return torch.stack([losses(denoiser, flipped, level, batch_size, progress) for level in rho.tolist()])


def judge_channels(right: Tensor, flipped: Tensor) -> Verdict:
    """Fail if reversed channels have significantly and relevantly less loss (K, n) at half of the levels or more."""
    gain, change = mean(right - flipped), (flipped.mean() / right.mean() - 1).item()
    better = (gain.value > SURE * gain.error) & (gain.value > RELEVANT * right.mean(-1))
    if 2 * int(better.sum()) >= len(better):
        text = f"channels look reversed: BGR images have less loss at {int(better.sum())} of {len(better)} levels"
        return Verdict("channels", "fail", text)
    return Verdict("channels", "pass", f"BGR images have no less loss than RGB ones ({change:+.1%})")
