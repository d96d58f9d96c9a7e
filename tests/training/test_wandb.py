"""W&B while a model trains, offline: wandb's own file holds the rows of the run directory."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from wandb_files import Offline, no_account, offline_runs

from scoreline.commands import upload
from scoreline.errors import InputError
from scoreline.storage.files import sha256
from scoreline.storage.run_history import history, row
from scoreline.storage.wandb_runs import public, run_id
from scoreline.training.training_log import keep_until
from scoreline.training.wandb_run import WandbRun

__all__ = ["no_account"]
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.usefixtures("no_account"),
    pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*"),
]


class Linear(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Records(Callback):
    """A record after every step and a picture after every second, as training writes them, half a kimg a step."""

    def __init__(self, root: Path, start: int, fail_at: int | None = None) -> None:
        self.root, self.start, self.fail_at = root, start, fail_at

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keep_until(self.root / "metrics.jsonl", self.start)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step = self.start + trainer.global_step
        if step == self.fail_at:
            raise RuntimeError("out of memory")
        record = {"step": step, "kimg": step / 2, "loss": 1 / step, "loss_bins": {"<1": 2 / step}}
        with open(self.root / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(row({"train": record}), step=step)
            if step % 2 == 0:
                logger.log_picture(picture(self.root, step // 2))


def picture(root: Path, kimg: int) -> Path:
    path = root / "previews" / f"{kimg:06d}kimg.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), 10 * kimg).save(path)
    return path


def fit(root: Path, start: int, end: int, fail_at: int | None = None, **options: Any) -> WandbRun:
    """Steps start + 1 .. end of a run in `root`."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.yaml").write_text(yaml.safe_dump({"identity": "1234abcd", "logger": {"save_dir": "/elsewhere"}}))
    logger = WandbRun(str(root), "1234abcd", **options)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=end - start,
        logger=logger,
        callbacks=[Records(root, start, fail_at)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )
    trainer.fit(Linear(), DataLoader(TensorDataset(torch.ones(64, 1))))
    return logger


