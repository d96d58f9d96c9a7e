"""The benchmark of stated errors, on errors whose worth is known."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import coverage

from scoreline.datasets.digits import Digits


@pytest.mark.parametrize(("factor", "shares"), [(1.0, (0.683, 0.954)), (1.5, (0.866, 0.997)), (0.5, (0.383, 0.683))])
def test_a_normal_score_with_an_error_of_a_known_factor(factor: float, shares: tuple[float, float]) -> None:
    values = np.random.default_rng(0).normal(5, 2, 4000)
    found = coverage.cell("score", 64, [coverage.Result(float(value), 2 * factor) for value in values])
    assert found.ratio == pytest.approx(factor, abs=3 * found.ratio_error)
    # the error of a standard deviation of normal values is 1 / sqrt(2 n)
    assert found.ratio_error / factor == pytest.approx(1 / 8000**0.5, rel=0.1)
    assert (found.within_one, found.within_two) == pytest.approx(shares, abs=0.02)


def test_sets_do_not_overlap() -> None:
    draw = coverage.of_pool({"features": torch.arange(12.0)[:, None]})
    assert torch.cat([draw(4, number)["features"] for number in range(3)]).flatten().tolist() == list(range(12))


def test_all_scores_of_images_have_errors() -> None:
    rows = coverage.measured(Digits("test").images)
    found = coverage.scores({name: each[:64] for name, each in rows.items()}, {k: v[64:] for k, v in rows.items()})
    assert len(found) == 8
    assert all(it.error > 0 for it in found.values())


def test_what_is_there_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--cases", "gaussian", "--multiples", "0.25", "--draws", "3"]
    coverage.main(words)
    first = capsys.readouterr().out
    kept = json.loads((tmp_path / "coverage.json").read_text())
    kept["gaussian 16"][0][5] = 9.0
    (tmp_path / "coverage.json").write_text(json.dumps(kept))
    coverage.main(words)
    again = capsys.readouterr().out
    assert "| n, draws | 16, 3 |" in first
    assert "| Frechet distance | 9.00" in again
    assert [line for line in first.splitlines() if "Frechet" not in line] == [
        line for line in again.splitlines() if "Frechet" not in line
    ]
