"""Every large experiment takes two steps on synthetic images of its shape, from files of the real formats."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from emoji_fonts import many_objects, write_font
from PIL import Image
from runs import records, script
from safetensors.torch import load_file

from scoreline.checkpoints import load_model

IMAGES = 20
DSM = ["cifar10_edm", "cifar10_vp", "cifar10_deis_sn", "celeba64_ddpm", "church64_ddpm"]
STF = ["cifar10_edm_stf", "cifar10_vp_stf", "cifar10_ve_stf"]
SHORT = [
    *("trainer=cpu", "precision=32-true", "batch_size=4", "duration_kimg=0.008", "log_kimg=0.004"),
    *("fixed_loss_kimg=0.004", "~callbacks.preview", "checkpoint_kimg=1000", "lr_rampup_kimg=0"),
]
NARROW = ["model.network.width=32", "model.network.blocks=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with data/cifar-10-python.tar.gz, data/celeba64.zip and data/church64.zip."""
    root = tmp_path_factory.mktemp("experiments")
    (root / "data").mkdir()
    generator = np.random.default_rng(0)
    with tarfile.open(root / "data" / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            pixels = generator.integers(0, 256, (IMAGES // 5, 3072), dtype=np.uint8)
            content = pickle.dumps({b"data": pixels, b"labels": [0, 9, 3, 4]}, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for name in ("celeba64", "church64"):
        with zipfile.ZipFile(root / "data" / f"{name}.zip", "w") as archive:
            for number in range(IMAGES):
                image, file = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)), io.BytesIO()
                image.save(file, "png")
                archive.writestr(f"00000/img{number:08d}.png", file.getvalue())
    return root


def sweep(place: Path, name: str, experiments: list[str], *overrides: str) -> dict[str, Path]:
    """Experiment -> run directory, in one sweep."""
    where = [f"hydra.sweep.dir={name}", "hydra.sweep.subdir=${hydra:runtime.choices.experiment}"]
    script("train.py", place, "-m", f"experiment={','.join(experiments)}", *SHORT, *overrides, *where)
    return {experiment: place / name / experiment for experiment in experiments}


def assert_trained(runs: dict[str, Path]) -> None:
    for name, out in runs.items():
        told = records(out)
        assert [r["step"] for r in told if "loss" in r] == [1, 2], name
        assert all(0 < r["loss"] < float("inf") and r["non_finite_steps"] == 0 for r in told if "loss" in r), name
        checkpoint = load_model(out / "model.safetensors")
        assert checkpoint.card.shape == ((3, 64, 64) if "64" in name else (3, 32, 32))
        assert checkpoint.card.data["images"] == IMAGES
        assert checkpoint.card.data["sigma_data"] == pytest.approx(3**-0.5, rel=0.02), "of uniform pixels"
        assert checkpoint.card.training["kimg"] == 0.008
        assert any(bool(weight.any()) for weight in load_file(out / "model.safetensors").values())


def test_denoising_experiments(place: Path) -> None:
    assert_trained(sweep(place, "dsm", DSM, *NARROW))


def test_stable_target_experiments(place: Path) -> None:
    runs = sweep(place, "stf", STF, *NARROW, "++target.references=8")
    assert_trained(runs)
    assert load_model(runs["cifar10_edm_stf"] / "model.safetensors").card.training["target"].startswith("stf(")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_experiments_at_their_own_size(place: Path) -> None:
    assert_trained(sweep(place, "whole", DSM))
    assert_trained(sweep(place, "whole_stf", STF, "++target.references=8"))


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    output = script("train.py", tmp_path, "experiment=celeba64_ddpm", "trainer=cpu", code=2)
    assert "train.py: dataset.path=data/celeba64.zip: " in output


def test_emoji_experiment(tmp_path: Path) -> None:
    pictures, texts = many_objects(20)
    font = write_font(tmp_path / "a.ttf", pictures, texts)
    script("train.py", tmp_path, "experiment=emoji32_edm", f"dataset.font={font}", *SHORT, "hydra.run.dir=run")
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == [1, 2]
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert (card.shape, card.num_classes, card.model["network"]["label_dropout"]) == ((3, 32, 32), 10, 0.1)
    assert card.data["name"] == "emoji-train"
    assert card.data["licence"].startswith("SIL Open Font License")
    assert card.class_counts is not None
    assert sum(card.class_counts) == card.data["images"]
