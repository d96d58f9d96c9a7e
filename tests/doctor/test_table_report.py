"""`scoreline doctor table=NAME`: every missing input of a table fails it, with the remedy; its runs are those left."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from scoreline.checkpoints import load_model
from scoreline.commands import doctor, table_report
from scoreline.config import run_identity
from scoreline.config.conf_folder import OWN_FOLDER
from scoreline.config.run_names import model_path
from scoreline.doctor import timing
from scoreline.doctor.sample_job import SampleJob
from scoreline.doctor.timing import Cost
from scoreline.doctor.train_job import TrainJob
from scoreline.errors import InputError
from scoreline.storage.run_lock import RunLock, working
from scoreline.tables import plan
from scoreline.tables.forecast import TableTime
from scoreline.tables.pace import SERVER, START_UP
from scoreline.tables.pool import slots
from scoreline.tables.schema import parse

DATA: dict[str, Any] = {
    "title": "Toy",
    "metric": "frechet_distance",
    "base": ["checkpoint=digits_vp", "metrics=digits", "device=cpu"],
    "budgets": {"smoke": {"ranges": ["0-15"]}, "small": {"ranges": ["0-99", "100-199"]}},
    "columns": {"label": "NFE", "key": "nfe", "values": [5, 10]},
    "rows": [
        {"name": "DDIM", "overrides": ["solver=ddim"]},
        {"name": "DEIS-SN", "overrides": ["solver=deis_sn"], "cannot": {"5": "not in the paper"}},
    ],
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCORELINE_OFFLINE", raising=False)
    monkeypatch.setenv(OWN_FOLDER, str(tmp_path / "own"))
    (tmp_path / "own" / "table").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(timing, "SECONDS", 0.02)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def write(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Write table=toy with other keys than `DATA`."""
    data = {**DATA, **changes}
    (tmp_path / "own" / "table" / "toy.yaml").write_text(yaml.safe_dump(data))
    return data


