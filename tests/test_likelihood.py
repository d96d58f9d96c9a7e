"""log p against densities in closed form, estimators against the exact divergence, bits against a brute-force sum."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.commands import likelihood as command
from scoreline.config.run_names import model_path
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError, NotFiniteError
from scoreline.likelihood import (
    Exact,
    bits_per_dim,
    bits_with_end_noise,
    dequantise,
    end_noise,
    hutchinson,
    log_likelihood,
    native_prior_variance,
)
from scoreline.networks.exact import GaussianMixture
from scoreline.networks.unet import UNet
from scoreline.runtime import seeded_noise
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.storage.pictures import to_uint8, to_unit

FINE = Adaptive("DOP853", 1e-10, 1e-10)


def gaussian(mean: float, std: float, dimensions: int) -> GaussianMixture:
    means = torch.full((1, dimensions), mean, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([std]).double(), torch.ones(1).double())


def points(count: int, dimensions: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def log_density(model: GaussianMixture, x: Tensor, rho: float) -> Tensor:
    """log sum_i w_i N(x; m_i, (s_i^2 + rho^2) I), by torch's own distributions."""
    parts = []
    for mean, std, weight in zip(model.means, model.stds, model.weights, strict=True):
        normal = torch.distributions.Normal(mean, (std**2 + rho**2).sqrt())
        parts.append(normal.log_prob(x).sum(1) + (weight / model.weights.sum()).log())
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_centred_gaussian_with_own_prior_is_exact(dimensions: int) -> None:
    model, x = gaussian(0.0, 0.5, dimensions), points(6, dimensions)
    found = log_likelihood(model.eps, x, FINE.between(80.0, 0.3, 2000), 0.25 + 80.0**2)
    torch.testing.assert_close(found.values, log_density(model, x, 0.3), rtol=0, atol=1e-6)
    assert found.values.dtype == torch.float64
    assert found.by_probe.shape == (6, 1)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_a_gaussian_off_centre(dimensions: int) -> None:
    """The prior lacks the mean: an error of |m| |z| / sigma_max + O(sigma_max^-2) < 0.7 sqrt(5) 20 / 1e8 < 1e-6."""
    model, x = gaussian(0.7, 0.5, dimensions), points(6, dimensions)
    found = log_likelihood(model.eps, x, Adaptive("DOP853", 1e-9, 1e-9).between(1e8, 0.3, 2000), 1e16)
    torch.testing.assert_close(found.values, log_density(model, x, 0.3), rtol=0, atol=1e-6)


def test_a_mixture(mixture: GaussianMixture) -> None:
    """The prior lacks means of length < 1.3 and stds <= 0.5: error < 1.3 |z| / 1e7 < 1e-6 for |z| < 6."""
    x = points(12, 2)
    found = log_likelihood(mixture.eps, x, FINE.between(1e7, 0.05, 5000), 1e14)
    torch.testing.assert_close(found.values, log_density(mixture, x, 0.05), rtol=0, atol=1e-5)


def test_the_prior_counts() -> None:
    """x(sigma_max) of the flow is known, so another prior's density there is too."""
    model, x = gaussian(0.0, 0.5, 2), points(4, 2)
    run = FINE.between(4.0, 0.3, 2000)
    own, other = (log_likelihood(model.eps, x, run, variance).values for variance in (0.25 + 16.0, 9.0))
    end = x * math.sqrt((0.25 + 16.0) / (0.25 + 0.09))
    ratio = [torch.distributions.Normal(0.0, variance**0.5).log_prob(end).sum(1) for variance in (0.25 + 16.0, 9.0)]
    torch.testing.assert_close(other - own, ratio[1] - ratio[0], rtol=0, atol=1e-7)


def test_evaluations_are_measured_and_the_ceiling_holds(mixture: GaussianMixture) -> None:
    calls = 0

    def eps(x: Tensor, rho: float) -> Tensor:
        nonlocal calls
        calls += 1
        return mixture.eps(x, rho)

    x = points(3, 2)
    found = log_likelihood(eps, x, FINE.between(10.0, 0.3, 5000), 100.0)
    assert found.nfe == calls
    with pytest.raises(InputError, match=f"nfe={calls - 1}: the adaptive solver needs more"):
        log_likelihood(eps, x, FINE.between(10.0, 0.3, calls - 1), 100.0)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(distribution: str) -> None:
    """On v^T J v itself, of an eps whose Jacobian is neither diagonal nor symmetric."""
    matrix = points(5, 5)
    x = points(4, 5).requires_grad_()
    estimate = torch.sin(x) @ matrix.T
    truth = (x.detach().cos() * matrix.diagonal()).sum(1)
    torch.testing.assert_close(Exact()(estimate, x)[:, 0], truth)
    found = hutchinson(range(4), (5,), 2500, distribution)(estimate, x)
    assert found.shape == (4, 2500)
    assert bool((found.std(1) > 0.5).all())
    assert bool(((found.mean(1) - truth).abs() < 4 * found.std(1) / 50).all())


