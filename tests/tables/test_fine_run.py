"""Distances to a fine run against arithmetic by hand, and the picture of a sweep."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tables_files import draft, finish, ran

from scoreline.commands import demo, report
from scoreline.errors import InputError
from scoreline.tables.fine_run import DISTANCE

SEEDS = 10


def run(folder: Path, images: np.ndarray, **config: Any) -> Path:
    """A finished run of sample.py with these images, uint8 NHWC."""
    nfe = config.get("nfe", 5)
    ran(folder, 1.0, config, nfe=nfe, solver=config.pop("solver", "s"))
    np.savez(folder / "samples.npz", arr_0=images)
    return folder


def noise(seed: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SEEDS, size, size, 3), dtype=np.uint8)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two runs, and the fine one below the same directory."""
    run(tmp_path / "sweep/a", noise(1), nfe=3)
    run(tmp_path / "sweep/b", noise(2), nfe=5)
    run(tmp_path / "sweep/fine", noise(0), nfe=100)
    return tmp_path / "sweep"


def test_the_distance_is_the_mean_over_images_of_their_root_mean_square(sweep: Path) -> None:
    found = report.beside_fine(sweep, sweep / "fine", DISTANCE, 2)
    assert found.grid.columns == ["3", "5"], "the fine run is no column"
    for column, seed in (("3", 1), ("5", 2)):
        difference = (noise(seed).astype(float) - noise(0).astype(float)) / 127.5
        each = np.sqrt((difference**2).mean((1, 2, 3)))
        score = found.grid.parts[0].entries["s / t", column].score(DISTANCE)
        assert score is not None
        assert score["value"] == pytest.approx(each.mean(), rel=1e-6)
        assert score["error"] == pytest.approx(each.std(ddof=1) / SEEDS**0.5, rel=1e-6)
        assert score["n"] == SEEDS
    assert "s / t, NFE 100" in found.grid.note


def test_images_are_compared_by_their_seeds(tmp_path: Path) -> None:
    """The fine run has more seeds, in another order."""
    run(tmp_path / "a", noise(1))
    ran(tmp_path / "fine", 1.0, {"nfe": 100}, nfe=100, seeds="10-19,0-9")
    np.savez(tmp_path / "fine/samples.npz", arr_0=np.concatenate([noise(7), noise(1)]))
    score = report.beside_fine(tmp_path, tmp_path / "fine", DISTANCE, 1).grid.parts[0].entries["s / t", "5"]
    found = score.score(DISTANCE)
    assert found is not None
    assert found["value"] == 0


def test_the_picture_shows_the_images_of_each_cell(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(sweep), f"fine={sweep / 'fine'}", "pictures=2"])
    out = capsys.readouterr().out
    assert out.startswith("Distance to s / t, NFE 100")
    assert "| distance | NFE 3 | NFE 5 |" in out
    shown = np.asarray(Image.open(sweep / "pictures.png").convert("RGB"))
    for seed in (0, 1, 2):
        for image in noise(seed)[:2]:
            assert _holds(shown, image.repeat(16, 0).repeat(16, 1)), seed
        assert not _holds(shown, noise(seed)[2].repeat(16, 0).repeat(16, 1))


def test_cells_of_several_seed_ranges_show_the_first(tmp_path: Path) -> None:
    """Two ranges of one method are one figure; a method of other seeds has its figure without images."""
    runs = {"a": ("0-9", "s", noise(1)), "b": ("10-19", "s", noise(2)), "c": ("20-29", "u", noise(3))}
    for name, (seeds, solver, images) in runs.items():
        ran(tmp_path / name, 1.0, {}, nfe=5, solver=solver, seeds=seeds)
        np.savez(tmp_path / name / "samples.npz", arr_0=images)
    ran(tmp_path / "fine", 1.0, {"nfe": 100}, nfe=100, seeds="0-29")
    np.savez(tmp_path / "fine/samples.npz", arr_0=np.concatenate([noise(4), noise(2), noise(3)]))
    found = report.beside_fine(tmp_path, tmp_path / "fine", DISTANCE, 2)
    entries = {row: entry for part in found.grid.parts for (row, _), entry in part.entries.items()}
    first, other = (entries[row].score(DISTANCE) for row in ("s / t", "u / t"))
    assert first is not None
    assert other is not None
    assert first["value"] > other["value"] == 0
    shown = np.asarray(Image.open(tmp_path / "pictures.png").convert("RGB"))
    assert _holds(shown, noise(1)[1].repeat(16, 0).repeat(16, 1))
    assert not _holds(shown, noise(2)[0].repeat(16, 0).repeat(16, 1))
    assert not _holds(shown, noise(3)[0].repeat(16, 0).repeat(16, 1))


