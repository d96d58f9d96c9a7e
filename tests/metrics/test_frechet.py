from functools import reduce

import numpy as np
import pytest
import scipy.linalg
import torch

from scoreline.metrics.frechet import GaussianStatistics, frechet_distance, frechet_replicates
from scoreline.metrics.jackknife import assign_groups, delete_each_group


def correlated(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + 0.1 * seed


def gaussian(mean, covariance, n=100):
    mean, covariance = torch.tensor(mean).double(), torch.tensor(covariance).double()
    return GaussianStatistics(n, mean, covariance * (n - 1))


def distance(x, y):
    return frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y))


def by_matrix_root(x, y):
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    gap = x.numpy().mean(0) - y.numpy().mean(0)
    return gap @ gap + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def test_two_gaussians_with_commuting_covariances_in_closed_form():
    a = gaussian([0.0, 1.0, 2.0], [[4.0, 0, 0], [0, 9.0, 0], [0, 0, 0]])
    b = gaussian([1.0, 1.0, 0.0], [[1.0, 0, 0], [0, 25.0, 0], [0, 0, 16.0]])
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 5) ** 2 + 16, rel=1e-14)


def test_two_rotated_gaussians_in_closed_form():
    # For 2x2 matrices tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    a, b = [[2.0, 1.0], [1.0, 3.0]], [[5.0, -2.0], [-2.0, 1.0]]
    trace, det = 2 * 5 - 2 - 2 + 3, (6 - 1) * (5 - 4)
    want = 5 + 6 - 2 * (trace + 2 * det**0.5) ** 0.5
    assert frechet_distance(gaussian([0.0, 0.0], a), gaussian([0.0, 0.0], b)) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("d", [1, 5, 32])
def test_agrees_with_scipys_matrix_root(d):
    x, y = correlated(200, d, seed=1), correlated(150, d, seed=2)
    want = by_matrix_root(x, y) if d > 1 else float((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2)
    assert distance(x, y) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("n", [900, 250])
def test_distance_in_300_dimensions_agrees_with_matrix_roots(n):
    x, y = correlated(n, 300, seed=1), correlated(1000, 300, seed=2)
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    gap = x.numpy().mean(0) - y.numpy().mean(0)
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    assert distance(x, y) == pytest.approx(gap @ gap + np.trace(a) + np.trace(b) - 2 * roots, rel=1e-6)
    if n > 300:
        assert distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-6)


@pytest.mark.slow
def test_2048_dimensions_agree_with_scipys_matrix_root():
    x, y = correlated(5000, 2048, seed=1), correlated(6000, 2048, seed=2)
    assert distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-6)


def test_statistics_are_numpys_mean_and_covariance():
    x = correlated(50, 4, seed=3)
    statistics = GaussianStatistics.of(x)
    np.testing.assert_allclose(statistics.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_merging_is_exact_far_from_the_origin():
    x = correlated(101, 4, seed=3) + 1e6
    parts = [GaussianStatistics.of(part) for part in x.split([1, 7, 60, 33])]
    whole, merged = GaussianStatistics.of(x), reduce(GaussianStatistics.merge, parts)
    assert merged.n == 101
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-7)


def test_float32_features_are_accumulated_in_float64():
    x = (correlated(5000, 3, seed=4) + 1e3).float()
    np.testing.assert_allclose(GaussianStatistics.of(x).covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_singular_covariances_are_finite_nonnegative_and_right(n):
    x, y = correlated(n, 32, seed=1), correlated(n + 1, 32, seed=2)
    # The nuclear norm of the cross-product of centred rows needs no covariance at all.
    p, q = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / n**0.5
    cross = np.linalg.svd((p @ q.T).numpy(), compute_uv=False).sum()
    want = float((x.mean(0) - y.mean(0)).square().sum() + p.square().sum() + q.square().sum()) - 2 * cross
    assert distance(x, y) == pytest.approx(want, rel=1e-6)


def test_constant_features_are_at_their_means():
    x, y = torch.zeros(10, 4), torch.full((10, 4), 3.0)
    assert distance(x, y) == pytest.approx(36.0, rel=1e-14)


@pytest.mark.parametrize("n", [3, 300])
def test_distance_is_symmetric_and_zero_to_itself(n):
    x, y = correlated(n, 16, seed=1), correlated(40, 16, seed=2)
    assert 0 <= distance(x, x) < 1e-12
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)


def test_replicates_equal_recomputation_without_each_group():
    x, y = correlated(53, 6, seed=1), correlated(80, 6, seed=2)
    group = assign_groups(53, 10)
    fast = frechet_replicates(x, GaussianStatistics.of(y), group)
    slow = delete_each_group(lambda rows: distance(rows, y), x, group)
    assert fast.full == pytest.approx(slow.full, rel=1e-12)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-10)
    assert fast.error == pytest.approx(slow.error, rel=1e-8)


@pytest.mark.parametrize(("n", "rounding"), [(700, 1e-10), (120, 1e-8)])  # 120 rows leave a null space of 1e-8 roots
def test_replicates_in_many_dimensions_equal_recomputation_too(n, rounding):
    x, y = correlated(n, 300, seed=1), correlated(800, 300, seed=2)
    group = assign_groups(n, 5)
    fast = frechet_replicates(x.float(), GaussianStatistics.of(y), group)
    slow = delete_each_group(lambda rows: distance(rows, y), x.float(), group)
    assert fast.full == pytest.approx(slow.full, rel=rounding)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-6)
    assert fast.error == pytest.approx(slow.error, rel=1e-4)


@pytest.mark.parametrize(("n", "triangular"), [(500, True), (20, False), (30, False)])
def test_roots_of_regular_and_singular_covariances(n, triangular):
    found = GaussianStatistics.of(correlated(n, 30, seed=1))
    np.testing.assert_allclose(found.root.T @ found.root, found.covariance, rtol=0, atol=1e-13)
    assert bool((found.root.tril(-1) == 0).all()) == triangular


def test_nearly_singular_covariances_agree_with_eigenvalues():
    rotation = torch.linalg.qr(correlated(6, 6, seed=3)).Q
    values = torch.tensor([1.0, 0.5, 1e-3, 1e-9, 1e-12, 1e-13], dtype=torch.float64)
    near = gaussian(np.zeros(6), ((rotation * values) @ rotation.T).numpy())
    unit = gaussian(np.zeros(6), np.eye(6))
    assert frechet_distance(near, unit) == pytest.approx(float((1 - values.sqrt()).square().sum()), abs=1e-8)


def test_leaving_out_undoes_merging():
    x = correlated(101, 4, seed=3) + 100
    whole = GaussianStatistics.of(x)
    rest, want = whole.without(GaussianStatistics.of(x[:33])), GaussianStatistics.of(x[33:])
    assert rest.n == 68
    np.testing.assert_allclose(rest.mean, want.mean, rtol=1e-14)
    np.testing.assert_allclose(rest.scatter, want.scatter, rtol=1e-9)
    with pytest.raises(ValueError, match="101 of 101 rows cannot be left out"):
        whole.without(whole)


def test_one_row_has_no_covariance():
    one, many = GaussianStatistics.of(torch.ones(1, 3)), GaussianStatistics.of(torch.rand(9, 3))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        frechet_distance(one, many)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    rows = torch.zeros(5, 3)
    rows[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 5 feature rows are not finite"):
        GaussianStatistics.of(rows)


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 3, 4)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="features must be"):
        GaussianStatistics.of(torch.zeros(shape))


def test_unequal_dimensions_have_no_distance():
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        distance(torch.rand(5, 3), torch.rand(5, 4))
