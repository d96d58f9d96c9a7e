"""Stable targets against brute force: section by section what makes them exact, and what would break them."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from largest import Largest
from numpy.typing import NDArray
from torch import Tensor, nn

from scoreline import targets
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.objective import Batch, DenoisingObjective, EDMWeight, FlowWeight, LogNormal
from scoreline.parameterisations import (
    EDMPreconditioning,
    FlowVelocity,
    NoisePrediction,
    Parameterisation,
    VarianceExploding,
    VelocityPrediction,
)
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.vp import LinearVP
from scoreline.storage.pictures import to_unit
from scoreline.targets import (
    Denoising,
    Reference,
    StableTarget,
    StableVM,
    effective_size,
    posterior_mean,
    posterior_weights,
    squared_distances,
)

Long = NDArray[np.longdouble]


def brute_force(x: Tensor, rho: Tensor, data: Tensor, allowed: Tensor | None = None) -> tuple[Long, Long]:
    """Weights (B, n) and mean (B, d) from the differences x - y_i, in extended precision."""
    rows, images = (part.flatten(1).numpy().astype(np.longdouble) for part in (x, data))
    height = -((rows[:, None] - images) ** 2).sum(-1) / (2 * rho.numpy().astype(np.longdouble)[:, None] ** 2)
    if allowed is not None:
        height = np.where(allowed.numpy(), height, -np.inf)
    share = np.exp(height - height.max(1, keepdims=True))
    weights = share / share.sum(1, keepdims=True)
    return weights, weights @ images


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """All 1797, (N, 1, 8, 8) float64 in [-1, 1]."""
    return to_unit(Digits("all").images).double()


def noised(data: Tensor, rho: Tensor, seed: int = 0) -> Tensor:
    """One noisy image a level: the sources are the first images of the data."""
    clean = data[: len(rho)]
    return clean + rho.reshape(-1, 1, 1, 1) * normal(*clean.shape, seed=seed)


LEVELS = torch.tensor([0.002, 0.05, 0.3, 0.7, 1.0, 1.5, 3.0, 10.0, 80.0], dtype=torch.float64)


def test_all_data_give_the_posterior_mean(digits: Tensor) -> None:
    x = noised(digits, LEVELS)
    weights, mean = brute_force(x, LEVELS, digits)
    ours = posterior_mean(x, LEVELS, digits)
    assert ours.shape == x.shape
    assert ours.dtype == torch.float64
    assert float(np.abs(ours.flatten(1).numpy() - mean).max()) < 1e-10
    assert float(np.abs(posterior_weights(x, LEVELS, digits).numpy() - weights).max()) < 1e-10
    exact = GaussianMixture(digits.flatten(1), torch.zeros(len(digits)).double(), torch.ones(len(digits)).double())
    denoised = exact.denoise(x.flatten(1), LEVELS[:, None])
    torch.testing.assert_close(ours.flatten(1), denoised, rtol=0, atol=1e-10)
    target = StableTarget(len(digits))(x, LEVELS, digits[: len(x)], None, Reference(digits, torch.arange(len(x))))
    assert torch.equal(target, ours)


def test_a_reference_of_one_is_score_matching(digits: Tensor) -> None:
    """The same loss to the bit, whatever the noise."""
    clean = digits[:1].float()
    alone = Reference(clean, torch.tensor([0]))
    network = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float32)

    class Network(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return network(x)

    denoiser = Denoiser(Network(), EDMPreconditioning())
    for seed, u in enumerate((0.01, 0.3, 0.99)):
        batch = Batch(clean, torch.tensor([u]).double(), normal(*clean.shape, seed=seed).float(), reference=alone)
        losses = [
            DenoisingObjective(LogNormal(-1.2, 1.2), EDMWeight(), target)(denoiser, batch)[0]
            for target in (Denoising(), StableTarget(1))
        ]
        assert torch.equal(*losses)
    assert Denoising()(clean, torch.ones(1), clean, None, None) is clean
    assert Denoising().references == 0
    assert StableTarget().references == 1024


def enumerated(x: Tensor, rho: float, data: Tensor, others: Tensor) -> Tensor:
    """E[target | x] over source ~ posterior and one other image; others (N, N) holds its probability by source."""
    count, level = len(data), torch.tensor([rho], dtype=torch.float64)
    pairs = list(itertools.product(range(count), repeat=2))
    allowed = torch.zeros(len(pairs), count, dtype=torch.bool)
    for row, (source, other) in enumerate(pairs):
        allowed[row, [source, other]] = True
    each = posterior_mean(x.expand(len(pairs), *x.shape[1:]), rho, data, allowed).flatten(1)
    source = torch.from_numpy(brute_force(x, level, data)[0][0].astype(np.float64))
    return (source[:, None] * others).flatten() @ each


@pytest.mark.parametrize("rho", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("replacement", [True, False])
def test_its_expectation_is_the_posterior_mean(digits: Tensor, rho: float, replacement: bool) -> None:
    """n = 2, every source with every other image: independent draws, and draws without replacement."""
    count = 45
    data = digits[:count]
    others = torch.ones(count, count).double() / count
    if not replacement:
        others = (1 - torch.eye(count).double()) / (count - 1)
    for seed in range(3):
        x = data[seed : seed + 1] + rho * normal(1, 1, 8, 8, seed=seed)
        mean = brute_force(x, torch.tensor([rho], dtype=torch.float64), data)[1][0].astype(np.float64)
        assert np.abs(enumerated(x, rho, data, others).numpy() - mean).max() < 1e-12


def test_without_the_source_the_expectation_is_another(digits: Tensor) -> None:
    count, rho = 45, 0.7
    data = digits[:count]
    x = data[:1] + rho * normal(1, 1, 8, 8)
    pairs = torch.tensor(list(itertools.combinations(range(1, count), 2)))
    each = torch.stack([posterior_mean(x, rho, data[pair])[0] for pair in pairs])
    assert float((each.mean(0) - posterior_mean(x, rho, data)[0]).square().sum()) > 1


SIX, OF_SIX = slice(0, 6), torch.tensor([0, 0, 0, 1, 1, 1])


def expectation(target: StableTarget, x: Tensor, rho: Tensor, data: Tensor, label: int | None) -> Tensor:
    """E[target | x] over sets R of three of six images and the sources in R, x ~ N(source, rho^2), of one class."""
    total, weight = torch.zeros(64).double(), 0.0
    for chosen in map(list, itertools.combinations(range(6), 3)):
        for place, source in enumerate(chosen):
            if label is not None and OF_SIX[source] != label:
                continue
            reference = Reference(data[chosen], torch.tensor([place]), OF_SIX[chosen])
            told = None if label is None else torch.tensor([label])
            chance = float(torch.exp(-(x - data[source]).square().sum() / (2 * rho**2)))
            total += chance * target(x, rho, data[source : source + 1], told, reference).flatten()
            weight += chance
    return total / weight


@pytest.mark.parametrize("rho", [1.5, 3.0])
def test_a_mixture_over_the_reference_is_unbiased(digits: Tensor, rho: float) -> None:
    """Without classes and within a class, whose share of the reference varies; not with classes mixed."""
    level, data = torch.tensor([rho], dtype=torch.float64), digits[SIX]
    x = data[1:2] + rho * normal(1, 1, 8, 8)
    exact = [posterior_mean(x, level, part).flatten() for part in (data, data[OF_SIX == 0])]
    for label, mean in zip((None, 0), exact, strict=True):
        assert float((expectation(StableVM(3), x, level, data, label) - mean).abs().max()) < 1e-12
    mixed = expectation(StableVM(3, classes="mixed"), x, level, data, 0)
    assert float((mixed - exact[1]).abs().max()) > 0.05


@pytest.mark.parametrize("time", [0.2, 0.5, 0.8])
def test_its_velocity_is_the_published_mean_of_velocities(digits: Tensor, time: float) -> None:
    """On z_t = (1 - t) x_0 + t eps: sum_k p_k (z - y_k) / t over sum_k p_k, and the loss of velocities."""
    clean, eps, given = digits[:1], normal(1, 1, 8, 8), digits[SIX]
    z = (1 - time) * clean + time * eps
    p = torch.exp(-(z - (1 - time) * given).square().flatten(1).sum(1) / (2 * time**2))
    velocity = (p[:, None, None, None] * (z - given) / time).sum(0) / p.sum()
    rho = torch.tensor([time / (1 - time)], dtype=torch.float64)
    x, reference = z / (1 - time), Reference(given, torch.tensor([0]))
    target = StableVM(6)(x, rho, clean, None, reference)
    torch.testing.assert_close((x - target) / rho - target, velocity[None], rtol=0, atol=1e-11)

    class Network(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return 0.3 * x

    batch = Batch(clean, LogNormal(0.0, 1.0)(rho), eps, reference=reference)
    denoiser = Denoiser(Network(), FlowVelocity(RectifiedFlow()))
    loss, _ = DenoisingObjective(LogNormal(0.0, 1.0), FlowWeight(), StableVM(6))(denoiser, batch)
    assert float(loss) == pytest.approx(float((0.3 * z - velocity).square().mean()), rel=1e-5)


def test_masks_leave_the_pair(digits: Tensor) -> None:
    x, allowed = digits[:1] + normal(1, 1, 8, 8), torch.zeros(1, 45, dtype=torch.bool)
    allowed[0, [7, 30]] = True
    masked = posterior_mean(x, 1.0, digits[:45], allowed)
    torch.testing.assert_close(masked, posterior_mean(x, 1.0, digits[[7, 30]]), rtol=0, atol=1e-13)


def test_reference_order_does_not_matter(digits: Tensor) -> None:
    """Pixels that all references share add a constant to every logit of a row."""
    data, x = digits[:300], noised(digits, LEVELS)
    mean, weights = posterior_mean(x, LEVELS, data), posterior_weights(x, LEVELS, data)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(posterior_mean(x, LEVELS, data[order]), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior_weights(x, LEVELS, data[order]), weights[:, order], rtol=0, atol=1e-10)
    shared = torch.full((300, 1, 1, 8), 0.25, dtype=torch.float64)
    wider, far = torch.cat([data, shared], 2), torch.cat([x, normal(len(x), 1, 1, 8, seed=2) * 30], 2)
    constant = (far[:, :, 8:] - 0.25).square().sum((1, 2, 3)) / (2 * LEVELS**2)
    assert float(constant.max()) > 1e8
    torch.testing.assert_close(posterior_weights(far, LEVELS, wider), weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(posterior_mean(far, LEVELS, wider)[:, :, :8], mean, rtol=0, atol=1e-6)


def native_frames() -> dict[str, tuple[Tensor, Tensor]]:
    """Signal scale and standard deviation of the native state at times of each process, written out here."""
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    alpha = torch.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)
    geometric = 0.02 * (100 / 0.02) ** t
    return {
        "VP": (alpha, (1 - alpha**2).sqrt()),
        "VE": (torch.ones(5).double(), geometric),
        "EDM": (torch.ones(5).double(), t * 4),
    }


@pytest.mark.parametrize("process", ["VP", "VE", "EDM"])
def test_native_frames_have_the_same_weights(process: str, digits: Tensor) -> None:
    """Logits -|x_t - s x_i|^2 / (2 s^2 sigma^2), and the score, eps and raw network forms, in the native frame."""
    scale, std = native_frames()[process]
    data = digits[:200]
    y = data.flatten(1).numpy()
    s, wide = scale.numpy()[:, None], std.numpy()[:, None]
    native = s * y[:5] + wide * normal(5, 64, seed=4).numpy()
    height = -((native[:, None] - s[:, None] * y) ** 2).sum(-1) / (2 * wide**2)
    share = np.exp(height - height.max(1, keepdims=True))
    w = share / share.sum(1, keepdims=True)
    x, rho = torch.from_numpy(native / s).reshape(5, 1, 8, 8), std / scale
    assert np.abs(posterior_weights(x, rho, data).numpy() - w).max() < 1e-11
    mean = posterior_mean(x, rho, data).flatten(1).numpy()
    difference = w @ y * s - native
    assert (s * mean - native) / wide**2 == pytest.approx(difference / wide**2, rel=1e-9, abs=1e-9)
    eps = np.einsum("bi,bid->bd", w, (native[:, None] - s[:, None] * y) / wide[:, None])
    assert (x.flatten(1).numpy() - mean) / rho.numpy()[:, None] == pytest.approx(eps, rel=1e-9, abs=1e-9)


class Raw(nn.Module):
    """A network that returns what it is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output, requires_grad=False)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.output


