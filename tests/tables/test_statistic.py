"""Published figures that are the minimum of three seed ranges are compared with a minimum of three."""

import copy
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables_files import DATA, draft, finish

from scoreline.commands import report
from scoreline.metrics.base import Score
from scoreline.tables import plan, wandb_summary
from scoreline.tables.figure import points
from scoreline.tables.statistic import minimum_deviation, statistic

THREE = {"ranges": ["0-99", "100-199", "200-299"]}
RANGES = {"DDIM 5": (2.004, 1.97, 1.981), "DDIM 10": (2.0, 2.1, 2.3), "Heun 10": (1.9, 2.2, 2.2)}


def minima(**paper: Any) -> dict[str, Any]:
    """A table whose published figures are minima of three, but that of Heun, which is one run's."""
    data = copy.deepcopy(DATA)
    data["paper"] |= {"minimum_of": 3, **paper}
    data["budgets"] |= {"paper": THREE, "one": {"ranges": ["0-99"]}}
    data["rows"][0]["published"]["5"]["value"] = 1.96
    data["rows"][1]["published"]["10"]["minimum_of"] = 1
    return data


def report_of(root: Path, data: dict[str, Any], budget: str = "paper") -> str:
    made = draft(root, data, budget)
    for k, cell in enumerate(made.cells):
        finish(root, cell, RANGES[f"{cell.row} {cell.column}"][k % 3])
    report.main([str(root)])
    return (root / "table.md").read_text()


def lines_of(root: Path) -> dict[str, dict[str, str]]:
    with (root / "table.csv").open() as lines:
        found = csv.DictReader(line for line in lines if not line.startswith("#"))
        return {f"{line['row']} {line['column']}": line for line in found if line["metric"] == "fid"}


def test_a_minimum_is_compared_with_a_minimum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1.970 is 0.010 above the published minimum, the mean 1.985 would be 0.025 above it."""
    text = report_of(tmp_path, minima())
    assert capsys.readouterr().out == text
    assert "| DDIM | **1.970 +- 0.013** (mean 1.985 +- 0.010; 2.004, 1.970, 1.981) | **2.00 +- 0.11** (mean" in text
    assert "| *published* | 1.96 (+0.010) |" in text
    assert "is the minimum of 3 seed ranges, as in the paper; its +- is roughly 0.75 times" in text


def test_a_single_run_among_minima_is_compared_with_the_mean(tmp_path: Path) -> None:
    """Its cell shows the same as the others of the table; only the difference is the mean's."""
    text = report_of(tmp_path, minima())
    assert "| Heun | - [a] | **1.90 +- 0.13** (mean 2.10 +- 0.10; 1.90, 2.20, 2.20) |" in text
    assert "| 9.125\u2021 (-7.03) [b] |" in text
    assert "[b] no minimum, as far as its source says: the difference is that of our mean." in text


def test_all_forms_of_a_table_agree(tmp_path: Path) -> None:
    report_of(tmp_path, minima())
    latex = (tmp_path / "table.tex").read_text()
    assert r"DDIM & \bfseries 1.970(13) & \bfseries 2.00(11) \\" in latex
    assert r"\quad\textit{mean} & 1.985(10) & 2.133(88) \\" in latex
    assert "minimum over 3 seed ranges of 100 images each" in latex
    line = lines_of(tmp_path)["DDIM 5"]
    shown = {key: line[key] for key in ("value", "minimum", "by_range", "published_minimum_of")}
    assert shown == {"value": "1.985", "minimum": "1.97", "by_range": "2.004 1.97 1.981", "published_minimum_of": "3"}
    assert float(line["difference"]) == pytest.approx(0.01)
    heun = lines_of(tmp_path)["Heun 10"]
    assert (heun["minimum"], heun["published_minimum_of"]) == ("1.9", "")
    assert float(heun["difference"]) == pytest.approx(2.1 - 9.125)
    recorded = wandb_summary.read_run(tmp_path)
    assert recorded is not None
    first, second = recorded.rows
    assert {key: first[f"fid{key}/DDIM"] for key in ("", "_minimum")} == {"": pytest.approx(1.985), "_minimum": 1.97}
    assert second["fid_minimum/Heun"] == 1.9


def test_the_plot_has_minima_beside_published_minima(tmp_path: Path) -> None:
    report_of(tmp_path, minima())
    found = points(grid := plan.grid(plan.load(tmp_path), tmp_path), grid.parts[0], "DDIM")
    assert [(column, value) for column, value, _ in found] == [("5", 1.97), ("10", 2.0)]
    assert found[0][2] == pytest.approx(0.748 * np.std(RANGES["DDIM 5"], ddof=1), rel=1e-3)


def test_other_numbers_of_ranges_are_not_compared(tmp_path: Path) -> None:
    text = report_of(tmp_path, minima(), "one")
    assert "| DDIM | **2.00 +- 0.25** |" in text
    assert "| *published* | 1.96 (n/a) [a] |" in text
    assert "[a] no difference: ours is of 1 seed range, the paper's the minimum of 3." in text
    assert "[b]" not in text.partition("Heun")[0]
    assert "(-" in text.partition("Heun")[2], "one run is compared with one run"


def test_another_metric_than_the_papers_is_a_mean(tmp_path: Path) -> None:
    text = report_of(tmp_path, minima(metric="fid50k"))
    assert "| DDIM | **1.985 +- 0.010** |" in text
    assert "mean 1." not in text


def test_the_minimum_of_a_range_that_failed_is_none() -> None:
    found = statistic(Score(value=math.nan, error=math.nan, n=9), [1.0, math.inf, 2.0], 3)
    assert math.isnan(found.value)


@pytest.mark.parametrize(("k", "deviation"), [(1, 1.0), (2, (1 - 1 / math.pi) ** 0.5), (3, 0.7480)])
def test_the_deviation_of_a_minimum(k: int, deviation: float) -> None:
    """Exact for two, sqrt(1 - 1 / pi); a simulation gives that of three to 3e-3."""
    assert minimum_deviation(k) == pytest.approx(deviation, abs=1e-4)
    drawn = np.random.default_rng(0).normal(size=(100_000, k)).min(1)
    assert drawn.std() == pytest.approx(minimum_deviation(k), abs=5e-3)


def test_a_mean_would_lie_above_a_published_minimum() -> None:
    """The reason of all this: of equal samplers, the mean of three lies 0.846 deviations above the minimum of three."""
    ours, theirs = np.random.default_rng(1).normal(size=(2, 20_000, 3))
    mean = Score(value=0.0, error=0.0, n=1)
    apart = [
        statistic(mean, one, 3).value - statistic(mean, two, 3).value for one, two in zip(ours, theirs, strict=True)
    ]
    assert np.mean(apart) == pytest.approx(0.0, abs=0.03)
    assert (ours.mean(1) - theirs.min(1)).mean() == pytest.approx(0.846, abs=0.03)
