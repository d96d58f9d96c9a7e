"""The sym6 wavelet's low-pass filter: doubles the rate of a signal and halves it again without loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SYM6 = (
    0.015404109327044824,
    0.0034907120842221626,
    -0.11799011114852002,
    -0.04831174258569806,
    0.49105594192797375,
    0.787641141028651,
    0.3379294217281658,
    -0.07263752278637658,
    -0.02106029251237085,
    0.04472490177078139,
    0.0017677118642540077,
    -0.00780070832503238,
)
"""h_0 .. h_11: the least asymmetric orthonormal filter with six vanishing moments, sum h = sqrt(2).

Source: Daubechies (1992), Ten Lectures on Wavelets, doi:10.1137/1.9781611970104, Sec. 8.1.1. The digits are a
factorisation of Daubechies' polynomial in 60-digit arithmetic.
"""

CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / math.sqrt(2)
"""Centre of mass of h, in taps: sample m of `upsample` shows the signal at (m - CENTRE) / 2.

Orthonormality makes the variance about it zero, so this holds exactly for quadratic signals.
"""

HISTORY = len(SYM6) // 2 - 1
"""Number of samples before the first one that `upsample` needs."""


def upsample(x: Tensor, dim: int) -> Tensor:
    """Compute u_m = sqrt(2) sum_n h_{m - 2n} x_n along one dimension.

    Args:
        x: `HISTORY` + N samples along `dim`, the first of them x_{-HISTORY}; any other dimensions.

    Returns:
        2 N samples from u_0 on.
    """
    count = x.shape[dim] - HISTORY
    shifted = [x.narrow(dim, HISTORY - i, count) for i in range(HISTORY + 1)]
    even, odd = (_weighted(SYM6[phase::2], shifted, math.sqrt(2)) for phase in (0, 1))
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)


def downsample(u: Tensor, dim: int) -> Tensor:
    """Compute x_n = sum_k h_k u_{2n + k} / sqrt(2) along one dimension, the exact inverse of `upsample`.

    Args:
        u: 2 N + 2 `HISTORY` samples along `dim` from u_0 on; any other dimensions.

    Returns:
        N samples from x_0 on.
    """
    count = u.shape[dim] // 2 - HISTORY
    even, odd = u.movedim(dim, -1)[..., ::2], u.movedim(dim, -1)[..., 1::2]
    shifted = [(even, odd)[k % 2].narrow(-1, k // 2, count) for k in range(len(SYM6))]
    return _weighted(SYM6, shifted, 1 / math.sqrt(2)).movedim(-1, dim)


def _weighted(taps: Sequence[float], shifted: Sequence[Tensor], gain: float) -> Tensor:
    """Multiplied and added one by one: TF32 and autocast, which round convolutions, cannot touch this."""
    total = shifted[0] * (gain * taps[0])
    for tap, part in zip(taps[1:], shifted[1:], strict=True):
        total.add_(part, alpha=gain * tap)
    return total