@pytest.mark.parametrize(
    "parameterisation",
    [EDMPreconditioning(0.5), NoisePrediction(LinearVP()), VelocityPrediction(LinearVP()), VarianceExploding()],
    ids=lambda it: type(it).__name__,
)
def test_raw_targets_average_with_the_same_weights(parameterisation: Parameterisation, digits: Tensor) -> None:
    """F = (T - skip x) / out, so a network that returns sum_i w_i (x_i - skip x) / out has D = T and eps of the ODE."""
    rho = torch.tensor([0.1, 0.5, 1.0, 2.0, 40.0], dtype=torch.float64)
    data, x = digits[:200], noised(digits, rho, seed=6)
    weights = torch.from_numpy(brute_force(x, rho, data)[0].astype(np.float64))
    found = parameterisation(rho)
    skip, out = (part.reshape(-1, 1, 1, 1) for part in (found.skip, found.out))
    raw = torch.einsum("bi,bi...->b...", weights, (data - (skip * x)[:, None]) / out[:, None])
    denoiser, target = Denoiser(Raw(raw), parameterisation), posterior_mean(x, rho, data)
    torch.testing.assert_close(denoiser(x, rho), target, rtol=0, atol=1e-10)
    eps = (x - target) / rho.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(denoiser.eps(x, rho), eps, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """1024 overlapping 3x32x32 crops of a photograph, uint8."""
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1)
    random = torch.Generator().manual_seed(0)
    corners = [torch.randint(size - 32, (1024,), generator=random).tolist() for size in photo.shape[1:]]
    return torch.stack([photo[:, row : row + 32, column : column + 32] for row, column in zip(*corners, strict=True)])


