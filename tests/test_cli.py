"""The scripts as a user meets them: processes, exit codes, one line for each mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import forks
import lightning  # noqa: F401  forked scripts start with it
import pytest
from forks import call
from small_models import save_small

from scoreline.cli import MODULES, VERBS, main
from scoreline.config import calibrate_config, script, train_config
from scoreline.config.compose import script_config
from scoreline.config.run_names import _safe
from scoreline.errors import InputError
from scoreline.scripts import sample

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small untrained model, a conditional one, and files that are no models."""
    root = tmp_path_factory.mktemp("cli")
    for name, classes in (("small", 0), ("conditional", 10)):
        save_small(root / f"{name}.safetensors", classes)
    (root / "junk.safetensors").write_bytes(b"junk")
    return root


BEFORE_TORCH = [
    ("sample", "nfee=3", "nfee: there is no such key; did you mean 'nfe'?"),
    ("sample", "sovler=ddim", "sovler: there is no such key; did you mean 'solver'?"),
    ("sample", "solver=deis_tab9", "solver=deis_tab9: there is no such choice; did you mean 'deis_tab"),
    ("sample", "solver.ordre=3", "solver.ordre: there is no such key; did you mean 'solver.order'?"),
    ("sample", "+foo=1", "+foo: no script reads a new key 'foo'; drop it"),
    ("sample", "+nfe=3", "+nfe: there is such a key already; write it without +"),
    ("sample", "solver=5", "solver=5: there is no such choice"),
    ("sample", "nfe", "nfe: not of the form key=value"),
    ("sample", "nfe=2.5", "nfe=2.5: must be a whole number"),
    ("sample", "checkpoint=nowhere.safetensors", "checkpoint=nowhere.safetensors: no such file"),
    ("sample", "table=deis_digts", "table=deis_digts: there is no such choice; did you mean 'deis_digits'?"),
    ("sample", "table=deis_digits budget=smal", "budget=smal"),
    (
        "calibrate",
        "calibration=score_nrm",
        "calibration=score_nrm: there is no such choice; did you mean 'score_norm'",
    ),
    ("train", "experiment=digts_vp", "experiment=digts_vp: there is no such choice; did you mean 'digits_vp'?"),
    ("train", "optimiser.lrr=1", "optimiser.lrr: there is no such key; did you mean 'optimiser.lr'?"),
    ("train", "duration_kimg=0", "duration_kimg=0: must be a number greater than 0"),
]

PLAIN = [
    ("sample", "nfe=0", "nfe=0: must be a whole number, at least 1"),
    ("sample", "nfe=two", "nfe=two: must be a whole number"),
    ("sample", "batch_size=-4", "batch_size=-4: must be a whole number"),
    ("sample", "network_batch=0", "network_batch=0"),
    ("sample", "trajectory_nfe=0.5", "trajectory_nfe=0.5"),
    ("sample", "jobs=0", "jobs=0"),
    ("sample", "seeds=3-1", "seeds=3-1: the range 3-1 runs backwards"),
    ("sample", "seeds=abc", "seeds=abc: 'abc' is neither a number nor a range such as 0-63"),
    ("sample", "trajectories=x", "trajectories=x"),
    ("sample", "sigma_max=0", "sigma_max=0"),
    ("sample", "sigma_min=-1", "sigma_min=-1: must be a number greater than 0"),
    ("sample", "sigma_min=small", "sigma_min=small"),
    ("sample", "final=zero", "final=zero: choose none"),
    ("sample", "format=pngs", "format=pngs"),
    ("sample", "labels=fixd:3", "labels=fixd:3"),
    ("sample", "labels=nowhere.txt", "labels=nowhere.txt"),
    ("sample", "wandb=of", "wandb=of"),
    ("sample", "sweep.on_error=go", "sweep.on_error=go"),
    ("calibrate", "nfe=0", "nfe=0"),
    ("calibrate", "wandb=of", "wandb=of: there is no such choice; did you mean 'off'"),
    ("calibrate", "seeds=abc", "seeds=abc"),
    ("calibrate", "checkpoint=nowhere", "checkpoint=nowhere"),
    ("train", "batch_size=none", "batch_size=none: must be a whole number"),
    ("train", "wandb=yes", "wandb=yes: there is no such choice; choose from off, offline, online"),
]
"""Values that are refused before torch is imported, as those above are."""

