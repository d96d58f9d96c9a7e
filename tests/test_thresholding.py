import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.guidance import ClassifierFree
from scoreline.parameterisations import EDMPreconditioning, NoisePrediction, VarianceExploding
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import build
from scoreline.thresholding import Clip, DynamicThreshold

VP = LinearVP()
DEIS3 = DEIS(3, VP)


class Says(nn.Module):
    """Under `VarianceExploding`, D = gain x + label whatever rho: F = (D - x) / rho."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        shift = 0 if label is None else label.reshape(-1, 1, 1, 1)
        return ((self.gain - 1) * x + shift) / (2 * noise.exp()).reshape(-1, 1, 1, 1)


def says(gain: float = 1.0) -> Denoiser:
    return Denoiser(Says(gain), VarianceExploding())


def states() -> Tensor:
    """Images of very different size: some inside [-1, 1], some far outside."""
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (
        x / x.abs().amax((1, 2, 3), keepdim=True) * torch.tensor([0.2, 0.9, 1.0, 1.5, 4.0, 30.0]).reshape(-1, 1, 1, 1)
    )


def test_clip_is_a_clamp_and_its_eps_follows() -> None:
    x = states()
    clean = np.clip(0.7 * x.numpy(), -0.8, 1.1)
    clipped = Clip(says(0.7), -0.8, 1.1)
    np.testing.assert_allclose(clipped(x, 2.0).numpy(), clean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(clipped.eps(x, 2.0).numpy(), (x.numpy() - clean) / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("ceiling", [1.0, 2.5, float("inf")])
def test_dynamic_threshold_against_numpy_image_by_image(quantile: float, ceiling: float) -> None:
    x = states()
    scales, clean = [], []
    for image in 0.7 * x.numpy():
        scale = min(max(float(np.quantile(np.abs(image), quantile)), 1.0), ceiling)
        scales.append(scale)
        clean.append(np.clip(image, -scale, scale) / scale)
    assert scales[:3] == [1, 1, 1]
    assert scales[5] == (ceiling if ceiling < 3 else pytest.approx(scales[5]))
    assert max(scales) > 1 or ceiling == 1
    limited = DynamicThreshold(says(0.7), quantile, ceiling)
    np.testing.assert_allclose(limited(x, 0.3).numpy(), clean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(limited.eps(x, 0.3).numpy(), (x.numpy() - clean) / 0.3, rtol=1e-11, atol=1e-12)
    assert float(limited(x, 0.3).abs().max()) <= 1


@pytest.mark.parametrize("wrap", [Clip, DynamicThreshold])
@pytest.mark.parametrize("parameterisation", [EDMPreconditioning(0.5), NoisePrediction(VP), VarianceExploding()])
def test_eps_without_clipping_is_the_denoisers(wrap, parameterisation) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.tanh(x) / 7

    plain = Denoiser(Zero(), parameterisation)
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    for rho in (1e-4, 0.01, 0.3):
        assert float(plain(x, rho).abs().max()) < 1
        assert torch.equal(wrap(plain).eps(x, rho), plain.eps(x, rho))
        assert torch.equal(wrap(plain)(x, rho), plain(x, rho))
    far = x * 5
    assert not torch.equal(wrap(plain).eps(far, 0.01), plain.eps(far, 0.01))


@pytest.mark.parametrize("wrap", [Clip, DynamicThreshold])
def test_one_level_per_image(wrap) -> None:
    rho, x, limited = torch.tensor([0.1, 0.5, 1, 2, 3, 9], dtype=torch.float64), states(), wrap(says(0.9))
    for form in ("forward", "eps"):
        single = [getattr(limited, form)(x[i : i + 1], float(r)) for i, r in enumerate(rho)]
        torch.testing.assert_close(getattr(limited, form)(x, rho), torch.cat(single), rtol=1e-12, atol=1e-13)


def test_wrappers_nest_in_any_order() -> None:
    x, labels = states(), torch.full((6,), 0.4, dtype=torch.float64)
    weak, strong = 0.7 * x, 0.7 * x + 0.4
    outside, inside = Clip(ClassifierFree(says(0.7), 3.0)), ClassifierFree(Clip(says(0.7)), 3.0)
    torch.testing.assert_close(outside(x, 2.0, label=labels), (weak + 3 * (strong - weak)).clamp(-1, 1))
    both = weak.clamp(-1, 1) + 3 * (strong.clamp(-1, 1) - weak.clamp(-1, 1))
    torch.testing.assert_close(inside(x, 2.0, label=labels), both)
    torch.testing.assert_close(inside.eps(x, 2.0, label=labels), (x - both) / 2)
    assert float((outside(x, 2.0, label=labels) - both).abs().max()) > 0.1
    assert outside.calls(2.0) == inside.calls(2.0) == DynamicThreshold(Clip(inside)).calls(2.0) == 2


@pytest.mark.parametrize("solver", [DDIM(), heun(), DEIS3], ids=["ddim", "heun", "deis3"])
@pytest.mark.parametrize("wrap", [Clip, DynamicThreshold])
def test_every_solver_feels_it_at_no_extra_call(solver, wrap) -> None:
    table = build(solver, Power(7), (20.0, 0.05), 6, "denoise")
    (free,) = generate(says(0.9), table, (1, 4, 4), range(4), 4)
    (kept,) = generate(wrap(says(0.9)), table, (1, 4, 4), range(4), 4)
    assert float(free.x.abs().max()) > 1.5
    assert float(kept.x.abs().max()) < 1 + 1e-5
    assert kept.network_calls == kept.nfe == 6


@pytest.mark.parametrize(
    ("wrap", "options", "sentence"),
    [
        (Clip, {"low": 1.0}, "threshold.low=1.0, threshold.high=1.0: choose numbers with low < high"),
        (Clip, {"low": "a"}, "threshold.low=a"),
        (DynamicThreshold, {"quantile": 0.0}, "threshold.quantile=0.0: must be a number above 0, at most 1"),
        (DynamicThreshold, {"quantile": 99.5}, "threshold.quantile=99.5"),
        (DynamicThreshold, {"quantile": None}, "threshold.quantile=None"),
        (DynamicThreshold, {"ceiling": 0.5}, "threshold.ceiling=0.5: must be a number, at least 1"),
        (DynamicThreshold, {"ceiling": float("nan")}, "threshold.ceiling=nan"),
    ],
)
def test_refusals_name_the_key(wrap, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        wrap(says(), **options)