def total_variation(one: Tensor, other: Tensor) -> float:
    """The largest of a row."""
    return float((one - other).abs().sum(1).max()) / 2


def single_precision(x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
    """Weights from a product in whatever precision matrix products have, all else in float64."""
    product = (x.flatten(1).float() @ data.flatten(1).float().T).double()
    distance = x.double().flatten(1).square().sum(1)[:, None] + data.double().flatten(1).square().sum(1) - 2 * product
    return (distance / (-2 * rho[:, None] ** 2)).softmax(1)


def ten_bits(x: Tensor) -> Tensor:
    """Rounded to the mantissa of TF32."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


PRECISION_LEVELS = torch.tensor([0.1, 0.2, 0.3, 1.0], dtype=torch.float64).repeat_interleave(16)


def test_precision_settings_do_not_reach_the_weights(crops: Tensor) -> None:
    """Crops of a photograph: products in bfloat16 (autocast), TF32, float32 differ, ours are as good as differences."""
    data = to_unit(crops)
    x = noised(data, PRECISION_LEVELS, seed=9).float()
    plain, mean = posterior_weights(x, PRECISION_LEVELS, crops), posterior_mean(x, PRECISION_LEVELS, crops)
    assert total_variation(plain[::7], by_difference(x[::7], PRECISION_LEVELS[::7], data)) < 1e-9
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            under, under_mean = (
                posterior_weights(x, PRECISION_LEVELS, crops),
                posterior_mean(x, PRECISION_LEVELS, crops),
            )
            corrupted = single_precision(x, PRECISION_LEVELS, data)
    finally:
        torch.set_float32_matmul_precision(before)
    assert under.dtype == torch.float64
    assert torch.equal(under, plain)
    assert torch.equal(under_mean, mean)
    assert total_variation(corrupted, plain) > 0.5
    assert total_variation(single_precision(ten_bits(x), PRECISION_LEVELS, ten_bits(data)), plain) > 5e-3
    assert 1e-5 < total_variation(single_precision(x, PRECISION_LEVELS, data), plain) < 5e-3


def by_difference(x: Tensor, rho: Tensor, data: Tensor) -> Tensor:
    """Weights from the differences x - y_i in float64, row by row."""
    rows = zip(x.double(), rho.tolist(), strict=True)
    return torch.stack([((row - data).square().sum((1, 2, 3)) / (-2 * level**2)).softmax(0) for row, level in rows])


@pytest.mark.parametrize("rho", [1e-3, 0.002, 1.0, 80.0])
def test_duplicates_share_their_weight_evenly(rho: float, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every kernel: the logarithms to the bit, the weights but for the last bit of exp, in one chunk and in five."""
    data, x = digits[[0, 1, 0, 2, 0]], digits[:1] + rho * normal(1, 1, 8, 8)
    distance = squared_distances(x.flatten(1), data.flatten(1))
    assert torch.equal(distance[:, [0, 0]], distance[:, [2, 4]])
    for elements in (targets.ELEMENTS, 64):
        monkeypatch.setattr(targets, "ELEMENTS", elements)
        weights = posterior_weights(x, rho, data)
        assert bool(weights.isfinite().all())
        assert weights[0, [2, 4]].tolist() == pytest.approx([float(weights[0, 0])] * 2, rel=2**-52, abs=0)
    one = posterior_mean(digits[:1], 0.002, digits[[0, 0]])
    assert torch.equal(one, digits[:1])


@pytest.mark.parametrize("chunk", [1, 7, 100, 1024])
def test_equal_images_have_equal_distances(chunk: int, crops: Tensor) -> None:
    """As the others of their chunk may be, and however many noisy images there are."""
    data = to_unit(crops).flatten(1).double()
    x = data[:5] + 1e-3 * normal(5, data.shape[1], seed=3)
    copies = data.clone()
    copies[[40, 333, 1023]] = data[3]
    found = torch.cat([squared_distances(x, part) for part in copies.split(chunk)], 1)
    assert torch.equal(found[:, [3, 3, 3]], found[:, [40, 333, 1023]])
    assert torch.equal(found[3:4], torch.cat([squared_distances(x[3:4], part) for part in copies.split(chunk)], 1))


@pytest.mark.parametrize("rho", [1e-3, 0.03])
def test_weights_keep_their_digits_where_rho_is_small(rho: float, crops: Tensor) -> None:
    """Against extended precision, for images one or two grey levels apart, where products of pixels cancel."""
    data = crops[:1].repeat(20, 1, 1, 1)
    data.flatten(1)[torch.arange(20), torch.arange(20) * 100] += torch.arange(20).to(torch.uint8) % 3
    pixels, level = to_unit(data).double(), torch.tensor([rho], dtype=torch.float64)
    x = pixels[:1] + rho * normal(1, 3, 32, 32)
    expected = brute_force(x, level, pixels)[0].astype(np.float64)
    assert float(expected.max()) < 0.9
    assert posterior_weights(x, level, data).numpy() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.002, 80.0])
