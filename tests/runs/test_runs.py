"""`scoreline runs`: lists, shows, compares and removes run directories, of a real sweep and of generated ones."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import call, ended
from run_files import DEAD, aged, calibrated, locked, swept, trained, unfinished
from safetensors.torch import save_file
from tables_files import draft, finish, ran

from scoreline.commands import runs
from scoreline.errors import InputError
from scoreline.runs import removal, summary
from scoreline.runs.listing import SPARE, aligned, cells, date, fitted
from scoreline.runs.summary import find, images_kept
from scoreline.storage.run_lock import RunLock
from scoreline.tables import plan, study

Printed = Callable[..., list[str]]


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """The lines that `scoreline runs` prints in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def lines(*words: str) -> list[str]:
        runs.main(list(words))
        return capsys.readouterr().out.splitlines()

    return lines


def paths(lines: list[str]) -> list[str]:
    """The last column of a list."""
    return [line.split()[-1] for line in lines[1:]]


def states(root: Path) -> dict[str, str]:
    return {one.path.name: str(one.state) for one in find(root)}


# ---- a real sweep, and a run of an old name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two solvers at 16 seeds, and a run."""
    root = tmp_path_factory.mktemp("real")
    common = ("checkpoint=digits_vp", "nfe=3", "seeds=0-15")
    done = call("sample", "-m", *common, "solver=ddim,deis_tab2", cwd=root)
    assert done.returncode == 0, done.stderr
    done = call("sample", *common, "solver=ddim", "metrics=none", "solver.clip=null", cwd=root)
    assert done.returncode == 2, "a key that the solver lacks"
    done = call("sample", *common, "solver=ddim", "metrics=none", cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def real(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_sweep_is_one_line_and_its_runs_on_demand(real: Path, printed: Printed) -> None:
    lines = printed()
    assert "frechet_distance" not in lines[0], "no line has that metric: the run measured nothing"
    (sweep,) = (line for line in lines if " sweep " in line)
    assert "ddim,deis_tab2" in sweep
    assert "done, 2 of 2 done" in sweep
    every = printed("--all", "sort=metric")
    assert "frechet_distance" in every[0]
    assert len(every) == 4
    assert every[1].split()[2:7] == ["sample", "digits_vp", "deis_tab2", "linear_vp_quadratic", "3"]
    assert every[1].endswith("done   multirun/" + next(Path("multirun").iterdir()).name + "/" + SWEPT)
    assert printed("--all", "metric=recall")[0].split()[6] == "recall"


SWEPT = "checkpoint=digits_vp,nfe=3,seeds=0-15,solver=deis_tab2"


def test_the_name_says_checkpoint_solver_schedule_nfe(real: Path, printed: Printed) -> None:
    (run,) = Path("outputs/sample").iterdir()
    identity = summary.values(run)["identity"]
    assert run.name == f"digits_vp-ddim-linear_vp_quadratic-nfe3-{identity}"


def test_a_run_begun_under_an_old_name_goes_on_there(real: Path) -> None:
    (run,) = (real / "outputs/sample").iterdir()
    old = run.rename(run.with_name(f"ddim-nfe3-{run.name[-8:]}"))
    (old / "metrics.json").unlink()
    done = call("sample", "checkpoint=digits_vp", "nfe=3", "seeds=0-15", "solver=ddim", "metrics=none", cwd=real)
    assert done.returncode == 0, done.stderr
    assert list((real / "outputs/sample").iterdir()) == [old]
    assert (old / "metrics.json").is_file()


def test_a_run_that_fails_midway_keeps_its_reason(tmp_path: Path, printed: Printed) -> None:
    Path("outputs/a/grid.png").mkdir(parents=True)
    words = ("checkpoint=digits_vp", "nfe=3", "seeds=0-15", "metrics=none", "hydra.run.dir=outputs/a")
    done = call("sample", *words, cwd=tmp_path)
    assert "Is a directory" in done.stderr
    lines = printed("show", "outputs/a")
    assert lines[0].startswith("outputs/a: sample, failed, IsADirectoryError: ")
    assert "the end of error.log" in lines
    Path("outputs/a/grid.png").rmdir()
    assert call("sample", *words, cwd=tmp_path).returncode == 0
    assert printed("show", "outputs/a")[0] == "outputs/a: sample, done"
    assert not Path("outputs/a/error.log").exists()


def test_show_tells_how_to_repeat_a_run(real: Path, printed: Printed) -> None:
    (run,) = Path("outputs/sample").iterdir()
    text = "\n".join(printed("show", str(run)))
    assert "\n  solver=ddim\n  metrics=none\n" in text
    assert "scoreline sample checkpoint=digits_vp nfe=3 seeds=0-15 solver=ddim metrics=none\n" in text
    assert "  manifest.csv" in text
    assert f"python {sys.version.split()[0]}, scoreline" in text
    (sweep,) = Path("multirun").iterdir()
    text = "\n".join(printed("show", f"{sweep}/{SWEPT}"))
    assert f"hydra.run.dir='\"'\"'{sweep}/{SWEPT}" in text, "a run of a sweep goes on in its own directory"
    assert "frechet_distance" in text
    assert "n 16" in text
    assert printed("show", str(sweep))[-1] == (
        "  scoreline sample -m checkpoint=digits_vp nfe=3 seeds=0-15 solver=ddim,deis_tab2"
    )


def test_compare_shows_keys_metrics_and_images(real: Path, printed: Printed) -> None:
    (sweep,) = Path("multirun").iterdir()
    pair = f"{sweep}/{SWEPT}", f"{sweep}/{SWEPT.replace('deis_tab2', 'ddim')}"
    lines = printed("compare", *pair)
    assert ["solver", "deis_tab2", "ddim"] in [line.split() for line in lines]
    assert any(line.split()[:2] == ["frechet_distance", "0.82"] or "frechet_distance" in line for line in lines)
    assert any(line.startswith("images of equal seeds: 16, ") for line in lines)
    (run,) = Path("outputs/sample").iterdir()
    lines = printed("compare", str(run), pair[1])
    assert ["metrics", "none", "auto"] in [line.split() for line in lines]
    assert "images of equal seeds: 16, 16 of them equal to the byte" in lines
    assert "difference in [-1, 1]: 0 +- 0" in lines[-1]


# ---- generated runs: states, filters, order


def test_states(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    ran(root / "done")
    unfinished(root / "stopped", 3)
    locked(unfinished(root / "killed", 4))
    locked(root / "before_config")
    (ran(root / "damaged") / "metrics.json").write_text("[]")
    trained(root / "trained")
    trained(root / "half", 1000)
    trained(root / "pruned", 1000, pruned=True)
    calibrated(root / "measured")
    (calibrated(root / "unmeasured", done=False) / "parts").mkdir()
    (root / "unmeasured/parts/000000.safetensors").write_text("")
    (unfinished(root / "refused") / "outcome.json").write_text('{"state": "refused", "sentence": "an even NFE"}')
    (unfinished(root / "failed") / "outcome.json").write_text('{"state": "failed", "sentence": "no disk"}')
    with RunLock(unfinished(root / "running", 2)), RunLock(root / "first"):
        found = states(root)
        me = f"process {os.getpid()} on {os.uname().nodename}"
    damaged = found.pop("damaged")
    assert damaged.startswith("damaged, ")
    assert "not the metrics of sample.py" in damaged
    assert found == {
        "done": "done",
        "stopped": "stopped, at 3 of 10 images",
        "killed": "killed, at 4 of 10 images",
        "before_config": "killed, at 0 of ? images",
        "trained": "done",
        "half": "stopped, at 1 of 2 kimg",
        "pruned": "done, pruned at 1 kimg",
        "measured": "done",
        "unmeasured": "stopped, at 1 part",
        "refused": "refused, an even NFE",
        "failed": "failed, no disk",
        "running": f"running, 2 of 10 images, {me}",
        "first": f"running, 0 of ? images, {me}",
    }


def test_a_lock_of_another_host_is_alive_by_its_age(tmp_path: Path) -> None:
    folder = locked(unfinished(tmp_path / "a"), pid=7, host="elsewhere")
    assert states(tmp_path) == {"a": "running, 3 of 10 images, process 7 on elsewhere"}
    aged(folder, 1)
    assert states(tmp_path) == {"a": "killed, at 3 of 10 images"}
    assert (folder / ".lock").is_file()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.yaml", "shards"], "it only reads"


def test_a_sweep_counts_its_jobs(tmp_path: Path) -> None:
    sweep = tmp_path / "multirun/sample-01234567"
    ran(sweep / "nfe=5")
    (sweep / "nfe=6").mkdir()
    (sweep / "nfe=6/error.log").write_text("Traceback\n\nscoreline.errors.InputError: nfe=6: too many\n")
    swept(sweep, "nfe=5,6,7", "seeds='0-9,20'")
    (one,) = find(tmp_path)
    assert str(one.state) == "failed, 1 of 3 done, 1 failed"
    assert [str(run.state) for run in one.runs] == ["done", "failed, nfe=6: too many"]
    shutil.rmtree(sweep / "nfe=6")
    assert [str(it.state) for it in find(tmp_path)] == ["stopped, 1 of 3 done"]
    (sweep / "study.db").write_text("")
    (sweep / "multirun.yaml").write_text("hydra:\n  sweeper: scoreline's\n    n_trials: 20\n")
    assert [(it.job, str(it.state)) for it in find(tmp_path)] == [("study", "stopped, 1 of 20 done")]


def test_a_table_counts_its_cells(tmp_path: Path, printed: Printed) -> None:
    root = Path("outputs/table/toy-paper")
    cells = draft(root).cells
    assert [str(it.state) for it in find(Path("outputs"))] == ["stopped, 0 of 3 done"]
    for cell in cells[:2]:
        finish(root, cell, 3.0)
    (root / cells[2].directory).mkdir(parents=True)
    plan.record(cells[2], root, plan.Outcome("refused", "needs memory"))
    (one,) = find(Path("outputs"))
    assert (one.job, one.nfe, str(one.state)) == ("table", "5,10", "refused, 2 of 3 done, 1 refused")
    lines = printed("show", str(root))
    assert lines[-1] == "  scoreline sample table=toy budget=paper"
    assert any(f"  {root}/cells/Heun/" in line for line in lines)


def test_names_of_files_are_those_of_their_writers() -> None:
    names = (summary.PLAN, summary.OUTCOME, summary.STUDY, summary.HISTORY)
    assert names == (plan.PLAN, plan.OUTCOME, study.FILE, study.HISTORY)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    root = tmp_path / "outputs"
    aged(ran(root / "a", 3.0, {"nfe": 5, "checkpoint": "outputs/train/mine-01234567"}, solver="ddim", nfe=5), 3)
    aged(ran(root / "b", 1.0, {"nfe": 10, "solver.order": 2}, solver="deis_tab2", nfe=10), 2)
    aged(ran(root / "c", 2.0, {"nfe": 10, "guidance": {"_target_": "x.guiding.Free"}}, solver="deis_tab3", nfe=10), 1)
    aged(unfinished(root / "d"), 4)
    trained(root / "e")
    return root


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", "e c b a d"),
        ("solver=deis_*", "c b"),
        ("solver=ddim,deis_tab2", "b a"),
        ("nfe=5", "a d"),
        ("nfe=5 state=done", "a"),
        ("state=stopped", "d"),
        ("job=train", "e"),
        ("job=sweep", ""),
        ("checkpoint=mine-*", "a"),
        ("solver.order=2", "b"),
        ("guidance=Free", "c"),
        ("guidance=guiding", "c"),
        ("precision=32-true nfe=10", "c b"),
        ("sort=metric job=sample", "b c a d"),
        ("sort=name", "a b c d e"),
        ("sort=nfe state=done job=sample", "a b c"),
        ("metric=kid sort=metric job=sample state=done", "b c a"),
    ],
)
def test_filters_and_order(words: str, names: str, several: Path, printed: Printed) -> None:
    assert [Path(path).name for path in paths(printed(*words.split()))] == names.split()


def test_since(several: Path, printed: Printed) -> None:
    moments = {run.path.name: run.date for run in find(Path("outputs"))}
    day = date(next(run for run in find(Path("outputs")) if run.path.name == "b")).replace(" ", "T")
    kept = {Path(path).name for path in paths(printed(f"since={day}"))}
    assert kept == {name for name, moment in moments.items() if moment >= moments["b"]} == {"b", "c", "e"}


def test_json_is_for_programs(several: Path, printed: Printed) -> None:
    ran(several / "f", solver="ddim", metrics={"fid": {"value": math.nan, "error": math.inf, "n": 3}})
    found = {Path(it["path"]).name: it for it in json.loads("\n".join(printed("--json")))}
    assert found["a"]["metric"] == {"name": "fid", "value": 3.0, "error": 0.25}
    assert found["f"]["metric"] == {"name": "fid", "value": None, "error": None}
    assert found["e"]["metric"] == {"name": "fixed_loss", "value": 0.5, "error": 0.01}
    assert found["b"]["bytes"] == sum(path.stat().st_size for path in (several / "b").iterdir())
    assert (found["d"]["state"], found["d"]["detail"], found["d"]["runs"]) == ("stopped", "at 3 of 10 images", [])


def test_a_narrow_terminal_does_without_columns(several: Path, printed: Printed) -> None:
    rows = cells(list(find(Path("outputs"))))
    full = max(map(len, aligned(rows)))
    assert [fitted(rows, width)[1] for width in (None, full, full - 1)] == [[], [], ["schedule"]]
    narrow, left_out = fitted(rows, 10)
    assert left_out == list(SPARE)
    assert [row[-1] for row in narrow[1:]] == [f"outputs/{name}" for name in "abcde"]
    assert narrow[0] == ["date", "metric", "state", "path"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("sovler=ddim", "sovler: no run has such a key; did you mean 'solver'?"),
        ("zzz=1", "zzz: no run has such a key; config.yaml of a run has its keys"),
        ("since=yesterday", "since=yesterday: no date; give 2026-11-01"),
        ("sort=colour", "sort=colour: there is no such column"),
        ("nowhere", "nowhere: no such folder"),
        ("--al", "--al: there is no such option; did you mean '--all'"),
        ("show", "show: 0 words; give scoreline runs show RUN"),
        ("show outputs", "outputs: no directory of a run"),
        ("compare outputs/a", "compare: 1 word; give scoreline runs compare A B"),
        ("compare outputs/a nowhere", "nowhere: no run there"),
        ("compare outputs outputs/a", "outputs: outputs/a and outputs/b differ in"),
        ("remove", "remove: give one or more run directories"),
        ("remove outputs/a", "remove: there is no terminal to ask; add --yes"),
        ("remove outputs/a --al", "--al: there is no such option"),
        ("remove . --yes", ".: give the run directory by its name"),
        ("remove outputs/a/.. --yes", "outputs/a/..: give the run directory by its name"),
        ("remove nowhere --yes", "nowhere: no directory of a run"),
    ],
)
def test_a_mistake_is_one_line(words: str, sentence: str, several: Path, printed: Printed) -> None:
    with pytest.raises(InputError) as caught:
        printed(*words.split())
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value).splitlines()) == 1
    assert len(list(several.iterdir())) == 5


