"""Rows of a report: one for each configuration, whatever its seeds; and files of others that are no runs."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tables_files import draft, finish, ran, result

from scoreline.commands import report
from scoreline.errors import InputError


def rows(root: Path, capsys: pytest.CaptureFixture[str], metric: str = "fid") -> list[str]:
    """The lines of the printed tables, without their headings."""
    report.main([str(root), f"metric={metric}"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [line.replace("*", "") for line in lines if not line.startswith("| fid ")]


def test_runs_of_unequal_options_are_never_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where their seeds are disjoint."""
    ran(tmp_path / "a", 1.0, {"schedule.power": 2})
    ran(tmp_path / "b", 3.0, {"schedule.power": 5, "seeds": "10-19"})
    assert rows(tmp_path, capsys) == [
        "| s / t, schedule.power=2 | 1.00 +- 0.25 |",
        "| s / t, schedule.power=5 | 3.00 +- 0.25 |",
    ]
    text = (tmp_path / "table.md").read_text()
    assert "not to be compared with the first: seeds: 10-19, not 0-9" in text
    assert "ranges" not in text


def test_options_stand_in_the_order_of_their_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(tmp_path / "a", 1.0, {"precision": "bf16-mixed", "schedule.power": 3.0, "solver.order": 2})
    ran(tmp_path / "b", 2.0)
    assert rows(tmp_path, capsys) == [
        "| s / t, solver.order=2, schedule.power=3, precision=bf16-mixed | 1.00 +- 0.25 |",
        "| s / t, solver.order=3, schedule.power=2, precision=32-true | 2.00 +- 0.25 |",
    ]


def test_a_sweep_over_options_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one solver only what its own runs differ in; NFE stay the columns."""
    for k, (solver, order, power, nfe) in enumerate(
        [("deis", 2, 2, 5), ("deis", 3, 2, 5), ("deis", 3, 5, 5), ("deis", 3, 2, 10), ("heun", 1, 2, 5)]
    ):
        config = {"solver.order": order, "schedule.power": power, "nfe": nfe}
        ran(tmp_path / str(k), float(k), config, solver=solver)
    assert rows(tmp_path, capsys) == [
        "| deis / t, solver.order=2, schedule.power=2 | 0.00 +- 0.25 | - |",
        "| deis / t, solver.order=3, schedule.power=2 | 1.00 +- 0.25 | 3.00 +- 0.25 |",
        "| deis / t, solver.order=3, schedule.power=5 | 2.00 +- 0.25 | - |",
        "| heun / t, schedule.power=2 | 4.00 +- 0.25 | - |",
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"device": "cuda", "batch_size": 7, "lock": "wait"},
        {"schedule.power": 2.0},
        {"sigma_data": None},
        {"format": "png", "identity": "11111111", "code_version": "d"},
        {"record": "b/m.score_norm.safetensors", "metrics.reference": "there", "checkpoint": "other/place"},
    ],
)
def test_what_changes_no_result_parts_no_row(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(tmp_path / "a", 1.0)
    ran(tmp_path / "b", 3.0, {"seeds": "10-19", **config})
    assert rows(tmp_path, capsys) == ["| s / t | 2.0 +- 1.0 |"]


@pytest.mark.parametrize("key", ["final", "network_batch", "precision", "labels"])
def test_other_keys_are_options_too(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a row says does not part the table."""
    for value in ("one", "two"):
        ran(tmp_path / value, 1.0, {key: value}, **({key: value} if key in ("final", "labels") else {}))
    shown = ["| s / t, {}=one | 1.00 +- 0.25 |", "| s / t, {}=two | 1.00 +- 0.25 |"]
    assert rows(tmp_path, capsys) == [line.format(key) for line in shown]
    assert "Table 2" not in (tmp_path / "table.md").read_text()