def test_extreme_levels_are_finite_and_sum_to_one(rho: float, dtype: torch.dtype, crops: Tensor) -> None:
    x = (to_unit(crops[:16]) + rho * normal(16, 3, 32, 32)).to(dtype)
    weights, mean = posterior_weights(x, rho, crops), posterior_mean(x, rho, crops)
    assert mean.dtype == dtype
    assert bool(mean.isfinite().all())
    assert bool(weights.isfinite().all())
    assert weights.sum(1).tolist() == pytest.approx([1] * 16, abs=1e-13)
    if rho < 1:
        torch.testing.assert_close(mean, to_unit(crops[:16]).to(dtype), rtol=0, atol=0)
    else:
        assert float(effective_size(weights).min()) > 500


def labelled(digits: Tensor, label: Tensor | None, **kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Reference]:
    """x, rho, clean and a reference of 40 digits; the sources are its last three."""
    source, rho = torch.tensor([37, 38, 39]), torch.full((3,), 3.0, dtype=torch.float64)
    x = digits[source] + 3.0 * normal(3, 1, 8, 8, seed=3)
    return x, rho, digits[source], Reference(digits[:40], source, label, **kept)


CLASSES = torch.arange(40) % 4


def test_images_of_other_classes_have_no_weight(digits: Tensor) -> None:
    """Labels as the network is told: class 1, dropped, class 3."""
    x, rho, clean, reference = labelled(digits, CLASSES)
    told = torch.tensor([1, -1, 3])
    target = StableTarget(40)(x, rho, clean, told, reference)
    allowed = torch.stack([CLASSES == 1, torch.ones(40, dtype=torch.bool), CLASSES == 3])
    assert np.abs(target.flatten(1).numpy() - brute_force(x, rho, digits[:40], allowed)[1]).max() < 1e-12
    same_class = posterior_mean(x[2:], rho[2:], digits[:40][CLASSES == 3])
    torch.testing.assert_close(target[2:], same_class, rtol=0, atol=1e-13)
    torch.testing.assert_close(target[1:2], posterior_mean(x[1:2], rho[1:2], digits[:40]), rtol=0, atol=1e-13)
    weights = posterior_weights(x, rho, digits[:40], StableTarget(40)._allowed(told, reference))
    assert float(weights[~allowed].abs().max()) == 0
    assert weights.sum(1).tolist() == pytest.approx([1] * 3, abs=1e-14)


