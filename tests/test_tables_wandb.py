"""A table as W&B runs, offline: one for each finished cell and one for the table, in one group."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tables_files import draft, finish
from wandb_files import no_account, offline_runs

from scoreline.commands import report, upload
from scoreline.errors import InputError
from scoreline.files import sha256
from scoreline.tables import plan, run, summary
from scoreline.tables.plan import Plan

__all__ = ["no_account"]
pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Plan]:
    """DDIM is finished at both columns, Heun was not run."""
    root = tmp_path / "toy-paper"
    made = draft(root)
    for cell, value in zip(made.cells[:2], (25.0, 11.0), strict=True):
        finish(root, cell, value)
        Image.new("L", (4, 4), 90).save(root / cell.directory / "grid.png")
    report.main([str(root)])
    capsys.readouterr()
    return root, made


def test_cells_and_summary_share_a_group(table: tuple[Path, Plan], capsys: pytest.CaptureFixture[str]) -> None:
    root, made = table
    alone = root / made.cells[0].directory
    upload.main([str(alone), "offline=true"])
    (first,) = offline_runs(alone)
    shutil.rmtree(alone / "wandb")
    capsys.readouterr()
    upload.main([str(root), "offline=true"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith(f"{root}: run ")
    cells = [run for cell in made.cells[:2] for run in offline_runs(root / cell.directory)]
    (summary,) = offline_runs(root)
    assert {run.group for run in (*cells, summary)} == {"toy-paper"}
    assert [run.name for run in (*cells, summary)] == ["DDIM 5 0-99-00000000", "DDIM 10 0-99-00000000", "toy-paper"]
    assert len({run.id for run in (*cells, summary)}) == 3
    assert (first.id, first.group, first.name) == (cells[0].id, cells[0].group, cells[0].name)
    assert [run.axes["*"] for run in (*cells, summary)] == ["nfe", "nfe", "column"]
    assert [row["sample/metrics/fid/value"] for run in cells for row in run.rows] == [25.0, 11.0]
    assert (summary.config["table"], summary.config["budget"], summary.exit_code) == ("toy", "paper", 0)
    first, second, last = summary.rows
    assert first == {"column": 5.0, "fid/DDIM": 25.0, "fid_error/DDIM": 0.25}
    assert second == {"column": 10.0, "fid/DDIM": 11.0, "fid_error/DDIM": 0.25}
    assert last["figure"]["sha256"] == sha256(root / "table.png")
    shown = json.loads((summary.folder / "files" / last["table"]["path"]).read_text())
    assert shown["columns"] == ["fid", "NFE 5", "NFE 10"]
    assert shown["data"][0] == ["DDIM", "25.00 +- 0.25", "11.00 +- 0.25"]
    assert shown["data"][1] == ["published", "26.90 (-1.90)", "11.14\u2020 +- 0.02 (-0.14)"]


def test_only_what_is_new_is_sent_again(table: tuple[Path, Plan]) -> None:
    root, made = table
    assert len(list(summary.upload_new(root, offline=True))) == 3
    assert not list(summary.upload_new(root, offline=True))
    finish(root, made.cells[2], 9.0)
    report.main([str(root)])
    lines = list(summary.upload_new(root, offline=True))
    assert [line.partition(": run ")[0] for line in lines] == [str(root / made.cells[2].directory), str(root)]
    assert "fid/Heun" in offline_runs(root)[-1].rows[1]
    ids = [offline_runs(root / cell.directory)[0].id for cell in made.cells[1:3]]
    assert ids[0] != ids[1], "the rows differ although the last two folders and the identities are equal"


def test_the_same_from_the_command_of_the_table(
    table: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, made = table
    finish(root, made.cells[2], 9.0)
    monkeypatch.setattr(run.identity, "identities", lambda _, ranges: [f"{k:08x}" for k in range(len(ranges))])
    run.main("toy", made.data, [], run.Options("paper", 1, wandb="offline"), root)
    lines = capsys.readouterr().out.splitlines()
    assert sum(": run " in line for line in lines) == 4
    assert lines[-1] == f"3 runs -> {root}"
    assert len(offline_runs(root)) == 1


def test_a_missing_package_is_told_before_anything_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    data = plan.load(draft_of(tmp_path)).data
    with pytest.raises(InputError, match="the package wandb is not installed"):
        run.main("toy", data, [], run.Options("paper", 1, wandb="offline"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def draft_of(root: Path) -> Path:
    draft(root / "drafted")
    return root / "drafted"
