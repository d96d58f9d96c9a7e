import math

import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.networks.exact import GaussianMixture
from scoreline.parameterisations import (
    IDDPM,
    EDMPreconditioning,
    NoisePrediction,
    Parameterisation,
    Scalings,
    VarianceExploding,
    VelocityPrediction,
)
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.vp import LinearVP

VP = LinearVP()
ALL: list[Parameterisation] = [
    NoisePrediction(VP),
    NoisePrediction(DiscreteVP(), label_scale=1.0),
    VelocityPrediction(VP),
    VarianceExploding(),
    IDDPM(),
    EDMPreconditioning(0.5),
]


class Oracle(nn.Module):
    """The network that is right for a parameterisation: F = (E[x0 | x] - skip x) / out, from its own input."""

    def __init__(self, model: GaussianMixture, parameterisation: Parameterisation, rho: Tensor) -> None:
        super().__init__()
        self.model, self.parameterisation, self.rho = model, parameterisation, rho

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        outputs = []
        for row, rho in zip(x, self.rho.expand(len(x)), strict=True):
            scale = self.parameterisation(rho)
            state = row[None] / scale.in_
            outputs.append((self.model.denoise(state, float(rho)) - scale.skip * state) / scale.out)
        out = torch.cat(outputs)
        return torch.cat([out] * self.parameterisation.output_factor, dim=1)


@pytest.mark.parametrize("parameterisation", ALL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("rho", [0.01, 0.7, 40.0, (0.02, 1.0, 9.0)])
def test_denoiser_is_independent_of_what_the_network_predicts(
    parameterisation: Parameterisation, rho: float | tuple[float, ...], mixture: GaussianMixture
) -> None:
    level = torch.tensor(rho, dtype=torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * level.reshape(-1, 1)
    denoiser = Denoiser(Oracle(mixture, parameterisation, level), parameterisation)
    clean = torch.cat([mixture.denoise(x[i : i + 1], float(level.expand(3)[i])) for i in range(3)])
    noise = torch.cat([mixture.eps(x[i : i + 1], float(level.expand(3)[i])) for i in range(3)])
    given = rho if isinstance(rho, float) else level
    torch.testing.assert_close(denoiser(x, given), clean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denoiser.eps(x, given), noise, rtol=1e-7, atol=1e-8)


def test_a_vp_network_sees_native_states() -> None:
    seen = {}

    class Spy(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            seen.update(x=x, noise=noise, label=label)
            return x

    t = torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    Denoiser(Spy(), NoisePrediction(VP)).eps(x, float(VP.inverse(t)), label=torch.tensor([3, 4]))
    torch.testing.assert_close(seen["x"], x * VP.alpha(t))
    torch.testing.assert_close(seen["noise"], torch.full((2,), 999 * 0.4, dtype=torch.float64))
    assert seen["label"].tolist() == [3, 4]


def test_eps_of_a_noise_network_is_its_output() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return torch.full_like(x, 0.1)

    x = torch.randn(2, 1, 4, 4) * 100
    assert torch.equal(Denoiser(Constant(), NoisePrediction(VP)).eps(x, 1e-3), torch.full_like(x, 0.1))


def test_half_precision_network_is_cast_at_the_border() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1, dtype=torch.bfloat16)

        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            assert x.dtype == noise.dtype == torch.bfloat16
            return self.layer(x)

    assert Denoiser(Half(), EDMPreconditioning())(torch.randn(2, 1, 4, 4), 0.5).dtype == torch.float32


def test_table_1_of_edm() -> None:
    rho = torch.tensor([0.3], dtype=torch.float64)
    edm = EDMPreconditioning(0.5)(rho)
    assert float(edm.skip) == pytest.approx(0.25 / 0.34)
    assert float(edm.out) == pytest.approx(0.15 / math.sqrt(0.34))
    assert float(edm.in_) == pytest.approx(1 / math.sqrt(0.34))
    assert float(edm.noise) == pytest.approx(math.log(0.3) / 4)
    vp = NoisePrediction(VP)(rho)
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1.09)) - 0.1) / 19.9
    assert [float(part) for part in vp] == pytest.approx([1, -0.3, 1 / math.sqrt(1.09), 999 * t])
    ve = VarianceExploding()(rho)
    assert [float(part) for part in ve] == pytest.approx([1, 0.3, 1, math.log(0.15)])


def test_iddpm_levels_and_labels() -> None:
    levels = IDDPM().levels
    assert len(levels) == 1001
    assert float(levels[0]) == pytest.approx(20291, abs=0.5)
    assert float(levels[999]) == pytest.approx(0.00642, abs=6e-6)
    assert float(levels[1000]) == 0
    assert (levels.diff() < 0).all()
    labels = IDDPM()(levels[[0, 500, 999]] * 1.0001).noise
    assert labels.tolist() == [999, 499, 0]


def test_label_options_of_discrete_networks() -> None:
    schedule = DiscreteVP()
    rho = schedule.inverse(torch.tensor([10.4, 10.6], dtype=torch.float64))
    assert NoisePrediction(schedule, 1.0)(rho).noise.tolist() == pytest.approx([10.4, 10.6], abs=1e-9)
    assert NoisePrediction(schedule, 1.0, round_labels=True)(rho).noise.tolist() == [10, 11]
    assert NoisePrediction(schedule, 1.0, label_shift=-1.0)(rho).noise.tolist() == pytest.approx([9.4, 9.6], abs=1e-9)


class Halving(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return x / 2


class Counting(Parameterisation):
    """EDM's scalings, and every level that they were computed for."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, rho: Tensor) -> Scalings:
        self.asked.append(rho)
        return EDMPreconditioning()(rho)


def test_a_number_level_equals_a_tensor_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scalings = Counting()
    denoiser = Denoiser(Halving(), scalings)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    found = [denoiser.eps(x, 0.3), denoiser(x, 0.3), denoiser.eps(x, 0.3), denoiser(x, 5.0)]
    assert [float(rho) for rho in scalings.asked] == [0.3, 5.0]
    level = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(found[0], denoiser.eps(x, level))
    assert torch.equal(found[1], denoiser(x, level))
    monkeypatch.setattr("scoreline.parameterisations.KEPT_LEVELS", 4)
    for k in range(20):
        denoiser.eps(x, 1.0 + k)
        assert len(scalings._kept) <= 4


@pytest.mark.parametrize("parameterisation", ALL, ids=lambda p: type(p).__name__)
def test_numbers_at_a_level_are_the_scalings(parameterisation: Parameterisation) -> None:
    for rho in (0.02, 0.7, 40.0):
        tensors = parameterisation(torch.tensor([rho], dtype=torch.float64))
        assert parameterisation.at(rho) == tuple(value.item() for value in tensors)


@pytest.mark.parametrize("parameterisation", ALL, ids=lambda p: type(p).__name__)
def test_unit_skip_means_skip_one(parameterisation: Parameterisation) -> None:
    skip = parameterisation(torch.logspace(-3, 2, 40, dtype=torch.float64)).skip
    assert parameterisation.unit_skip == bool((skip == 1).all())