AFTER_TORCH = [
    ("sample", "solver.order=7", "solver.order=7: DEIS has the orders"),
    ("sample", "sigma_max=0.001", "sigma_max=0.001: choose 0 <= sigma_min < sigma_max"),
    ("sample", "labels=fixed:3", "labels=fixed:3: this checkpoint is unconditional"),
    ("sample", "device=gpu0", "device=gpu0: not available here"),
    ("sample", "checkpoint=junk.safetensors", "checkpoint=junk.safetensors: not a readable safetensors file"),
    ("sample", "solver=deis_sn", "small.score_norm.safetensors: no such record; make one with: python calibrate.py"),
    ("sample", "seeds=0-2", "metrics: the generated images are 3, too few"),
    ("calibrate", "solver=heun", "score_norm needs strictly decreasing noise levels"),
    ("calibrate", "seeds=4", "seeds: a standard error needs at least two images"),
    ("train", "resume=nowhere.ckpt", "resume=nowhere.ckpt: no loadable checkpoint there"),
    ("train", "dataset.split=tran", "dataset.split=tran: there is no such choice; did you mean 'train'"),
    ("train", "model.network.resolution=9", "model.network.resolution=9: digits-train has 8; set the key to 8"),
    ("train", "model.network.embedding=sin", "model.network.embedding=sin: there is no such choice"),
]


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("torch", "numpy", "lightning", "matplotlib")))
import scoreline.config.script
from forks import call
print(json.dumps([vars(call(*words, cwd=Path.cwd())) for words in json.loads(sys.argv[1])]))
"""
"""Runs each command in a fork of one process that can import nothing heavy."""


@pytest.fixture(scope="module")
def refusals(workplace: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """How the scripts end that are given the mistakes of BEFORE_TORCH."""
    words = json.dumps([[script, *argument.split()] for script, argument, _ in BEFORE_TORCH])
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, "-c", WITHOUT_TORCH, words]
    done = subprocess.run(
        program, cwd=workplace, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip([row[:2] for row in BEFORE_TORCH], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("script", "argument", "sentence"), BEFORE_TORCH, ids=lambda value: str(value)[:28])
def test_a_mistake_is_one_line_before_torch(
    script: str, argument: str, sentence: str, refusals: dict[tuple[str, str], dict[str, Any]]
) -> None:
    done = refusals[script, argument]
    (line,) = done["stderr"].splitlines()
    assert done["returncode"] == 2
    assert line.startswith(f"{script}.py: ")
    assert sentence in line


@pytest.mark.parametrize(("script", "argument", "sentence"), PLAIN, ids=lambda value: str(value)[:28])
def test_plain_mistakes_are_refused(script: str, argument: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_SCRIPT", f"{script}.py")
    read = {"sample": sample.read, "train": train_config.read, "calibrate": calibrate_config.read}[script]
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(script_config(script, [argument, "hydra.runtime.output_dir=out"]))


@pytest.mark.parametrize(("script", "argument", "sentence"), AFTER_TORCH, ids=lambda value: str(value)[:28])
def test_a_mistake_is_one_line(script: str, argument: str, sentence: str, workplace: Path) -> None:
    given = [] if script == "train" or argument.startswith("checkpoint=") else ["checkpoint=small.safetensors"]
    done = call(script, *given, argument, cwd=workplace)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}.py: ")
    assert sentence in line


@pytest.mark.parametrize("script", ["train", "sample", "calibrate"])
def test_help_is_written_for_a_person_and_quick(script: str, tmp_path: Path) -> None:
    code = (
        "import resource, runpy, sys\n"
        f"sys.argv = [{str(ROOT / f'{script}.py')!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'lightning', 'numpy', 'matplotlib'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"python {script}.py" in done.stdout
    assert "Groups:" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), "heavy imports wait"
    assert list(tmp_path.iterdir()) == []


def observed(program: str, words: Sequence[str], cwd: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A program with these words in place of sys.argv[1:], and the modules that are there when it ends."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('modules:', *sys.modules))\n"
        f"sys.argv = [sys.argv[0], *{list(words)!r}]\n{program}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)
    found = [line for line in done.stdout.splitlines() if line.startswith("modules: ")]
    assert len(found) == 1, done.stderr
    return done, set(found[0].split()[1:])


def of_script(script: str) -> str:
    path = str(ROOT / f"{script}.py")
    return f"sys.argv[0] = {path!r}; runpy.run_path({path!r}, run_name='__main__')"


HEAVY = {"lightning", "wandb", "torchmetrics", "scipy", "sklearn", "pandas", "torchvision"}
COMPILER = {"sympy", "torch._dynamo", "torch._inductor", "torch.distributed.fsdp"}


def test_sample_and_calibrate_never_import_lightning(workplace: Path) -> None:
    words = ("checkpoint=small.safetensors", "nfe=3", "seeds=0-7", "hydra.run.dir=imports")
    _, drawn = observed(of_script("sample"), words, workplace)
    assert (workplace / "imports/metrics.json").is_file()
    assert "torch" in drawn
    assert not drawn & {*HEAVY, *COMPILER, "matplotlib"}
    _, measured = observed(of_script("calibrate"), (*words[:3], "hydra.run.dir=imports2"), workplace)
    assert (workplace / "imports2/score_norm.safetensors").is_file()
    assert not measured & HEAVY


VERBS_IN_TURN = """
import contextlib
from scoreline.cli import main
for line in ("--help", "doctor --quick", "inspect digits_vp", "show solver=ddim nfe=3",
             "prefetch --help", "evaluate --help", "report --help"):
    sys.argv[1:] = line.split()
    with contextlib.suppress(SystemExit):
        main()
