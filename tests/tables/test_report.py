"""Runs of a Hydra sweep as a table: `scoreline report`."""

import json
from pathlib import Path

import pytest

from scoreline.commands import report
from scoreline.errors import InputError
from scoreline.tables.grid import Grid, Run, collect, of_sweep, over_seed_ranges
from scoreline.tables.render import markdown


def row(solver: str, nfe: int, value: float, **changes) -> dict:
    base = {
        "solver": solver,
        "schedule": "time_quadratic",
        "nfe": nfe,
        "images": 64,
        "seeds": "0-63",
        "final": "none",
        "checkpoint": {"name": "m", "sha256": "ab" * 32},
        "protocol": {"extractor": "e", "reference": "r"},
        "metrics": {
            "frechet_distance": {"value": value, "error": 0.1, "n": 64},
            "recall": {"value": value, "error": 0.1, "n": 64},
        },
    }
    return {**base, **changes}


ROWS = [row("ddim", 5, 3.0), row("ddim", 10, 2.0), row("heun", 10, 1.5)]


def printed(rows: list[dict], metric: str) -> str:
    return markdown(of_sweep([Run(Path("a"), row) for row in rows], metric))


def test_rows_columns_bold_and_missing_cells() -> None:
    lines = printed(ROWS, "frechet_distance").splitlines()
    assert lines[0] == "| frechet_distance | NFE 5 | NFE 10 |"
    assert lines[2] == "| ddim / time_quadratic | **3.00 +- 0.10** | 2.00 +- 0.10 |"
    assert lines[3] == "| heun / time_quadratic | - | **1.50 +- 0.10** |"
    assert lines[5].startswith("64 images (seeds 0-63), checkpoint m abababab. +- is the standard error over images;")


def test_higher_is_better_where_it_is() -> None:
    assert "| ddim / time_quadratic | **3.00 +- 0.10** | **2.00 +- 0.10** |" in printed(ROWS, "recall")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": 65}, "images: 65, not 64"),
        ({"protocol": {"extractor": "f"}}, "protocol.extractor: f, not e; protocol.reference: -, not r"),
        ({"final": "denoise"}, "final: denoise, not none"),
        ({"labels": "balanced"}, "labels: balanced, not -"),
        ({"guidance": "classifier_free(scale=2.0)"}, "guidance: classifier_free(scale=2.0), not -"),
        ({"threshold": "clip(high=1.0, low=-1.0)"}, "threshold: clip(high=1.0, low=-1.0), not -"),
        ({"checkpoint": {"name": "m", "sha256": "cd" * 32}}, "checkpoint.sha256: cdcdcdcd, not abababab"),
        ({"numerics_version": 2}, "numerics_version: 2, not before 0.8"),
        ({"sigma_end": 0.5}, "sigma_end: 0.5, not -"),
    ],
)
def test_unequal_protocols_never_share_a_column(change: dict, told: str) -> None:
    text = printed([*ROWS, row("ddim", 10, 1.0, **change)], "frechet_distance")
    assert text.count("| frechet_distance |") == 2
    assert f"Table 2, not to be compared with the first: {told}." in text
    assert text.splitlines()[-3] == "| ddim / time_quadratic | **1.00 +- 0.10** |"


def test_what_guidance_costs_stands_below_the_table() -> None:
    assert "network calls" not in printed(ROWS, "recall")
    chosen = {"guidance": "classifier_free(scale=2.0)", "threshold": "none"}
    guided = [row("ddim", 5, 3.0, **chosen, network_calls=10)]
    text = printed(guided, "recall")
    assert "abababab, classifier_free(scale=2.0)." in text
    assert "Network calls per image: 10 at NFE 5." in text
    guided.append(row("heun", 5, 3.0, **chosen, network_calls=8))
    assert "Network calls per image: 8-10 at NFE 5." in printed(guided, "recall")


def test_disjoint_seed_ranges_become_a_mean() -> None:
    values = ((1.0, "0-9"), (2.0, "10-19"), (6.0, "20-29"))
    runs = [Run(Path(seeds), row("ddim", 5, value, seeds=seeds)) for value, seeds in values]
    (merged,) = over_seed_ranges(runs)
    score = merged.result["metrics"]["frechet_distance"]
    assert score["value"] == pytest.approx(3.0)
    assert score["error"] == pytest.approx((7.0 / 3) ** 0.5)
    assert "mean over 3 seed ranges" in printed([merged.result], "frechet_distance")
    others = [Run(Path("x"), it) for it in (row("heun", 5, 1.0), row("ddim", 10, 1.0))]
    assert len(over_seed_ranges([*runs, *others])) == 3


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for k, it in enumerate(ROWS):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "metrics.json").write_text(json.dumps(it))
    return tmp_path


def test_the_verb_prints_and_writes_every_form(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(sweep), "metric=recall"])
    assert (sweep / "table.md").read_text() == capsys.readouterr().out
    assert {"table.md", "table.tex", "table.csv", "table.png"} < {path.name for path in sweep.iterdir()}
    assert (sweep / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert "| recall | NFE 5 | NFE 10 |" in (sweep / "table.md").read_text()
    with pytest.raises(InputError, match=r"metric=recal\b.*'recall'"):
        report.main([str(sweep), "metric=recal"])
    report.main(["--help"])
    told = capsys.readouterr().out
    assert all(f"{key}=" in told for key in report.OWN)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "0 directories: give one, as in outputs/table/NAME-small"),
        (["a", "b"], "2 directories: give one"),
        (["a", "metrik=x"], "metrik: there is no such key; did you mean 'metric'?"),
        (["nowhere"], "nowhere: no finished run (metrics.json) below it"),
    ],
)
def test_mistakes_of_the_verb(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        report.main(words)
    assert str(caught.value).startswith(sentence)


def test_runs_are_read_in_order(sweep: Path) -> None:
    assert collect(sweep) == [Run(sweep / str(k), it) for k, it in enumerate(ROWS)]
    assert isinstance(of_sweep(collect(sweep), "recall"), Grid)
