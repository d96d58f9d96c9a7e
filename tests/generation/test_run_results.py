"""What a finished run is held to."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tables_files import ran

from scoreline.errors import InputError
from scoreline.generation import run_results


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run that kept a folder of images and trajectories."""
    (tmp_path / "images" / "00000").mkdir(parents=True)
    (tmp_path / "images" / "00000" / "000000.png").write_bytes(b"a")
    (tmp_path / "trajectories.npz").write_bytes(b"npz")
    (tmp_path / "manifest.csv").write_text("index,seed,label,sha256\n")
    manifest = run_results.file_record(tmp_path / "manifest.csv").sha256
    files = run_results.file_records(tmp_path, ["images", "trajectories.npz"])
    told = {"format": "png", "manifest": manifest, "files": files, "images_per_second": 1.0}
    ran(tmp_path / "made", 1.0, None, **told)
    for name in ("config.yaml", "metrics.json"):
        (tmp_path / "made" / name).rename(tmp_path / name)
    (tmp_path / "made").rmdir()
    return tmp_path


def rewrite(run: Path, **changes: object) -> None:
    path = run / "metrics.json"
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}, indent=2))


def test_a_whole_run_is_believed(run: Path) -> None:
    found, again = run_results.former_result(run)
    assert again == ""
    assert found == json.loads((run / "metrics.json").read_text())
    assert found["files"]["images"]["bytes"] == 1


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda run: (run / "manifest.csv").write_text("x"), "manifest.csv differs from the file of the run"),
        (lambda run: (run / "manifest.csv").unlink(), "manifest.csv is gone"),
        (lambda run: (run / "images").rename(run / "elsewhere"), "images is gone"),
        (lambda run: (run / "images/00000/000000.png").write_bytes(b"b"), "images differs from the file of the run"),
        (lambda run: (run / "images/00000/000000.png").unlink(), "images differs from the file of the run"),
        (lambda run: (run / "images/00000/000001.png").touch(), "images differs from the file of the run"),
        (lambda run: (run / "trajectories.npz").unlink(), "trajectories.npz is gone"),
        (
            lambda run: (run / "trajectories.npz").write_bytes(b"cut"),
            "trajectories.npz differs from the file of the run",
        ),
        (lambda run: rewrite(run, files={"../a": {"bytes": 1, "sha256": "a"}}), "../a is gone"),
    ],
)
def test_what_is_missing_or_changed_is_named(damage: Callable[[Path], object], again: str, run: Path) -> None:
    damage(run)
    (run.parent / "a").touch()
    assert run_results.former_result(run) == (None, again)


def test_results_without_files_need_their_manifest(run: Path) -> None:
    rewrite(run, files=None)
    (run / "images/00000/000000.png").unlink()
    assert run_results.former_result(run).result is not None
    (run / "manifest.csv").write_text("x")
    assert run_results.former_result(run).reason == "manifest.csv differs from the file of the run"


def test_result_cut_short_is_made_again(run: Path) -> None:
    """Anywhere, as a full disk leaves it; or filled with zeros, as a lost power does."""
    whole = (json.dumps(json.loads((run / "metrics.json").read_text()), indent=2) + "\n").encode()
    for length in [*range(20), *range(20, len(whole) - 2, 23)]:
        (run / "metrics.json").write_bytes(whole[:length])
        assert run_results.former_result(run) == (None, "metrics.json is cut short")
    (run / "metrics.json").write_bytes(bytes(len(whole)))
    assert run_results.former_result(run).reason == "metrics.json is cut short"
    run_results.reopen(run)
    assert run_results.former_result(run) == (None, "")


@pytest.mark.parametrize("text", ["{}", "x", "[]", "null", '{"a": 1}', '{\n  "solver": 1}', "NaN"])
def test_a_file_that_is_not_ours_is_refused(text: str, run: Path) -> None:
    (run / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics.json: not the metrics of sample.py"):
        run_results.former_result(run)


def test_a_result_without_its_config_is_refused(run: Path) -> None:
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"metrics.json: config.yaml or some of its keys are missing"):
        run_results.former_result(run)
