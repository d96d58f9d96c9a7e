import json
from pathlib import Path

import pytest

from scoreline.errors import InputError
from scoreline.tables import collect, figure, main, markdown, over_seed_ranges


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


def test_rows_columns_bold_and_missing_cells() -> None:
    lines = markdown(ROWS, "frechet_distance").splitlines()
    assert lines[0] == "| frechet_distance | NFE 5 | NFE 10 |"
    assert lines[2] == "| ddim / time_quadratic | **3 +- 0.1** | 2 +- 0.1 |"
    assert lines[3] == "| heun / time_quadratic | - | **1.5 +- 0.1** |"
    assert "64 images (seeds 0-63), checkpoint abababab; +- is the standard error" in lines[5]


def test_higher_is_better_where_it_is() -> None:
    assert "| ddim / time_quadratic | **3 +- 0.1** | **2 +- 0.1** |" in markdown(ROWS, "recall")


@pytest.mark.parametrize(
    "change",
    [
        {"images": 65},
        {"protocol": {"extractor": "f"}},
        {"final": "denoise"},
        {"labels": "balanced"},
        {"guidance": "classifier_free(scale=2.0)"},
        {"threshold": "clip(high=1.0, low=-1.0)"},
        {"checkpoint": {"sha256": "cd" * 32}},
    ],
)
def test_unequal_protocols_never_share_a_column(change: dict) -> None:
    text = markdown([*ROWS, row("ddim", 10, 1.0, **change)], "frechet_distance")
    assert text.count("| frechet_distance |") == 2


def test_what_guidance_costs_stands_below_the_table() -> None:
    assert "network calls" not in markdown(ROWS, "recall")
    chosen = {"guidance": "classifier_free(scale=2.0)", "threshold": "none"}
    guided = [row("ddim", 5, 3.0, **chosen, network_calls=10)]
    assert "abababab, classifier_free(scale=2.0), network calls per image: 10 at NFE 5;" in markdown(guided, "recall")
    guided.append(row("heun", 5, 3.0, **chosen, network_calls=8))
    assert "network calls per image: 8-10 at NFE 5;" in markdown(guided, "recall")


def test_disjoint_seed_ranges_become_a_mean_with_its_error() -> None:
    runs = [row("ddim", 5, value, seeds=seeds) for value, seeds in ((1.0, "0-9"), (2.0, "10-19"), (6.0, "20-29"))]
    (merged,) = over_seed_ranges(runs)
    score = merged["metrics"]["frechet_distance"]
    assert score["value"] == pytest.approx(3.0)
    assert score["error"] == pytest.approx((7.0 / 3) ** 0.5)
    assert "mean over 3 seed ranges" in markdown([merged], "frechet_distance")
    overlapping = [row("ddim", 5, 1.0, seeds="0-9"), row("ddim", 5, 2.0, seeds="5-14")]
    with pytest.raises(InputError, match="0-9, 5-14: runs of one cell share seeds"):
        over_seed_ranges(overlapping)
    assert len(over_seed_ranges([*runs, row("heun", 5, 1.0), row("ddim", 10, 1.0)])) == 3


def test_files_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no finished run"):
        collect(tmp_path)
    for k, it in enumerate(ROWS):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "metrics.json").write_text(json.dumps(it))
    main([str(tmp_path)])
    assert (tmp_path / "table.md").read_text().strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "frechet_distance.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="did you mean 'recall'"):
        markdown(ROWS, "recal")
    figure(ROWS, "recall", tmp_path / "recall.png")