def test_hutchinson_likelihood_is_unbiased_within_its_error(mixture: GaussianMixture) -> None:
    x, run = points(4, 2), Adaptive("DOP853", 1e-6, 1e-6).between(1e3, 0.3, 5000)
    truth = log_likelihood(mixture.eps, x, run, 1e6).values
    found = log_likelihood(mixture.eps, x, run, 1e6, hutchinson(range(4), (2,), 49, "gaussian"))
    error = found.by_probe.std(1) / 7
    assert bool((error > 1e-3).all())
    assert bool(((found.values - truth).abs() < 4 * error).all())
    torch.testing.assert_close(found.by_probe.mean(1), found.values)


def test_rademacher_probes_are_exact_for_scalar_jacobians() -> None:
    model, x = gaussian(0.4, 0.5, 5), points(3, 5)
    run = FINE.between(50.0, 0.3, 2000)
    truth = log_likelihood(model.eps, x, run, 2500.0).values
    found = log_likelihood(model.eps, x, run, 2500.0, hutchinson([1, 2, 3], (5,), 3)).by_probe
    torch.testing.assert_close(found, truth[:, None].expand(3, 3), rtol=0, atol=1e-7)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_probes_belong_to_their_seed(distribution: str) -> None:
    whole = hutchinson([3, 8, 5], (2, 4, 4), 2, distribution).probes
    assert whole.shape == (2, 3, 2, 4, 4)
    assert whole[:, 1:2].equal(hutchinson([8], (2, 4, 4), 2, distribution).probes)
    assert not whole[0].equal(whole[1])
    assert not whole[:, 0].equal(whole[:, 1])
    assert (distribution == "rademacher") == bool((whole.abs() == 1).all())


def test_prior_of_a_process() -> None:
    """N(0, I) of the native state divided by alpha; 0 + sigma^2 where alpha is one."""
    for schedule in (LinearVP(), DiscreteVP()):
        t = torch.tensor(float(schedule.t_max), dtype=torch.float64)
        native = float(schedule.alpha(t)) ** -2
        assert native_prior_variance(schedule, schedule.sigma_max) == pytest.approx(native, rel=1e-9)
    assert native_prior_variance(EDM(), 80.0) == 6400.0


def test_dequantised_pixels_fill_their_rounding_cell() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(50, 1, 16, 16)
    x = dequantise(images, range(50))
    assert to_uint8(x).equal(images)
    u = (x - to_unit(images).double()) * 127.5 + 0.5
    assert 0 < float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * u.numel()))
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.03)
    assert dequantise(images[:1], [7]).equal(x[7:8])


def test_uniform_noise_costs_eight_bits() -> None:
    """The density 1 / (256 / 127.5) a dimension, on the union of the 256 cells, gives each level 1 / 256."""
    density = torch.tensor([-12 * math.log(256 / 127.5)], dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(density, 12), torch.tensor([8.0], dtype=torch.float64))


def test_bits_of_known_density_equal_its_cells() -> None:
    """A wide normal density barely changes within a cell: the bound meets -log2 of the cells' exact masses."""
    normal = torch.distributions.Normal(torch.tensor(0.1).double(), torch.tensor(0.4).double())
    images = to_uint8(normal.mean + normal.stddev * seeded_noise.normal(range(64), (1, 8, 8), "data").double())
    low = (images.double() - 0.5) / 127.5 - 1
    masses = normal.cdf(low + 1 / 127.5) - normal.cdf(low)
    direct = -masses.log2().flatten(1).mean(1)
    bound = bits_per_dim(normal.log_prob(dequantise(images, range(64))).flatten(1).sum(1), 64)
    gap = bound - direct
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 8 + 1e-4
    assert float(gap.std()) < 0.01
    assert 5 < float(direct.mean()) < 8


