import numpy as np
import pytest
import torch

from scoreline.metrics.inception_score import inception_score


def probabilities(n, classes, seed=0, sharpness=2.0):
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.softmax(sharpness * logits, 1)


def by_definition(p, splits):
    p, n = p.numpy(), len(p)
    found = []
    for k in range(splits):
        part = p[k * n // splits : (k + 1) * n // splits]
        found.append(np.exp(np.mean(np.sum(part * (np.log(part) - np.log(part.mean(0))), 1))))
    return found


@pytest.mark.parametrize(("n", "splits"), [(100, 10), (103, 10), (7, 7), (50, 1)])
def test_equals_the_definition_split_by_split(n, splits):
    p = probabilities(n, 6)
    np.testing.assert_allclose(inception_score([p], n, splits), by_definition(p, splits), rtol=1e-12)


def test_does_not_depend_on_how_the_rows_arrive():
    p = probabilities(100, 6)
    whole = inception_score([p], 100, 10)
    np.testing.assert_allclose(inception_score(p.split(1), 100, 10), whole, rtol=1e-13)
    np.testing.assert_allclose(inception_score(p.split([3, 60, 37]), 100, 10), whole, rtol=1e-13)


def test_float32_rows_are_added_in_float64():
    p = probabilities(4000, 6).float()
    np.testing.assert_allclose(inception_score([p], 4000, 2), inception_score([p.double()], 4000, 2), rtol=1e-14)


def test_balanced_images_score_the_number_of_classes():
    p = torch.eye(4).repeat(5, 1)
    assert inception_score([p], 20, 5) == pytest.approx([4.0] * 5, rel=1e-14)


def test_one_class_and_undecided_images_score_one():
    assert inception_score([torch.eye(4)[:1].repeat(9, 1)], 9, 3) == [1.0] * 3
    assert inception_score([torch.full((9, 4), 0.25)], 9, 3) == pytest.approx([1.0] * 3, rel=1e-14)


@pytest.mark.parametrize(("n", "splits"), [(5, 6), (5, 0)])
def test_impossible_splits_are_refused(n, splits):
    with pytest.raises(ValueError, match="from 1 split to one for each"):
        inception_score([probabilities(n, 3)], n, splits)


def test_missing_and_surplus_rows_are_refused():
    with pytest.raises(ValueError, match="9 rows of probabilities for 12 images"):
        inception_score([probabilities(9, 3)], 12, 2)
    with pytest.raises(ValueError, match="9 rows of probabilities for 6 images"):
        inception_score([probabilities(9, 3)], 6, 2)
