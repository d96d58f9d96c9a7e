import math

import pytest
import torch

from scoreline.training.loss_by_level import EDGES, NAMES, LossByLevel


def test_losses_by_level_are_means_with_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(500, generator=generator)
    levels = torch.logspace(-3, 2, 500, dtype=torch.float64)[torch.randperm(500, generator=generator)]
    losses_by_level = LossByLevel()
    for part in range(5):
        losses_by_level.update(losses[part::5], levels[part::5])
    found = losses_by_level.summary("fixed_")
    assert found["fixed_images"] == 500
    assert found["fixed_loss"] == pytest.approx(float(losses.mean()))
    assert found["fixed_loss_error"] == pytest.approx(float(losses.std()) / 500**0.5)
    edges = [0.0, *EDGES, math.inf]
    for name, low, high in zip(NAMES, edges, edges[1:], strict=False):
        inside = (levels > low) & (levels <= high)
        assert found["fixed_loss_bins"][name] == pytest.approx(float(losses[inside].mean()))


def test_one_loss_has_no_error() -> None:
    losses_by_level = LossByLevel()
    losses_by_level.update(torch.tensor([2.0]), torch.tensor([0.5]))
    found = losses_by_level.summary()
    assert found["loss"] == 2
    assert found["loss_error"] is None
    assert found["loss_bins"] == {"0.3-1": 2.0}
