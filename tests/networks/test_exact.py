"""Distributions whose score is known, alone and as checkpoints."""

import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.commands import inspect
from scoreline.config.run_names import ASSETS
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.networks.exact import FullGaussianMixture, GaussianMixture
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.parameterisations import VarianceExploding
from scoreline.schedules.spacings import Power
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import build

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import exact_models

Mixture = GaussianMixture | FullGaussianMixture

LEVELS = [1e-3, 0.03, 1.0, 80.0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def isotropic() -> GaussianMixture:
    stds = torch.tensor([0.5, 1e-4, 0.2, 0.0], dtype=torch.float64)
    return GaussianMixture(normal(4, 5), stds, torch.tensor([0.1, 0.4, 2.0, 0.3], dtype=torch.float64))


def full() -> FullGaussianMixture:
    """Directions of standard deviation 1 down to 1e-5 and 0, weights that do not sum to 1."""
    variances = torch.tensor([[1, 1e-3, 1e-10, 0.1, 0.0], [0.5, 0.4, 0.3, 0.2, 1e-8], [1e-6] * 5], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 0.7], dtype=torch.float64)
    return FullGaussianMixture(normal(3, 5), variances, torch.linalg.qr(normal(3, 5, 5, seed=1)).Q, weights)


MIXTURES: list[Mixture] = [isotropic(), full()]


def kind(mixture: Mixture) -> str:
    return type(mixture).__name__


def as_full(mixture: GaussianMixture) -> FullGaussianMixture:
    count, dimension = mixture.means.shape
    variances = mixture.stds[:, None].expand(-1, dimension) ** 2
    return FullGaussianMixture(
        mixture.means, variances, torch.eye(dimension).double().repeat(count, 1, 1), mixture.weights
    )


def log_joint(mixture: Mixture, x: Tensor, rho: float) -> Tensor:
    """ln w_i + ln N(x; m_i, C_i + rho^2 I) (B, M), one component and one axis at a time; weights as they are."""
    whole = mixture if isinstance(mixture, FullGaussianMixture) else as_full(mixture)
    columns = []
    for mean, variances, axes, weight in zip(*asdict(whole).values(), strict=True):
        column = weight.log() * torch.ones(len(x), dtype=x.dtype)
        for k, variance in enumerate(variances + rho**2):
            column = column - ((x - mean) @ axes[:, k]) ** 2 / (2 * variance) - (2 * math.pi * variance).log() / 2
        columns.append(column)
    return torch.stack(columns, dim=1)


