import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from scoreline.exact import GaussianMixture

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Two unequal, off-centre components in two dimensions: nothing cancels by symmetry."""
    return GaussianMixture(
        means=torch.tensor([[1.2, -0.4], [-0.7, 0.9]], dtype=torch.float64),
        stds=torch.tensor([0.5, 0.3], dtype=torch.float64),
        weights=torch.tensor([0.35, 0.65], dtype=torch.float64),
    )
