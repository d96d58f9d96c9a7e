import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from scipy.integrate import solve_ivp
from torch import Tensor

from scoreline.networks.exact import GaussianMixture

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def mixture() -> GaussianMixture:
    """Two unequal, off-centre components in two dimensions: nothing cancels by symmetry."""
    return GaussianMixture(
        means=torch.tensor([[1.2, -0.4], [-0.7, 0.9]], dtype=torch.float64),
        stds=torch.tensor([0.5, 0.3], dtype=torch.float64),
        weights=torch.tensor([0.35, 0.65], dtype=torch.float64),
    )


Flow = Callable[[Tensor, float, float], Tensor]


@pytest.fixture(scope="session")
def exact_flow(mixture: GaussianMixture) -> Flow:
    """x(end) of dx/drho = eps(x, rho) from x (B, 2) at `start`, in ln rho by SciPy's DOP853 at 1e-13."""

    def flow(x: Tensor, start: float, end: float) -> Tensor:
        def slope(v: float, y: np.ndarray) -> np.ndarray:
            rho = math.exp(v)
            return rho * mixture.eps(torch.from_numpy(y).reshape(-1, 2), rho).numpy().ravel()

        span = (math.log(start), math.log(end))
        solution = solve_ivp(slope, span, x.numpy().ravel(), method="DOP853", rtol=1e-13, atol=1e-13)
        return torch.from_numpy(solution.y[:, -1]).reshape(-1, 2)

    return flow
