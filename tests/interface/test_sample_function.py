"""`scoreline.sample`: any model, no Hydra."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import scoreline
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.runge_kutta import heun

SPAN = {"sigma_min": 0.002, "sigma_max": 80.0}


def test_edms_loop_with_edms_convention(mixture: GaussianMixture) -> None:
    """Algorithm 1 of Karras et al. written with denoise(x, sigma), sigma a scalar tensor as EDM's sampler gives it."""
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == ()
        assert sigma.dtype == torch.float64
        seen.append(float(sigma))
        return mixture.denoise(x, float(sigma))

    x = torch.randn(8, 2, dtype=torch.float64) * 80
    before = x.clone()
    ours = scoreline.sample(denoise, x, heun(), Power(7), nfe=35, final="denoise", **SPAN)
    assert len(seen) == 35
    assert torch.equal(x, before)
    ramp = torch.linspace(0, 1, 18, dtype=torch.float64)
    t = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    for now, then in pairwise(t):
        d = (x - mixture.denoise(x, now)) / now
        trial = x + (then - now) * d
        if then:
            trial = x + (then - now) * (d + (trial - mixture.denoise(trial, then)) / then) / 2
        x = trial
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-10)


def test_float32_images_keep_their_type() -> None:
    x = torch.randn(4, 3, 8, 8) * 80
    out = scoreline.sample(lambda x, sigma: x / (1 + sigma**2), x, DPMMultistep(3, "data"), Power(7), nfe=6, **SPAN)
    assert out.dtype == torch.float32
    assert out.shape == x.shape


def test_stochastic_solvers_follow_the_generator() -> None:
    x = torch.ones(4, 3)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        solver = EulerAncestral()
        return scoreline.sample(lambda x, s: x * 0, x, solver, Power(7), nfe=4, generator=generator, **SPAN)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_an_adaptive_solver_and_its_ceiling(mixture: GaussianMixture) -> None:
    x = torch.randn(3, 2, dtype=torch.float64) * 80

    def run(nfe: int, final: str) -> Tensor:
        solver = Adaptive("RK45", rtol=1e-6, atol=1e-6)
        denoise = lambda x, s: mixture.denoise(x, float(s))  # noqa: E731
        return scoreline.sample(denoise, x, solver, Power(7), nfe=nfe, final=final, **SPAN)

    torch.testing.assert_close(run(1000, "denoise"), mixture.denoise(run(1000, "none"), 0.002), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="nfe=20: the adaptive solver needs more"):
        run(20, "none")


def test_importing_scoreline_does_not_import_torch() -> None:
    code = "import sys, scoreline; assert 'torch' not in sys.modules; scoreline.sample; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="sampel"):
        _ = scoreline.sampel
