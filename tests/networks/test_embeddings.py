"""Embeddings of the noise level against their formulas."""

import math

import pytest
import torch

from scoreline.networks.embeddings import Fourier, Sinusoidal


@pytest.mark.parametrize(("endpoint", "last"), [(False, 8), (True, 7)])
@pytest.mark.parametrize("sine_first", [False, True])
def test_sinusoidal(endpoint: bool, last: int, sine_first: bool) -> None:
    layer = Sinusoidal(16, endpoint, sine_first)
    out = layer(torch.tensor([0.7, 250.0], dtype=torch.float64))
    for row, c in enumerate((0.7, 250.0)):
        angle = [c * 10000 ** (-k / last) for k in range(8)]
        cos, sin = [math.cos(a) for a in angle], [math.sin(a) for a in angle]
        expected = sin + cos if sine_first else cos + sin
        assert out[row].tolist() == pytest.approx(expected, abs=250 * 1e-6)
    assert not layer.state_dict()


@pytest.mark.parametrize("sine_first", [False, True])
def test_fourier(sine_first: bool) -> None:
    layer = Fourier(8, 16.0, sine_first, buffer="freqs")
    assert set(layer.state_dict()) == {"freqs"}
    assert set(Fourier(8).state_dict()) == {"frequencies"}
    out = layer.double()(torch.tensor([0.3], dtype=torch.float64))
    angle = [2 * math.pi * 0.3 * f for f in layer.state_dict()["freqs"].tolist()]
    cos, sin = [math.cos(a) for a in angle], [math.sin(a) for a in angle]
    assert out[0].tolist() == pytest.approx(sin + cos if sine_first else cos + sin, abs=1e-12)