@pytest.mark.parametrize("sigma", [0.001, 0.0105, 0.05])
def test_a_model_of_even_pixels_costs_eight_bits_at_any_end_noise(sigma: float) -> None:
    """Its density is the mean of normal densities round the 256 values."""
    images = torch.randint(256, (5, 1, 2, 3), generator=torch.Generator().manual_seed(0)).byte()
    x = end_noise(images, range(5), sigma)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    each = torch.distributions.Normal(values, sigma).log_prob(x[..., None]).logsumexp(-1) - math.log(256)
    torch.testing.assert_close(bits_with_end_noise(each.flatten(1).sum(1), x, sigma), torch.full((5,), 8.0).double())


def test_wide_end_noise_has_the_constant_of_dequantised_pixels() -> None:
    """The sum of 127.5 values a unit is a constant within the range."""
    x = end_noise(torch.full((2, 1, 4, 4), 128, dtype=torch.uint8), [3, 4], 0.03)
    density = torch.tensor([-3.0, 5.0]).double()
    torch.testing.assert_close(bits_with_end_noise(density, x, 0.03), bits_per_dim(density, 16))
    assert x[1:].equal(end_noise(torch.full((1, 1, 4, 4), 128, dtype=torch.uint8), [4], 0.03))


def test_command_ends_where_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """By time, by its noise level, and with noise of that level."""
    sigma = float(LinearVP().inverse(torch.tensor(1e-2).double()))
    printed = []
    for words in ([], ["t_min=1e-2"], [f"sigma_min={sigma}"], ["t_min=1e-2", "--end-noise"]):
        command.main(["images=2", *words, *ROUGH])
        printed.append(capsys.readouterr().out)
    assert printed[1] == printed[2]
    assert len({line.split()[0] for line in printed}) == 3
    assert [line.rpartition(", ")[2].strip() for line in printed] == [
        *("sigma_min 0.01049", "sigma_min 0.04469", "sigma_min 0.04469", "sigma_min 0.04469 as end noise")
    ]


def test_impossible_inputs(mixture: GaussianMixture) -> None:
    x, run = points(2, 2), FINE.between(10.0, 0.3, 1000)
    for variance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="prior_variance="):
            log_likelihood(mixture.eps, x, run, variance)
    with pytest.raises(ValueError, match="differentiable"):
        log_likelihood(lambda x, rho: mixture.eps(x.detach(), rho), x, run, 100.0)
    with pytest.raises(NotFiniteError):
        log_likelihood(lambda x, rho: x * math.nan, x, run, 100.0)
    with pytest.raises(InputError, match=r"divergence=radmacher.*did you mean 'rademacher'"):
        hutchinson([0], (2,), 1, "radmacher")
    with pytest.raises(InputError, match="probes=0"):
        hutchinson([0], (2,), 0)


ROUGH = ["--rtol", "0.02", "--atol", "0.02", "--device", "cpu"]


