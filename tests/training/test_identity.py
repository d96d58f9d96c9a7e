"""The same training is the same file wherever it is made, and says by which command."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import script

from scoreline.checkpoints import load_model

BRIEF = ("duration_kimg=0.064", "batch_size=32", "preview_kimg=1", "fixed_loss_kimg=1", "model.network.width=8")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_two_directories_hold_the_same_bytes(tmp_path: Path, pictures: Path) -> None:
    words = ["dataset=image_folder", f"dataset.path={pictures}", "model.network.num_classes=0", "trainer=cpu"]
    for name in ("a", "b"):
        script("train.py", tmp_path, *BRIEF, *words, f"hydra.run.dir={name}")
    a, b = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()
    command = load_model(a).card.training["command"]
    assert command.startswith("python train.py duration_kimg=0.064")
    assert "dataset=image_folder dataset.path=pictures" in command
    assert str(tmp_path) not in command


def test_a_directory_of_another_run_is_left_alone(tmp_path: Path) -> None:
    script("train.py", tmp_path, *BRIEF, "seed=0", "hydra.run.dir=a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    state = next((tmp_path / "a" / "checkpoints").glob("*.ckpt"))
    for words in (["seed=1"], ["seed=0", f"resume={state}"]):
        output = script("train.py", tmp_path, *BRIEF, *words, "hydra.run.dir=a", code=2)
        assert len(output.splitlines()) == 1
        assert "hydra.run.dir=a: " in output
        assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
