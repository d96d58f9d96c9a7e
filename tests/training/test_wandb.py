"""W&B while a model trains, offline: what wandb's own file holds is what the run directory holds."""

import hashlib
import json
import logging
import subprocess
import sys
import time
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
from scoreline.files import sha256
from scoreline.history import history
from scoreline.training.progress import keep_until
from scoreline.training.wandb_run import WandbRun
from scoreline.wandb_runs import label, public, run_id

__all__ = ["no_account"]
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.usefixtures("no_account"),
    pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*"),
]
CONFIG = {
    "identity": "1234abcd",
    "seed": 3,
    "optimiser": {"lr": 1e-08, "betas": [0.9, 0.99]},
    "dataset": {"path": "/somewhere/else/pictures.zip", "mirror": False},
    "logger": {"project": "secret", "save_dir": "/somewhere/else"},
}
SEEN = {key: CONFIG[key] for key in ("identity", "seed", "optimiser")}
SEEN |= {"dataset": {"path": "pictures.zip", "mirror": False}}


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
        record = {"step": step, "kimg": step / 2, "loss": 1 / step, "loss_bins": {"<1": 2 / step}, "none": None}
        with open(self.root / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{key}": value for key, value in record.items()}, step=step)
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
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
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


def expected(root: Path) -> list[dict[str, Any]]:
    """The rows of a directory, a picture by its content."""
    return [{k: sha256(v) if isinstance(v, Path) else v for k, v in row.items()} for row in history(root)]


def rows(run: Offline) -> list[dict[str, Any]]:
    return [{k: v["sha256"] if isinstance(v, dict) else v for k, v in row.items()} for row in run.rows]


def ordered(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda row: (row["kimg"], sorted(row)))


def test_a_run_is_what_its_directory_holds(tmp_path: Path) -> None:
    root = tmp_path / "train" / "toy-1234abcd"
    logger = fit(root, 0, 5, project="toys", tags=["a", "b"])
    (run,) = offline_runs(root)
    assert wandb.run is None
    assert (run.project, run.name, run.group, run.tags) == ("toys", "toy-1234abcd", "", ["a", "b"])
    assert run.id == logger.version == hashlib.sha256(b"1234abcd/train/toy-1234abcd").hexdigest()[:16]
    assert (run.config, run.axes, run.exit_code) == (SEEN, {"kimg": "", "*": "kimg"}, 0)
    assert run.told("train/loss") == [(k / 2, 1 / k) for k in range(1, 6)]
    assert run.told("train/loss_bins/<1") == [(k / 2, 2 / k) for k in range(1, 6)]
    assert run.rows[0].keys() == {"kimg", "train/step", "train/loss", "train/loss_bins/<1"}
    assert [(kimg, image["caption"]) for kimg, image in run.told("previews")] == [
        (1, "000001kimg"),
        (2, "000002kimg"),
    ]
    for kimg, image in run.told("previews"):
        copied = run.folder / "files" / image["path"]
        assert copied.read_bytes() == (root / f"previews/00000{kimg:.0f}kimg.png").read_bytes()
    assert rows(run) == expected(root)


def test_a_resumed_run_keeps_its_id_and_begins_with_the_kept_history(tmp_path: Path) -> None:
    """Stopped after step 6 and gone on with from step 4: steps 5 and 6 stand there once, as they were repeated."""
    fit(tmp_path / "a", 0, 6)
    time.sleep(1.1)  # wandb names its directories by the second
    fit(tmp_path / "a", 4, 8)
    first, second = offline_runs(tmp_path / "a")
    assert first.id == second.id
    assert not second.resume, "syncing replaces what was there"
    assert [kimg for kimg, _ in second.told("train/loss")] == [k / 2 for k in range(1, 9)]
    assert [kimg for kimg, _ in second.told("previews")] == [1, 2, 3, 4]
    assert rows(second) == expected(tmp_path / "a")


def test_starting_a_finished_run_again_leaves_a_whole_history(tmp_path: Path) -> None:
    fit(tmp_path / "a", 0, 3)
    time.sleep(1.1)
    fit(tmp_path / "a", 3, 3)
    first, second = offline_runs(tmp_path / "a")
    assert rows(first) == rows(second) == expected(tmp_path / "a")
    assert second.exit_code == 0


def test_a_failure_ends_the_run_as_failed_and_stays_the_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path / "a", 0, 6, fail_at=4)
    (run,) = offline_runs(tmp_path / "a")
    assert wandb.run is None
    assert run.exit_code == 1
    assert [kimg for kimg, _ in run.told("train/loss")] == [0.5, 1, 1.5]


