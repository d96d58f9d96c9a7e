"""FIR resampling against convolution by SciPy."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d
from torch import Tensor

from scoreline.networks.fir_resampling import ConvThenHalve, Resample, ResampledConv, fir_kernel

TAPS = [(1, 1), (1, 3, 3, 1), (1, 2, 4, 8), (1, 4, 9, 9, 4, 1)]


def each(x: Tensor, change: object) -> Tensor:
    """`change` of every channel of every image as arrays."""
    planes = [torch.from_numpy(change(plane.numpy())) for plane in x.flatten(0, 1)]  # type: ignore[operator]
    return torch.stack(planes).unflatten(0, x.shape[:2])


def halved(plane: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    rim = (len(taps) - 1) // 2
    return correlate2d(np.pad(plane, rim), kernel, mode="valid")[::2, ::2]


def doubled(plane: np.ndarray, taps: tuple[float, ...]) -> np.ndarray:
    spread = np.zeros([2 * side - 1 for side in plane.shape])
    spread[::2, ::2] = plane
    rim = (len(taps) - 1) // 2
    full = convolve2d(spread, 4 * np.outer(taps, taps) / sum(taps) ** 2, mode="full")
    return full[rim : full.shape[0] - rim, rim : full.shape[1] - rim]


@pytest.mark.parametrize("taps", TAPS)
def test_against_convolution(taps: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    down, up = Resample("down", taps).double(), Resample("up", taps).double()
    assert down(x).shape == (2, 3, 3, 4)
    assert up(x).shape == (2, 3, 12, 16)
    torch.testing.assert_close(down(x), each(x, lambda plane: halved(plane, taps)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(up(x), each(x, lambda plane: doubled(plane, taps)), rtol=1e-6, atol=1e-6)


def test_two_taps_are_means_and_copies() -> None:
    x = torch.randn(2, 3, 6, 8)
    means = x.unflatten(3, (4, 2)).unflatten(2, (3, 2)).mean((3, 5))
    torch.testing.assert_close(Resample("down", (1, 1))(x), means)
    assert torch.equal(Resample("up", (1, 1))(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_kernel() -> None:
    assert fir_kernel((1, 3, 3, 1)).shape == (1, 1, 4, 4)
    assert fir_kernel((1, 3, 3, 1))[0, 0, 1].tolist() == [3 / 64, 9 / 64, 9 / 64, 3 / 64]
    assert set(Resample("down", (1, 1)).state_dict()) == {"resample_filter"}


def test_taps_survive_on_the_meta_device() -> None:
    with torch.device("meta"):
        layers = [Resample("up", (1, 3, 3, 1)), ResampledConv(2, 2, 3, "down", [1, 1]), ConvThenHalve(2, 2, [1, 1])]
    assert [layer.taps for layer in layers] == [(1, 3, 3, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("taps", TAPS)
def test_fused_with_convolutions(taps: tuple[float, ...]) -> None:
    """The filter first; in ConvThenHalve last, where only the convolution sees zeros beyond the image."""
    x, rim = torch.randn(2, 3, 8, 8, dtype=torch.float64), (len(taps) - 1) // 2
    for direction, change in (("down", halved), ("up", doubled)):
        layer = ResampledConv(3, 5, 3, direction, taps).double()  # type: ignore[arg-type]
        first = each(x, lambda plane, change=change: change(plane, taps))
        expected = torch.nn.functional.conv2d(first, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    layer = ConvThenHalve(3, 5, taps).double()
    wide = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1 + rim).detach()
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    expected = each(wide, lambda plane: correlate2d(plane, kernel, mode="valid")[::2, ::2])
    assert layer(x).shape == (2, 5, 4, 4)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
