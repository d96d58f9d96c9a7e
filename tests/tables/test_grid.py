"""The printed forms of a table, from cells on disk that nobody ran."""

import copy
import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tables_files import DATA, draft, finish

from scoreline.commands import report
from scoreline.errors import InputError
from scoreline.tables import plan, render
from scoreline.tables.grid import watermark
from scoreline.tables.plan import Outcome, record

MARKDOWN = """\
# Toy_table & more

A & B (2023), arXiv:2204.13902, Table 2.

A note.

| fid | NFE 5 | NFE 10 |
|--|--|--|
| DDIM | **25.00 +- 0.25** | 11.00 +- 0.25 |
| *published* | 26.90 (-1.90) | 11.14\u2020 +- 0.02 (-0.14) |
| Heun | - [a] | **9.00 +- 0.25** (NFE 9) |
| *published* |  | 9.125\u2021 (-0.12) |

100 images (seeds 0-99), checkpoint m abababab. +- is the standard error over images; bold: the best of a column and \
all within two standard errors of the difference from it; extractor e, reference cifar10-train:0123. Published: \
Table 2; Other, Table 1; from memory; in brackets ours less the published one. \u2020 quoted from another work than \
the paper itself. \u2021 not yet found in a text that we read.

[a] needs an even NFE.
"""

CSV = """\
table,part,row,column,metric,value,error,n,ranges,seeds,nfe,network_calls,published,published_error,status,source,\
difference,reason,budget,fingerprint,minimum,by_range,published_minimum_of
toy,1,DDIM,5,fid,25.0,0.25,100,1,0-99,5,5,26.9,,verified,Table 2,-1.8999999999999986,,paper,FP,,,
toy,1,DDIM,5,kid,50.0,0.25,100,1,0-99,5,5,,,,,,,paper,FP,,,
toy,1,DDIM,10,fid,11.0,0.25,100,1,0-99,10,10,11.14,0.02,second-hand,"Other, Table 1",-0.14000000000000057,,paper,FP,,,
toy,1,DDIM,10,kid,22.0,0.25,100,1,0-99,10,10,,,,,,,paper,FP,,,
toy,1,Heun,5,fid,,,,,,,,,,,,,needs an even NFE,paper,,,,
toy,1,Heun,10,fid,9.0,0.25,100,1,0-99,9,9,9.125,,unverified,from memory,-0.125,,paper,FP,,,
toy,1,Heun,10,kid,18.0,0.25,100,1,0-99,9,9,,,,,,,paper,FP,,,
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A finished table under the paper's budget."""
    made = draft(tmp_path)
    for cell, value in zip(made.cells, (25.0, 11.0, 9.0), strict=True):
        finish(tmp_path, cell, value, **({"nfe": 9, "network_calls": 9} if cell.row == "Heun" else {}))
    return tmp_path


def lines_of(root: Path) -> list[dict[str, str]]:
    text = (root / "table.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in text if not line.startswith("#")))


def test_golden_markdown_and_csv(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(table)])
    assert capsys.readouterr().out == MARKDOWN
    assert (table / "table.md").read_text() == MARKDOWN
    prints = {line["fingerprint"] for line in lines_of(table)} - {""}
    (found,) = prints
    assert len(found) == 8
    assert (table / "table.csv").read_text() == CSV.replace("FP", found)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert all((table / f"table.{form}").read_bytes().startswith(start) for form, start in starts.items())


def test_equal_report_is_not_written_again(table: Path) -> None:
    report.main([str(table)])
    names = ("table.md", "table.tex", "table.csv")
    stamps = [(table / name).stat().st_mtime_ns for name in names]
    report.main([str(table)])
    assert [(table / name).stat().st_mtime_ns for name in names] == stamps


def test_a_style_sheet_of_the_users(table: Path) -> None:
    sheet = table / "mine.mplstyle"
    sheet.write_text("xtick.labelsize: 6.5\n")
    report.main([str(table), f"style={sheet}"])
    assert "font-size: 6.5px" in (table / "table.svg").read_text()
    report.main([str(table)])
    assert "font-size: 6.5px" not in (table / "table.svg").read_text()
    with pytest.raises(InputError, match="style=none: no style sheet of Matplotlib"):
        report.main([str(table), "style=none"])


def test_seed_ranges_and_the_watermark(tmp_path: Path) -> None:
    """Two ranges: mean, sd / sqrt(2) = |a - b| / 2; every form says that this is not the paper's budget."""
    for cell, value in zip(draft(tmp_path, budget="small").cells, (24.0, 27.0, 11.0, 11.5, 9.0, 9.1), strict=True):
        finish(tmp_path, cell, value)
    report.main([str(tmp_path)])
    text, mark = (tmp_path / "table.md").read_text(), "budget=small: n = 2 x 10, not the paper's"
    assert f"**{mark}**" in text
    assert "| DDIM | **25.5 +- 1.5** | 11.25 +- 0.25 |" in text
    assert "2 x 10 images (seeds 0-9 and 10-19)" in text
    assert "the standard error of the mean over 2 seed ranges" in text
    assert mark.replace(" x ", r" $\times$ ") in (tmp_path / "table.tex").read_text()
    assert (tmp_path / "table.csv").read_text().startswith(f"# {mark}\n")
    first = lines_of(tmp_path)[0]
    assert float(first["error"]) == pytest.approx(1.5)
    assert (first["value"], first["n"], first["ranges"]) == ("25.5", "10", "2")
    assert "| *published* | 26.90 (n/a) [a] |" in text
    assert "[a] no difference: ours is of 10 images, the paper's of 100." in text
    assert (first["difference"], first["reason"]) == ("", "ours is of 10 images, the paper's of 100")


