"""Half precision touches the network alone; compiled and recomputed networks train as plain ones."""

from pathlib import Path

import pytest
import torch
from runs import records, train
from safetensors.torch import load_file

from scoreline.denoiser import Denoiser
from scoreline.networks.unet import UNet
from scoreline.objective import Batch, DenoisingObjective, EDMWeight, LogNormal
from scoreline.parameterisations import EDMPreconditioning
from scoreline.targets import Denoising


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = UNet(1, 8, width=16, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, EDMPreconditioning(0.5))


@pytest.mark.parametrize("rho", [0.002, 0.5, 80.0])
def test_preconditioning_stays_exact_around_a_bfloat16_network(denoiser: Denoiser, rho: float) -> None:
    """Bfloat16 has 8 bits: only what the network says, scaled by c_out, may be as coarse."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 8, 8, generator=generator) * (1 + rho)
    ran_in = []
    handle = denoiser.network.stem.register_forward_hook(lambda _, __, output: ran_in.append(output.dtype))
    plain = denoiser(x, rho)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = denoiser(x, rho)
    handle.remove()
    assert ran_in == [torch.float32, torch.bfloat16]
    assert coarse.dtype == torch.float32
    scalings = denoiser.parameterisation(torch.tensor(rho, dtype=torch.float64))
    said = (plain - float(scalings.skip) * x).abs().max()
    error = (coarse - plain).abs().max()
    assert 0 < error < 0.1 * said
    if rho == 0.002:
        assert error < 1e-3 * plain.abs().max()  # a state in bfloat16 would lose 4e-3 of itself


def test_the_loss_is_float32_under_autocast(denoiser: Denoiser) -> None:
    generator = torch.Generator().manual_seed(2)
    clean, eps = (torch.randn(64, 1, 8, 8, generator=generator) for _ in range(2))
    batch = Batch(clean, (torch.arange(64).double() + 0.5) / 64, eps)
    objective = DenoisingObjective(LogNormal(), EDMWeight(0.5), Denoising())
    plain, _ = objective(denoiser, batch)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, rho = objective(denoiser, batch)
    assert coarse.dtype == torch.float32
    assert rho.dtype == torch.float64
    torch.testing.assert_close(coarse, plain, rtol=0.05, atol=0.01)


def test_bfloat16_trains_to_the_loss_of_float32(tmp_path: Path) -> None:
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        train(out, "duration_kimg=1.6", f"precision={precision}", "model.network.dropout=0")
        assert all(value.dtype == torch.float32 for value in load_file(out / "model.safetensors").values())
        curves.append([r["loss"] for r in records(out)])
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.03)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_network_trains_as_a_plain_one(tmp_path: Path) -> None:
    for name, more in (("plain", []), ("compiled", ["compile=default"])):
        train(tmp_path / name, "duration_kimg=0.64", "model.network.dropout=0", *more)
    plain, compiled = (records(tmp_path / name) for name in ("plain", "compiled"))
    assert [r["loss"] for r in compiled] == pytest.approx([r["loss"] for r in plain], rel=1e-4)
    names = [load_file(tmp_path / name / "model.safetensors").keys() for name in ("plain", "compiled")]
    assert names[0] == names[1]


def test_recomputed_activations_give_the_same_training(tmp_path: Path) -> None:
    for name, more in (("plain", []), ("recomputed", ["model.network.checkpointing=true"])):
        train(tmp_path / name, "duration_kimg=0.32", *more)
    plain, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "recomputed"))
    assert all(torch.equal(value, recomputed[name]) for name, value in plain.items())
