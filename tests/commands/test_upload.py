"""`scoreline upload`: W&B runs from the files of run directories, offline."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from PIL import Image
from tables_files import result
from wandb_files import no_account, offline_runs

from scoreline import cli
from scoreline.commands import upload
from scoreline.records import Record
from scoreline.storage.files import sha256
from scoreline.storage.wandb_runs import run_id

__all__ = ["no_account"]
pytestmark = pytest.mark.usefixtures("no_account")


def trained(root: Path, records: int = 3, logger: dict[str, Any] | None = None) -> Path:
    """A run directory of train.py with a cut last line, one update of the online schedule and one preview."""
    (root / "previews").mkdir(parents=True)
    config = {"identity": "1234abcd", "seed": 0, "logger": logger, "data": {"path": "/data/cifar10.zip"}}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": 10 * k, "kimg": 0.64 * k, "loss": 1 / k, "loss_bins": {">30": k}} for k in range(1, records + 1)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "ki')
    (root / "online_schedule.jsonl").write_text('{"step": 20, "kimg": 1.28, "sigma": [80.0, 1.0, 0.002]}\n')
    Image.new("L", (4, 4), 90).save(root / "previews/000001kimg.png")
    return root


def test_training_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trained(tmp_path / "train/toy", logger={"save_dir": str(tmp_path / "train/toy"), "name": "csv"})
    upload.main([str(root), "offline=true"])
    (run,) = offline_runs(root)
    assert wandb.run is None
    assert (run.id, run.project, run.name, run.job) == (run_id("1234abcd", root), "scoreline", "toy", "train")
    assert run.config == {"identity": "1234abcd", "seed": 0, "data": {"path": "cifar10.zip"}}
    assert (run.axes, run.exit_code, run.resume) == ({"kimg": "", "*": "kimg"}, 0, False)
    (preview,) = [row.pop("previews") for row in run.rows if "previews" in row]
    assert preview["sha256"] == sha256(root / "previews/000001kimg.png")
    assert (run.folder / "files" / preview["path"]).is_file()
    online = {f"online_schedule/sigma_{k}": value for k, value in ((0, 80.0), (50, 1.0), (100, 0.002))}
    assert run.rows == [
        {"kimg": 0.64, "train/step": 10, "train/loss": 1, "train/loss_bins/>30": 1},
        {"kimg": 1},
        {"kimg": 1.28, "train/step": 20, "train/loss": 0.5, "train/loss_bins/>30": 2},
        {"kimg": 1.28, "online_schedule/step": 20, **online},
        {"kimg": 1.92, "train/step": 30, "train/loss": 1 / 3, "train/loss_bins/>30": 3},
    ]
    where = root / "wandb" / run.folder.name
    assert capsys.readouterr().out == f"{root}: run {run.id}, 5 rows -> {where}\n"


def test_samples_are_a_row_over_nfe(tmp_path: Path) -> None:
    root = tmp_path / "sample/ddim"
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump({"identity": "feed0000", "nfe": 5}))
    scores = {"frechet_distance": {"value": 2.5, "error": 0.25, "n": 64}}
    found = {**result("0-63", 5, 2.5), "solver": "ddim", "metrics": scores, "files": {}, "warnings": ["few images"]}
    (root / "metrics.json").write_text(json.dumps(found))
    Image.new("L", (8, 8), 30).save(root / "grid.png")
    upload.main([str(root), "offline=true", "project=figures", "id=mine"])
    (run,) = offline_runs(root)
    (row,) = run.rows
    assert row.pop("grid")["sha256"] == sha256(root / "grid.png")
    assert row == {
        **{"nfe": 5, "sample/images": 64, "sample/network_calls": 5},
        **{"sample/frechet_distance": 2.5, "sample/frechet_distance_error": 0.25},
    }
    assert (run.axes["*"], run.project, run.id, run.job) == ("nfe", "figures", "mine", "sample")
    choices = run.config.pop("sample")
    assert choices.items() >= {"solver": "ddim", "schedule": "t", "warnings": ["few images"]}.items()
    assert choices["checkpoint"] == {"name": "m", "sha256": "ab" * 32}
    assert run.config == {"identity": "feed0000", "nfe": 5}


def calibrated(root: Path) -> Path:
    """A run directory of calibrate.py with a record of three levels."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump({"identity": "cafe0000", "checkpoint": "/models/m.safetensors"}))
    values = {"rho": [0.1, 1.0, 10.0], "mean_abs_eps": [0.5, 0.6, 0.7], "standard_error": [0.1, math.nan, 0.3]}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    Record("score_norm", tensors, {"images": 4, "solver": "DEIS", "checkpoint": "ab" * 32}).save(
        root / "score_norm.safetensors"
    )
    Image.new("L", (8, 8), 30).save(root / "score_norm.png")
    return root