@pytest.mark.parametrize(
    ("budget", "ranges", "mark"),
    [
        ("smoke", ["0-15"], "budget=smoke: n = 16, not the paper's"),
        ("small", ["0-999", "1000-1999", "2000-2999"], "budget=small: n = 3 x 1000, not the paper's"),
        ("mine", ["0-3", "4-9"], "budget=mine: n = 4 + 6, not the paper's"),
        ("paper", ["0-49999"], ""),
    ],
)
def test_watermarks(budget: str, ranges: list[str], mark: str) -> None:
    assert watermark(budget, ranges) == mark


@pytest.mark.parametrize(
    ("paper", "reason"),
    [
        ({"metric": "fid50k"}, "ours is fid, the paper's fid50k"),
        ({"images": 50000}, "ours is of 100 images, the paper's of 50000"),
        ({"dataset": "CelebA"}, "ours refers to cifar10-train:0123, the paper's to CelebA"),
    ],
)
def test_figures_of_other_protocols_are_not_subtracted(paper: dict[str, Any], reason: str, tmp_path: Path) -> None:
    data = {**DATA, "paper": {**DATA["paper"], **paper}}
    for cell in draft(tmp_path, data).cells:
        finish(tmp_path, cell, 20.0)
    report.main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert "| *published* | 26.90 (n/a) [a] | 11.14\u2020 +- 0.02 (n/a) [a] |" in text
    assert f"[a] no difference: {reason}." in text
    assert [line["difference"] for line in lines_of(tmp_path)] == [""] * 7


def test_figures_within_two_errors_of_the_best_are_bold(tmp_path: Path) -> None:
    """2 sqrt(0.25^2 + 0.25^2) = 0.707: 10.70 ties with 10, 10.71 does not."""
    for value, bold in ((10.70, True), (10.71, False)):
        root = tmp_path / str(value)
        for cell, found in zip(draft(root).cells, (1.0, 10.0, value), strict=True):
            finish(root, cell, found)
        report.main([str(root)])
        text = (root / "table.md").read_text()
        assert "**10.00 +- 0.25**" in text
        assert (f"**{value:.2f} +- 0.25**" in text) is bold


def test_unequal_fingerprints_are_tables_of_their_own(tmp_path: Path) -> None:
    made = draft(tmp_path)
    for cell, changes in zip(made.cells, ({}, {}, {"protocol": {"extractor": "other"}}), strict=True):
        finish(tmp_path, cell, 10.0, **changes)
    report.main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert text.count("| fid |") == 2
    told = "protocol.extractor: other, not e; protocol.reference: -, not cifar10-train:0123"
    assert f"Table 2, not to be compared with the first: {told}." in text
    assert (tmp_path / "table.tex").read_text().count(r"\begin{table}") == 2
    lines = lines_of(tmp_path)
    assert [(line["part"], line["row"]) for line in lines if line["metric"] == "fid"] == [
        *(("1", "DDIM"), ("1", "DDIM"), ("2", "Heun"), ("2", "Heun"))
    ]
    assert len({line["fingerprint"] for line in lines} - {""}) == 2