def test_mixed_classes_and_unlabelled_networks_use_every_image(digits: Tensor) -> None:
    x, rho, clean, reference = labelled(digits, CLASSES)
    unmasked, told = posterior_mean(x, rho, digits[:40]), torch.tensor([1, -1, 3])
    assert torch.equal(StableTarget(40, classes="mixed")(x, rho, clean, told, reference), unmasked)
    assert torch.equal(StableTarget(40)(x, rho, clean, None, reference), unmasked)
    assert float((StableTarget(40)(x, rho, clean, told, reference) - unmasked).abs().max()) > 0.1


def test_a_lone_class_is_its_own_target(digits: Tensor) -> None:
    x, rho, clean, reference = labelled(digits, CLASSES)
    lonely = replace(reference, label=torch.cat([torch.zeros(37, dtype=torch.int64), torch.tensor([1, 2, 3])]))
    assert torch.equal(StableTarget(40)(x, rho, clean, torch.tensor([1, 2, 3]), lonely), clean)


def test_matching_augmentations_but_for_the_flip_have_weight(digits: Tensor) -> None:
    """Column 0 is the horizontal flip. Sources: not augmented, not augmented but flipped, augmented."""
    augment = torch.zeros(40, 9)
    augment[20:37, 1:] = normal(17, 8, seed=5).float()
    augment[::3, 0] = 1
    augment[38, 0] = 1
    augment[39, 4] = 0.3
    x, rho, clean, reference = labelled(digits, CLASSES, augment=augment)
    plain = torch.tensor([i < 20 or i in (37, 38) for i in range(40)])
    own = torch.arange(40) == 39
    allowed = torch.stack([plain, plain, own])
    target = StableTarget(40, augmented="match")(x, rho, clean, None, reference)
    assert np.abs(target.flatten(1).numpy() - brute_force(x, rho, digits[:40], allowed)[1]).max() < 1e-12
    both = StableTarget(40, augmented="match")(x, rho, clean, torch.tensor([1, 2, 3]), reference)
    of_class = torch.stack([(k == CLASSES) for k in (1, 2, 3)])
    assert np.abs(both.flatten(1).numpy() - brute_force(x, rho, digits[:40], allowed & of_class)[1]).max() < 1e-12
    unmasked = posterior_mean(x, rho, digits[:40])
    assert torch.equal(StableTarget(40)(x, rho, clean, None, reference), unmasked)
    without = replace(reference, augment=None)
    assert torch.equal(StableTarget(40, augmented="match")(x, rho, clean, None, without), unmasked)


