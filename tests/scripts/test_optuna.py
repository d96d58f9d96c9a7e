"""Studies by Optuna: every script gives it a value, a killed study ends as one that ran through, pruning, refusals."""

import json
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
from omegaconf import OmegaConf
from runs import Child, script, wait_for

from scoreline.calibration.objective_value import VALUES
from scoreline.config import optuna_study
from scoreline.config.optuna_study import ResumedStudy
from scoreline.errors import InputError
from scoreline.scripts import calibrate, sample, train
from scoreline.storage.run_history import records
from scoreline.tables import study
from scoreline.tables.study import Trials
from scoreline.training.pruning import curve, pruned_at

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy 1.4, for its next version

STUDY = ["-m", "hydra/sweeper=optuna"]
TRAIN = ["model.network.width=8", "batch_size=32", "duration_kimg=0.128", "lr_rampup_kimg=0"]
TRAIN += ["preview_kimg=1", "checkpoint_kimg=1", "fixed_loss_kimg=0.064"]
SAMPLE = ["checkpoint=digits_vp", "schedule=karras", "schedule.exponent=interval(1,9)", "nfe=4", "seeds=0-15"]
SAMPLE += ["solver=choice(deis_tab1,deis_tab2,ipndm3)", "hydra.sweeper.n_trials=5", "optimise=sliced_wasserstein"]


def trials(where: Path) -> Trials:
    return study.read(where)


