"""The exact optimal loss against closed forms: two images, by quadrature, and a brute-force sum over images."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from scoreline.objective import Batch, DenoisingObjective, EDMWeight, InverseVariance, LogNormal
from scoreline.targets import Denoising
from scoreline.verification.optimal_loss import optimal_losses


def batch_at(clean: torch.Tensor, level: float, seed: int, label: torch.Tensor | None = None) -> Batch:
    """A batch whose noise has one level."""
    generator = torch.Generator().manual_seed(seed)
    u = float(LogNormal()(torch.tensor(level, dtype=torch.float64)))
    return Batch(clean, torch.full((len(clean),), u).double(), torch.randn(clean.shape, generator=generator), label)


@pytest.mark.parametrize("level", [0.5, 1.0, 4.0])
def test_two_images_by_quadrature(level: float) -> None:
    """For x_0 = +-a, D(x) = a tanh(a.x / rho^2): the loss is lambda |a|^2 E (1 - tanh(m + sqrt(m) z))^2 / d.

    z is standard normal, m = |a|^2 / rho^2.
    """
    a = torch.tensor([0.5, -0.2, 0.7, 0.1]).reshape(1, 1, 2, 2)
    square = float(a.double().square().sum())
    m = square / level**2
    mean, _ = quad(lambda z: (1 - np.tanh(m + math.sqrt(m) * z)) ** 2 * norm.pdf(z), -12, 12, epsabs=1e-12)
    weight = float(EDMWeight(0.5)(torch.tensor(level, dtype=torch.float64)))
    images, count = torch.cat([a, -a]), 100_000
    clean = images[torch.arange(count) % 2]
    objective = DenoisingObjective(LogNormal(), EDMWeight(0.5), Denoising())
    losses, rho = optimal_losses(objective, batch_at(clean, level, seed=1), images)
    assert rho.tolist() == pytest.approx([level] * count)
    error = float(losses.double().std()) / count**0.5
    assert abs(float(losses.double().mean()) - weight * square * mean / 4) < 4 * error
    assert error < 0.02 * weight * square * mean / 4


def test_a_conditional_model_has_the_optimum_of_each_class() -> None:
    """Each loss is that of the mean over images of the label, summed one by one in NumPy."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 1, 2, 2), generator=generator, dtype=torch.uint8)
    classes = torch.arange(12) % 3
    label = torch.tensor([0, 1, 2, -1])
    clean = images[:4].float() / 127.5 - 1
    batch = batch_at(clean, 0.8, 2, label)
    objective = DenoisingObjective(LogNormal(), InverseVariance(), Denoising())
    losses, _ = optimal_losses(objective, batch, images, classes)
    data = images.double().numpy().reshape(12, 4) / 127.5 - 1
    for k in range(4):
        own = data if label[k] < 0 else data[(classes == label[k]).numpy()]
        x = (clean[k] + 0.8 * batch.eps[k]).double().numpy().ravel()
        weights = np.exp(-((x - own) ** 2).sum(1) / (2 * 0.8**2))
        mean = (weights[:, None] * own).sum(0) / weights.sum()
        expected = ((mean - clean[k].double().numpy().ravel()) ** 2).mean() / 0.8**2
        assert float(losses[k]) == pytest.approx(expected, rel=1e-5)
    anyone, _ = optimal_losses(objective, batch, images)
    assert float(anyone[3]) == float(losses[3])
    assert not torch.equal(anyone[:3], losses[:3])


def test_no_denoiser_is_better() -> None:
    """Moving the optimum in any direction raises the mean loss over all images and much noise."""
    images = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    clean = images[torch.arange(20_000) % 5]
    batch = batch_at(clean, 1.0, seed=4)
    objective = DenoisingObjective(LogNormal(), InverseVariance(), Denoising())
    least = optimal_losses(objective, batch, images)[0].double()
    for factor in (0.9, 1.1):
        moved = optimal_losses(objective, batch, images * factor)[0].double()
        difference = moved - least
        assert float(difference.mean()) > 3 * float(difference.std()) / len(clean) ** 0.5