def the_run(root: Path) -> Offline:
    """The only W&B run of a directory, which is removed: wandb names its folders by the second."""
    (found,) = offline_runs(root)
    shutil.rmtree(root / "wandb")
    return found


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in order of kimg, a picture by its content."""
    rows = [{k: sha256(v) if isinstance(v, Path) else v for k, v in row.items()} for row in rows]
    rows = [{k: v["sha256"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
    return sorted(rows, key=lambda row: (row["kimg"], sorted(row)))


def test_resumed_run_begins_with_kept_history(tmp_path: Path) -> None:
    """Stopped after step 6, the training continues from step 4: W&B shows steps 5 and 6 once."""
    root = tmp_path / "train" / "toy"
    logger = fit(root, 0, 6, project="toys", tags=["a", "b"])
    assert wandb.run is None
    first = the_run(root)
    assert (first.project, first.name, first.group, first.job, first.tags) == ("toys", "toy", "", "train", ["a", "b"])
    assert (first.config, first.axes, first.exit_code) == ({"identity": "1234abcd"}, {"kimg": "", "*": "kimg"}, 0)
    assert first.logged("train/loss") == [(k / 2, 1 / k) for k in range(1, 7)]
    captions = [(kimg, image["caption"]) for kimg, image in first.logged("previews")]
    assert captions == [(k, f"{k:06d}kimg") for k in (1, 2, 3)]
    for start in (4, 8):
        fit(root, start, 8)
        again = the_run(root)
        assert first.id == again.id == logger.version == run_id("1234abcd", root)
        assert (again.resume, again.exit_code) == (False, 0), "sending replaces the former run"
        assert [kimg for kimg, _ in again.logged("train/loss")] == [k / 2 for k in range(1, 9)]
        assert ordered(again.rows) == ordered(history(root))


def test_failure_ends_the_run_as_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, 0, 6, fail_at=4)
    assert wandb.run is None
    run = the_run(tmp_path)
    assert run.exit_code == 1
    assert [kimg for kimg, _ in run.logged("train/loss")] == [0.5, 1, 1.5]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    starts: list[Any] = []
    monkeypatch.setattr(wandb, "init", starts.append)
    logger = WandbRun(str(tmp_path / "a"), "1234abcd")
    logger.experiment.log({"a": 1})
    logger.log_metrics({"kimg": 1, "train/loss": 2})
    logger.log_picture(picture(tmp_path, 1))
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert not starts
    assert not (tmp_path / "a").exists()


class Fake(SimpleNamespace):
    """A run that W&B has up to some kimg, and the rows sent to it."""

    def log(self, row: dict[str, Any]) -> None:
        self.sent.append(row)

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.mark.parametrize(("start", "known", "sent"), [(1, 1.0, [3, 4]), (3, 0.5, [2, 3, 4])])
def test_resumed_online_run_gets_what_it_lacks(
    start: int, known: float, sent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory holds steps 1 to 3. W&B is ahead of the state that continues, or a kill cost it its last rows."""
    fake = Fake(resumed=True, summary={"kimg": known}, sent=[])
    asked: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or fake)
    lines = [json.dumps({"step": k, "kimg": k / 2, "loss": 1 / k}) + "\n" for k in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    fit(tmp_path, start, 4, offline=False)
    assert asked["resume"] == "allow"
    assert "mode" not in asked
    assert [row["train/step"] for row in fake.sent if "train/step" in row] == sent
    assert [row["kimg"] for row in fake.sent if "previews" in row] == [2]
    assert fake.exit_code == 0


@pytest.mark.parametrize("offline", [False, True], ids=["no_account", "full_disk"])
def test_error_of_wandb_is_one_warning(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(wandb, "Image", full)
    fit(tmp_path, 0, 4, offline=offline)
    err = capsys.readouterr().err
    assert err.count("; training continues without W&B; ") == 1
    assert f"scoreline upload {tmp_path}" in err
    assert offline or ("API key" in err and "wandb login" in err)
    assert len(history(tmp_path)) == 6
    assert offline or not list(tmp_path.glob("wandb/*run-*"))


def test_environment_may_keep_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(tmp_path, 0, 1, offline=False)
    run = the_run(tmp_path)
    assert not run.resume
    assert run.logged("train/loss") == [(0.5, 1)]


def test_missing_package_and_bad_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="id=a/b"):
        WandbRun(str(tmp_path), "1234abcd", id="a/b")
    assert WandbRun(str(tmp_path), "1234abcd", id="mine").version == "mine"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb: .*pip install 'wandb"):
        WandbRun(str(tmp_path), "1234abcd")


def test_ids_follow_identity_and_two_folders() -> None:
    assert run_id("1234abcd", Path("/x/train/toy-1234abcd")) == "7bf5817a831b9576"
    assert run_id("a", Path("/x/train/n")) == run_id("a", Path("/elsewhere/train/n"))
    others = [("a", "/x/train/n"), ("b", "/x/train/n"), ("a", "/x/train/m"), ("a", "/x/other/n")]
    assert len({run_id(identity, Path(directory)) for identity, directory in others}) == 4


def test_public_config_has_no_folders() -> None:
    config = {"seed": 3, "data": {"path": "/a/pictures.zip", "mirror": False}, "logger": {"save_dir": "/a"}}
    config["wandb"] = "offline"
    assert public(config) == {"seed": 3, "data": {"path": "pictures.zip", "mirror": False}}
    assert public({"start": {"overrides": ["init=mine/x"]}, "a": ["/tmp/b", {"c": "d/e"}], "x": None}) == {
        "a": ["b", {"c": "d/e"}],
        "x": None,
    }


def test_live_sweep_and_its_upload_agree(tmp_path: Path) -> None:
    small = ["model.network.width=8", "batch_size=16", "lr_rampup_kimg=0.1", "log_kimg=0.16", "preview_kimg=0.48"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "wandb=offline", "seed=0,1", "duration_kimg=0.48", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "wandb:" not in done.stderr
    (sweep,) = tmp_path.glob("multirun/*")
    cells = upload.runs(sweep)
    runs = [the_run(cell) for cell in cells]
    upload.main([str(sweep), "offline=true"])
    for cell, live in zip(cells, runs, strict=True):
        uploaded = the_run(cell)
        assert (live.name, live.group, live.job, live.exit_code) == (cell.name, sweep.name, "train", 0)
        assert (cell / "metrics.csv").is_file(), "W&B comes beside the logger"
        assert [kimg for kimg, _ in live.logged("train/lr")] == pytest.approx([0.16, 0.32, 0.48])
        assert [image["caption"] for _, image in live.logged("previews")] == ["000000kimg"]
        for name in ("id", "config", "name", "group", "job", "project", "exit_code"):
            assert getattr(uploaded, name) == getattr(live, name)
        assert ordered(live.rows) == ordered(uploaded.rows) == ordered(history(cell))
    assert len({run.id for run in runs}) == 2
