"""The benchmark of the colour model: nothing is done twice, and records go where a user's command finds them."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from scoreline.config.run_names import model_path, record_beside
from scoreline.datasets.emoji import NOTO
from scoreline.errors import InputError
from scoreline.records import load_record
from scoreline.storage.files import sha256

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import colour_model
from colour_model import Job

DIGITS = model_path("digits_vp")
NORMS = ["calibration=score_norm", "nfe=4", "seeds=0-1"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setitem(colour_model.CALIBRATIONS, "score_norm", NORMS)
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "none"))
    colour_model.supply(tmp_path, DIGITS, None)
    return Job(tmp_path, 4, "smoke")


def noted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of the commands that a job would run."""
    called: list[list[str]] = []
    monkeypatch.setattr(Job, "script", lambda self, *words: called.append(list(words)))
    monkeypatch.setattr(Job, "report", lambda self, *words: called.append(["report", *map(str, words)]))
    return called


def test_a_record_is_measured_once_and_ships(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    colour_model.work(job, ["score_norm"])
    record = load_record(record_beside(job.model, "score_norm"), "score_norm", sha256(DIGITS))
    assert (record.provenance["seeds"], record.provenance["nfe"]) == ("0-1", 4)
    shipped = job.out / "assets" / "emoji32_edm.score_norm.safetensors"
    assert shipped.read_bytes() == record_beside(job.model, "score_norm").read_bytes()
    called = noted(monkeypatch)
    colour_model.work(job, ["score_norm"])
    assert called == []
    assert json.loads((job.out / "seconds.json").read_text())["score_norm"] > 0


def test_the_predictors_record_stands_beside_the_correctors(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(self: Job, script: str, *words: str) -> None:
        out = Path(words[-1].partition("=")[2])
        out.mkdir(parents=True)
        (out / "score_optimal.safetensors").write_text(" ".join(words[1:-1]))

    monkeypatch.setattr(Job, "script", measured)
    colour_model.work(job, ["score_optimal_predictor"])
    assert "cost=predictor" in record_beside(job.model, "score_optimal_predictor").read_text()
    assert "cost=predictor" not in record_beside(job.model, "score_optimal").read_text()


def test_tables_take_the_model_of_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    called = noted(monkeypatch)
    for name in colour_model.TABLES:
        (job.out / "tables" / name).mkdir(parents=True)
        (job.out / "tables" / name / "table.md").write_text(name)
    job.tables()
    tables = {words[1]: words[2:] for words in called if words[0] == "sample.py"}
    assert list(tables) == [f"table={name}" for name in colour_model.TABLES]
    with_model = [name for name, words in tables.items() if f"checkpoint={job.model}" in words]
    assert with_model == [name for name in tables if name != "table=stf_emoji"]
    assert [words[2:] for words in called if words[0] == "report"] == [["metric=emoji/frechet_distance"], []] * 6
    assert (job.out / "tables" / "stf_emoji" / "emoji_table.md").read_text() == "stf_emoji"


def test_all_methods_are_in_the_strip(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    called = noted(monkeypatch)
    job.strip()
    solvers = [word for words in called for word in words if word.startswith("solver=")]
    drawn = {name for word in solvers for name in word.removeprefix("solver=").split(",")}
    assert drawn == {method.solver for method in colour_model.METHODS} | {"unipc_3"}
    assert sum("nfe=3,4,5,6,8,10" in words for words in called) == len(solvers) - 1
    assert called[-1] == ["report", str(job.out / "strip"), f"fine={job.out / 'strip' / 'fine'}", "pictures=1"]


def test_a_folder_belongs_to_one_checkpoint_and_holds_the_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font, other = tmp_path / "font.ttf", tmp_path / "other.safetensors"
    font.write_text("font")
    shutil.copy(record_beside(DIGITS, "search"), other)
    monkeypatch.setenv("SCORELINE_CACHE", "")
    colour_model.supply(tmp_path / "out", DIGITS, font)
    assert NOTO.place().exists()
    with pytest.raises(InputError, match=r"holds the figures of another checkpoint than .*other\.safetensors"):
        colour_model.supply(tmp_path / "out", other, None)
