import math

import numpy as np
import pytest
import torch

from scoreline.metrics import precision_recall
from scoreline.metrics.jackknife import assign_groups, delete_each_group
from scoreline.metrics.precision_recall import NAMES, support, support_replicates


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_loops(x, y, k):
    def radius(rows, i):
        return sorted(math.dist(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    x, y = x.tolist(), y.tolist()
    rx, ry = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    in_y = [[math.dist(a, b) <= r for b, r in zip(y, ry, strict=True)] for a in x]
    in_x = [[math.dist(a, b) <= r for a, r in zip(x, rx, strict=True)] for b in y]
    return {
        "precision": sum(any(row) for row in in_y) / len(x),
        "recall": sum(any(row) for row in in_x) / len(y),
        "density": sum(sum(row) for row in in_y) / (k * len(x)),
        "coverage": sum(any(row[j] for row in in_y) for j in range(len(y))) / len(y),
    }


def values(x, y, k=3, groups=2):
    return {name: it.full for name, it in support_replicates(x, y, assign_groups(len(x), groups), k).items()}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_equal_brute_force_loops(k, shift):
    x, y = normal(37, 3, seed=1, shift=shift), normal(29, 3, seed=2)
    assert values(x, y, k) == pytest.approx(by_loops(x, y, k), rel=1e-12)
    assert support(x, y, k) == pytest.approx(by_loops(x, y, k), rel=1e-12)


@pytest.mark.parametrize("name", ["recall", "coverage"])
@pytest.mark.parametrize(("n", "groups", "k"), [(41, 8, 3), (12, 12, 2)])
def test_replicates_equal_brute_force_without_each_group(name, n, groups, k):
    x, y, group = normal(n, 2, seed=3, shift=0.5), normal(25, 2, seed=4), assign_groups(n, groups)
    fast = support_replicates(x, y, group, k)[name]
    slow = delete_each_group(lambda rows: by_loops(rows, y, k)[name], x, group)
    np.testing.assert_allclose(fast.without, slow.without, rtol=1e-12)
    assert fast.full == pytest.approx(slow.full, rel=1e-12)
    assert fast.second == pytest.approx(slow.second, rel=1e-9)
    assert fast.error == pytest.approx(slow.error, rel=1e-9)


@pytest.mark.parametrize("name", ["precision", "density"])
def test_errors_of_means_are_those_of_means(name):
    x, y = normal(41, 2, seed=3, shift=0.5), normal(25, 2, seed=4)
    found = support_replicates(x, y, assign_groups(41, 8))[name]
    each = [by_loops(x, y, 3)[name], *found.without.tolist()]
    assert each == pytest.approx([found.full, *(by_loops(x[kept(41, i)], y, 3)[name] for i in range(41))], rel=1e-12)
    rows = [41 * found.full - 40 * without for without in found.without.tolist()]
    assert found.error == pytest.approx(np.std(rows, ddof=1) / 41**0.5, rel=1e-12)


def kept(n, row):
    return [i for i in range(n) if i != row]


@pytest.mark.parametrize("name", NAMES)
def test_ties_and_copies_count_as_by_brute_force(name):
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(0, 9, (30, 2), generator=generator).double()
    x = torch.cat([y[::3] + 100, y[::4], torch.randint(0, 9, (12, 2), generator=generator)])
    group = torch.arange(len(x))
    fast = support_replicates(x, y, group, 2)[name]
    slow = [by_loops(x[kept(len(x), i)], y, 2)[name] for i in range(len(x))]
    np.testing.assert_allclose([fast.full, *fast.without], [by_loops(x, y, 2)[name], *slow], rtol=1e-12)


def test_a_copied_row_is_recalled_while_present():
    x = torch.tensor([[0.0], [1.0], [10.0], [500.0], [501.0]])
    y = torch.tensor([[10.0], [1000.0], [1001.0]])
    recall = support_replicates(x, y, torch.tensor([0, 0, 1, 2, 2]), 1)["recall"]
    assert [recall.full, *recall.without.tolist()] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_chunks_do_not_change_anything(monkeypatch):
    x, y = normal(37, 3, seed=1), normal(29, 3, seed=2)
    whole = values(x, y)
    monkeypatch.setattr(precision_recall, "CHUNK", 5)
    assert values(x, y) == whole


def test_a_set_against_itself_is_perfect():
    x = normal(30, 3, seed=1)
    assert values(x, x) == pytest.approx({"precision": 1, "recall": 1, "coverage": 1, "density": 4 / 3})


def test_a_collapsed_generator_is_precise_and_covers_little():
    y = normal(200, 2, seed=1)
    x = y[:1] + 1e-3 * normal(50, 2, seed=2)
    collapsed = values(x, y)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.05
    assert collapsed["coverage"] < 0.1


def test_disjoint_sets_share_nothing():
    assert set(values(normal(30, 3, seed=1), normal(30, 3, seed=2, shift=100.0)).values()) == {0.0}


def test_duplicates_count_as_neighbours_at_distance_zero():
    y = torch.tensor([[0.0, 0.0]]).repeat(6, 1)
    on, off = torch.zeros(8, 2), torch.full((8, 2), 1e-9)
    assert values(on, y, k=2)["precision"] == 1
    assert values(off, y, k=2)["precision"] == 0


@pytest.mark.parametrize(("n", "m", "k"), [(6, 9, 3), (9, 3, 3), (9, 9, 0)])
def test_too_few_rows_for_the_neighbours_are_refused(n, m, k):
    with pytest.raises(ValueError, match="nearest neighbours need"):
        support_replicates(normal(n, 2, seed=1), normal(m, 2, seed=2), assign_groups(n, 2), k)


def test_unequal_dimensions_are_refused():
    with pytest.raises(ValueError, match="of 2 and of 3 dimensions"):
        support_replicates(normal(9, 2, seed=1), normal(9, 3, seed=2), assign_groups(9, 9))


@pytest.mark.parametrize("name", NAMES)
def test_scalar_products_decide_as_differences_do(name, monkeypatch):
    x, y = normal(60, 300, seed=1, shift=0.05), normal(50, 300, seed=2)
    by_products = values(x, y)[name]
    monkeypatch.setattr(precision_recall, "LARGE", 300)
    assert by_products == values(x, y)[name]