def test_one_image(digits: Tensor) -> None:
    x = digits[3:4] + normal(1, 1, 8, 8)
    reference = Reference(digits[:50], torch.tensor([3]))
    target = StableTarget(50)(x, torch.tensor([1.0]), digits[3:4], None, reference)
    expected = brute_force(x, torch.tensor([1.0]).double(), digits[:50])[1]
    assert target.shape == (1, 1, 8, 8)
    assert np.abs(target.flatten(1).numpy() - expected).max() < 1e-12


def test_bytes_are_the_numbers_that_they_stand_for() -> None:
    images = Digits("all").images[:200]
    x = noised(to_unit(images).double(), LEVELS)
    floats = (posterior_mean(x, LEVELS, to_unit(images)), posterior_weights(x, LEVELS, to_unit(images)))
    assert torch.equal(posterior_mean(x, LEVELS, images), floats[0])
    assert torch.equal(posterior_weights(x, LEVELS, images), floats[1])


@pytest.mark.parametrize("elements", [1, 64, 64 * 7, 64 * 40])
def test_chunks_of_the_data_do_not_show(elements: int, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a row's first chunks hold nothing that it may use, and the largest weight comes last."""
    x, allowed = noised(digits, LEVELS), torch.ones(len(LEVELS), 40, dtype=torch.bool)
    allowed[2, :33] = False
    allowed[3:, ::2] = False
    data = digits[:40].flip(0)
    whole = [
        compute(x, LEVELS, data, mask) for compute in (posterior_mean, posterior_weights) for mask in (None, allowed)
    ]
    monkeypatch.setattr(targets, "ELEMENTS", elements)
    parts = [
        compute(x, LEVELS, data, mask) for compute in (posterior_mean, posterior_weights) for mask in (None, allowed)
    ]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11)
    assert np.abs(parts[1].flatten(1).numpy() - brute_force(x, LEVELS, data, allowed)[1]).max() < 1e-11


