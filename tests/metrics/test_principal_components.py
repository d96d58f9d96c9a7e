import numpy as np
import pytest
import torch

from scoreline.errors import InputError
from scoreline.metrics.principal_components import PrincipalComponents


def rows(n, seed, spread=(5.0, 3.0, 1.0, 0.2)):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9)).double()).Q
    return torch.randn(n, 4, generator=generator).double() * torch.tensor(spread).double() @ mix + seed


@pytest.fixture(scope="module")
def sets():
    return [rows(300, 1), rows(40, 2)]


def test_directions_are_numpys_of_sets_of_equal_weight(sets):
    mean = np.mean([part.numpy().mean(0) for part in sets], axis=0)
    stacked = np.concatenate([(part.numpy() - mean) / len(part) ** 0.5 for part in sets])
    expected = np.linalg.svd(stacked, full_matrices=False)[2][:2]
    fitted = PrincipalComponents.fit(sets, 2)
    products = fitted.directions.numpy().T @ expected.T
    assert np.allclose(np.abs(products), np.eye(2), atol=2e-3)  # float16 keeps three digits
    assert np.allclose(fitted.mean.numpy(), mean, atol=1e-6)


def test_components_have_mean_square_one(sets):
    fitted = PrincipalComponents.fit(sets, 3)
    squares = torch.stack([fitted(part).square().mean() for part in sets])
    assert float(squares.mean()) == pytest.approx(1, abs=2e-3)


def test_first_components_are_those_of_largest_variance(sets):
    fitted = PrincipalComponents.fit(sets, 4)
    assert torch.allclose(fitted.first(2)(sets[0]), fitted(sets[0])[:, :2], rtol=1e-12)
    shares = [fitted.first(count).kept(sets[0]) for count in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=2e-3)
    with pytest.raises(InputError, match=r"metrics\.extractor\.components=5: from 1 to 4, or null"):
        fitted.first(5)


def test_a_file_holds_all_of_it(sets):
    fitted = PrincipalComponents.fit(sets, 3)
    again = PrincipalComponents.from_safetensors(fitted.to_safetensors())
    assert again.digest == fitted.digest
    assert torch.equal(again(sets[1]), fitted(sets[1]))
    assert PrincipalComponents.fit(sets[:1], 3).digest != fitted.digest
