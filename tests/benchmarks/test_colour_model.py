"""The benchmark of the colour model: nothing is done twice, and records go where a user's command finds them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scoreline.config.run_names import model_path, record_beside
from scoreline.datasets.emoji import NOTO
from scoreline.errors import InputError
from scoreline.records import load_record
from scoreline.storage.files import sha256
from scoreline.tables.plan import make_plan, save
from scoreline.tables.schema import parse

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import colour_model
from colour_model import Job

ROOT = Path(__file__).parents[2]
DIGITS = model_path("digits_vp")
NORMS = ["calibration=score_norm", "nfe=4", "seeds=0-1"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setitem(colour_model.CALIBRATIONS, "score_norm", NORMS)
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "none"))
    colour_model.supply(tmp_path, DIGITS, None)
    return Job(tmp_path, "smoke")


def content(table: str) -> Any:
    return yaml.safe_load((ROOT / "conf" / "table" / f"{table}.yaml").read_text())


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
        job.table(name).mkdir(parents=True)
        (job.table(name) / "table.md").write_text(name)
        (job.table(name) / "ratios.md").write_text("ratios")
    job.tables()
    tables = {words[1]: words[2:] for words in called if words[0] == "sample.py"}
    assert list(tables) == [f"table={name}" for name in colour_model.TABLES]
    with_model = [name for name, words in tables.items() if f"checkpoint={job.model}" in words]
    assert with_model == [name for name in tables if name != "table=stf_emoji"]
    reports = [words[1:] for words in called if words[0] == "report"]
    for name in colour_model.TABLES:
        out = str(job.table(name))
        mine = [words[1:] for words in reports if words[0] == out]
        assert (mine[0], mine[-1]) == ([f"metric={colour_model.SECOND}"], [])
        assert len(mine) == 2 + 2 * len(colour_model.BASES.get(name, ()))
    assert (job.table("stf_emoji") / "emoji_table.md").read_text() == "stf_emoji"
    assert (job.table("deis_emoji") / "ratios_emoji_frechet_distance_DDIM.md").read_text() == "ratios"


def test_rows_that_others_are_divided_by_exist() -> None:
    for name, bases in colour_model.BASES.items():
        rows = [row.name for row in parse(name, content(name)).rows]
        assert set(bases) <= set(rows), name


def test_cells_are_compared_with_a_fine_run_of_their_seeds(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    called = noted(monkeypatch)
    out = job.table(colour_model.SOLVERS)
    out.mkdir(parents=True)
    (out / "table.md").write_text("distances")
    data = content(colour_model.SOLVERS)
    table = parse(colour_model.SOLVERS, data)
    save(make_plan(table, data, "smoke", [], lambda words, ranges: ["00000000" for _ in ranges]), out)
    job.distances()
    assert {"seeds='10000-10007'", "nfe=200", "solver=unipc_3"} <= set(called[0])
    assert called[1] == ["report", str(out), f"fine={job.out / 'fine'}", "pictures=1"]
    assert called[2] == ["report", str(out)]
    assert (out / "distance_table.md").read_text() == "distances"


def test_a_folder_belongs_to_one_checkpoint_and_holds_the_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font, other = tmp_path / "font.ttf", tmp_path / "other.safetensors"
    font.write_text("font")
    shutil.copy(record_beside(DIGITS, "search"), other)
    monkeypatch.setenv("SCORELINE_CACHE", "")
    colour_model.supply(tmp_path / "out", DIGITS, font)
    assert NOTO.place().exists()
    with pytest.raises(InputError, match=r"holds the figures of another checkpoint than .*other\.safetensors"):
        colour_model.supply(tmp_path / "out", other, None)