def test_an_empty_folder_is_told(printed: Printed) -> None:
    with pytest.raises(InputError, match="no outputs/ and no multirun/ here"):
        printed()
    Path("outputs").mkdir()
    assert printed()[-1] == "no runs"
    ran(Path("outputs/a"))
    assert printed("nfe=77") == ["none of 1 runs"]


ESCAPE = "\x1b[31m"


def test_no_text_of_a_file_steers_the_terminal(tmp_path: Path, printed: Printed) -> None:
    """Names of folders, configs, logs, plans, histories and links hold what a terminal obeys."""
    root = Path("multirun/sample-01234567")
    one = ran(root / f"a{ESCAPE}", config={"checkpoint": f"x{ESCAPE}y"})
    (one / f"f{ESCAPE}").write_text("")
    other = unfinished(root / "b", start={"choices": {"solver": f"s{ESCAPE}"}, "overrides": [f"solver={ESCAPE}"]})
    (other / "error.log").write_text(f"ValueError: {ESCAPE}\n")
    aged(locked(root / "c", host=f"h{ESCAPE}", pid=DEAD), 1)
    trained(root / "d", config='start:\n  versions:\n    torch: "\\e[31m"\n', k=ESCAPE)
    swept(root, f"a={ESCAPE}")
    text = printed("--all")
    for run in ("", *(path.name for path in root.iterdir() if path.is_dir() and path.name != "c")):
        text += printed("show", str(root / run))
    text += printed("compare", str(one), str(other))
    with pytest.raises(InputError) as caught:
        printed("compare", str(root), str(one))
    text.append(str(caught.value))
    assert "\x1b" not in "".join(text)
    assert any("\\x1b[31m" in line for line in text)
    assert "\x1b" not in "".join(printed("remove", str(root), "--yes"))