def base(*words: str) -> dict[str, Any]:
    return {"base": [*DATA["base"], *words]}


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit code and lines of `scoreline doctor table=toy`."""
    code = doctor.main(["table=toy", *words])
    return code, capsys.readouterr().out.splitlines()


def lines_of(topic: str, lines: list[str]) -> list[str]:
    return [line for line in lines if line[6:].startswith(f"{topic} ")]


def test_a_whole_table_is_ok_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    code, lines = shown(capsys, "budget=small", "jobs=2", "--gpus=4")
    assert code == 0
    assert {line.split()[0] for line in lines} == {"ok"}
    text = "\n".join(line[20:] for line in lines)
    assert "toy, budget=small: 6 runs of 3 cells, 100 images each; 0 are finished, 6 are left" in text
    assert "checkpoint=digits_vp -> " in text
    assert "digits_vp.score_norm.safetensors" in text
    numbers = sum(it.numel() for it in load_model(model_path("digits_vp")).denoiser.parameters())
    assert f"digits_vp: SHA-256 911c91b0, {numbers:,} parameters" in text
    assert "extractor digits-cnn:5dbb30dd, reference digits-train:85037bca, reference_count 1500" in text
    assert lines_of("no cell", lines)[0].endswith("DEIS-SN, 5: not in the paper")
    here, there = lines_of("time", lines)
    assert re.search(r"cpu, [12] runs? at a time: .* of network calls in all, .* 6 starts of 0.5 s", here)
    assert "4 GPUs, each as fast as this cpu: " in there
    assert [path.name for path in (tmp_path / "work").iterdir()] == []
    assert not (tmp_path / "cache").exists()


def test_both_spellings_are_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(table_report, "table_report", lambda cfg, words, question: asked.append((cfg, words, question)))
    for words in (["table=toy", "--quick"], ["sample", "table=toy", "--quick"]):
        with pytest.raises(TypeError):
            doctor.main(words)
    assert asked[0] == asked[1]


NEED = "of the authors: `scoreline import FILE models/theirs`"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (base("checkpoint=models/theirs"), f"asset .*checkpoint=models/theirs: not there; {NEED}$"),
        (base("checkpoint=damaged.safetensors"), "checkpoint .*damaged.safetensors"),
        (
            base("record=gone.score_norm.safetensors"),
            "asset .*gone.score_norm.safetensors: not there; python calibrate.py",
        ),
        (base("schedule=from_file", "schedule.path=levels.npz"), "asset .*schedule.path=levels.npz: not there"),
        (base("metrics.reference=gone.npz"), "asset .*metrics.reference=gone.npz: not there; scoreline reference"),
        (base("metrics.reference=damaged.npz"), "metrics .*damaged.npz"),
        (base("metrics=inception", "metrics.reference=damaged.npz", "metrics.extractor.path=i.pt"), "asset .*i.pt: no"),
        (base("metrics=imagenet", "checkpoint=emoji32_edm"), "asset .*package-that-is-absent: not there; pip install"),
        (base("guidance=autoguidance", "guidance.checkpoint=guide"), "asset .*guidance.checkpoint=guide: not there"),
        (base("final=never"), "impossible .*final=never"),
        (
            {"prepare": [{"run": "train.py dataset=cifar10 model=cifar10_ddpm duration_kimg=1", "makes": "out/m"}]},
            "asset .*cifar-10-python.tar.gz: not there",
        ),
    ],
)
def test_a_missing_input_fails(
    changes: dict[str, Any],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scoreline.metrics import imagenet_features

    monkeypatch.setattr(imagenet_features, "PACKAGE", "package-that-is-absent")
    for name in ("damaged.npz", "damaged.safetensors"):
        Path(name).write_bytes(b"no such file")
    write(tmp_path, needs=[f"models/theirs: {NEED}"], **changes)
    code, lines = shown(capsys, "--quick")
    assert code == 1
    assert [line for line in lines if re.match(f"fail  ({reason})", line)], lines


def test_mistakes_are_refused_as_by_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    for words, sentence in [
        (["nfe=7"], "sets nfe; leave it out"),
        (["seeds=0-3"], "the budgets of table=toy choose the seeds"),
        (["budget=huge"], "budget=huge: table=toy has no such budget"),
        (["checkpont=x"], "checkpont: there is no such key"),
        (["--gpus=0"], "--gpus=0: must be a whole number"),
        (["--gpus=x"], "--gpus=x: must be a whole number"),
        (["--gpus=2", "--rate=-1"], "--rate=-1"),
        (["--rate=5"], "--rate=5: is the speed of one GPU; give --gpus=N too"),
    ]:
        with pytest.raises(InputError, match=re.escape(sentence)):
            shown(capsys, *words)
    with pytest.raises(InputError, match="divides the runs of a table"):
        doctor.main(["sample", "--quick", "--gpus=2"])


def finish(cell: plan.Cell, root: Path, identity: str = "") -> None:
    """Leave what the command of a table takes for a finished run."""
    folder = root / cell.directory
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "config.yaml").write_text(yaml.safe_dump({"identity": identity or cell.identity}))


def test_a_half_done_table_counts_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four runs are there, one of another identity: two are left, of 500 and 1,000 evaluations."""
    data = write(tmp_path, rows=[{"name": "DDIM", "overrides": ["solver=ddim"]}])
    monkeypatch.setattr(SampleJob, "cost", lambda job, device: Cost(100, 1.0, 0))
    monkeypatch.setattr(table_report, "timed_call", lambda call, largest, device: Cost(64, 0.0, 0))
    root = tmp_path / "work" / "outputs" / "table" / "toy-small"
    own = ["threads=1", "network_batch=100"]
    draft = plan.make_plan(parse("toy", data), data, "small", own, run_identity.identities)
    assert len(draft.cells) == 4
    for cell in draft.cells[:3]:
        finish(cell, root, "0" * 8 if cell is draft.cells[0] else "")
    code, lines = shown(capsys, "budget=small", *own)
    assert code == 0
    assert lines_of("table", lines)[0].endswith("4 runs of 2 cells, 100 images each; 2 are finished, 2 are left")
    (time,) = lines_of("time", lines)
    assert "20 s: 15 s of network calls in all, 0 s of features, 2 starts of 0.5 s; 100 evaluations of an" in time
    shutil.rmtree(root)
    for cell in draft.cells:
        finish(cell, root)
    _, lines = shown(capsys, "budget=small", *own, "--quick")
    assert lines_of("table", lines)[0].endswith("4 are finished, 0 are left")
    assert lines_of("files", lines)[0].endswith("0 B of runs, 0 B of trainings")


