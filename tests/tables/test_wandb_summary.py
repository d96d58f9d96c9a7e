"""A table as W&B runs, offline: one for each finished cell and one for the table, in one group."""

from pathlib import Path

import pytest
from PIL import Image
from tables_files import draft, finish
from wandb_files import no_account, offline_runs

from scoreline.commands import report, upload
from scoreline.config import run_identity
from scoreline.errors import InputError
from scoreline.storage.files import sha256
from scoreline.storage.wandb_runs import names
from scoreline.tables import table_run
from scoreline.tables.plan import Plan

__all__ = ["no_account"]
pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Plan]:
    """DDIM is finished at both columns, Heun was not run."""
    root = tmp_path / "toy-paper"
    plan = draft(root)
    for cell, value in zip(plan.cells[:2], (25.0, 11.0), strict=True):
        finish(root, cell, value)
        Image.new("L", (4, 4), 90).save(root / cell.directory / "grid.png")
    report.main([str(root)])
    capsys.readouterr()
    return root, plan


def test_cells_and_table_share_a_group(table: tuple[Path, Plan], capsys: pytest.CaptureFixture[str]) -> None:
    root, plan = table
    upload.main([str(root), "offline=true"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": run ")[0] for line in lines] == [
        *(str(root / cell.directory) for cell in plan.cells[:2]),
        str(root),
    ]
    cells = [run for cell in plan.cells[:2] for run in offline_runs(root / cell.directory)]
    (summary,) = offline_runs(root)
    assert {run.group for run in (*cells, summary)} == {"toy-paper"}
    assert [run.job for run in (*cells, summary)] == ["sample", "sample", "table"]
    assert [run.name for run in (*cells, summary)] == ["DDIM 5 0-99-00000000", "DDIM 10 0-99-00000000", "toy-paper"]
    ids = [names(root / cell.directory, cell.identity, "sample")["id"] for cell in plan.cells]
    assert [run.id for run in cells] == ids[:2]
    assert len({*ids, summary.id}) == 4, "equal identities and seeds, other rows and columns"
    assert [run.axes["*"] for run in (*cells, summary)] == ["nfe", "nfe", "column"]
    assert [row["sample/fid"] for run in cells for row in run.rows] == [25.0, 11.0]
    assert (summary.config["table"], summary.config["budget"], summary.exit_code) == ("toy", "paper", 0)
    first, second = summary.rows
    assert first == {"column": 5.0, "fid/DDIM": 25.0, "fid_error/DDIM": 0.25}
    assert second.pop("figure")["sha256"] == sha256(root / "table.png")
    assert second == {"column": 10.0, "fid/DDIM": 11.0, "fid_error/DDIM": 0.25}


def test_command_of_a_table_uploads_it(
    table: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, plan = table
    finish(root, plan.cells[2], 9.0)
    monkeypatch.setattr(run_identity, "identities", lambda _, ranges: [f"{k:08x}" for k in range(len(ranges))])
    table_run.main("toy", plan.data, [], table_run.Options("paper", 1, wandb="offline"), root)
    lines = capsys.readouterr().out.splitlines()
    assert sum(": run " in line for line in lines) == 4
    assert lines[-1] == f"3 runs -> {root}"
    (summary,) = offline_runs(root)
    assert summary.rows[1]["fid/Heun"] == 9.0


def test_missing_package_stops_a_table_first(
    table: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match="pip install 'wandb"):
        table_run.main("toy", table[1].data, [], table_run.Options("paper", 1, wandb="offline"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