def test_a_config_that_is_none_makes_no_run(tmp_path: Path) -> None:
    for name, text in (("foreign", "a: 1\n"), ("empty", ""), ("huge", "identity: x\n" + " " * 2**20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    os.mkfifo(tmp_path / "foreign/metrics.json")
    (tmp_path / "link").symlink_to(ran(tmp_path.parent / f"{tmp_path.name}-outside"))
    assert list(find(tmp_path)) == []


def test_damaged_shards_count_nothing(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "a", 3)
    (folder / "shards/1.safetensors").write_bytes(b"\xff" * 100)
    (folder / "shards/2.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    os.mkfifo(folder / "shards/3.safetensors")
    assert images_kept(folder) == 3


MANY = """
import resource, sys
sys.modules["torch"] = sys.modules["numpy"] = None
sys.argv = ["scoreline", "runs", *sys.argv[1:]]
from scoreline.cli import main
try:
    main()
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def test_a_thousand_runs_take_less_than_two_seconds(tmp_path: Path) -> None:
    """Of a processor, with the start of the program and without torch; half of them are a sweep's."""
    first = ran(tmp_path / "multirun/sample-01234567/0")
    config, result = ((first / name).read_text() for name in ("config.yaml", "metrics.json"))
    for k in range(1, 1000):
        folder = (first.parent if k % 2 else tmp_path / "outputs/sample") / str(k)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config + "".join(f"more{n}: 1.5\n" for n in range(100)))
        if k % 10 > 1:
            (folder / "metrics.json").write_text(result)
    swept(first.parent, "nfe=5,6")
    done = subprocess.run([sys.executable, "-c", MANY], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 501, done.stderr
    assert float(done.stderr) < 2


# ---- comparison of generated runs


def test_differences_are_paired_over_seed_ranges(tmp_path: Path, printed: Printed) -> None:
    """(3 - 1, 5 - 2): 2.5 +- 0.5, where independent means have sqrt(1 + 0.25) = 1.1."""
    for name, values in (("A", (1.0, 2.0)), ("B", (3.0, 5.0))):
        for seeds, value in zip(("0-9", "10-19"), values, strict=True):
            folder = ran(Path(name) / seeds, value, {"seeds": seeds}, seeds=seeds)
            (folder / "manifest.csv").write_text("index,seed,label,sha256\n")
    lines = printed("compare", "A", "B")
    assert "configuration: equal" in lines
    assert "metrics; B - A: paired over 2 seed ranges" in lines
    assert ["fid", "1.50", "+-", "0.50", "4.0", "+-", "1.0", "2.50", "+-", "0.50"] in [line.split() for line in lines]


def test_single_runs_have_the_error_of_independent_figures(tmp_path: Path, printed: Printed) -> None:
    for name, value, images in (("A", 1.0, 10), ("B", 3.0, 12)):
        (ran(Path(name), value, images=images) / "manifest.csv").write_text("index,seed,label,sha256\n")
    lines = printed("compare", "A", "B")
    assert "metrics; B - A: with the error of independent figures" in lines
    assert ["fid", "1.00", "+-", "0.25", "3.00", "+-", "0.25", "2.00", "+-", "0.35"] in [line.split() for line in lines]
    assert any("not to be compared (B: images: 12, not 10)" in line for line in lines)


def test_trainings_are_compared_by_their_last_losses(tmp_path: Path, printed: Printed) -> None:
    trained(Path("A"), fixed_loss=0.4, fixed_loss_error=0.03)
    trained(Path("B"), duration=3, fixed_loss=0.3, fixed_loss_error=0.04)
    lines = [line.split() for line in printed("compare", "A", "B")]
    assert ["duration_kimg", "2", "3"] in lines
    assert ["fixed_loss", "0.400", "+-", "0.030", "0.300", "+-", "0.040", "-0.100", "+-", "0.050"] in lines


def test_a_damaged_manifest_is_named(tmp_path: Path, printed: Printed) -> None:
    for name in ("A", "B"):
        (ran(Path(name)) / "manifest.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"A/manifest\.csv: not readable"):
        printed("compare", "A", "B")


# ---- removal


def test_remove_asks_on_a_terminal(several: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer in ("", "n", "yess"):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert printed("remove", "outputs/a")[-1] == "nothing is removed"
    assert (several / "a").is_dir()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    lines = printed("remove", "outputs/a", "outputs/d")
    assert lines[0].startswith("outputs/a: sample, done, ")
    assert lines[1].startswith("outputs/d: sample, stopped, at 3 of 10 images, ")
    assert lines[2].startswith("removed 2, ")
    assert sorted(path.name for path in several.iterdir()) == ["b", "c", "e"]


def test_a_run_at_work_stays(tmp_path: Path, printed: Printed) -> None:
    sweep = Path("multirun/s")
    ran(sweep / "a")
    swept(sweep)
    with RunLock(unfinished(sweep / "b")):
        for word in (sweep, sweep / "b"):
            with pytest.raises(
                InputError, match=f"multirun/s/b: running, .*process {os.getpid()} on .*; stop it first"
            ):
                printed("remove", str(word), "--yes")
            found = next(find(word))
            with pytest.raises(InputError, match="works there; stop it first"):
                removal.remove(found)
    assert not list(sweep.rglob(".lock")), "the refusal leaves no lock behind"
    printed("remove", str(sweep), "--yes")
    assert not sweep.exists()


def test_what_others_read_stays(tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(Path("outputs/train/x-01234567"))
    calibrated(Path("outputs/calibrate/k"), f"{model}/model.safetensors")
    record = calibrated(Path("outputs/calibrate/r"))
    ran(Path("multirun/s/a"), config={"record": f"{tmp_path}/{record}/score_norm.safetensors"})
    swept(Path("multirun/s"))
    with pytest.raises(
        InputError, match="x-01234567: outputs/calibrate/k names checkpoint=outputs/train/x-01234567/mo"
    ):
        printed("remove", str(model), "--yes")
    with pytest.raises(
        InputError, match=r"calibrate/r: multirun/s/a names record=.*; remove these too, or add --force"
    ):
        printed("remove", str(record), "--yes")
    printed("remove", str(model), "outputs/calibrate/k", "--yes")
    printed("remove", str(record), "--yes", "--force")
    assert [run.path.as_posix() for run in find(Path())] == ["multirun/s"]


def test_a_table_names_its_checkpoint(tmp_path: Path, printed: Printed) -> None:
    model = trained(Path("outputs/train/x-01234567"))
    folder = Path("outputs/table/t")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text('{"cells": []}')
    (folder / "config.yaml").write_text(f"identity: 0123abcd\ntable: t\noverrides: [checkpoint={model}]\n")
    with pytest.raises(InputError, match=f"{model}: outputs/table/t names overrides={model}"):
        printed("remove", str(model), "--yes")
    with pytest.raises(InputError, match="names overrides"):
        printed("remove", "outputs/train/../train/x-01234567", "--yes")


def test_links_are_never_followed(tmp_path: Path, printed: Printed) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    run = ran(Path("outputs/a"))
    (run / "link").symlink_to(outside)
    (run / "file").symlink_to(outside / "kept")
    Path("outputs/b").symlink_to(run.resolve())
    Path("outputs/c").symlink_to(outside)
    assert paths(printed()) == ["outputs/a"]
    for name in ("b", "c"):
        with pytest.raises(InputError, match=f"outputs/{name}: is a link to /.*; give the run directory itself"):
            printed("remove", f"outputs/{name}", "--yes")
    printed("remove", "outputs/a", "--yes")
    assert not run.exists()
    assert (outside / "kept").read_text() == "kept"


FOREIGN = {
    "config.yaml": "identity: my own\n",
    "multirun.yaml": "hydra:\n  run: {}\n",
    "plan.json": "[]",
    "outcome.json": "[]",
    ".lock": "",
    "error.log": "Error: x",
}
"""Files of other programs that have the names of ours."""


@pytest.mark.parametrize("name", ["plain", *FOREIGN, "outputs"])
def test_what_is_no_run_stays(name: str, tmp_path: Path, printed: Printed) -> None:
    ran(Path("outputs/a"))
    Path(name).mkdir(exist_ok=True)
    if name in FOREIGN:
        Path(name, name).write_text(FOREIGN[name])
    with pytest.raises(InputError, match=f"{name}: no directory of a run, a sweep or a table"):
        printed("remove", name, "--yes")
    assert Path(name).is_dir()


def test_numbers_that_no_run_has_break_nothing(tmp_path: Path, printed: Printed) -> None:
    """Beyond a float, not finite, or of another type."""
    huge = int("9" * 400)
    lasts: list[dict[str, Any]] = [
        {"kimg": huge},
        {"loss": huge},
        {"loss": math.nan},
        {"kimg": math.inf},
        {"loss": [1]},
    ]
    for k, last in enumerate(lasts):
        trained(Path(f"outputs/{k}"), **{"fixed_loss": 0.5, **last})
    trained(Path("outputs/5"), duration=math.inf)
    save_file({"index": torch.zeros(3)}, unfinished(Path("outputs/6"), seeds="0-" + "9" * 30) / "shards/1.safetensors")
    assert len(printed()) == 8
    assert len(json.loads("\n".join(printed("--json")))) == 7
    for k in range(7):
        assert printed("show", f"outputs/{k}")


@pytest.mark.parametrize("moment", ["rename", "unlink"])
def test_a_kill_leaves_a_whole_run_or_none(moment: str, tmp_path: Path, printed: Printed) -> None:
    """Killed before the directory is renamed, or after the first of its files is deleted."""
    run = ran(Path("outputs/a"))
    files = sorted(path.name for path in run.iterdir())
    child = os.fork()
    if not child:
        os._exit(_killed_at(moment, run))
    assert ended(child) == 9
    if moment == "rename":
        assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == files
        assert paths(printed()) == ["outputs/a"]
        return
    (left,) = Path("outputs").iterdir()
    assert left.name.startswith(".a.")
    assert len(list(left.iterdir())) < len(files) + 1
    assert printed()[-1] == "no runs"
    printed("remove", str(ran(Path("outputs/b"))), "--yes")
    assert list(Path("outputs").iterdir()) == [], "the next removal clears the rest away"


def _killed_at(moment: str, run: Path) -> int:
    true = {"rename": os.rename, "unlink": os.unlink}[moment]

    def die(*words: object, **options: object) -> None:
        if moment == "unlink":
            true(*words, **options)  # type: ignore[operator]
        os._exit(9)

    setattr(os, moment, die)
    removal.remove(next(find(run)))
    return 0


def test_a_lock_that_is_a_link_is_not_opened(tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "outside").write_text("kept")
    (ran(Path("outputs/a")) / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="outputs/a: cannot be removed"):
        printed("remove", "outputs/a", "--yes")
    assert (tmp_path / "outside").read_text() == "kept"


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(Path("outputs/a"))

    def refuse(path: Path) -> None:
        raise OSError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(InputError, match=r"outputs/a: cannot be removed \(Permission denied: outputs/\.a"):
        printed("remove", "outputs/a", "--yes")
    assert printed()[-1] == "no runs"
