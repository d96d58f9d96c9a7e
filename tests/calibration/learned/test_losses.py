"""Losses: distances, distances of features, and the ball round the noise."""

import pytest
import torch
from learned_models import SPAN, start, subject

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.losses import FeatureDistance, SoftTarget, distance
from scoreline.calibration.learned.seed_groups import split_seeds
from scoreline.errors import InputError


def test_distance_is_the_root_mean_square() -> None:
    x, end = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(distance(x, end), torch.tensor([12.5**0.5, 0.0]), rtol=1e-6, atol=1e-15)


def test_features_decide_what_is_near() -> None:
    of_mean = FeatureDistance(lambda x: x.mean((1, 2, 3), keepdim=True))
    x, same_mean = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1), torch.zeros(1, 1, 2, 1)
    assert float(of_mean(x, same_mean)) < 1e-15 < float(distance(x, same_mean))
    assert float(of_mean(x + 1, same_mean)) == pytest.approx(1)


def test_a_start_follows_its_derivative_within_the_ball() -> None:
    """The loss falls, and by no more than the ball allows; without a radius nothing moves."""
    of = subject(range(12))
    (train, _), table = split_seeds(of, fine_ends(of)), start("velocity", 3)
    (images,) = train.images()
    for radius in (0.0, 0.01):
        target, losses = SoftTarget(radius), []
        for _ in range(8):
            x = target.shifted(images.seeds, images.x)
            found = slope(images.eps, x, table, lambda x: distance(x, images.end))
            target.follow(images.seeds, found.noise, SPAN[0])
            losses.append(float(found.loss.mean()))
        off = (target.shifted(images.seeds, images.x) - images.x).flatten(1).square().mean(1).sqrt() / SPAN[0]
        assert float(off.max()) <= radius * (1 + 1e-5)
        assert (losses[-1] < losses[0] * 0.99) == (radius > 0)
        assert (float(off.min()) > radius / 2) == (radius > 0)


@pytest.mark.parametrize("radius", [-0.1, 1, "wide", float("nan")])
def test_a_radius_is_a_number_below_one(radius: object) -> None:
    with pytest.raises(InputError, match=r"calibration\.radius="):
        SoftTarget(radius)  # type: ignore[arg-type]