def test_guidance_is_compared_by_its_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(tmp_path / "none", 1.0)
    for scale in (1.5, 2.0):
        node = {"_target_": "classifier_free", "scale": scale, "high": float("inf")}
        ran(tmp_path / str(scale), scale, {"guidance": node}, guidance=f"classifier_free(high=inf, scale={scale})")
    assert rows(tmp_path, capsys) == [
        "| s / t, guidance=classifier_free, guidance.scale=1.5 | 1.50 +- 0.25 |",
        "| s / t, guidance=classifier_free, guidance.scale=2 | 2.00 +- 0.25 |",
        "| s / t, guidance=none | 1.00 +- 0.25 |",
    ]
    text = (tmp_path / "table.md").read_text()
    assert text.count("| fid |") == 1
    assert "10 images (seeds 0-9), checkpoint m abababab." in text


def test_checkpoints_are_told_apart_by_their_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"name": "m", "sha256": "cd" * 32}
    for name, config, checkpoint in (("a", "x", None), ("b", "y", other), ("c", "x", {**other, "sha256": "ef" * 32})):
        ran(tmp_path / name, 1.0, {"checkpoint": config}, **({"checkpoint": checkpoint} if checkpoint else {}))
    assert [line.split(" | ")[0] for line in rows(tmp_path, capsys)] == [
        *("| s / t, checkpoint=x@abababab", "| s / t, checkpoint=y", "| s / t, checkpoint=x@efefefef")
    ]