def test_jobs_of_a_sweep_in_one_process_are_runs_of_a_group(tmp_path: Path) -> None:
    """Cells may differ in keys alone that identity leaves out."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/multirun.yaml").touch()
    cells = [tmp_path / "sweep" / f"workers={count}" for count in (0, 1)]
    for count, cell in enumerate(cells, 2):
        fit(cell, 0, count)
    found = [offline_runs(cell) for cell in cells]
    assert [len(runs) for runs in found] == [1, 1]
    assert {run.group for (run,) in found} == {"sweep"}
    assert [run.name for (run,) in found] == ["workers=0", "workers=1"]
    assert [len(run.told("train/loss")) for (run,) in found] == [2, 3]
    assert len({run.id for (run,) in found}) == 2


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    begun: list[Any] = []
    monkeypatch.setattr(wandb, "init", begun.append)
    logger = WandbRun(str(tmp_path / "a"), "1234abcd")
    logger.experiment.log({"a": 1})
    logger.log_metrics({"train/kimg": 1, "train/loss": 2})
    logger.log_picture(picture(tmp_path, 1))
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert not begun
    assert not (tmp_path / "a").exists()


def test_a_run_left_open_by_others_does_not_get_our_rows(tmp_path: Path) -> None:
    left = wandb.init(mode="offline", dir=str(tmp_path), id="left", settings=wandb.Settings(silent=True))
    left.log({"kimg": 9})
    fit(tmp_path / "a", 0, 1)
    (mine,), (theirs,) = offline_runs(tmp_path / "a"), offline_runs(tmp_path)
    assert (theirs.id, theirs.rows, theirs.exit_code) == ("left", [{"kimg": 9}], 0)
    assert mine.told("train/loss") == [(0.5, 1)]


class Fake(SimpleNamespace):
    """A run that W&B has up to 1 kimg, and what is sent to it."""

    def log(self, row: dict[str, Any]) -> None:
        self.sent.append(row)

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_a_resumed_online_run_gets_what_it_lacks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B has steps 1 and 2; the directory has 1 to 3, of which 2 and 3 are repeated: only 3 and 4 are sent."""
    fake = Fake(resumed=True, summary={"kimg": 1.0}, sent=[])
    asked: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or fake)
    lines = [json.dumps({"step": k, "kimg": k / 2, "loss": 1 / k}) + "\n" for k in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    fit(tmp_path, 1, 4, offline=False)
    assert asked["resume"] == "allow"
    assert "mode" not in asked
    assert [row["train/step"] for row in fake.sent if "train/step" in row] == [3, 4]
    assert [row["kimg"] for row in fake.sent if "previews" in row] == [2]
    assert fake.exit_code == 0


def test_a_row_that_was_lost_with_its_process_is_sent_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(resumed=True, summary={"kimg": 0.5}, sent=[])
    monkeypatch.setattr(wandb, "init", lambda **_: fake)
    lines = [json.dumps({"step": k, "kimg": k / 2, "loss": 1 / k}) + "\n" for k in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    fit(tmp_path, 3, 4, offline=False)
    assert [row["train/step"] for row in fake.sent if "train/step" in row] == [2, 3, 4]


def test_online_without_an_account_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"logger.offline=false: W&B begins no run \(No API key.*logger.offline=true"):
        fit(tmp_path, 0, 1, offline=False)
    assert wandb.run is None


def test_offline_may_be_asked_for_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit(tmp_path, 0, 1, offline=False)
    (run,) = offline_runs(tmp_path)
    assert not run.resume
    assert run.told("train/loss") == [(0.5, 1)]


def test_without_the_package_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"logger=wandb: the package wandb is not installed; run: pip install 'wandb"):
        WandbRun(str(tmp_path), "1234abcd")


def test_an_id_that_wandb_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"id=a/b: W&B takes none of"):
        WandbRun(str(tmp_path), "1234abcd", id="a/b")
    assert WandbRun(str(tmp_path), "1234abcd", id="mine").version == "mine"


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    logger = WandbRun(str(tmp_path), "1234abcd")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config.yaml: not a readable config"):
        _ = logger.experiment
    assert wandb.run is None


def test_ids_follow_identity_and_the_last_two_folders() -> None:
    def ids(*pairs: tuple[str, str]) -> int:
        return len({run_id(identity, Path(directory)) for identity, directory in pairs})

    assert ids(("a", "/x/train/n"), ("a", "/elsewhere/train/n")) == 1
    assert ids(("a", "/x/train/n"), ("b", "/x/train/n"), ("a", "/x/train/m"), ("a", "/x/other/n")) == 4


def test_what_is_public_keeps_everything_but_places() -> None:
    assert public(CONFIG) == SEEN
    assert public({"a": ["/tmp/b", {"c": "d/e"}], "x": None}) == {"a": ["b", {"c": "d/e"}], "x": None}


def test_given_names_are_kept(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    found = label(tmp_path / "cell", "1234abcd", "p", "e", "n", "g", ("t",), "i")
    assert (found.id, found.project, found.entity, found.name, found.group, found.tags) == (
        *("i", "p", "e", "n", "g"),
        ("t",),
    )


def test_a_sweep_of_the_script_leaves_a_run_for_each_cell_and_uploads_as_the_same(tmp_path: Path) -> None:
    small = ["model.network.width=8", "batch_size=16", "lr_rampup_kimg=0.1", "log_kimg=0.16", "preview_kimg=0.32"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "logger=wandb", "seed=0,1", "duration_kimg=0.48", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "wandb:" not in done.stderr
    (sweep,) = tmp_path.glob("multirun/*")
    found = {run.config["seed"]: run for cell in upload.runs(sweep) for run in offline_runs(cell)}
    assert sorted(found) == [0, 1]
    assert len({run.id for run in found.values()}) == 2
    for run in found.values():
        cell = run.folder.parents[1]
        assert (run.name, run.group, run.exit_code) == (cell.name, sweep.name, 0)
        assert [kimg for kimg, _ in run.told("train/lr")] == pytest.approx([0.16, 0.32, 0.48])
        assert [image["caption"] for _, image in run.told("previews")] == ["000000kimg"]
        assert ordered(rows(run)) == ordered(expected(cell))
    upload.main([str(sweep), "offline=true"])
    for run in found.values():
        live, uploaded = offline_runs(run.folder.parents[1])
        assert (uploaded.id, uploaded.config, uploaded.name, uploaded.group, uploaded.project, uploaded.exit_code) == (
            *(live.id, live.config, live.name, live.group, live.project),
            0,
        )
        assert ordered(rows(uploaded)) == ordered(rows(live))