def changed(rows: dict[str, list[str]], columns: list[Any] | None = None) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    for row in data["rows"]:
        row["overrides"] = rows.get(row["name"], row["overrides"])
        row.pop("cannot", None)
    if columns:
        data["columns"]["values"] = columns
    return data


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ("checkpoint=other", {"checkpoint": {"name": "n", "sha256": "cd" * 32}}),
        ("guidance.scale=2", {"guidance": "classifier_free(scale=2.0)"}),
        ("final=denoise", {"final": "denoise", "sigma_end": 0.0}),
    ],
)
def test_what_rows_compare_does_not_part_them(overrides: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Only where the table sets it: the same results part a table that does not."""
    for data, parts in ((changed({"Heun": [overrides]}), 1), (changed({}), 2)):
        root = tmp_path / str(parts)
        for cell in draft(root, data).cells:
            finish(root, cell, 10.0, **(changes if cell.row == "Heun" else {}))
        report.main([str(root)])
        assert (root / "table.md").read_text().count("| fid |") == parts


def test_what_columns_set_must_be_equal_within_each(tmp_path: Path) -> None:
    columns = [{"name": name, "overrides": [f"metrics.reference={name}"]} for name in ("5", "10")]
    for odd, parts in ((None, 1), ("Heun", 2)):
        root = tmp_path / str(parts)
        for cell in draft(root, changed({}, columns)).cells:
            name = "odd" if cell.row == odd else cell.column
            finish(root, cell, 10.0, protocol={"reference": name})
        report.main([str(root)])
        assert (root / "table.md").read_text().count("| fid |") == parts


def test_columns_that_are_no_nfe_tell_it_below(tmp_path: Path) -> None:
    """Also the picture has names for its places."""
    data = changed({}, [{"name": name, "overrides": []} for name in ("FFHQ", "AFHQ")])
    data["columns"]["label"] = "data"
    for row in data["rows"]:
        row["published"] = {}
    made = draft(tmp_path, data)
    for cell, nfe in zip(made.cells, (18, 36, 7, 7), strict=True):
        finish(tmp_path, cell, 10.0, nfe=nfe, network_calls=2 * nfe)
    report.main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert "| fid | data FFHQ | data AFHQ |" in text
    assert "NFE: DDIM 18-36; Heun 7; network calls per image: 14-36 at data FFHQ, 14-72 at data AFHQ." in text
    assert (tmp_path / "table.png").is_file()


def test_unequal_ends_of_rows_are_told(tmp_path: Path) -> None:
    for cell in draft(tmp_path).cells:
        finish(tmp_path, cell, 10.0, sigma_end=0.5 if cell.row == "DDIM" else 0.25)
    report.main([str(tmp_path)])
    assert "Noise levels: DDIM 80 to 0.5; Heun 80 to 0.25." in (tmp_path / "table.md").read_text()


def test_missing_failed_and_refused_cells_say_why(tmp_path: Path) -> None:
    made = draft(tmp_path, budget="small")
    for cell in made.cells[:1]:
        finish(tmp_path, cell, 10.0)
    record(made.cells[2], tmp_path, Outcome("failed", "exit code 1: out of memory"))
    record(made.cells[4], tmp_path, Outcome("refused", "nfe=10: needs an odd NFE"))
    report.main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert "| DDIM | - [a] | - [b] |" in text
    assert "| Heun | - [c] | - [d] |" in text
    assert "[a] 1 of 2 seed ranges: not run yet." in text
    assert "[b] 2 of 2 seed ranges: failed: exit code 1: out of memory." in text
    assert "[d] nfe=10: needs an odd NFE." in text
    assert not (tmp_path / "table.png").exists()


def test_a_run_of_other_code_is_no_figure(tmp_path: Path) -> None:
    made = draft(tmp_path)
    for cell in made.cells:
        finish(tmp_path, cell, 10.0)
    path = tmp_path / made.cells[0].directory / "config.yaml"
    path.write_text("identity: feed0000\n")
    report.main([str(tmp_path)])
    text = (tmp_path / "table.md").read_text()
    assert "[a] the code or a file that it reads was changed meanwhile (feed0000, not 00000000)." in text


def test_a_metric_that_was_not_measured(table: Path) -> None:
    report.main([str(table), "metric=kid"])
    assert "| kid | NFE 5 | NFE 10 |" in (table / "table.md").read_text()
    with pytest.raises(InputError, match="metric=kdi: not measured in these runs; did you mean 'kid'"):
        report.main([str(table), "metric=kdi"])


@pytest.mark.parametrize("damage", ["{", "[]", '{"metrics": {}}'])
def test_damaged_files_are_named(damage: str, table: Path) -> None:
    path = table / plan.load(table).cells[0].directory / "metrics.json"
    path.write_text(damage)
    with pytest.raises(InputError, match=r"metrics\.json: not the metrics of sample\.py \(.*\); delete"):
        report.main([str(table)])
    (table / "plan.json").write_text(damage)
    with pytest.raises(InputError, match=r"plan\.json: not the plan of a table \(.*\); run the command"):
        report.main([str(table)])


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (4.1732, 0.0412, ("4.173", "0.041")),
        (123.4, 5.6, ("123.4", "5.6")),
        (1234.0, 56.0, ("1234", "56")),
        (3.0, 0.0996, ("3.00", "0.10")),
        (0.0123456, 0.000034, ("0.012346", "0.000034")),
        (2.5, 0.0, ("2.5", "0")),
        (2.5, math.nan, ("2.5", "nan")),
    ],
)
def test_numbers_have_two_digits_of_their_error(value: float, error: float, shown: tuple[str, str]) -> None:
    assert render.with_error(value, error) == shown


def test_published_numbers_look_as_printed() -> None:
    assert [render.as_published(value) for value in (4.1, 4.0, 26.9, 9.125, 153.0)] == [
        *("4.10", "4.00", "26.90", "9.125", "153.00")
    ]


def test_the_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = draft(tmp_path / "x")
    assert plan.load(tmp_path / "x") == made
    assert json.loads((tmp_path / "x" / "plan.json").read_text())["budget"] == "paper"