def test_a_table_keeps_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are those of the table, not solvers on schedules; a cell that has not run stays empty."""
    root, fine = tmp_path / "table", tmp_path / "fine"
    images = {"0-9": noise(0), "10-19": noise(1)}
    for cell in draft(root, budget="small").cells:
        if cell.row == "DDIM":
            finish(root, cell, 1.0)
            np.savez(root / cell.directory / "samples.npz", arr_0=images[cell.seeds])
    ran(fine, 1.0, {"nfe": 100}, nfe=100, seeds="0-19", **{"checkpoint": {"name": "m", "sha256": "ab" * 32}})
    np.savez(fine / "samples.npz", arr_0=np.concatenate([noise(0), noise(7)]))
    report.main([str(root), f"fine={fine}", "pictures=1", "--html"])
    out = capsys.readouterr().out
    assert "| distance | NFE 5 | NFE 10 |" in out
    assert "| DDIM | **" in out
    assert "| Heun | - [b] | - [c] |" in out
    assert "Distance to s / t, NFE 100" in out
    assert (root / "report.html").exists()
    score = report.beside_fine(root, fine, DISTANCE, 1).grid.parts[0].entries["DDIM", "5"].by_range(DISTANCE)
    assert score[0] == 0 < score[1]
    shown = np.asarray(Image.open(root / "pictures.png").convert("RGB"))
    assert _holds(shown, noise(0)[0].repeat(16, 0).repeat(16, 1))
    with pytest.raises(InputError, match="metric=recall: not measured in these runs"):
        report.main([str(root), f"fine={fine}", "metric=recall"])


def _holds(page: np.ndarray, tile: np.ndarray) -> bool:
    """Whether a page has a tile anywhere, to the byte."""
    height, width = (page.shape[k] - tile.shape[k] + 1 for k in (0, 1))
    corners = np.argwhere((page[:height, :width] == tile[0, 0]).all(-1))
    return any((page[y : y + tile.shape[0], x : x + tile.shape[1]] == tile).all() for y, x in corners)


def test_the_table_of_the_demo_has_both_numbers(sweep: Path) -> None:
    for folder in (sweep / "a", sweep / "b"):
        text = (folder / "metrics.json").read_text().replace('"fid"', '"frechet_distance"')
        (folder / "metrics.json").write_text(text)
    lines = demo.table(report.beside_fine(sweep, sweep / "fine", DISTANCE, 2).grid).splitlines()
    assert lines[0] == "| distance; Frechet distance | NFE 3 | NFE 5 |"
    assert all(cell.endswith("; 1.00 +- 0.25") for cell in lines[2].strip("| ").split(" | ")[1:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seeds": "0-8"}, r"fine=.*fine: has no seed 9; sample it with the seeds of the other runs"),
        ({"labels": "random"}, r"fine=.*: labels is not that of .*a; sample both with the same labels"),
        ({"checkpoint": {"name": "m", "sha256": "cd" * 32}}, r"checkpoint is not that of"),
    ],
)
def test_other_noise_or_another_model_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    run(tmp_path / "a", noise(1))
    ran(tmp_path / "fine", 1.0, {"seeds": change.get("seeds", "0-9")}, **{"nfe": 100, **change})
    np.savez(tmp_path / "fine/samples.npz", arr_0=noise(0))
    with pytest.raises(InputError, match=sentence):
        report.beside_fine(tmp_path, tmp_path / "fine", DISTANCE, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pictures=3"], "pictures=3: give fine=RUN too"),
        (["fine=nowhere"], "fine=nowhere: no finished run there"),
        (["fine=FINE", "pictures=0"], "pictures=0: must be a whole number, at least 1"),
        (["fine=FINE", "pictures=x"], "pictures=x: must be a whole number"),
        (["fine=FINE", "over=s"], "over=s: ratios are of a table's own metrics"),
        (["fine=FINE", "metric=distanc"], "metric=distanc: not measured in these runs; did you mean 'distance'"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, sweep: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        report.main([str(sweep), *(word.replace("FINE", str(sweep / "fine")) for word in words)])


def test_no_run_beside_the_fine_one(tmp_path: Path) -> None:
    run(tmp_path / "fine", noise(0))
    with pytest.raises(InputError, match="holds no run beside fine="):
        report.main([str(tmp_path), f"fine={tmp_path / 'fine'}"])
