from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from scoreline.metrics import kid
from scoreline.metrics.jackknife import delete_each_group, second_order
from scoreline.metrics.kid import kernel_distance, kernel_replicates


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def double_loop(x, y):
    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_equals_a_double_loop():
    x, y = normal(13, 3, seed=1), normal(17, 3, seed=2, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(double_loop(x.tolist(), y.tolist()), rel=1e-11)


def test_equal_distributions_average_to_zero():
    values = np.array([kernel_distance(normal(30, 2, seed=i), normal(40, 2, seed=9000 + i)) for i in range(400)])
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < 3 * values.std() / 20


def test_chunks_do_not_change_it(monkeypatch):
    x, y = normal(50, 4, seed=1), normal(70, 4, seed=2)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kid, "CHUNK", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-11)


def test_replicates_equal_recomputation_without_each_row_and_pair():
    n, y = 23, normal(31, 4, seed=2, shift=0.2)
    x = normal(n, 4, seed=1)
    fast = kernel_replicates(x, y)
    slow = delete_each_group(lambda rows: kernel_distance(rows, y), x, torch.arange(n))
    assert fast.full == pytest.approx(slow.full, rel=1e-10)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-10)
    values = []
    for j, k in combinations(range(n), 2):
        kept = [i for i in range(n) if i not in (j, k)]
        values.append((n - 2) * kernel_distance(x[kept], y) - (n - 1) * float(slow.without[j] + slow.without[k]))
    assert fast.second == pytest.approx(second_order(torch.tensor(values, dtype=torch.float64)), rel=1e-8)


def test_error_is_the_spread_between_sets_of_one_distribution():
    y = normal(200, 16, seed=1)
    found = [kernel_replicates(normal(60, 16, seed=2 + k), y) for k in range(400)]
    spread = np.std([it.full for it in found], ddof=1)
    assert np.mean([it.error for it in found]) / spread == pytest.approx(1, abs=0.12)
    assert np.mean([replace(it, second=0.0).error for it in found]) / spread > 1.15


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5)])
def test_too_few_rows_are_refused(n, m):
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(torch.rand(n, 3), torch.rand(m, 3))


def test_too_few_rows_left_are_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_replicates(torch.rand(2, 3), torch.rand(5, 3))


def test_unequal_dimensions_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        kernel_distance(torch.rand(5, 3), torch.rand(5, 4))
