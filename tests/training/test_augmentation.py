import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.ndimage import map_coordinates
from scipy.stats import kstest
from torch import Generator, Tensor

from scoreline.errors import InputError
from scoreline.training.augmentation import CACHED, LABELS, Augmentation, Parameters
from scoreline.training.wavelets import CENTRE, SYM6

MANY = 200_000
EDM = Augmentation()
ALWAYS = Augmentation(probability=1.0)
CONF = Path(__file__).parents[2] / "conf" / "augmentation"


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def nothing(count: int = 1) -> Parameters:
    flips, numbers = torch.zeros(2, count, dtype=torch.bool), torch.zeros(4, count, dtype=torch.float64)
    return Parameters(*flips, *numbers, torch.zeros(count, 2, dtype=torch.float64))


def asked(**values: float | bool | tuple[float, float]) -> Parameters:
    """Parameters of one image, zero but for those named."""
    empty = nothing()
    return replace(
        empty, **{name: torch.tensor([value], dtype=getattr(empty, name).dtype) for name, value in values.items()}
    )


def noise_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=seeded(seed)) * 2 - 1


# The draw


def test_share_of_images_with_a_flip_only() -> None:
    labels = EDM.draw(MANY, seeded(), "cpu").labels
    assert labels.shape == (MANY, LABELS) == (MANY, 9)
    assert labels.dtype == torch.float32
    share, expected = float((labels[:, 1:] == 0).all(1).double().mean()), 0.94 * 0.88**4
    assert expected == pytest.approx(0.564, abs=5e-4)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / MANY))


@pytest.mark.parametrize("probability", [0.0, 0.12, 1.0])
def test_operations_occur_independently_at_their_rate(probability: float) -> None:
    drawn = Augmentation(probability).draw(MANY, seeded(1), "cpu")
    happened = [drawn.x_flip, drawn.y_flip, drawn.scale != 0, drawn.angle != 0, drawn.stretch != 0]
    happened += [drawn.axis != 0, (drawn.shift != 0).all(1), (drawn.shift != 0).any(1)]
    p = probability
    chances = np.array([0.5, p / 2, p, p, p, p / 2, p, p])
    found = torch.stack(happened).double()
    spread = np.sqrt(chances * (1 - chances) / MANY)
    assert (np.abs(found.mean(1).numpy() - chances) <= 4 * spread).all()
    pairs = (found @ found.T / MANY).numpy()
    for i, j in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 6), (4, 6), (0, 6)):
        chance = chances[i] * chances[j]
        assert pairs[i, j] == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / MANY)), (i, j)


def test_draws_are_normal_or_uniform() -> None:
    drawn = EDM.draw(MANY, seeded(2), "cpu")
    for column in (drawn.scale, drawn.stretch, *drawn.shift.T):
        values = column[column != 0].numpy()
        assert kstest(values, "norm").pvalue > 0.01
        assert abs(values.mean()) < 4 / math.sqrt(len(values))
        assert abs(values.var() - 1) < 4 * math.sqrt(2 / len(values))
    for column in (drawn.angle, drawn.axis):
        values = column[column != 0].numpy()
        assert kstest(values, "uniform", (-math.pi, 2 * math.pi)).pvalue > 0.01
        assert -math.pi <= values.min() < -3.13
        assert 3.13 < values.max() <= math.pi
    both = drawn.shift[(drawn.shift != 0).all(1)].numpy()
    assert abs(np.corrcoef(both.T)[0, 1]) < 4 / math.sqrt(len(both))


def test_labels_are_the_draws_in_the_published_order() -> None:
    drawn = ALWAYS.draw(1000, seeded(3), "cpu")
    theta, w, r = drawn.angle.numpy(), drawn.stretch.numpy(), drawn.axis.numpy()
    columns = [drawn.x_flip.numpy(), drawn.y_flip.numpy(), drawn.scale.numpy(), np.cos(theta) - 1, np.sin(theta)]
    columns += [w * np.cos(r), w * np.sin(r), drawn.shift[:, 0].numpy(), drawn.shift[:, 1].numpy()]
    np.testing.assert_allclose(drawn.labels.numpy(), np.stack(columns, 1), atol=1e-6)
    np.testing.assert_array_equal(nothing(3).labels.numpy(), np.zeros((3, 9)))


def test_stretch_and_inverse_squeeze_share_a_label() -> None:
    one, other = asked(stretch=1.0, axis=0.5), asked(stretch=-1.0, axis=0.5 + math.pi)
    torch.testing.assert_close(one.labels, other.labels)
    images = smooth(32, 32)
    assert float((EDM(images, one) - EDM(images, other)).abs().max()) > 0.1


