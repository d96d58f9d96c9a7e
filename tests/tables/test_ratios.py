"""Rows over one row, paired by seed range, against ratios worked out by hand."""

import math
from pathlib import Path

import pytest
from tables_files import DATA, draft, finish

from scoreline.commands import report
from scoreline.errors import InputError
from scoreline.tables.ratios import paired_ratio

HALVES = {"0-9": 4.0, "10-19": 10.0}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """DDIM and Heun at NFE 10 in two seed ranges; at NFE 5 Heun cannot be."""
    made = draft(tmp_path, budget="small")
    values = {
        ("DDIM", "5"): {"0-9": 3.0, "10-19": 5.0},
        ("DDIM", "10"): HALVES,
        ("Heun", "10"): {"0-9": 1.0, "10-19": 3.0},
    }
    for cell in made.cells:
        finish(tmp_path, cell, values[cell.row, cell.column][cell.seeds])
    return tmp_path


def test_ratios_stand_below_table_and_in_file(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(table), "over=DDIM"])
    text = (table / "ratios.md").read_text()
    assert capsys.readouterr().out == (table / "table.md").read_text() + "\n" + text
    # 1 / 4 and 3 / 10: mean 0.275, standard error |0.3 - 0.25| / 2; not (1 + 3) / (4 + 10) = 0.286
    assert text.splitlines() == [
        "Ratios, paired by seed range: mean +- standard error over the ranges.",
        "",
        "| fid | NFE 5 | NFE 10 |",
        "| -- | -- | -- |",
        "| Heun / DDIM |  | 0.275 +- 0.025 |",
    ]
    report.main([str(table), "over=Heun", "metric=kid"])
    assert "| DDIM / Heun |  | 3.67 +- 0.33 |" in (table / "ratios.md").read_text()


def test_figures_of_other_protocols_have_no_ratio(tmp_path: Path) -> None:
    for cell in draft(tmp_path, budget="small").cells:
        finish(tmp_path, cell, 2.0, protocol={"extractor": "e" if cell.row == "DDIM" else "other"})
    report.main([str(tmp_path), "over=DDIM"])
    assert "Heun" not in (tmp_path / "ratios.md").read_text()


def test_single_range_has_no_error() -> None:
    one = paired_ratio({"0-9": 1.0}, HALVES)
    assert one is not None
    assert (one.mean, one.n) == (0.25, 1)
    assert one.error != one.error
    assert paired_ratio(HALVES, {"0-9": 0.0, "10-19": 1.0}) is None
    assert paired_ratio(HALVES, {"20-29": 1.0}) is None
    assert paired_ratio(HALVES, {"0-9": math.nan, "10-19": 1.0}) is None


def test_mistakes(table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match=r"^over=DDMI: the table has no such row; did you mean"):
        report.main([str(table), "over=DDMI"])
    sweep = tmp_path_factory.mktemp("sweep")
    finish(sweep, draft(sweep, DATA).cells[0], 1.0)
    (sweep / "plan.json").unlink()
    with pytest.raises(InputError, match=r"is a sweep; ratios are made of sample.py table=NAME$"):
        report.main([str(sweep), "over=DDIM"])
