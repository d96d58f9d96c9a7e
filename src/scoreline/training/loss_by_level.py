"""The mean of the loss, its standard error, and its means by noise level."""

import math
from itertools import pairwise

import torch
from torch import Tensor

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Edges of the bins of noise levels sigma."""

NAMES = (f"<{EDGES[0]:g}", *(f"{a:g}-{b:g}" for a, b in pairwise(EDGES)), f">{EDGES[-1]:g}")


class LossSums:
    """Accumulate count, sum and sum of squares of losses between `EDGES`, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(NAMES), 3, dtype=torch.float64, device=device)
        self.edges = torch.tensor(EDGES, dtype=torch.float64, device=device)

    def add(self, losses: Tensor, levels: Tensor) -> None:
        """Add losses (B,) at noise levels (B,)."""
        loss = losses.double()
        place = torch.bucketize(levels.double().contiguous(), self.edges)
        self.sums.index_add_(0, place, torch.stack([torch.ones_like(loss), loss, loss.square()], 1))


def loss_summary(sums: Tensor, prefix: str = "") -> dict[str, object]:
    """Summarise losses as `loss`, its standard error `loss_error` (None for one image), `images` and `loss_bins`.

    Args:
        sums: (L, 3) of `LossSums`, summed over processes.
        prefix: begins the names.
    """
    total = sums.sum(0)
    bins = {name: total / count for name, (count, total, _) in zip(NAMES, sums.tolist(), strict=True) if count}
    return {
        f"{prefix}loss": float(total[1] / total[0]),
        f"{prefix}loss_error": _error(*total.tolist()),
        f"{prefix}images": int(total[0]),
        f"{prefix}loss_bins": bins,
    }


def _error(count: float, total: float, squares: float) -> float | None:
    """Standard error of a mean; 0 if rounding leaves a negative variance, None for one value."""
    if count < 2:
        return None
    return math.sqrt(max(squares - total**2 / count, 0.0) / (count - 1) / count)