OPERATIONS = {
    "x_flip": ["x_flip"],
    "y_flip": ["y_flip"],
    "scale": ["scale"],
    "rotation": ["angle"],
    "anisotropy": ["stretch", "axis"],
    "translation": ["shift"],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disabled_operation_leaves_other_draws(operation: str) -> None:
    off = type(getattr(EDM, operation))(0)
    all_on = EDM.draw(500, seeded(4), "cpu")
    without = replace(EDM, **{operation: off}).draw(500, seeded(4), "cpu")
    for name in vars(all_on):
        if name in OPERATIONS[operation]:
            assert bool(getattr(all_on, name).any())
            assert not bool(getattr(without, name).any())
        else:
            assert torch.equal(getattr(without, name), getattr(all_on, name))


def test_rotation_limits_the_angle() -> None:
    angle = Augmentation(probability=1.0, rotation=0.1).draw(1000, seeded(), "cpu").angle.abs()
    assert 0.09 * math.pi < float(angle.max()) <= 0.1 * math.pi


def test_draws_depend_on_generator_and_count() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generator = seeded(5)
    first, second = (EDM.draw(64, generator, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = EDM.draw(64, seeded(5), "cpu")
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.labels, second.labels)


def test_rows_are_those_of_the_batch() -> None:
    drawn = ALWAYS.draw(12, seeded(6), "cpu")
    for index in (slice(4, 8), torch.tensor([7, 0, 7])):
        part = drawn.rows(index)
        assert torch.equal(part.labels, drawn.labels[index])
        assert torch.equal(part.resampled, drawn.resampled[index])
        images = noise_images(12, 3, 16, 16).float()
        torch.testing.assert_close(EDM(images[index], part), EDM(images, drawn)[index], rtol=0, atol=1e-6)


# Exact operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untouched_images_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    images = noise_images(40, 3, 8, 8).to(dtype)
    copy = images.clone()
    assert torch.equal(EDM(images, nothing(40)), images)
    drawn = EDM.draw(40, seeded(7), "cpu")
    still = (drawn.labels == 0).all(1)
    result = EDM(images, drawn)
    assert 0 < int(still.sum()) < 40
    assert torch.equal(result[still], images[still])
    assert bool((result[~still] != images[~still]).flatten(1).any(1).all())
    assert result.dtype == dtype
    assert torch.equal(images, copy)


def test_flips_move_pixels_and_change_none() -> None:
    images = noise_images(1, 3, 8, 11).float()
    for x_flip, y_flip in ((True, False), (False, True), (True, True)):
        expected = images.numpy()[:, :, :: -1 if y_flip else 1, :: -1 if x_flip else 1]
        np.testing.assert_array_equal(EDM(images, asked(x_flip=x_flip, y_flip=y_flip)).numpy(), expected)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 2), (-4, 5), (7, -7), (13, 0), (-40, 29)])
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 13)])
def test_whole_pixels_of_translation_move_pixels(shape: tuple[int, int, int], right: int, down: int) -> None:
    """The image continues as NumPy's reflection does, which reflects again where one reflection is not enough."""
    image, (_, height, width) = noise_images(*shape), shape
    shift = (right / (0.125 * width), down / (0.125 * height))
    moved = EDM(image[None], asked(shift=shift))[0]
    border = max(abs(right), abs(down))
    wide = np.pad(image.numpy(), [(0, 0), (border, border), (border, border)], mode="reflect")
    expected = np.roll(wide, (down, right), (1, 2))[:, border : border + height, border : border + width]
    np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=1e-12)
    if 0 <= right < width and 0 <= down < height:
        rolled = torch.roll(image, (down, right), (1, 2))
        torch.testing.assert_close(moved[:, down:, right:], rolled[:, down:, right:], rtol=0, atol=1e-12)


# Against analytic functions

WAVES = [(0.3, 1, 0), (-0.25, 0, 1), (0.2, 2, 1), (0.15, 1, 2), (0.1, 3, 2)]
"""sum a cos(pi k x / (W - 1)) cos(pi m y / (H - 1)): its reflection about the outermost pixels is itself."""