def test_a_table_at_work_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    root = Path("outputs/table/toy-smoke")
    assert working(root) == ""
    with RunLock(root):
        (root / "config.yaml").write_text("identity: '1'\ntable: other\nbudget: smoke\n")
        code, lines = shown(capsys, "budget=smoke", "--quick")
        assert code == 1
        place = lines_of("run directory", lines)
        assert [line[:4] for line in place] == ["fail", "fail", "ok  "]
        assert re.search(r"process \d+ on .* works there; wait for it with lock=wait", place[0])
        assert "holds another run, not table=toy" in place[1]
        (root / "config.yaml").unlink()
        code, lines = shown(capsys, "budget=smoke", "--quick", "lock=wait")
        assert (code, lines_of("run directory", lines)[0][:4]) == (0, "warn")
    assert working(root) == ""
    (root / ".lock").write_text(json.dumps({"pid": 1, "host": "another", "started": None}))
    assert working(root).startswith("process 1 on another")


def test_disk_space_is_that_of_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    code, lines = shown(capsys, "budget=smoke", "--quick")
    assert code == 1
    assert "make room or choose another place" in lines_of("run directory", lines)[0]


def test_one_impossible_row_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [DATA["rows"][0], {"name": "learned", "overrides": ["solver=learned"]}]
    write(tmp_path, rows=rows, columns={"label": "NFE", "key": "nfe", "values": [7, 5]})
    code, lines = shown(capsys, "--quick", "budget=smoke")
    assert code == 0
    (line,) = lines_of("impossible", lines)
    assert re.match("warn  impossible +learned, 7: .*7", line)


def test_what_a_preparation_writes_is_not_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 kimg of training from a checkpoint of 4, a calibration, and cells of both: no failure, and the time of all."""
    train = "train.py trainer=cpu duration_kimg=8 resume=a/checkpoints/0000004000.ckpt hydra.run.dir=outputs/own"
    learn = "calibrate.py calibration=gits hydra.run.dir=outputs/gits"
    (tmp_path / "work" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "work" / "a" / "checkpoints" / "0000004000.ckpt").touch()
    write(
        tmp_path,
        prepare=[{"run": train, "makes": "outputs/own/x.ckpt"}, {"run": learn, "makes": "outputs/gits/t.safetensors"}],
        rows=[
            {"name": "own", "overrides": ["checkpoint=outputs/own", "solver=ddim"]},
            {"name": "learned", "overrides": ["solver=learned", "solver.path=outputs/gits/t.safetensors"]},
            {"name": "DDIM", "overrides": ["solver=ddim", "network_batch=16"]},
        ],
    )
    monkeypatch.setattr(TrainJob, "cost", lambda job, device: Cost(100, 3.0, 0))
    monkeypatch.setattr(SampleJob, "cost", lambda job, device: Cost(100, 1.0, 0))
    monkeypatch.setattr(table_report, "timed_call", lambda call, largest, device: Cost(64, 0.0, 0))
    code, lines = shown(capsys, "budget=smoke", "threads=1", "--gpus=2", "--rate=1000")
    assert code == 0, lines
    assert [line.split(": ")[-1] for line in lines_of("preparation", lines)] == [
        "train.py, 4 kimg",
        "calibrate.py, whose time is not counted",
    ]
    assert lines_of("dataset", lines)[0].endswith("digits-train: 1,500 images 1x8x8, 10 classes")
    here, there = lines_of("time", lines)
    assert "0:02:14: 0:02:00 of training, 7.2 s of network calls" in here  # 3 rows of 2.4 s, 6 starts, the server
    assert "2 GPUs, 1000 evaluations a second each, as given: " in there


def test_runs_that_share_a_gpu_or_a_core_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    plain: dict[str, Any] = {"draft": None, "root": Path(), "question": None, "kinds": []}
    for device, jobs, names, parallel in [
        ("cuda", 4, ["0", "1"], 2),
        ("cuda", 1, ["0", "1"], 1),
        ("cpu", 2, [], 2),
        ("cpu", 8, [], 3),
    ]:
        report = table_report.Report(**plain, device=torch.device(device), places=slots(jobs, names))
        assert report.parallel == parallel


def test_other_gpus_take_their_share() -> None:
    """Ten runs of 8 s and one of 60 by two: at least the long one; twice as fast halves all but the starts."""
    time = TableTime(100.0, [8.0] * 10 + [60.0], 11.0)
    each = 1.0 + START_UP
    assert time.on(1) == pytest.approx(100 + SERVER + 140 + 11 * each)
    assert time.on(8) == pytest.approx(100 + SERVER + 60 + each)
    assert time.faster(2.0).on(1) == pytest.approx(50 + SERVER + 70 + 11 * (0.5 + START_UP))
    assert TableTime(0.0, [], 0.0).on(2) == 0.0
