import numpy as np
import pytest
import scipy.stats
import torch

from scoreline.metrics.jackknife import assign_groups, delete_each_group
from scoreline.metrics.sliced_wasserstein import (
    directions,
    project,
    sliced_wasserstein_distance,
    sliced_wasserstein_replicates,
    squared_wasserstein,
)


def ascending(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(-1).values


def bytes_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("n", "m"), [(4, 6), (7, 3), (5, 10), (1, 4), (9, 1)])
def test_unequal_counts_match_split_points(n, m):
    # Every x repeated m times and every y n times are n m points on either side, matched in order.
    x, y = ascending(3, n, seed=1), ascending(3, m, seed=2)
    want = (x.repeat_interleave(m, 1) - y.repeat_interleave(n, 1)).square().mean(1)
    np.testing.assert_allclose(squared_wasserstein(x, y), want, rtol=1e-12)


def test_equal_counts_are_matched_in_order():
    x, y = ascending(3, 8, seed=1), ascending(3, 8, seed=2)
    np.testing.assert_allclose(squared_wasserstein(x, y), (x - y).square().mean(1), rtol=1e-12)


def test_agrees_with_scipy_on_binary_samples():
    # scipy offers W_1 only; on {0, 1} a gap is its own square.
    x = torch.tensor([[0.0, 0, 0, 1, 1]]).double()
    y = torch.tensor([[0.0, 1, 1]]).double()
    assert float(squared_wasserstein(x, y)) == pytest.approx(scipy.stats.wasserstein_distance(x[0], y[0]))


def test_normal_quantiles_give_the_closed_form_between_gaussians():
    # W_2^2 = (mean gap)^2 + (standard deviation gap)^2
    def quantiles(count, mean, deviation):
        grid = (np.arange(count) + 0.5) / count
        return torch.from_numpy(scipy.stats.norm.ppf(grid, mean, deviation))[None]

    gap = squared_wasserstein(quantiles(20000, 0.0, 1.0), quantiles(15000, 0.7, 1.5))
    assert float(gap) == pytest.approx(0.7**2 + 0.5**2, rel=1e-3)


def test_directions_are_unit_uniform_and_seeded():
    along = directions(5, 4000, seed=3)
    np.testing.assert_allclose(along.norm(dim=0), 1, rtol=1e-12)
    np.testing.assert_allclose(along @ along.T / 4000, torch.eye(5) / 5, atol=0.02)
    assert torch.equal(along, directions(5, 4000, seed=3))
    assert not torch.equal(along, directions(5, 4000, seed=4))


def test_a_brighter_copy_is_at_its_shift():
    dark = bytes_of(40) // 2
    along = directions(16, 4000)
    x, y = (project(images, along).sort(1).values for images in (dark, dark + 51))
    assert sliced_wasserstein_distance(x, y) == pytest.approx(51 / 127.5, rel=0.05)
    want = ((51 / 127.5 * along.sum(0)).square().mean()).sqrt()
    assert sliced_wasserstein_distance(x, y) == pytest.approx(float(want), rel=1e-5)


def test_replicates_equal_recomputation_without_each_group():
    images, other, group = bytes_of(33, seed=1), bytes_of(20, seed=2), assign_groups(33, 7)
    along = directions(16, 9)
    reference = project(other, along).sort(1).values
    fast = sliced_wasserstein_replicates(project(images, along), reference, group)

    def afresh(rows):
        return sliced_wasserstein_distance(project(rows, along).sort(1).values, reference)

    slow = delete_each_group(afresh, images, group)
    assert fast.full == pytest.approx(slow.full, rel=1e-12)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-12)


@pytest.mark.parametrize(("x", "y"), [((3, 0), (3, 4)), ((3, 4), (3, 0)), ((3, 4), (2, 4))])
def test_empty_or_unmatched_projections_are_refused(x, y):
    with pytest.raises(ValueError, match=r"need \(L, n\) and \(L, m\)"):
        sliced_wasserstein_distance(torch.zeros(x), torch.zeros(y))