def waves(x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    return sum(a * np.cos(np.pi * k * x / (width - 1)) * np.cos(np.pi * m * y / (height - 1)) for a, k, m in WAVES)


def smooth(width: int, height: int) -> Tensor:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return torch.from_numpy(waves(x, y, width, height))[None, None]


def undone(
    z: np.ndarray, width: int, height: int, parameters: Parameters, order: str = "shift stretch angle scale"
) -> np.ndarray:
    """Where the content at z, complex with the imaginary axis up, was before: each operation undone, the last first."""
    given = {name: value[0].numpy() for name, value in vars(parameters).items()}
    for name in order.split():
        if name == "shift":
            z = z - 0.125 * (width * given["shift"][0] - 1j * height * given["shift"][1])
        if name == "stretch":
            factor, axis = 2 ** (0.2 * given["stretch"]), np.exp(1j * given["axis"])
            along = z / axis
            z = (along.real / factor + 1j * along.imag * factor) * axis
        if name == "angle":
            z = z * np.exp(-1j * given["angle"])
        if name == "scale":
            z = z / 2 ** (0.2 * given["scale"])
    z = z.real + 1j * z.imag * (-1 if given["y_flip"] else 1)
    return z.imag * 1j + z.real * (-1 if given["x_flip"] else 1)


def transformed(
    width: int, height: int, parameters: Parameters, order: str = "shift stretch angle scale"
) -> np.ndarray:
    """The waves after the operations, in closed form."""
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, (height - 1) / 2 - np.arange(height))
    source = undone(x + 1j * y, width, height, parameters, order)
    return waves(source.real + (width - 1) / 2, (height - 1) / 2 - source.imag, width, height)


def response(w: float) -> complex:
    """Of the filter to a wave of w radians a pixel, its samples being half pixels, without its delay."""
    return complex(np.exp(-0.5j * w * (np.arange(12) - CENTRE)) @ np.array(SYM6)) / math.sqrt(2)


def largest_error(width: int, height: int, parameters: Parameters) -> float:
    """Bound on the error of a wave (w_x, w_y): filter, its image at w + 2 pi, linear interpolation, filter again."""
    factor = 2 ** (0.2 * abs(float(parameters.stretch))) / 2 ** (0.2 * float(parameters.scale))
    gain, total = np.abs(SYM6).sum() / math.sqrt(2), 0.0
    for a, k, m in WAVES:
        w = (math.pi * k / (width - 1), math.pi * m / (height - 1))
        up = math.prod(1 + abs(response(part) - 1) + abs(response(part + 2 * math.pi)) for part in w) - 1
        down = (1 + abs(response(factor * math.hypot(*w)) - 1)) ** 2 - 1
        linear = (w[0] ** 2 + w[1] ** 2) / 32
        total += abs(a) * (gain**2 * (up + linear) + down)
    return total


CASES = {
    "larger": asked(scale=1.5),
    "smaller": asked(scale=-2.0),
    "turned": asked(angle=0.7),
    "turned back": asked(angle=-2.5),
    "wider": asked(stretch=1.3),
    "narrower": asked(stretch=-1.3),
    "along a diagonal": asked(stretch=1.5, axis=0.6),
    "across a diagonal": asked(stretch=-1.5, axis=2.0),
    "moved": asked(shift=(0.37, -0.81)),
    "far away": asked(shift=(9.3, 12.1), scale=-4.0),
    "everything": asked(x_flip=True, y_flip=True, scale=-1.0, angle=1.1, stretch=1.4, axis=-0.4, shift=(0.9, 0.5)),
    "everything else": asked(x_flip=True, scale=0.8, angle=-0.8, stretch=-1.2, axis=0.9, shift=(-1.1, 0.7)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 96)])
def test_geometry_against_the_transformed_function(case: str, width: int, height: int) -> None:
    parameters = CASES[case]
    found, bound = EDM(smooth(width, height), parameters)[0, 0].numpy(), largest_error(width, height, parameters)
    assert np.abs(found - transformed(width, height, parameters)).max() < bound < 0.005
    for name, value in vars(parameters).items():
        if bool(value.any()):
            opposite = replace(parameters, **{name: ~value if value.dtype == torch.bool else -value})
            other = transformed(width, height, opposite)
            assert np.abs(found - other).max() > 10 * bound, name


@pytest.mark.parametrize(
    "order",
    [
        "stretch shift angle scale",
        "shift angle stretch scale",
        "angle shift stretch scale",
        "scale angle stretch shift",
    ],
)
def test_no_other_order_of_operations_fits(order: str) -> None:
    parameters = CASES["everything"]
    found, bound = EDM(smooth(32, 32), parameters)[0, 0].numpy(), largest_error(32, 32, parameters)
    assert np.abs(found - transformed(32, 32, parameters, order)).max() > 10 * bound


@pytest.mark.parametrize("quarters", [1, 2])
def test_quarter_turns_against_rot90(quarters: int) -> None:
    image, parameters = smooth(32, 32), asked(angle=quarters * math.pi / 2)
    found = EDM(image, parameters)
    bound = largest_error(32, 32, parameters)
    assert float((found - torch.rot90(image, quarters, (2, 3))).abs().max()) < bound < 0.005
    assert float((found - torch.rot90(image, quarters + 1, (2, 3))).abs().max()) > 0.5


# Against the published steps, written out


