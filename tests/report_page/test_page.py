"""The page of a report: one file, nothing of it executed or fetched, every cell and every failure in it."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
from page_files import BREAKOUT, HOSTILE, Markup, hostile_sweep, job_list, pixels, sweep, table, with_images
from tables_files import ran

from scoreline.commands import report
from scoreline.errors import InputError
from scoreline.report_page import page, picture_grid
from scoreline.report_page.cell_runs import DONE, CellRun
from scoreline.tables.plan import PLAN

LARGEST = 5_000_000
"""Bytes of the page of 100 cells."""

LINKS = ("src", "href", "xlink:href", "action", "formaction", "poster", "data", "srcset", "background")


def written(root: Path, *words: str) -> Markup:
    metric = ["metric=fid"] if not (root / PLAN).is_file() and not words else []
    report.main([str(root), "--html", *metric, *words])
    return Markup((root / page.NAME).read_text())


@pytest.fixture(scope="module", params=[hostile_sweep, table])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Markup:
    return written(request.param(tmp_path_factory.mktemp("hostile") / "root"))


def test_nothing_of_the_files_becomes_markup(hostile: Markup) -> None:
    assert len(hostile.named("script")) == 1, "ours alone"
    assert all(not name.startswith("on") for _, attributes in hostile.tags for name in attributes)
    assert all(it.get("src", "data:").startswith("data:") for it in hostile.named("img"))
    assert HOSTILE in hostile.text(), "it is shown as text instead"
    assert BREAKOUT in hostile.text()


def test_the_page_refers_to_no_other_file(hostile: Markup) -> None:
    links = [value for _, attributes in hostile.tags for name, value in attributes.items() if name in LINKS]
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not hostile.named("link")
    styles = "".join(hostile.texts) + "".join(it.get("style", "") for _, it in hostile.tags)
    assert re.findall(r"url\((?!#)|@import", styles) == []


def test_the_policy_allows_the_one_script_by_its_digest(hostile: Markup) -> None:
    digest = base64.b64encode(hashlib.sha256(hostile.script.encode()).digest()).decode()
    (policy,) = [it["content"] for it in hostile.named("meta") if "http-equiv" in it]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}';" in policy


def test_cells_of_a_table(tmp_path: Path) -> None:
    markup = written(table(tmp_path))
    text = markup.text()
    assert "1 of 3 runs done, 1 failed, 1 missing" in text
    tips = {it["id"]: it["data-tip"].splitlines() for it in markup.named("button") if "data-tip" in it}
    assert tips["cell-0-0-0"][1:3] == ["fid 25.00 ± 0.25, n = 100", "NFE 5"]
    assert tips["cell-0-0-0"][3:] == ["published 26.90, verified", "Table 2", "ours less the published one: -1.9"]
    reason = f"Failed: exit code 1: {BREAKOUT}."
    assert tips["cell-0-0-1"][1:] == [reason, "published 11.14 ± 0.02, second-hand", "Other, Table 1"]
    assert tips["cell-0-1-0"][1:] == ["Needs an even NFE."]
    assert "What failed 2 of 3 runs" in text
    assert "the end" in text
    assert "line 29" in text
    assert "line 3 " not in text, "the last lines of the log alone"
    assert "Not run yet;" in text


def test_failed_and_absent_jobs_of_a_sweep(tmp_path: Path) -> None:
    """One job left error.log, one was cut off, and of one there is no directory."""
    sweep(tmp_path)
    job_list(tmp_path, "nfe=5,10", "solver=ddim,heun,euler")
    failed, cut = (tmp_path / f"nfe={nfe},solver=euler" for nfe in (5, 10))
    failed.mkdir()
    (failed / "error.log").write_text("Traceback\nscoreline.errors.InputError: solver=euler: no\n")
    text = written(tmp_path).text()
    assert "4 of 6 runs done, 1 failed, 1 missing" in text
    assert "sample -m nfe=5,10 solver=ddim,heun,euler" in text
    assert f"failed {failed.name} solver=euler: no." in text
    assert f"missing {cut.name} Not run yet; the same" in text
    cut.mkdir()
    (cut / "config.yaml").write_text("nfe: 10\nseeds: 0-9\nidentity: abababab\n")
    assert f"stopped {cut.name} At 0 of 10 images." in written(tmp_path).text()


def test_a_cell_tells_its_overrides_and_what_its_config_has_apart(tmp_path: Path) -> None:
    sweep(tmp_path)
    job_list(tmp_path, "nfe=5,10", "solver=ddim,heun")
    text = written(tmp_path).text()
    runs, _, shared = text.partition("Configuration that all cells share")
    detail = runs.rpartition("heun / t, NFE 10")[2].strip()
    assert "run directory nfe=10,solver=heun" in detail
    assert "Overrides nfe=10 solver=heun" in detail
    assert detail.endswith("Configuration in which cells differ nfe 10")
    assert f"SHA-256 {'ab' * 32}" in detail
    assert "seeds 0-9" in detail
    assert "schedule.power 2" in shared


def test_every_cell_shows_the_same_seeds_and_the_fine_run_too(tmp_path: Path) -> None:
    sweep(tmp_path)
    for folder, seeds in (("nfe=5,solver=ddim", "0-9"), ("nfe=10,solver=heun", "0-9")):
        assert seeds in (tmp_path / folder / "metrics.json").read_text()
    fine = ran(tmp_path / "fine", 1.0, {"nfe": 100}, solver="fine", nfe=100)
    with_images(fine, 7)
    report.main([str(tmp_path), "--html", f"fine={fine}", "pictures=3"])
    markup = Markup((tmp_path / page.NAME).read_text())
    assert "seeds 0-2 in every cell" in markup.text()
    keys = [it["data-key"] for it in markup.named("button") if it.get("class") == "photo"]
    assert keys == ["0-0-0", "0-0-1", "0-1-0", "0-1-1", "fine"]
    assert len({it["src"] for it in markup.named("img") if "src" in it}) == 5


def test_pictures_are_of_seeds_that_all_cells_have(tmp_path: Path) -> None:
    runs = {}
    for key, seeds in (("a", "0-9"), ("b", "4-13")):
        folder = ran(tmp_path / key, 1.0, {"seeds": seeds}, seeds=seeds)
        with_images(folder, 0)
        runs[key] = [CellRun(folder, (), DONE, {"seeds": seeds})]
    drawn = picture_grid.draw(runs, 2)
    assert drawn.seeds == "seeds 4-5"
    (a, b) = (picture_grid.draw({key: runs[key]}, 10).by_cell[key].uri for key in runs)
    assert a == b, "the same bytes of unequal seeds"
    assert drawn.by_cell["a"].uri != drawn.by_cell["b"].uri


def test_large_images_are_made_smaller_until_they_fit(tmp_path: Path) -> None:
    with_images(tmp_path, 0, size=256)
    run = CellRun(tmp_path, (), DONE, {"seeds": "0-9"})
    (tmp_path / "metrics.json").write_text("{}")
    one = picture_grid.draw({"a": [run]}, 4)
    assert (one.by_cell["a"].width, one.by_cell["a"].pixelated) == (4 * 257 - 1, False)
    many = picture_grid.draw({"a": [run], "b": [run]}, 4, most=20_000)
    assert sum(len(it.uri) for it in many.by_cell.values()) < 4 / 3 * 20_000 + 100
    assert many.by_cell["a"].width < one.by_cell["a"].width
    assert re.fullmatch(r"images of 256 pixels a side, scaled to \d+ and stored as WebP of quality \d+", many.about)


def test_a_page_of_100_cells_stays_below_5_mb(tmp_path: Path) -> None:
    """Noise of 32 x 32 pixels, which PNG cannot compress."""
    sweep(tmp_path, tuple(f"solver_{k}" for k in range(10)), tuple(range(3, 13)))
    for number, folder in enumerate(sorted(it for it in tmp_path.iterdir() if it.is_dir())):
        with_images(folder, number, size=32)
    markup = written(tmp_path)
    assert (tmp_path / page.NAME).stat().st_size < LARGEST
    pictures = [it for it in markup.named("img") if it.get("class") == "pixelated"]
    assert len({it["src"] for it in pictures}) == 100
    raw = 100 * 8 * 32 * 32 * 3
    assert sum(len(it["src"]) for it in pictures) > raw, "every pixel is there"


def test_an_equal_report_is_an_equal_page(tmp_path: Path) -> None:
    sweep(tmp_path)
    written(tmp_path)
    first = (tmp_path / page.NAME).read_bytes()
    written(tmp_path)
    assert (tmp_path / page.NAME).read_bytes() == first


def test_runs_without_images_have_no_picture(tmp_path: Path) -> None:
    ran(tmp_path / "a")
    markup = written(tmp_path)
    assert not [it for it in markup.named("img") if "src" in it]
    assert "#pictures" not in {it.get("href") for it in markup.named("a")}
    assert pixels(0).shape == (10, 8, 8, 3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--htm"], "--htm: there is no such option; did you mean '--html'?"),
        (["--html", "pictures=0"], "pictures=0: must be a whole number, at least 1"),
        (["pictures=3"], "pictures=3: give fine=RUN too, a run of many evaluations, or --html"),
    ],
)
def test_mistakes_of_the_page(words: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        report.main([str(tmp_path), *words])
    assert str(caught.value) == sentence


def test_the_page_of_a_study_needs_a_metric(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    with pytest.raises(InputError, match="--html: shows the runs of a study as a sweep; give metric=NAME too"):
        report.main([str(tmp_path), "--html"])
