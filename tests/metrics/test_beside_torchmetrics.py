"""FID, KID and inception score of torchmetrics beside ours, on one set of features."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TheirInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from scoreline.datasets.digits import Digits
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.modular_metrics import FrechetDistance, InceptionScore, KernelDistance

GENERATED, REAL = Digits("test").images, Digits("train").images[:297]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric `.*` will save all extracted features"),
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom"),
]


class Network(nn.Module):
    """The digits network, as torchmetrics takes one."""

    num_features = 32

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.extractor, self.logits = DigitFeatures(), logits

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor.logits(images) if self.logits else self.extractor(images)


def fid(generated: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Network())
    metric.update(generated, real=False)
    metric.update(REAL, real=True)
    return float(metric.compute())


def kid(subset: int) -> tuple[float, float]:
    metric = KernelInceptionDistance(feature=Network(), subsets=20 if subset < 297 else 1, subset_size=subset)
    metric.update(GENERATED, real=False)
    metric.update(REAL, real=True)
    mean, deviation = metric.compute()
    return float(mean), float(deviation)


def ours(metric: FrechetDistance | KernelDistance, generated: Tensor = GENERATED) -> tuple[float, float]:
    metric.update(generated)
    metric.update(REAL, real=True)
    return float(metric.compute()), float(metric.error())


def test_frechet_distance() -> None:
    value, error = ours(FrechetDistance())
    assert fid(GENERATED) == pytest.approx(value, rel=1e-9)
    assert 0 < error < value
    turned = fid(GENERATED.flip(0))
    assert turned == pytest.approx(value, rel=1e-9)
    assert ours(FrechetDistance(), GENERATED.flip(0)) == (value, error)


def test_kernel_distance() -> None:
    value, error = ours(KernelDistance())
    assert kid(297)[0] == pytest.approx(value, rel=1e-9)
    torch.manual_seed(0)
    first, second = kid(100), kid(100)
    assert first != second, "random subsets"
    assert abs(first[0] - value) < first[1] > error


def test_inception_score() -> None:
    metric = InceptionScore(splits=1)
    metric.update(GENERATED)
    theirs = TheirInceptionScore(feature=Network(logits=True), splits=1)
    theirs.update(GENERATED)
    assert float(theirs.compute()[0]) == pytest.approx(float(metric.compute()), rel=1e-9)
    assert torch.isnan(metric.error())
    ten, other = (InceptionScore() for _ in range(2))
    ten.update(GENERATED)
    other.update(GENERATED)
    assert float(ten.compute()) == float(other.compute()) < float(metric.compute())
    assert 0 < float(ten.error()) < 1
