import numpy as np
import pytest
import torch

from scoreline.metrics import kid
from scoreline.metrics.jackknife import assign_groups, delete_each_group
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


def test_replicates_equal_recomputation_without_each_group():
    x, y = normal(53, 4, seed=1), normal(31, 4, seed=2, shift=0.2)
    group = assign_groups(53, 10)
    fast, slow = kernel_replicates(x, y, group), delete_each_group(lambda rows: kernel_distance(rows, y), x, group)
    assert fast.full == pytest.approx(slow.full, rel=1e-10)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-10)
    assert fast.error == pytest.approx(slow.error, rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5)])
def test_too_few_rows_are_refused(n, m):
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_distance(torch.rand(n, 3), torch.rand(m, 3))


def test_too_few_rows_left_are_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        kernel_replicates(torch.rand(3, 3), torch.rand(5, 3), torch.tensor([0, 1, 1]))


def test_unequal_dimensions_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        kernel_distance(torch.rand(5, 3), torch.rand(5, 4))
