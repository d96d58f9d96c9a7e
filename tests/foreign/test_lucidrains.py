"""Files of denoising-diffusion-pytorch's Trainer; docs/tutorials/lucidrains.md is run by tests/docs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lucidrains_files import write_checkpoint

from scoreline import predictions
from scoreline.checkpoints import load_model
from scoreline.errors import InputError
from scoreline.foreign.conversion import Options, convert

OWN = """
from denoising_diffusion_pytorch import Unet

class Flowers(Unet):
    def __init__(self, dim, dim_mults, channels=3):
        super().__init__(dim, dim_mults, channels)
        if dim < 0:
            open("canary", "w")

    def forward(self, x, noise_label, label=None, **condition):
        return super().forward(x, noise_label)
"""
PROCESS = {"_target_": "scoreline.schedules.discrete.DiscreteVP"}
MODEL: dict[str, Any] = {
    "network": {"_target_": "flowers.Flowers", "dim": 8, "dim_mults": [1, 2]},
    "noise_schedule": PROCESS,
    "parameterisation": {
        **{"_target_": "scoreline.parameterisations.VelocityPrediction", "label_scale": 1},
        "noise_schedule": PROCESS,
    },
}


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "flowers.py").write_text(OWN)
    return tmp_path


@torch.no_grad()
def test_both_weights_denoise_as_their_own_do(where: Path) -> None:
    for weights, diffusion in zip(("raw", "ema"), write_checkpoint(where), strict=True):
        target = where / f"{weights}.safetensors"
        family, _ = convert("results/model-10.pt", target, Options(model=MODEL, weights=weights, size=(8, 8)))
        assert family == "lucidrains", "it is recognised"
        theirs = predictions.velocity(diffusion.model, betas=diffusion.betas)
        with pytest.raises(InputError, match=r"trust=\[flowers\]"):
            load_model(target)
        loaded = load_model(target, ("flowers",))
        assert loaded.card.training["imported"]["step"] == 1000
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for rho in (0.02, 0.5, 30.0):
            expected = theirs(x, torch.tensor(rho))
            assert torch.allclose(loaded.denoiser(x, rho), expected, atol=2e-6 * float(expected.abs().max()))


def test_the_process_is_that_of_the_file(where: Path) -> None:
    raw, _ = write_checkpoint(where)
    target = where / "model.safetensors"
    convert("results/model-10.pt", target, Options(model=MODEL, size=(8, 8)))
    alpha = load_model(target, ("flowers",)).noise_schedule.alpha(torch.arange(1000, dtype=torch.float64))
    assert torch.allclose(alpha**2, raw.alphas_cumprod.double(), rtol=2e-5)


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [
        (None, (8, 8), "does not say what network it holds"),
        (MODEL, None, "size: nothing says the size of the images"),
        ({**MODEL, "network": {**MODEL["network"], "dim": 16}}, (8, 8), r"weight .* has shape .*, our .* needs"),
        ({**MODEL, "network": {**MODEL["network"], "dims": 8}}, (8, 8), "unexpected keyword argument 'dims'"),
        ({**MODEL, "network": {"_target_": "torch.nn.Identity"}}, (8, 8), "weight .* has no place|not a network"),
    ],
)
def test_a_wrong_description(where: Path, model: Any, size: Any, sentence: str) -> None:
    write_checkpoint(where)
    with pytest.raises(InputError, match=sentence):
        convert("results/model-10.pt", where / "model.safetensors", Options(model=model, size=size))
    assert not (where / "model.safetensors").exists()


def test_another_file_is_refused(where: Path) -> None:
    write_checkpoint(where)
    tree = torch.load("results/model-10.pt", weights_only=True)
    tree["ema"] = {}
    torch.save(tree, "other.pt")
    with pytest.raises(InputError, match=r"no GaussianDiffusion at ema: ema_model\.\*; give weights=raw"):
        convert("other.pt", where / "model.safetensors", Options(model=MODEL, size=(8, 8)))
