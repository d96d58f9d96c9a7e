"""A training that begins with a network of another project: its loss goes on from theirs, its averages are theirs."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from edm_files import CASES, snapshot, use_original_names
from folders import TINY, saved, unet
from PIL import Image
from runs import records, script
from torch import Tensor

from scoreline.checkpoints import Checkpoint, load_model
from scoreline.foreign.conversion import Options, cached_file, digest

STEP = ["model=null", "batch_size=8", "log_kimg=0.008", "lr_rampup_kimg=0", "duration_kimg=0.008", "preview_kimg=1"]
OWN = ["dataset=image_folder", "dataset.path=own", "dataset.labels=folders", "model.network.dropout=0"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with own pictures of three classes; nothing in a pickle runs."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / f"own/{number % 3}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    use_original_names(monkeypatch, tmp_path / "canary")
    yield tmp_path
    assert not (tmp_path / "canary").exists()


def edm_pickle(place: Path) -> Path:
    path = place / "network-snapshot.pkl"
    path.write_bytes(pickle.dumps(snapshot(CASES["EDMPrecond"])))
    return path


def diffusers_folder(place: Path) -> Path:
    return saved(place / "pipeline", unet({**TINY, "in_channels": 3, "out_channels": 3}), DDPMScheduler(20))


def expected_loss(theirs: Checkpoint, seen: dict[str, Tensor], weight: Callable[[Tensor], Tensor]) -> float:
    """The mean of weight(rho) |D(x + rho eps) - x|^2 over a batch of the training."""
    clean, rho = seen["clean"], seen["rho"]
    conditions = {"label": seen["label"], "augment": torch.zeros(len(clean), 9)} if theirs.card.num_classes else {}
    error = theirs.denoiser(clean + rho.float().reshape(-1, 1, 1, 1) * seen["eps"], rho, **conditions) - clean
    return float((weight(rho) * error.double().square().mean((1, 2, 3))).mean())


@pytest.mark.parametrize(
    ("make", "objective", "weight"),
    [
        (edm_pickle, "edm", lambda rho: (rho**2 + 0.25) / (0.5 * rho) ** 2),
        (diffusers_folder, "ddpm", lambda rho: rho**-2),
    ],
)
def test_the_loss_goes_on_from_theirs(
    make: Callable[[Path], Path], objective: str, weight: Callable[[Tensor], Tensor], place: Path
) -> None:
    source = make(place)
    words = [f"init={source.name}", f"objective={objective}", "+callbacks.seen._target_=witness.Examples"]
    script("train.py", place, *STEP, *OWN, *words, "hydra.run.dir=run")
    theirs = load_model(cached_file(str(source), Options()))
    weights = theirs.denoiser.network.state_dict()
    first = torch.load("run/checkpoints/0000000000.ckpt", weights_only=True)
    for found in (first["state_dict"], first["callbacks"]["EMACallback"]["weights"]):
        names = {name.removeprefix("denoiser.network."): value for name, value in found.items()}
        assert names.keys() == weights.keys()
        assert all(torch.equal(value, names[name]) for name, value in weights.items())
    (record,) = (record for record in records(place / "run") if "loss" in record)
    seen = torch.load("run/examples.pt", weights_only=True)
    assert record["loss"] == pytest.approx(expected_loss(theirs, seen, weight), rel=1e-5)
    model = load_model("run/model.safetensors")
    assert any(not torch.equal(value, weights[name]) for name, value in model.denoiser.network.state_dict().items())
    origin = model.card.training["init"]
    assert (origin["checkpoint"], origin["sha256"], origin["skipped"]) == (source.name, digest(source), [])
    assert origin["training"]["imported"]["file"] == source.name
    assert model.card.model["parameterisation"] == theirs.card.model["parameterisation"]