def test_a_folder_of_optuna(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of equal seeds: numbers with as many digits as tell them apart; a value drawn twice counts once."""
    for k, power in enumerate([2.123456, 5.987654, 2.123456, 2.12345678901]):
        ran(tmp_path / str(k), power, {"schedule.power": power})
    (tmp_path / "multirun.yaml").write_text("hydra: {sweeper: {n_trials: 4}}\n")
    (tmp_path / "optimization_results.yaml").write_text("name: optuna\nbest_value: 2.1\n")
    assert [line.split(" | ")[0] for line in rows(tmp_path, capsys)] == [
        *("| s / t, schedule.power=2.123456", "| s / t, schedule.power=5.987654"),
        "| s / t, schedule.power=2.12345678901",
    ]


def test_runs_of_one_configuration_that_share_seeds(tmp_path: Path) -> None:
    ran(tmp_path / "a")
    ran(tmp_path / "b", 1.0, {"seeds": "5-14"})
    with pytest.raises(InputError, match=r"seeds=0-9, 5-14: \S+/a and \S+/b are of one configuration and share seeds"):
        report.main([str(tmp_path)])


def test_copies_count_once_and_unequal_repeats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(tmp_path / "a")
    ran(tmp_path / "b", 1.0, {"seeds": "0-9"}, seeds="0-4,5-9")
    assert rows(tmp_path, capsys) == ["| s / t | 1.00 +- 0.25 |"]
    ran(tmp_path / "c", 2.0)
    with pytest.raises(
        InputError, match=r"\S+/a and \S+/c are of one configuration and share seeds; their numbers differ"
    ):
        report.main([str(tmp_path)])


def test_figures_that_would_stand_in_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The NFE asked for tells them apart, else where they lie."""
    for nfe in (9, 10):
        ran(tmp_path / str(nfe), float(nfe), {"nfe": nfe}, nfe=9)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text(json.dumps(result("0-9", 9, 4.0)))
    assert rows(tmp_path, capsys) == [
        *("| s / t, nfe=10 | 10.00 +- 0.25 |", "| s / t, nfe=9 | 9.00 +- 0.25 |", "| s / t | 4.00 +- 0.25 |")
    ]
    root = tmp_path / "guided"
    for name, scale in (("a", 1), ("b", 1), ("c", 2)):
        ran(root / name, 1.0, {"guidance.scale": scale}, guidance=f"auto(checkpoint={name}, scale={scale})")
    assert [line.split(" | ")[0] for line in rows(root, capsys)] == [
        *(f"| s / t, guidance.scale=1, nfe=5 ({root / name})" for name in "ab"),
        "| s / t, guidance.scale=2",
    ]


def test_rows_follow_solver_auto_not_what_it_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for nfe, order in ((5, 1), (10, 3)):
        choice = {"solver": "auto", "schedule": "its own", "recommended": f"deis{order} / karras"}
        ran(tmp_path / str(nfe), 1.0, {"nfe": nfe, "solver.order": order}, **choice)
    assert rows(tmp_path, capsys) == ["| auto / its own | 1.00 +- 0.25 | 1.00 +- 0.25 |"]


def test_numerics_part_a_column_and_code_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, version in enumerate(["a", "b"]):
        ran(tmp_path / version, 1.0, {"seeds": f"{k}0-{k}9"}, code_version=version, numerics_version=1)
    assert rows(tmp_path, capsys) == ["| s / t | 1 +- 0 |"]
    assert "The rows were made by code versions a, b." in (tmp_path / "table.md").read_text()
    ran(tmp_path / "c", 1.0, {"seeds": "20-29"}, numerics_version=2)
    ran(tmp_path / "d", 1.0, {"seeds": "30-39"})
    assert len(rows(tmp_path, capsys)) == 3
    text = (tmp_path / "table.md").read_text()
    assert "numerics_version: 2, not 1; seeds: 20-29, not 00-09 and 10-19." in text
    assert "numerics_version: before 0.8, not 1" in text


DAMAGED = [
    *("", "{}", "x", "NaN", "[]", "nul\0", '{"metrics": {}}', "[" * 100_000, "{" * 100_000, '{"a":' * 100_000),
    *(" " * 2**20 + "{}", '"' + "a" * 2**21, "1" * 5000),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_results_and_plans_are_one_line(text: str, tmp_path: Path) -> None:
    folder = ran(tmp_path / "sweep" / "a")
    (folder / "metrics.json").write_text(text)
    draft(tmp_path / "table")
    (tmp_path / "table" / "plan.json").write_text(text)
    for root, file in (("sweep", "a/metrics.json"), ("table", "plan.json")):
        with pytest.raises(InputError) as caught:
            report.main([str(tmp_path / root)])
        sentence = str(caught.value)
        assert sentence.startswith(f"{tmp_path / root / file}: not the ")
        assert "\n" not in sentence
        assert len(sentence) < 500 + len(str(tmp_path)) * 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("nfe", float("nan")), ("nfe", "5"), ("nfe", 10**400), ("images", -1), ("images", 5.0), ("images", True)),
        *(("seeds", "a"), ("seeds", "5-1"), ("seeds", "1,1"), ("seeds", "9" * 5000), ("seeds", [1])),
        *(("metrics", []), ("metrics", {"fid": 1}), ("metrics", {"fid": {"value": "1", "error": 1, "n": 1}})),
        *(("checkpoint", "m"), ("checkpoint", {"name": "m"}), ("protocol", {"a": []}), ("solver", "\x1b[2J")),
        *(("sigma_end", "0"), ("warnings", "few"), ("files", {"a": 1}), ("more", [[[[[[[[[]]]]]]]]])),
    ],
)
def test_results_of_other_types_are_one_line(key: str, value: object, tmp_path: Path) -> None:
    ran(tmp_path / "a", 1.0, None, **{key: value})
    with pytest.raises(InputError, match=r"a/metrics.json: not the metrics of sample.py \(.*\); delete"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize("text", ["", "{}", "- 1", "a: &x 1\nb: *x", "!!python/object:a.b {}", "[" * 10_000])
def test_a_damaged_config_is_one_line(text: str, tmp_path: Path) -> None:
    (ran(tmp_path / "a") / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a/config.yaml: not a readable config"):
        report.main([str(tmp_path)])


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Nobody writes into it: opening would wait for ever."""
    (ran(tmp_path / "a") / "metrics.json").unlink()
    os.mkfifo(tmp_path / "a" / "metrics.json")
    with pytest.raises(InputError, match="no regular file"):
        report.main([str(tmp_path)])


def test_seed_ranges_of_any_size_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made that is as long as a range says it is."""
    for k in range(2):
        ran(tmp_path / str(k), 1.0, None, seeds=f"{k * 10**15}-{(k + 1) * 10**15 - 1}")
    assert rows(tmp_path, capsys) == ["| s / t | 1 +- 0 |"]
    data = json.loads((draft(tmp_path / "table") and tmp_path / "table" / "plan.json").read_text())
    data["data"]["budgets"]["paper"]["ranges"] = [f"0-{10**18}"]
    (tmp_path / "table" / "plan.json").write_text(json.dumps(data))
    report.main([str(tmp_path / "table")])
    assert "Toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    "directory",
    ["/etc", "../a", "cells/../../a", "cells/..", "", "cells//a", ".", "cells/a\0b", "a b", "c/" + "x" * 300],
)
def test_runs_of_a_plan_lie_below_it(directory: str, tmp_path: Path) -> None:
    draft(tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    data["cells"][0]["directory"] = directory
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"plan.json: not the plan of a table"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("table", []), ("budget", 5), ("overrides", "nfe=5"), ("overrides", [5]), ("cells", {}), ("cells", [5])),
        *(("cells", [{"row": "a"}]), ("data", []), ("data", {"title": "\x1b[2J"}), ("more", 1)),
    ],
)
def test_plans_of_other_types_are_one_line(key: str, value: object, tmp_path: Path) -> None:
    draft(tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**data, key: value}))
    with pytest.raises(InputError, match=r"plan.json: not the plan of a table"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"state": "finished", "sentence": ""}', '{"state": [], "sentence": 1}', "[" * 9999]
)
def test_a_damaged_outcome_counts_as_none(text: str, tmp_path: Path) -> None:
    made = draft(tmp_path)
    for cell in made.cells[1:]:
        finish(tmp_path, cell, 1.0)
    folder = tmp_path / made.cells[0].directory
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(text)
    report.main([str(tmp_path)])
    assert "[a] not run yet." in (tmp_path / "table.md").read_text().lower()


