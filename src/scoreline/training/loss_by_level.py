"""The mean of the loss, its standard error, and its means by noise level."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scoreline.metrics.error_bar_metric import ErrorBarMetric

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Edges of the bins of noise levels sigma."""

NAMES = (f"<{EDGES[0]:g}", *(f"{a:g}-{b:g}" for a, b in pairwise(EDGES)), f">{EDGES[-1]:g}")


class LossByLevel(ErrorBarMetric):
    """The mean of losses, and their means between `EDGES` of the noise level.

    The state is the count, the sum and the sum of squares of each bin in float64, on the device, added over processes.
    A sum of float32 losses has no rounding while the largest sum is below 2^29 times the smallest loss, so that means
    have the same bits on any number of processes; errors agree to rounding.

    When to use it: to log the loss of a denoiser. Mean losses of different levels differ by orders of magnitude, and
    one mean hides where a model fails.

    Args:
        settings: those of every `torchmetrics.Metric`.
    """

    higher_is_better = False
    sums: Tensor
    edges: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("sums", torch.zeros(len(NAMES), 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.register_buffer("edges", torch.tensor(EDGES, dtype=torch.float64), persistent=False)

    def update(self, losses: Tensor, levels: Tensor) -> None:
        """Add losses (B,) at noise levels sigma (B,)."""
        loss = losses.detach().double()
        place = torch.bucketize(levels.double().contiguous(), self.edges)
        self.sums = self.sums.index_add(0, place, torch.stack([torch.ones_like(loss), loss, loss.square()], 1))

    def compute(self) -> Tensor:
        """Return the mean loss over all processes, a scalar float64."""
        total = self.sums.sum(0)
        return torch.div(total[1], total[0])

    def error(self) -> Tensor:
        """Return the standard error of the mean over images; NaN for one image."""
        error = self.summary()["loss_error"]
        return torch.tensor(math.nan if error is None else error, dtype=torch.float64)

    def summary(self, prefix: str = "") -> dict[str, Any]:
        """Return `loss_summary` of the losses of all processes.

        Args:
            prefix: begins the names.
        """
        with self.everywhere():
            return loss_summary(self.sums, prefix)


def loss_summary(sums: Tensor, prefix: str = "") -> dict[str, Any]:
    """Summarise losses as `loss`, its standard error `loss_error` (None for one image), `images` and `loss_bins`.

    Args:
        sums: (L, 3) of `LossByLevel`, summed over processes.
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