def test_the_level_may_be_a_number(digits: Tensor) -> None:
    x = digits[:5] + 1.5 * normal(5, 1, 8, 8)
    each = torch.full((5,), 1.5)
    for rho in (1.5, torch.tensor(1.5), torch.tensor([1.5])):
        assert torch.equal(posterior_mean(x, rho, digits), posterior_mean(x, each, digits))
        assert torch.equal(posterior_weights(x, rho, digits), posterior_weights(x, each, digits))


def test_no_gradient_flows_through_a_target(digits: Tensor) -> None:
    x = digits[:2].clone().requires_grad_()
    assert not posterior_mean(x, 1.0, digits).requires_grad
    assert not posterior_weights(x, 1.0, digits).requires_grad


def test_effective_size_in_closed_form() -> None:
    """n equal weights count as n, one as one, (p, 1 - p) as 1 / (p^2 + (1 - p)^2)."""
    assert effective_size(torch.full((3, 17), 1 / 17).double()).tolist() == pytest.approx([17] * 3)
    assert effective_size(torch.eye(4).double()).tolist() == [1] * 4
    assert float(effective_size(torch.tensor([0.3, 0.7]).double())) == pytest.approx(1 / (0.09 + 0.49))
    geometric = 0.5 ** torch.arange(1, 60).double()
    assert float(effective_size(geometric)) == pytest.approx(3)


@pytest.mark.parametrize(("m", "n", "d"), [(64, 1024, 192), (16, 3000, 3072), (64, 512, 768)])
@pytest.mark.parametrize("compute", [posterior_mean, posterior_weights])
def test_memory_excludes_pixels_of_all_pairs(compute: Callable[..., Tensor], m: int, n: int, d: int) -> None:
    data = torch.randint(256, (n, d), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = to_unit(data[:m]).double() + normal(m, d)
    with Largest() as made:
        compute(x, 1.0, data)
    assert made.bytes <= 8 * max(m * n, m * d, min(n * d, targets.ELEMENTS))
    assert made.bytes < 8 * m * n * d / 10


def test_the_largest_tensor_is_seen() -> None:
    with Largest() as made:
        (torch.zeros(5, 1, 7) - torch.zeros(11, 7)).square().sum(-1)
    assert made.bytes == 4 * 5 * 11 * 7


def test_refuses_what_is_no_stable_target() -> None:
    wrong = [
        ({"references": 0}, r"target\.references=0: must be a whole number, at least 1"),
        ({"references": -3}, r"target\.references=-3: must be a whole number"),
        ({"references": 2.5}, r"target\.references=2\.5: must be a whole number"),
        ({"references": True}, r"target\.references=True: must be a whole number"),
        ({"references": "many"}, r"target\.references=many: must be a whole number"),
        ({"scope": "proces"}, r"target\.scope=proces: there is no such choice; did you mean 'process'\?$"),
        ({"classes": "some"}, r"target\.classes=some: there is no such choice; did you mean 'same'\?$"),
        ({"augmented": "matched"}, r"target\.augmented=matched: there is no such choice; did you mean 'match'\?$"),
        ({"augmented": None}, r"target\.augmented=None: there is no such choice; did you mean 'none'\?$"),
        ({"scope": 7}, r"target\.scope=7: there is no such choice; choose from all, process$"),
    ]
    for options, sentence in wrong:
        with pytest.raises(InputError, match=sentence):
            StableTarget(**options)
    with pytest.raises(ValueError, match="needs a reference"):
        StableTarget(4)(torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2), None, None)


def test_the_weight_of_one_of_two_is_logistic(digits: Tensor) -> None:
    """Two images y and -y, x = y / 2: the weight is a logistic function of x.y / rho^2."""
    y = digits[:1]
    rho = math.sqrt(float(y.square().sum()))
    weights = posterior_weights(y / 2, rho, torch.cat([y, -y]))
    assert float(weights[0, 0]) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-13)