def drawn(found: Trials) -> list[tuple[int, dict[str, Any], float]]:
    """Numbers, parameters and values, in order of the numbers."""
    rows = [(it.number, dict(it.drawn), it.value.value) for it in found.trials if it.value]
    return sorted(rows, key=lambda row: row[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of sample.py that ran through."""
    where = tmp_path_factory.mktemp("whole")
    script("sample.py", where, *STUDY, *SAMPLE, "hydra.sweep.dir=study")
    return where / "study"


def test_a_killed_study_ends_as_one_that_ran_through(whole: Path, tmp_path: Path) -> None:
    words = [*STUDY, *SAMPLE, "hydra.sweep.dir=study"]
    child = Child("sample.py", tmp_path, *words)
    wait_for(lambda: len(list(tmp_path.glob("study/*/config.yaml"))) == 3, child)
    assert child.end(signal.SIGKILL)[0] == -signal.SIGKILL
    killed = trials(tmp_path / "study")
    assert [it.number for it in killed.trials if it.state == "unfinished"] == [2]
    more = script("sample.py", tmp_path, *words, "hydra.sweeper.n_trials=6")
    assert "best of 6 trials" in more
    found = drawn(trials(tmp_path / "study"))
    assert found[:5] == drawn(trials(whole))
    assert [row[0] for row in found] == [0, 1, 2, 3, 4, 5]
    assert len(list((tmp_path / "study").glob("*/metrics.json"))) == 6


def test_the_value_of_sample_is_the_score_that_was_asked_for(whole: Path) -> None:
    for trial in trials(whole).trials:
        score = json.loads((trial.directory / "metrics.json").read_text())["metrics"]["sliced_wasserstein"]
        assert trial.value == (score["value"], score["error"], 16)
        assert trial.name == "sliced_wasserstein"
    best = OmegaConf.load(whole / "optimization_results.yaml").best_value
    assert trials(whole).trials[0].value.value == best == min(row[2] for row in drawn(trials(whole)))  # type: ignore[union-attr]


def test_the_report_of_a_study(whole: Path) -> None:
    done = forks.call("scoreline", "report", "study", cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2] == "| trial | schedule.exponent | solver | sliced_wasserstein | n | state | directory |"
    found = trials(whole)
    assert [line.split(" ")[1] for line in lines[4:9]] == [str(it.number) for it in found.trials]
    assert "**" in lines[4]
    assert study.command(found.trials[0]) in lines
    assert study.command(found.trials[0]).startswith("python sample.py schedule.exponent=")
    assert {"study.md", "study.tex", "study.csv", "study.png"} <= {path.name for path in whole.iterdir()}
    table = (whole / "study.csv").read_text().splitlines()
    assert len(table) == 6
    assert table[0] == "trial,schedule.exponent,solver,metric,value,error,n,state,directory,command"
    for_metric = forks.call("scoreline", "report", "study", "metric=recall", cwd=whole.parent)
    assert for_metric.stdout.startswith("| recall | NFE 4 |"), for_metric.stderr


def test_a_trial_without_a_value_is_one_line_and_the_study_exits_with_2(tmp_path: Path) -> None:
    words = ["checkpoint=digits_vp", "nfe=choice(0,3)", "metrics=digits", "seeds=0-7", "hydra.sweeper.n_trials=4"]
    done = forks.call("sample", *STUDY, *words, "hydra.sweep.dir=study", cwd=tmp_path)
    states = [it.state for it in trials(tmp_path / "study").trials]
    assert done.returncode == 2
    assert set(states) == {"complete", "failed"}
    lost = states.count("failed")
    assert done.stderr.count(": nfe=0: must be a whole number, at least 1") == lost
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"{lost} of 4 trials have no value, for the reasons above; the same command draws others"
    )
    none = forks.call("sample", *STUDY, *words[:1], "nfe=3", "metrics=none", "seeds=choice(0,1)",
                      "hydra.sweeper.n_trials=2", "hydra.sweep.dir=none", cwd=tmp_path)  # fmt: skip
    assert none.returncode == 2
    assert "the trial has no value to compare: it returns None" in none.stderr
    assert none.stderr.splitlines()[-1].startswith("sample.py: hydra/sweeper=optuna: no trial has a value")
    assert "Traceback" not in none.stderr


def test_the_value_of_train_is_its_last_fixed_loss_and_bad_trials_are_pruned(tmp_path: Path) -> None:
    for k in range(2):  # two runs that ended beside it
        other = tmp_path / "study" / f"other{k}"
        other.mkdir(parents=True)
        rows = [{"step": 2, "kimg": 0.064, "fixed_loss": 0.9}, {"step": 4, "kimg": 0.128, "fixed_loss": 1e-3}]
        (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *STUDY,
        "callbacks=pruning",
        "callbacks.pruning.least_runs=2",
        *TRAIN,
        "optimiser.lr=choice(1e-2,1e-9)",
        "hydra.sweep.dir=study",
    ]
    said = script("train.py", tmp_path, *words, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    assert "best of 2 trials" in said
    found = trials(tmp_path / "study").trials
    states = {it.drawn["optimiser.lr"]: it.state for it in found}
    assert states == {0.01: "pruned at 0.128 kimg", 1e-09: "pruned at 0.064 kimg"}
    for trial in found:
        last = [row for row in records(trial.directory / "metrics.jsonl") if "fixed_loss" in row][-1]
        assert trial.value == (last["fixed_loss"], last["fixed_loss_error"], 256)
    assert {len(records(it.directory / "metrics.jsonl")) for it in found} == {2, 3}

    again = script("train.py", tmp_path, "-m", *words[2:4], *TRAIN, "optimiser.lr=1e-9", "hydra.sweep.dir=study")
    assert "stopped early, at 0.064 kimg" in again, "a run that was pruned stays so"


def test_a_trial_that_measures_no_value_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train, calibrate, optuna_study):
        monkeypatch.setattr(module, "in_study", lambda: True)
    lacking: Any = SimpleNamespace(run=SimpleNamespace(path=tmp_path), fixed_loss_kimg=8, duration=4000)
    with pytest.raises(InputError, match=r"fixed_loss_kimg=8: no fixed_loss was measured.* duration_kimg=4$"):
        train._validation_loss(lacking)
    with pytest.raises(InputError, match="a score_norm record has no value that a study can improve"):
        calibrate.refuse_no_value(SimpleNamespace(kind="score_norm"))
    calibrate.refuse_no_value(SimpleNamespace(kind="search"))
    scored = {"metrics": {"recall": {"value": 0.5}, "kid": {"value": 0.1}}}
    assert (sample._score(None, scored), sample._score("kid", scored)) == (0.5, 0.1)
    with pytest.raises(InputError, match="optimise=beauty: not a score of this run; choose one of recall, kid"):
        sample._score("beauty", scored)
    for value in (None, float("nan"), float("inf"), "0.5"):
        with pytest.raises(InputError, match="the trial has no value to compare"):
            optuna_study.check_value(value)
    optuna_study.check_value(0.5)


def test_the_value_of_calibrate_is_that_of_its_record(tmp_path: Path) -> None:
    words = ["calibration=score_optimal", "calibration.levels=choice(8,12)", "nfe=4", "seeds=0-7"]
    script("calibrate.py", tmp_path, *STUDY, *words, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=study")
    found = trials(tmp_path / "study").trials
    assert len(found) == 2
    for trial in found:
        assert trial.value is not None
        assert trial.name == "score_optimal value"
        assert trial.value.value > trial.value.error > 0  # type: ignore[operator]
        assert study.command(trial).startswith("python calibrate.py calibration.levels=")


def test_values_of_records() -> None:
    import torch

    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    error = torch.tensor([[0.1, 9.0], [0.3, 9.0]])
    assert VALUES["search"]({"mean": mean, "standard_error": error})[:2] == pytest.approx((2.0, 0.2))
    learned = {"learned": mean[:, 0], "learned_error": error[:, 0]}
    assert VALUES["tableau"](learned)[:2] == pytest.approx((2.0, 0.2))


def test_a_curve_is_the_lowest_loss_so_far(tmp_path: Path) -> None:
    losses = [(0.1, 3.0), (0.208, 1.0), (0.304, 2.0)]  # in batches of 16: the first steps after 100, 200, 300 images
    rows = [{"kimg": kimg, "fixed_loss": loss} for kimg, loss in losses]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curve(tmp_path, 100) == {1: 3.0, 2: 1.0, 3: 1.0}
    assert pruned_at(tmp_path) is None


def study_config(folder: Path, **changes: Any) -> Any:
    sweeper = {"n_trials": 2, "n_jobs": 1, "direction": "minimize", "storage": f"sqlite:///{folder}/study.db"}
    whole = {"sweeper": {**sweeper, "study_name": "sample", **changes}, "sweep": {"dir": str(folder)}}
    return OmegaConf.create({"lock": "refuse", "hydra": whole})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: must be a whole number, at least 1"),
        ({"n_jobs": 1.5}, "hydra.sweeper.n_jobs=1.5: must be a whole number"),
        ({"direction": "down"}, "hydra.sweeper.direction=down: there is no such choice"),
        ({"storage": "nowhere"}, "hydra.sweeper.storage=nowhere: "),
        ({"direction": "maximize"}, "the study in sqlite:///FOLDER/study.db has the other one"),
    ],
)
def test_a_mistake_in_the_sweeper_is_one_line(
    changes: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna_study.open_study(study_config(tmp_path).hydra.sweeper)
    with pytest.raises(SystemExit) as left:
        ResumedStudy().on_multirun_start(study_config(tmp_path, **changes))
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert sentence.replace("FOLDER", str(tmp_path)) in line


def test_without_the_plugin_or_a_sweep_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optuna_study, "PLUGIN", "hydra_plugins.hydra_no_sweeper")
    with pytest.raises(SystemExit) as left:
        ResumedStudy().on_multirun_start(study_config(tmp_path))
    assert left.value.code == 2
    assert "hydra/sweeper=optuna needs one more package: pip install 'scoreline[sweep]'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        ResumedStudy().on_run_start()
    assert left.value.code == 2
    assert "hydra/sweeper=optuna: a study is a sweep; add -m" in capsys.readouterr().err


def test_a_file_that_is_no_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / study.FILE).write_bytes(b"nothing of the kind" * 100)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"study\.db: not the storage of one study"):
        study.read(tmp_path)