def test_nothing_of_a_plan_is_run(tmp_path: Path) -> None:
    """Its overrides and preparations are texts of whoever wrote it."""
    canary = tmp_path / "canary"
    made = draft(tmp_path / "table")
    for cell in made.cells:
        finish(tmp_path / "table", cell, 1.0)
    path = tmp_path / "table" / "plan.json"
    data = json.loads(path.read_text())
    call = f"solver={{_target_:pathlib.Path.touch,self:{{_target_:pathlib.Path,_args_:[{canary}]}}}}"
    data["overrides"] = [call]
    data["data"]["rows"][0]["overrides"] = [call]
    data["data"]["prepare"] = [{"run": f"train.py {call}", "makes": str(canary)}]
    for cell in data["cells"]:
        cell["overrides"] = [call]
    path.write_text(json.dumps(data))
    report.main([str(tmp_path / "table")])
    report.main([str(tmp_path / "table"), "over=DDIM"])
    assert not canary.exists()


def test_a_folder_of_unrelated_runs_has_a_picture(tmp_path: Path) -> None:
    """Each is a table of its own; the picture shows the first ones."""
    for k in range(14):
        ran(tmp_path / str(k), 1.0, None, labels=str(k))
    report.main([str(tmp_path), "metric=fid"])
    assert (tmp_path / "table.md").read_text().count("| fid |") == 14
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.size[0] < 2**16


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Whatever lies where the table goes: text that is none is replaced, a folder is not."""
    ran(tmp_path / "a")
    (tmp_path / "table.md").write_bytes(b"\xff")
    report.main([str(tmp_path), "metric=fid"])
    (tmp_path / "table.tex").unlink()
    (tmp_path / "table.tex").mkdir()
    with pytest.raises(InputError, match=r"table.tex: cannot be written \(Is a directory\)"):
        report.main([str(tmp_path), "metric=fid"])


def test_keys_of_tables_are_ignored_in_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And seeds that were given as a list stand in brackets."""
    ran(tmp_path / "a", 1.0, None, ranges="x", code_versions=5, seeds="[0, 2, 7]")
    assert rows(tmp_path, capsys) == ["| s / t | 1.00 +- 0.25 |"]
    assert "10 images (seeds 0, 2, 7)" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300])
def test_values_that_are_not_finite_are_shown(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mean over ranges of which one is not finite is nan."""
    score = {"fid": {"value": value, "error": value, "n": 10}}
    ran(tmp_path / "a", 1.0, None, metrics=score)
    ran(tmp_path / "b", 1.0, {"seeds": "10-19"})
    ran(tmp_path / "c", 1.0, {"schedule.power": 7})
    shown = {line.split(" | ")[1].split()[0] for line in rows(tmp_path, capsys) if "power=2" in line}
    assert shown == {f"{value / 2:.0f}" if math.isfinite(value) else "nan"}
