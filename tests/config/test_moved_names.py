"""Former names of classes in configs."""

from importlib import import_module
from pathlib import Path

import lightning  # noqa: F401  forked scripts start with it
import pytest
from forks import call
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scoreline.config import conf_folder, moved_names, run_names
from scoreline.objective import LogNormal
from scoreline.storage.config_files import conf_dir


@pytest.mark.parametrize("name", moved_names.MOVED.values())
def test_the_name_of_today_resolves(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user's own, whose objective=mine names a class where 0.8.0 had it."""
    (tmp_path / "objective").mkdir()
    text = (conf_dir() / "objective" / "edm.yaml").read_text()
    assert "scoreline.objective.LogNormal" in text
    mine = text.replace("scoreline.objective.LogNormal", "scoreline.schedules.densities.LogNormal")
    (tmp_path / "objective" / "mine.yaml").write_text(mine)
    return tmp_path


def test_a_command_takes_a_former_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(conf_folder.OWN_FOLDER, str(folder))
    run_names.register_resolvers()
    cfg = conf_folder.compose_config("train", ["objective=mine"])
    assert isinstance(instantiate(cfg.objective.density), LogNormal)


def test_a_script_takes_a_former_name(folder: Path) -> None:
    words = ["objective=mine", "duration_kimg=0.064", "batch_size=64", "hydra.run.dir=run"]
    done = call("train", "--config-dir", str(folder), *words, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "scoreline.objective.LogNormal" in (folder / "run/config.yaml").read_text()


def test_both_names_give_one_identity() -> None:
    cfg = OmegaConf.create({"objective": {"density": {"_target_": "scoreline.objective.LogNormal", "mean": 0.1}}})
    old = OmegaConf.create(
        {"objective": {"density": {"_target_": "scoreline.schedules.densities.LogNormal", "mean": 0.1}}}
    )
    assert run_names.run_sha256(cfg, "train") == run_names.run_sha256(old, "train")
    assert run_names.run_sha256(moved_names.current(old), "train") == run_names.run_sha256(old, "train")


def test_other_names_stay_as_they_are() -> None:
    cfg = OmegaConf.create({"solver": {"_target_": "scoreline.solvers.ddim.DDIM"}})
    assert moved_names.current(cfg) is cfg
