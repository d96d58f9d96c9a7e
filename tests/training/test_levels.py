import math

import pytest
import torch

from scoreline.training.loss_by_level import EDGES, NAMES, LossSums, loss_summary


def test_losses_by_level_are_means_with_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(500, generator=generator)
    levels = torch.logspace(-3, 2, 500, dtype=torch.float64)[torch.randperm(500, generator=generator)]
    sums = LossSums(torch.device("cpu"))
    for part in range(5):
        sums.add(losses[part::5], levels[part::5])
    found = loss_summary(sums.sums, "fixed_")
    assert found["fixed_images"] == 500
    assert found["fixed_loss"] == pytest.approx(float(losses.mean()))
    assert found["fixed_loss_error"] == pytest.approx(float(losses.std()) / 500**0.5)
    edges = [0.0, *EDGES, math.inf]
    for name, low, high in zip(NAMES, edges, edges[1:], strict=False):
        inside = (levels > low) & (levels <= high)
        assert found["fixed_loss_bins"][name] == pytest.approx(float(losses[inside].mean()))


def test_one_loss_has_no_error() -> None:
    sums = LossSums(torch.device("cpu"))
    sums.add(torch.tensor([2.0]), torch.tensor([0.5]))
    found = loss_summary(sums.sums)
    assert found["loss"] == 2
    assert found["loss_error"] is None
    assert found["loss_bins"] == {"0.3-1": 2.0}