"""


def test_verbs_that_do_not_train_never_import_lightning(workplace: Path) -> None:
    done, modules = observed(VERBS_IN_TURN, [], workplace)
    assert "torch" in modules
    assert "scoreline report" in done.stdout
    assert not modules & {"lightning", "wandb", "torchmetrics", "sklearn"}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_names_its_keys(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scoreline", verb, "--help"])
    main()
    printed = capsys.readouterr().out
    assert f"scoreline {verb}" in printed
    assert max(map(len, printed.splitlines())) <= 80
    module = import_module(f"scoreline.commands.{MODULES.get(verb, verb.replace('-', '_'))}")
    assert not [key for key in getattr(module, "OWN", ()) if key not in printed.lower()]


def test_help_names_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scoreline"])
    main()
    printed = capsys.readouterr().out.splitlines()
    assert {*VERBS} <= {line.split()[0] for line in printed if line.startswith("  ")}
    assert max(map(len, printed)) <= 80


def test_a_missing_compiler_names_the_remedy(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(workplace))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(workplace / "kernels"))
    monkeypatch.delenv("CXX", raising=False)
    done = call("sample", "checkpoint=small.safetensors", "compile=default", "nfe=3", cwd=workplace)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert all(word in last for word in ("sample.py: compile", "C++", "g++", "CXX", "compile=none")), done.stderr


def test_sampling_writes_what_it_says_and_never_twice(workplace: Path) -> None:
    arguments = ("checkpoint=small.safetensors", "nfe=4", "seeds=0-15", "final=denoise", "hydra.run.dir=one")
    first = call("sample", *arguments, cwd=workplace)
    assert first.returncode == 0, first.stderr
    out = workplace / "one"
    import numpy as np

    arrays = np.load(out / "samples.npz", allow_pickle=False)
    assert arrays["arr_0"].shape == (16, 8, 8, 1)
    assert arrays["arr_0"].dtype == np.uint8
    result = json.loads((out / "metrics.json").read_text())
    assert (result["nfe"], result["images"], result["sigma_end"]) == (4, 16, 0.0)
    assert all({"value", "error", "n"} == set(score) for score in result["metrics"].values())
    assert first.stdout.splitlines()[-1].startswith("16 images, NFE 4, ")
    assert (out / "grid.png").is_file()
    assert "noise_schedule" in (out / "config.yaml").read_text()
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file() and path.suffix != ".log"}
    again = call("sample", *arguments, cwd=workplace)
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert again.stdout.startswith("note: this run was finished before")
    other = call("sample", *arguments[1:], "checkpoint=conditional.safetensors", cwd=workplace)
    assert other.returncode == 2
    assert "hydra.run.dir=one: holds run" in other.stderr
    kept = {name: (out / name).stat().st_mtime_ns for name in stamps}
    assert kept == stamps


def test_run_without_its_files_starts_again(workplace: Path) -> None:
    arguments = ("checkpoint=small.safetensors", "nfe=4", "seeds=0-3", "metrics=none", "hydra.run.dir=again")
    out = workplace / "again"
    assert call("sample", *arguments, cwd=workplace).returncode == 0
    before = {name: (out / name).read_bytes() for name in ("samples.npz", "manifest.csv")}
    (out / "samples.npz").unlink()
    done = call("sample", *arguments, cwd=workplace)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "note: samples.npz is gone; repeating this run")
    (out / "manifest.csv").write_text("x")
    (out / "metrics.json").write_text("")
    done = call("sample", *arguments, cwd=workplace)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "note: metrics.json is cut short; repeating this run",
    )
    assert {name: (out / name).read_bytes() for name in before} == before
    assert json.loads((out / "metrics.json").read_text())["images"] == 4


def test_metrics_of_another_kind_are_refused(workplace: Path) -> None:
    (workplace / "strange").mkdir()
    (workplace / "strange" / "metrics.json").write_text("{}")
    done = call("sample", "checkpoint=small.safetensors", "nfe=4", "hydra.run.dir=strange", cwd=workplace)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("sample.py: strange/metrics.json: not the metrics of sample.py")
    assert (workplace / "strange" / "metrics.json").read_text() == "{}"


def test_kill_9_while_sampling_leaves_nothing_half_written(workplace: Path) -> None:
    arguments = ("checkpoint=small.safetensors", "nfe=60", "seeds=0-255", "network_batch=16", "hydra.run.dir=killed")
    out = workplace / "killed"
    children = forks.start(str(ROOT / "sample.py"), workplace, *arguments)
    while not (out / "config.yaml").exists():
        assert os.waitpid(children[0], os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    assert forks.killed(children) == [-9]
    assert {path.name for path in out.iterdir()} <= {".lock", "config.yaml", "shards"}
    done = call("sample", *arguments, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "metrics.json").read_text())["images"] == 256


def test_run_directory_depends_on_what_matters_only(workplace: Path) -> None:
    where = workplace / "where"
    where.mkdir()
    for name in ("small", "conditional"):
        shutil.copy(workplace / f"{name}.safetensors", where)
    base = ("checkpoint=small.safetensors", "nfe=2", "metrics=none", "seeds=0-3")
    for extra in ((), ("batch_size=2",), ("final=denoise",)):
        assert call("sample", *base, *extra, cwd=where).returncode == 0
    assert len(list((where / "outputs/sample").iterdir())) == 2
    shutil.copy(where / "conditional.safetensors", where / "small.safetensors")
    assert call("sample", *base, cwd=where).returncode == 0
    assert len(list((where / "outputs/sample").iterdir())) == 3


def test_conditional_labels_are_recorded(workplace: Path) -> None:
    import numpy as np

    done = call(
        *("sample", "checkpoint=conditional.safetensors", "nfe=2", "metrics=none", "seeds=10-19", "labels=balanced"),
        "hydra.run.dir=labels",
        cwd=workplace,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(workplace / "labels/samples.npz")["arr_1"].tolist() == list(range(10))


def test_sweep_survives_a_bad_cell(workplace: Path) -> None:
    arguments = ("-m", "checkpoint=small.safetensors", "solver=ddim,heun", "nfe=1,2", "seeds=0-7")
    done = call("sample", *arguments, "hydra.sweep.dir=sweep", cwd=workplace)
    assert done.returncode == 0, done.stderr
    cells = sorted(path.name for path in (workplace / "sweep").iterdir() if path.is_dir())
    assert cells == [
        f"checkpoint=small.safetensors,nfe={nfe},seeds=0-7,solver={solver}"
        for nfe in (1, 2)
        for solver in ("ddim", "heun")
    ]
    assert _safe("checkpoint=a/model.safetensors") != _safe("checkpoint=b/model.safetensors")
    assert _safe("solver=ddim") == "solver=ddim"
    for cell in cells:
        files = {path.name for path in (workplace / "sweep" / cell).iterdir()}
        assert {"config.yaml", "metrics.json", "grid.png", "samples.npz"} <= files
    bad = call("sample", *arguments[:3], "nfe=0,3", "seeds=0-7", "hydra.sweep.dir=bad", cwd=workplace)
    assert bad.returncode == 2
    assert "nfe=0: must be a whole number" in bad.stderr
    assert "Traceback" not in bad.stderr
    finished = {json.loads(path.read_text())["solver"] for path in (workplace / "bad").rglob("metrics.json")}
    assert finished == {"ddim", "heun"}


def test_calibrate_then_deis_sn_and_a_stale_record(workplace: Path) -> None:
    where = workplace / "record"
    where.mkdir()
    for name in ("small", "conditional"):
        shutil.copy(workplace / f"{name}.safetensors", where)
    done = call("calibrate", "checkpoint=small.safetensors", "nfe=20", "seeds=0-7", "hydra.run.dir=cal", cwd=where)
    assert done.returncode == 0, done.stderr
    assert (where / "cal/score_norm.png").is_file()
    beside = where / "small.score_norm.safetensors"
    stamp = beside.stat().st_mtime_ns
    again = call("calibrate", "checkpoint=small.safetensors", "nfe=21", "seeds=0-7", "hydra.run.dir=cal2", cwd=where)
    assert "record=cal2/score_norm.safetensors" in again.stdout
    assert beside.stat().st_mtime_ns == stamp
    arguments = ("solver=deis_sn", "nfe=3", "metrics=none", "seeds=0-3")
    assert call("sample", "checkpoint=small.safetensors", *arguments, cwd=where).returncode == 0
    first = {path.name for path in (where / "outputs/sample").iterdir()}
    shutil.copy(where / "cal2/score_norm.safetensors", beside)
    assert call("sample", "checkpoint=small.safetensors", *arguments, cwd=where).returncode == 0
    assert len({path.name for path in (where / "outputs/sample").iterdir()} - first) == 1, "a new record is a new run"
    stale = call("sample", "checkpoint=conditional.safetensors", f"record={beside}", *arguments, cwd=where)
    assert stale.returncode == 2
    assert "made for checkpoint" in stale.stderr


def test_full_errors_on_request(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in call("sample", "nfe=0", cwd=workplace).stderr


def test_defects_keep_their_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreline.generation.run.clear", None)
    done = call("sample", "checkpoint=small.safetensors", cwd=workplace)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_failed_job_leaves_a_traceback_until_it_succeeds(workplace: Path) -> None:
    words = ("-m", "checkpoint=small.safetensors", "metrics=none", "seeds=0-3", "nfe=4", "solver=heun,ddim")
    failing = (*words, "network_batch=0", "hydra.sweep.dir=told")
    done = call("sample", *failing, cwd=workplace)
    assert done.returncode == 2
    logs = sorted((workplace / "told").glob("*/error.log"))
    assert len(logs) == 2
    assert all("InputError: network_batch=0" in log.read_text() for log in logs)
    assert "solver=heun network_batch=0: network_batch=0: must be a whole number, at least 1\n" in done.stderr


def test_warnings_are_notes_of_one_line() -> None:
    place = ("scoreline/a.py", 3)
    assert script.format_warning(UserWarning("6 of 8 images are JPEG"), UserWarning, *place) == (
        "note: 6 of 8 images are JPEG\n"
    )
    assert "a.py:3: RuntimeWarning: overflow" in script.format_warning("overflow", RuntimeWarning, *place)