def states(mixture: Mixture, rho: float, count: int = 40) -> Tensor:
    """Noised draws, and as many points that lie nowhere near a component."""
    drawn = mixture.draw(count, torch.Generator().manual_seed(2))
    return torch.cat([drawn + rho * normal(*drawn.shape, seed=3), 2 * normal(*drawn.shape, seed=4)])


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
@pytest.mark.parametrize("rho", LEVELS)
def test_eps_is_the_gradient_of_the_log_density(mixture: Mixture, rho: float) -> None:
    x = states(mixture, rho).requires_grad_()
    joint = log_joint(mixture, x, rho)
    (gradient,) = torch.autograd.grad(joint.logsumexp(1).sum(), x)
    torch.testing.assert_close(mixture.eps(x, rho), -rho * gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.denoise(x, rho), x + rho**2 * gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.responsibilities(x, rho), joint.softmax(1), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
@pytest.mark.parametrize("rho", [0.3, 80.0])
def test_eps_agrees_with_the_density_of_another_library(mixture: Mixture, rho: float) -> None:
    whole = mixture if isinstance(mixture, FullGaussianMixture) else as_full(mixture)
    covariances = whole.axes @ (whole.variances + rho**2).diag_embed() @ whole.axes.mT
    density = MixtureSameFamily(Categorical(whole.weights), MultivariateNormal(whole.means, covariances))
    x = states(mixture, rho).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(mixture.eps(x, rho), -rho * gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
def test_a_level_per_row_is_that_row_alone(mixture: Mixture) -> None:
    rho = torch.tensor(LEVELS, dtype=torch.float64)
    x = torch.cat([states(mixture, level, 1)[:1] for level in LEVELS])
    for method in (mixture.eps, mixture.denoise, mixture.responsibilities):
        alone = torch.cat([method(row[None], float(level)) for row, level in zip(x, rho, strict=True)])
        torch.testing.assert_close(method(x, rho[:, None]), alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rho", LEVELS)
def test_spheres_are_a_case_of_both(rho: float) -> None:
    mixture = isotropic()
    x, whole = states(mixture, rho), as_full(mixture)
    torch.testing.assert_close(whole.eps(x, rho), mixture.eps(x, rho), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.eps_by_products(x, rho), mixture.eps(x, rho), rtol=1e-7, atol=1e-8)
    for one, other in zip(whole.moments(), mixture.moments(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
def test_moments_are_those_of_many_draws(mixture: Mixture) -> None:
    """Each of the 5 means and 25 second central moments to 5 standard errors, estimated from the draws themselves."""
    count = 200_000
    drawn = mixture.draw(count, torch.Generator().manual_seed(7))
    mean, covariance = mixture.moments()
    offset = drawn - mean
    products = (offset[:, :, None] * offset[:, None, :]).flatten(1)
    for found, exact in ((drawn, mean), (products, covariance.flatten())):
        assert bool(((found.mean(0) - exact).abs() < 5 * found.std(0) / math.sqrt(count)).all())


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
def test_draws_belong_to_the_components_by_weight(mixture: Mixture) -> None:
    """At small rho a draw of well separated components is told apart by its responsibilities."""
    drawn = mixture.draw(20_000, torch.Generator().manual_seed(8))
    modes = mixture.responsibilities(drawn, 1e-3).argmax(1).bincount(minlength=len(mixture.means))
    expected = 20_000 * mixture.weights / mixture.weights.sum()
    assert float(((modes - expected) ** 2 / expected).sum()) < chi2.ppf(0.9999, len(expected) - 1)
    assert torch.equal(drawn, mixture.draw(20_000, torch.Generator().manual_seed(8)))


def network_of(mixture: Mixture, channels: int, resolution: int) -> GaussianMixtureScore:
    whole = isinstance(mixture, FullGaussianMixture)
    network = GaussianMixtureScore(len(mixture.means), channels, resolution, whole)
    network.load_state_dict(asdict(mixture))
    return network


@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
def test_the_network_is_the_exact_denoiser(mixture: Mixture) -> None:
    denoiser = Denoiser(network_of(mixture, 5, 1), VarianceExploding())
    rho = torch.tensor([0.02, 0.3, 1.0, 7.0, 80.0], dtype=torch.float64)
    x = torch.cat([states(mixture, float(level), 1)[:1] for level in rho])
    image = x.reshape(5, 5, 1, 1)
    eps = torch.cat([mixture.eps(row[None], float(level)) for row, level in zip(x, rho, strict=True)])
    torch.testing.assert_close(denoiser.eps(image, rho).flatten(1), eps, rtol=1e-9, atol=1e-9)
    clean = x - rho[:, None] * eps
    torch.testing.assert_close(denoiser(image, rho).flatten(1), clean, rtol=1e-9, atol=1e-9)
    labelled = denoiser.eps(image, 0.3, label=torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(labelled.flatten(1), mixture.eps(x, 0.3), rtol=1e-9, atol=1e-9)


def test_states_keep_their_precision() -> None:
    denoiser = Denoiser(network_of(full(), 5, 1), VarianceExploding())
    x = states(full(), 0.1).float().reshape(-1, 5, 1, 1)
    single = denoiser.eps(x, 0.1)
    assert single.dtype == denoiser(x, 0.1).dtype == torch.float32
    assert single.device == x.device
    assert torch.equal(single, denoiser.eps(x.double(), 0.1).float())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of torch.func itself
@pytest.mark.parametrize("mixture", MIXTURES, ids=kind)
def test_derivatives_pass_through_the_network_both_ways(mixture: Mixture) -> None:
    """Forward and reverse mode against central differences of the exact eps."""
    denoiser = Denoiser(network_of(mixture, 5, 1), VarianceExploding()).requires_grad_(False)
    x, v, u = states(mixture, 0.5), normal(80, 5, seed=5), normal(80, 5, seed=6)

    def eps(x: Tensor) -> Tensor:
        return denoiser.eps(x.reshape(-1, 5, 1, 1), 0.5).flatten(1)

    step = 1e-5
    difference = (mixture.eps(x + step * v, 0.5) - mixture.eps(x - step * v, 0.5)) / (2 * step)
    _, forward = torch.func.jvp(eps, (x,), (v,))
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-6)
    _, pull = torch.func.vjp(eps, x)
    torch.testing.assert_close((pull(u)[0] * v).sum(1), (u * forward).sum(1), rtol=1e-9, atol=1e-9)
    jacobian = torch.func.jacfwd(lambda row: eps(row[None])[0])(x[0])
    torch.testing.assert_close(jacobian @ v[0], forward[0], rtol=1e-9, atol=1e-9)


def test_untold_it_is_the_standard_normal() -> None:
    x = normal(3, 1, 2, 2)
    for whole in (False, True):
        denoiser = Denoiser(GaussianMixtureScore(4, 1, 2, whole), VarianceExploding())
        torch.testing.assert_close(denoiser(x, 2.0), x / 5, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", ["components", "channels", "resolution"])
def test_an_empty_mixture_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f"model.network.{key}=0"):
        GaussianMixtureScore(**{"components": 1, "channels": 1, "resolution": 1, key: 0})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    written = exact_models.write_models(tmp_path_factory.mktemp("exact"))
    return {name: load_model(path) for name, path in written.items()}


@pytest.mark.parametrize("name", exact_models.MODELS)
def test_checkpoints_come_back_as_they_were(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint, exact = checkpoints[name], exact_models.MODELS[name]()
    loaded = exact_models.mixture_of(checkpoint)
    assert type(loaded) is type(exact.distribution)
    for field, value in asdict(exact.distribution).items():
        assert torch.equal(getattr(loaded, field), value), field
    x = 0.5 * normal(3, *checkpoint.card.shape)
    found, expected = checkpoint.denoiser.eps(x, 0.4).flatten(1), exact.distribution.eps(x.flatten(1), 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not any(parameter.requires_grad for parameter in checkpoint.denoiser.parameters())
    shown = inspect.text(checkpoint.path)
    assert "scoreline.networks.gaussian_mixture.GaussianMixtureScore" in shown
    assert exact.how[:60] in shown


@pytest.mark.parametrize("name", exact_models.MODELS)
def test_runs_go_where_the_schedule_says(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    """VE from 80 to 0.002; VP with alpha^2 = exp(-(B - b) t^2 / 2 - b t), rho^2 = 1 / alpha^2 - 1 at 1 and 1e-3."""
    ends = [math.sqrt(math.expm1((20 - 0.1) / 2 * t**2 + 0.1 * t)) for t in (1e-3, 1.0)]
    schedule = checkpoints[name].noise_schedule
    expected = ends if name == "digits_classes" else [0.002, 80.0]
    assert [schedule.sigma_min, schedule.sigma_max] == pytest.approx(expected, rel=1e-12)


def test_the_score_does_not_depend_on_the_schedule(checkpoints: dict[str, Checkpoint]) -> None:
    """At noise levels of the linear VP range, against the gradient of the density that it noises."""
    checkpoint = checkpoints["digits_classes"]
    mixture = exact_models.mixture_of(checkpoint)
    for rho in (checkpoint.noise_schedule.sigma_min, 1.0, checkpoint.noise_schedule.sigma_max):
        x = (mixture.draw(3, torch.Generator().manual_seed(9)) + rho * normal(3, 64)).requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint(mixture, x, rho).logsumexp(1).sum(), x)
        found = checkpoint.denoiser.eps(x.detach().reshape(3, 1, 8, 8), rho).flatten(1)
        torch.testing.assert_close(found, -rho * gradient, rtol=1e-7, atol=1e-8)


def test_class_gaussians_share_the_digits_process(checkpoints: dict[str, Checkpoint]) -> None:
    shipped = load_model(ASSETS / "digits_vp.safetensors").noise_schedule
    assert checkpoints["digits_classes"].noise_schedule == shipped
    assert checkpoints["digits_points"].noise_schedule == checkpoints["ring8"].noise_schedule != shipped


def test_cards_name_the_digits_they_were_made_from(checkpoints: dict[str, Checkpoint]) -> None:
    shipped = load_model(ASSETS / "digits_vp.safetensors").card.data
    assert checkpoints["digits_classes"].card.data == shipped
    assert checkpoints["digits_points"].card.data["images"] == 1797
    assert checkpoints["ring8"].card.data == {"name": "none", "sha256": None, "images": 0}


def test_class_gaussians_have_the_moments_of_the_digits(checkpoints: dict[str, Checkpoint]) -> None:
    """By the laws of total mean and covariance, against scikit-learn's file; the floor adds at most itself."""
    from scoreline.datasets.digits import Digits

    pixels = Digits("train").images.flatten(1).double() / 127.5 - 1
    mixture = exact_models.mixture_of(checkpoints["digits_classes"])
    mean, covariance = mixture.moments()
    torch.testing.assert_close(mean, pixels.mean(0), rtol=0, atol=1e-6)
    added = torch.linalg.eigvalsh(covariance - pixels.T.cov(correction=0))
    assert float(added.min()) > -1e-6
    assert float(added.max()) < exact_models.FLOOR + 1e-6
    assert float(mixture.variances.min()) == exact_models.FLOOR


def test_every_digit_is_its_own_mode(checkpoints: dict[str, Checkpoint]) -> None:
    mixture = exact_models.mixture_of(checkpoints["digits_points"])
    assert torch.equal(mixture.responsibilities(mixture.means, 0.002).argmax(1), torch.arange(1797))


def test_a_trained_network_has_no_exact_mixture() -> None:
    with pytest.raises(InputError, match=r"digits_vp\.safetensors: its score is not known in closed form"):
        exact_models.mixture_of(load_model(ASSETS / "digits_vp.safetensors"))


def test_ring_samples_fall_on_modes_by_weight(checkpoints: dict[str, Checkpoint]) -> None:
    """Heun with 200 evaluations: counts by chi-square, centres and spread within five standard errors."""
    checkpoint, count = checkpoints["ring8"], 4000
    schedule = checkpoint.noise_schedule
    run = build(heun(), Power(7), (schedule.sigma_max, schedule.sigma_min), 200, "none")
    (batch,) = generate(checkpoint.denoiser, run, checkpoint.card.shape, range(count), count, None, None)
    x = batch.x.double().flatten(1)
    mixture = exact_models.mixture_of(checkpoint)
    mode = mixture.responsibilities(x, schedule.sigma_min).argmax(1)
    seen, expected = mode.bincount(minlength=8), count * mixture.weights
    assert float(((seen - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, 7)
    assert float(((seen - count / 8) ** 2 / (count / 8)).sum()) > chi2.ppf(0.999, 7)
    std = math.hypot(exact_models.POINT_STD, schedule.sigma_min)
    for i in range(8):
        angle = math.pi * i / 4
        offset = (x[mode == i] - torch.tensor([math.cos(angle), math.sin(angle)])) / std
        assert float(offset.mean(0).abs().max()) < 5 / math.sqrt(len(offset))
        assert abs(float(offset.square().mean()) - 1) < 5 / math.sqrt(len(offset))