def written_out(image: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Pad by reflection, double the pixels, interpolate, halve them: on an image (H, W), with SciPy."""
    height, width = image.shape
    border = 3 * max(height, width)
    fine = np.pad(image, border, mode="reflect")
    for dim in (0, 1):
        spread = np.zeros([2 * size if axis == dim else size for axis, size in enumerate(fine.shape)])
        spread[(slice(None),) * dim + (slice(None, None, 2),)] = fine
        fine = np.apply_along_axis(lambda line: np.convolve(line, SYM6) * math.sqrt(2), dim, spread)
    place = [(np.arange(2 * size + 10) - CENTRE) / 2 - (size - 1) / 2 for size in (width, height)]
    x, y = np.meshgrid(*place)
    source = undone(x - 1j * y, width, height, parameters)
    index = [
        2 * (-source.imag + (height - 1) / 2 + border) + CENTRE,
        2 * (source.real + (width - 1) / 2 + border) + CENTRE,
    ]
    moved = map_coordinates(fine, index, order=1, mode="constant", cval=np.nan)
    for dim in (0, 1):
        filtered = np.apply_along_axis(lambda line: np.correlate(line, SYM6) / math.sqrt(2), dim, moved)
        moved = filtered[(slice(None),) * dim + (slice(None, None, 2),)]
    return moved[:height, :width]


@pytest.mark.parametrize("case", [case for case in CASES if case != "far away"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (15, 9)])
def test_noise_against_the_steps_written_out(case: str, shape: tuple[int, int]) -> None:
    image = noise_images(3, *shape)
    flips = {"x_flip": torch.tensor([False]), "y_flip": torch.tensor([False])}
    found = EDM(image[None], replace(CASES[case], **flips))[0]
    for channel in range(3):
        expected = written_out(image[channel].numpy(), replace(CASES[case], **flips))
        np.testing.assert_allclose(found[channel].numpy(), expected, rtol=0, atol=1e-11)


# Any image


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 17, 8), (1, 5, 2), (2, 1, 7), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_plain_image_stays_plain_anywhere(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = ALWAYS.draw(64, seeded(9), "cpu")
    drawn = replace(drawn, scale=drawn.scale * 3, shift=drawn.shift * 10)
    images = torch.full((64, *shape), -0.75, dtype=dtype)
    result = ALWAYS(images, drawn)
    assert result.shape == images.shape
    assert result.dtype == dtype
    torch.testing.assert_close(result, images, rtol=0, atol=1e-6)


def test_single_precision_is_close_to_double() -> None:
    images, drawn = noise_images(64, 3, 32, 32), ALWAYS.draw(64, seeded(10), "cpu")
    single = ALWAYS(images.float(), drawn)
    torch.testing.assert_close(single.double(), ALWAYS(images, drawn), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    images, drawn = noise_images(16, 3, 16, 16).to(dtype), ALWAYS.draw(16, seeded(11), "cpu")
    plain = ALWAYS(images, drawn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (images[0, 0].float() @ images[0, 0].float()).dtype == torch.bfloat16
        assert torch.equal(ALWAYS(images, drawn), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_images() -> None:
    images, drawn = noise_images(64, 3, 32, 32), ALWAYS.draw(64, seeded(12), "cpu")
    expected = ALWAYS(images, drawn)
    for place in ("cpu", "cuda"):
        found = ALWAYS(images.cuda(), drawn.to(place))
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-10)
    own = ALWAYS.draw(64, Generator("cuda").manual_seed(0), "cuda")
    assert own.labels.is_cuda
    assert torch.equal(own.labels, ALWAYS.draw(64, Generator("cuda").manual_seed(0), "cuda").labels)


# What the user gives


def test_config_files_give_none_and_the_published_constants() -> None:
    assert instantiate(OmegaConf.load(CONF / "none.yaml")) is None
    assert (
        instantiate(OmegaConf.load(CONF / "edm.yaml"))
        == Augmentation()
        == Augmentation(0.12, True, True, 0.2, 1.0, 0.2, 0.125)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("probability", value) for value in (-0.01, 1.5, float("nan"), "often", None, True)),
        *(("x_flip", 1e8), ("y_flip", "no"), ("scale", -0.2), ("rotation", float("inf"))),
        *(("anisotropy", None), ("translation", True), ("told", 1)),
    ],
)
def test_refusals_name_the_key(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^augmentation.{key}={value}: must be "):
        Augmentation(**{key: value})


def test_an_image_is_independent_of_its_batch() -> None:
    augmentation, count = Augmentation(probability=1.0), CACHED + 5
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    drawn = augmentation.draw(count, torch.Generator().manual_seed(4), "cpu")
    whole = augmentation(images, drawn)
    few = torch.cat([augmentation(images[rows], drawn.rows(rows)) for rows in (slice(0, 7), slice(7, count))])
    assert torch.equal(whole, few)