def test_record_is_curves_over_the_noise_level(tmp_path: Path) -> None:
    root = calibrated(tmp_path / "calibrate/score_norm-cafe0000")
    upload.main([str(root), "offline=true"])
    (run,) = offline_runs(root)
    assert (run.name, run.job, run.exit_code) == ("score_norm-cafe0000", "calibrate", 0)
    assert run.axes == {"rho": "", "score_norm/*": "rho"}
    assert run.config["checkpoint"] == "m.safetensors"
    assert run.config["provenance"] == {"kind": "score_norm", "images": 4, "solver": "DEIS", "checkpoint": "ab" * 32}
    assert run.rows[-1].pop("plot")["sha256"] == sha256(root / "score_norm.png")
    assert run.rows == [
        {"rho": 0.1, "score_norm/mean_abs_eps": 0.5, "score_norm/standard_error": 0.1},
        {"rho": 1.0, "score_norm/mean_abs_eps": 0.6},
        {"rho": 10.0, "score_norm/mean_abs_eps": 0.7, "score_norm/standard_error": 0.3},
    ]


def test_folder_of_jobs_is_a_sweep_without_those_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "multirun/study"
    cells = [calibrated(sweep / "seeds=0-3"), trained(sweep / "seed=1")]
    (sweep / "multirun.yaml").write_text("hydra: {}\n")
    (sweep / "seed=2").mkdir()
    (sweep / "seed=2/config.yaml").write_text("identity: abcd0000\n")
    upload.main([str(sweep), "offline=true"])
    assert capsys.readouterr().out.count(": run ") == 2
    runs = [run for cell in cells for run in offline_runs(cell)]
    assert [(run.name, run.group, run.job) for run in runs] == [
        ("seeds=0-3", "study", "calibrate"),
        ("seed=1", "study", "train"),
    ]


MISTAKES = [
    (["offline=true"], ["no run directory"]),
    (["run", "projct=a"], ["projct", "project"]),
    (["run", "other", "id=a"], ["id=a"]),
    (["run", "id=a/b", "offline=true"], ["id=a/b"]),
    (["empty"], ["empty: ", "metrics.jsonl"]),
    (["run", "damaged", "offline=true"], ["damaged/metrics.jsonl: line 1", "delete that line"]),
    (["run", "broken", "offline=true"], ["broken/config.yaml", "restore"]),
    (["run"], ["API key", "wandb login"]),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("upload")
    for name in ("run", "other", "damaged", "empty", "broken"):
        trained(place / name)
    (place / "damaged/metrics.jsonl").write_text("{}\n")
    (place / "broken/config.yaml").write_text("a: [")
    for name in ("metrics.jsonl", "online_schedule.jsonl", "previews/000001kimg.png"):
        (place / "empty" / name).unlink()
    return place


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=[words[-1] for words, _ in MISTAKES])
def test_mistake_is_one_line_and_writes_nothing(
    words: list[str],
    named: list[str],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["scoreline", "upload", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert all(word in err for word in named)
    assert err.count("\n") == 1
    assert not list(workplace.glob("*/wandb/*"))


def test_damaged_picture_ends_the_run_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trained(tmp_path / "run")
    (root / "previews/000001kimg.png").write_bytes(b"junk")
    monkeypatch.setattr(sys, "argv", ["scoreline", "upload", str(root), "offline=true"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "000001kimg.png: not a readable picture" in capsys.readouterr().err
    (run,) = offline_runs(root)
    assert run.exit_code == 1
    assert wandb.run is None
