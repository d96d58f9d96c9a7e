import math
from dataclasses import replace

import pytest
import torch

from scoreline.metrics.jackknife import Replicates, assign_groups, delete_each_group


def mean(rows):
    return float(rows.mean())


def uncorrected(statistic, rows, group):
    """Replicates without the second order."""
    return replace(delete_each_group(statistic, rows, group), second=0.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_error_of_the_mean_is_the_textbook_formula():
    x = normal(37)
    replicates = delete_each_group(mean, x, assign_groups(37, 37))
    assert replicates.full == pytest.approx(float(x.mean()), abs=1e-14)
    assert replicates.error == pytest.approx(float(x.std()) / math.sqrt(37), rel=1e-12)


def test_equal_groups_give_the_delete_one_formula():
    x = normal(60).exp()
    replicates = uncorrected(lambda rows: float(rows.std()), x, assign_groups(60, 12))
    spread = replicates.without - replicates.without.mean()
    assert replicates.error == pytest.approx(math.sqrt(11 / 12 * float(spread.square().sum())), rel=1e-12)


def test_unequal_groups_follow_the_pseudo_values_written_out():
    x, group = normal(23).exp(), assign_groups(23, 5)
    replicates = uncorrected(lambda rows: float(rows.median()), x, group)
    theta, squares, centre = float(x.median()), [], 0.0
    h = [23 / int((group == j).sum()) for j in range(5)]
    left = [float(x[group != j].median()) for j in range(5)]
    centre = 5 * theta - sum((1 - 1 / h[j]) * left[j] for j in range(5))
    squares = [(h[j] * theta - (h[j] - 1) * left[j] - centre) ** 2 / (h[j] - 1) for j in range(5)]
    assert sorted({int((group == j).sum()) for j in range(5)}) == [4, 5]
    assert replicates.error == pytest.approx(math.sqrt(sum(squares) / 5), rel=1e-12)


def test_a_bias_of_order_1_n_vanishes():
    replicates = delete_each_group(lambda rows: 7.0 / len(rows), normal(23), assign_groups(23, 5))
    assert float(replicates.without.std()) > 0
    assert replicates.error == pytest.approx(0, abs=1e-14)


def test_a_constant_statistic_has_exactly_no_error():
    assert delete_each_group(lambda rows: 1 / 3, normal(23), assign_groups(23, 5)).error == 0.0


def test_error_matches_the_spread_over_independent_sets():
    sets = [normal(200, seed=seed).exp() for seed in range(300)]
    replicates = [delete_each_group(lambda rows: float(rows.std()), x, assign_groups(200, 20)) for x in sets]
    spread = torch.tensor([each.full for each in replicates]).std()
    claimed = torch.tensor([each.error for each in replicates]).square().mean().sqrt()
    assert 0.85 < float(claimed / spread) < 1.15


@pytest.mark.parametrize("centre", [0.0, 0.1, 1.0])
def test_a_squared_mean_has_its_error_at_zero_too(centre):
    """Var(mean^2) is 4 c^2 / n + 2 / n^2 for normal rows; at c = 0 the jackknife alone states twice that."""
    sets = [normal(40, seed=k) + centre for k in range(200)]
    found = [delete_each_group(lambda x: mean(x) ** 2, x, torch.arange(40)) for x in sets]
    jackknife = sum(replace(it, second=0.0).error ** 2 for it in found) / 200
    second = sum(it.second for it in found) / 200
    assert second == pytest.approx(2 / 40**2, rel=0.15)
    # the error of the mean over 200 sets: a tenth of the second order, and a tenth of the first
    assert jackknife - second == pytest.approx(4 * centre**2 / 40 + 2 / 40**2, rel=0.25)


def test_second_order_of_a_product_of_pairs_is_exact():
    """With all pairs, a mean of x_i x_j over i != j has Q_jl = 2 / (g - 3) x_j x_l and terms of one row each."""
    x = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1], dtype=torch.float64)

    def product(rows):
        return float((rows.sum() ** 2 - rows.square().sum()) / (len(rows) * (len(rows) - 1)))

    found = delete_each_group(product, x, torch.arange(8))
    # 16 pairs of -1 and 12 pairs of +1: their variance is 1 - (4 / 28)^2
    assert found.second == pytest.approx(0.5 * (2 / 5) ** 2 * (1 - 1 / 49), rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "share"), [(0, 1), (0.5, 0.75), (1, 0.5), (2, 0.5), (2.5, 0.5), (9, math.log(10) / 9)]
)
def test_the_share_of_the_variance_that_is_left(ratio, share):
    replicates = Replicates(0.0, torch.tensor([1.0, -1.0]).double(), torch.tensor([1, 1]))
    assert replicates.error == pytest.approx(1)
    assert replace(replicates, second=ratio / 2).error == pytest.approx(share**0.5)


def test_cyclic_labels_do_not_inflate_the_error():
    x = torch.arange(1000).remainder(20).double() + 0.1 * normal(1000)
    independent = float(x.std()) / math.sqrt(1000)
    assert delete_each_group(mean, x, torch.arange(1000) % 20).error > 5 * independent
    assert delete_each_group(mean, x, assign_groups(1000, 20)).error == pytest.approx(independent, rel=0.4)


def test_groups_are_fixed_balanced_and_shuffled():
    group = assign_groups(1003, 20)
    assert torch.equal(group, assign_groups(1003, 20))
    assert sorted(set(torch.bincount(group).tolist())) == [50, 51]
    assert not torch.equal(group, torch.arange(1003) % 20)


@pytest.mark.parametrize(("n", "groups"), [(10, 1), (10, 0), (10, 11), (1, 2)])
def test_impossible_groups_are_refused(n, groups):
    with pytest.raises(ValueError, match=f"groups={groups}"):
        assign_groups(n, groups)


def test_error_scales_with_the_statistic():
    once = Replicates(1.0, torch.tensor([1.1, 0.8, 1.3]), torch.tensor([4, 5, 4]))
    twice = Replicates(-2.0, torch.tensor([-2.2, -1.6, -2.6]), torch.tensor([4, 5, 4]))
    assert twice.error == pytest.approx(2 * once.error, rel=1e-6)