def test_command_prints_what_the_functions_say(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--images", "3", "--batch-size", "2", "--probes", "2", "--seed", "1", *ROUGH])
    checkpoint = load_model(model_path("digits_vp"))
    native = checkpoint.noise_schedule
    run = Adaptive("RK45", 0.02, 0.02).between(native.sigma_max, native.sigma_min, 5000)
    bits, nfe = [], []
    for part in (slice(0, 2), slice(2, 3)):
        seeds = [2**32 + i for i in range(3)[part]]
        x = dequantise(Digits("test").images[part], seeds)
        found = log_likelihood(
            checkpoint.denoiser.eps, x, run, 1 + native.sigma_max**2, hutchinson(seeds, (1, 8, 8), 2)
        )
        bits.append(bits_per_dim(found.values, 64))
        nfe.append(found.nfe)
    values = torch.cat(bits).numpy()
    error = np.std(values, ddof=1) / 3**0.5
    calls = f"{min(nfe)}-{max(nfe)}" if nfe[0] != nfe[1] else str(nfe[0])
    printed = capsys.readouterr().out
    about = f"3 images of digits-test, NFE {calls}, divergence rademacher x 2, sigma_min 0.01049"
    assert printed == f"{values.mean():.4f} +- {error:.4f} bits/dim, {about}\n"
    assert 1 < values.mean() < 8


def test_command_on_a_file_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same pixels from a file give the same number; noise costs more bits than digits."""
    pixels = Digits("test").images[:2].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "digits.npz", arr_0=pixels, arr_1=np.array([1, 2]))
    np.savez(tmp_path / "noise.npz", arr_0=np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8))
    printed = []
    for data in ("digits-test", str(tmp_path / "digits.npz"), str(tmp_path / "noise.npz")):
        command.main(["--data", data, "--images", "2", *ROUGH])
        printed.append(capsys.readouterr().out)
    bits = [float(line.split()[0]) for line in printed]
    assert bits[0] == bits[1] < bits[2]
    assert "2 images of noise.npz" in printed[2]


def test_command_passes_labels_to_a_conditional_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    shape = {"channels": 1, "resolution": 8, "width": 16, "blocks": 1, "num_classes": 10}
    weights = {name: 0.1 * torch.randn_like(weight) for name, weight in UNet(**shape).state_dict().items()}
    model = {
        "network": {"_target_": "scoreline.networks.unet.UNet", **shape},
        "noise_schedule": {"_target_": "scoreline.schedules.ve.EDM"},
        "parameterisation": {"_target_": "scoreline.parameterisations.EDMPreconditioning", "sigma_data": 0.5},
    }
    card = Card(model, (1, 8, 8), 10, {}, {})
    save_model(tmp_path / "model.safetensors", weights, card)
    few = ["--checkpoint", str(tmp_path), "--images", "2", "--sigma-min", "0.5", "--sigma-max", "2", *ROUGH]
    run = Adaptive("RK45", 0.02, 0.02).between(2.0, 0.5, 5000)
    denoiser, data = load_model(tmp_path / "model.safetensors").denoiser, Digits("test")
    printed, expected = [], []
    for words, label in ((["--conditional"], data.labels[:2]), ([], None)):
        command.main([*few, *words])
        printed.append(float(capsys.readouterr().out.split()[0]))
        eps = partial(denoiser.eps, label=label)
        found = log_likelihood(eps, dequantise(data.images[:2], [0, 1]), run, 4.0, hutchinson([0, 1], (1, 8, 8)))
        expected.append(float(bits_per_dim(found.values, 64).mean()))
    assert printed == pytest.approx(expected, abs=6e-5)
    assert abs(printed[0] - printed[1]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "missing.safetensors"], "checkpoint=missing.safetensors"),
        (["--data", "digits-tset"], "--data=digits-tset.*did you mean 'digits-test'"),
        (["--data", "missing.npz"], "--data=missing.npz: not a readable npz"),
        (["--images", "298"], "--images=298: digits-test has 297"),
        (["--images", "0"], "--images=0"),
        (["--batch-size", "0"], "--batch-size=0"),
        (["--seed", "-1"], "--seed=-1"),
        (["--seed", "2147483648"], "--seed=2147483648: must be below"),
        (["--probes", "0"], "probes=0"),
        (["--images", "many"], "--images: invalid int value: 'many'"),
        (["--imags", "3"], "unrecognized arguments: --imags"),
        (["--conditional"], "unconditional"),
        (["--divergence", "exakt"], "--divergence=exakt.*did you mean 'exact'"),
        (["--method", "RK54"], "did you mean 'RK45'"),
        (["--sigma-min", "0"], "sigma_min=0"),
        (["--t-min", "2"], "--t-min=2: choose a time between 0 and the model's last, 1"),
        (["--t-min", "1e-5", "--sigma-min", "0.1"], "--t-min=1e-05: is another way to say sigma_min"),
        (["--prior-variance", "0"], "prior_variance=0"),
        (["--nfe", "3", "--images", "1"], "nfe=3: the adaptive solver needs more"),
    ],
)
def test_command_refuses(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.main([*arguments, "--device", "cpu"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 1), np.float32)}, "arr_0 is float32 2x8x8x1"),
        ({"arr_0": np.zeros((8, 8, 1), np.uint8)}, "arr_0 is uint8 8x8x1"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, "not a readable npz"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "its images are 3x8x8, the checkpoint's are 1x8x8"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.zeros(2)}, "arr_1 must be one whole number"),
        ({"arr_0": np.array([{}], dtype=object)}, "not a readable npz"),
    ],
)
def test_command_refuses_files(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        command.main(["--data", str(tmp_path / "x.npz"), "--images", "1", "--device", "cpu"])


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a zip at all", b"PK\x03\x04 cut off"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(InputError, match="not a readable npz"):
            command.main(["--data", str(tmp_path / "x.npz")])


def test_labels_must_be_there_and_fit() -> None:
    labels = torch.tensor([0, 9])
    assert command.classes("a.npz", labels, 10).equal(labels)
    for given, count, message in ((None, 10, "has no labels"), (labels, 9, "outside the checkpoint's 0 to 8")):
        with pytest.raises(InputError, match=message):
            command.classes("a.npz", given, count)
