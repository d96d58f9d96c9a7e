from dataclasses import replace
from functools import reduce
from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import torch

from scoreline.metrics.frechet import GaussianStatistics, frechet_distance, frechet_replicates
from scoreline.metrics.jackknife import delete_each_group, second_order


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


@pytest.mark.parametrize(("n", "d"), [(31, 6), (8, 6), (7, 6), (6, 6), (5, 6), (7, 300)])  # around n = d, and above 256
def test_replicates_equal_recomputation_without_each_row_and_pair(n, d):
    x, y = correlated(n, d, seed=1), correlated(400, d, seed=2)
    fast = frechet_replicates(x.float(), GaussianStatistics.of(y))
    slow = delete_each_group(lambda rows: distance(rows, y), x.float(), torch.arange(n))
    assert fast.full == pytest.approx(slow.full, rel=1e-10)
    np.testing.assert_allclose(fast.without, slow.without, rtol=0, atol=1e-4 * float(slow.without.std()))
    values = [
        (n - 2) * distance(x.float()[left_out(n, j, k)], y) - (n - 1) * float(slow.without[j] + slow.without[k])
        for j, k in combinations(range(n), 2)
    ]
    assert fast.second == pytest.approx(second_order(torch.tensor(values, dtype=torch.float64)), rel=3e-3)


def left_out(n, *rows):
    return [k for k in range(n) if k not in rows]


@pytest.mark.parametrize(("n", "scale"), [(32, 1.1), (33, 1.0), (40, 1.0), (64, 1.1), (320, 1.0)])
def test_error_is_the_spread_over_other_sets_where_n_is_near_d(n, scale):
    """The error is right to about 15 %, where the jackknife alone is 1.25 to 1.5 times too large (d = 32)."""
    generator = torch.Generator().manual_seed(n)
    reference = GaussianStatistics(1000, torch.zeros(32).double(), 999 * torch.eye(32).double())

    def draw():
        return scale * torch.randn(n, 32, generator=generator, dtype=torch.float64)

    spread = np.std([frechet_distance(GaussianStatistics.of(draw()), reference) for _ in range(400)], ddof=1)
    found = [frechet_replicates(draw(), reference) for _ in range(12)]
    assert np.mean([it.error for it in found]) / spread == pytest.approx(1, abs=0.16)
    assert np.mean([replace(it, second=0.0).error for it in found]) / spread > 1.2


def test_errors_do_not_depend_on_the_order_of_rows():
    x, reference = correlated(50, 6, seed=1), GaussianStatistics.of(correlated(80, 6, seed=2))
    assert frechet_replicates(x.flip(0), reference).error == pytest.approx(frechet_replicates(x, reference).error)


def test_constant_rows_have_no_error():
    reference = GaussianStatistics.of(correlated(80, 4, seed=2))
    assert frechet_replicates(torch.ones(10, 4), reference).error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (9, 4)])
def test_errors_of_too_few_rows_or_other_features_are_refused(shape):
    with pytest.raises(ValueError, match="needs at least 3 rows of 3 features"):
        frechet_replicates(torch.rand(shape), GaussianStatistics.of(torch.rand(9, 3)))


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
