"""`wandb=offline` of every job, read back from W&B's own files: one run for each job, and no job fails for W&B."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forks
import lightning  # noqa: F401  forked commands start with it
import pytest
import sklearn.datasets  # noqa: F401
import yaml
from wandb_files import Offline, no_account, offline_runs

from scoreline.scripts import calibrate, sample  # noqa: F401
from scoreline.storage.files import sha256
from scoreline.storage.wandb_runs import names
from scoreline.tables.wandb_summary import read_run

__all__ = ["no_account"]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_account")

SAMPLE = ("checkpoint=digits_vp", "nfe=4", "seeds=0-15")
CALIBRATE = ("nfe=4", "seeds=0-1", "hydra.run.dir=run")


def the_run(root: Path) -> Offline:
    (found,) = offline_runs(root)
    return found


def on_the_page(run: Offline) -> bool:
    """Whether docs/dashboards.md lists every name of the run's rows."""
    listed = set((ROOT / "docs/dashboards.md").read_text().split())
    return {name for row in run.rows for name in row} <= listed


def sampled(run: Offline, root: Path) -> dict[str, Any]:
    """The only row of samples, which holds what the run directory does."""
    recorded = read_run(root)
    assert recorded
    (row,), (expected,) = run.rows, recorded.rows
    pictures = {name: path for name, path in expected.items() if isinstance(path, Path)}
    assert {name: row[name]["sha256"] for name in pictures} == {name: sha256(it) for name, it in pictures.items()}
    assert {**row, **pictures} == expected
    return row


def test_samples_of_two_processes_are_one_run(tmp_path: Path) -> None:
    """The repeated command, in one process, sends the finished run again under the same id."""
    asked = (*SAMPLE, "trajectories=0", "trajectory_nfe=8", "hydra.run.dir=run", "wandb=offline")
    for child in forks.start(str(ROOT / "sample.py"), tmp_path, *asked, size=2):
        assert forks.ended(child) == 0, (tmp_path / "said-0").read_text()
    first, root = the_run(tmp_path / "run"), tmp_path / "run"
    result = json.loads((root / "metrics.json").read_text())
    row = sampled(first, root)
    assert {"grid", "trajectories"} < set(row)
    assert on_the_page(first)
    score = result["metrics"]["frechet_distance"]
    assert (row["nfe"], row["sample/images"]) == (4, 16)
    assert (row["sample/frechet_distance"], row["sample/frechet_distance_error"]) == (score["value"], score["error"])
    assert (first.name, first.job, first.group, first.axes["*"]) == ("run", "sample", "", "nfe")
    assert first.config["sample"]["solver"] == "velocity_abm2_open"
    assert first.config["nfe"] == 4
    assert str(tmp_path) not in json.dumps(first.config)
    again = forks.call("sample", *asked, cwd=tmp_path)
    assert again.stdout.splitlines()[-1].startswith(f"run: run {first.id}, 1 rows -> run/wandb/offline-run-")
    runs = offline_runs(root)
    assert [run.id for run in runs] == [first.id, first.id]
    assert runs[0].rows == runs[1].rows


def test_calibration_is_a_run_of_its_curves(tmp_path: Path) -> None:
    done = forks.call("calibrate", *CALIBRATE, "wandb=offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run, recorded = the_run(tmp_path / "run"), read_run(tmp_path / "run")
    assert recorded
    assert on_the_page(run)
    assert (run.job, run.axes) == ("calibrate", {"rho": "", "score_norm/*": "rho"})
    assert run.rows[-1].pop("plot")["sha256"] == sha256(recorded.rows[-1].pop("plot"))
    assert run.rows == recorded.rows
    assert len(run.rows) == 4
    assert {"rho", "score_norm/mean_abs_eps", "score_norm/standard_error"} == set(run.rows[0])
    assert run.config["provenance"]["images"] == 2


@pytest.mark.parametrize("sweeper", [(), ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1")], ids=["basic", "optuna"])
def test_jobs_of_a_sweep_share_a_group(sweeper: tuple[str, ...], tmp_path: Path) -> None:
    nfe = "nfe=choice(4,5)" if sweeper else "nfe=4,5"
    done = forks.call("sample", "-m", *sweeper, *SAMPLE[::2], nfe, "wandb=offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = tmp_path.glob("multirun/*")
    cells = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    runs = [the_run(cell) for cell in cells]
    assert {run.group for run in runs} == {sweep.name}
    assert [run.name for run in runs] == [cell.name for cell in cells]
    assert not any("wandb" in cell.name for cell in cells), "the same directory with and without W&B"
    assert len({run.id for run in runs}) == len(cells) >= 1
    assert " rows -> " not in done.stdout


@pytest.mark.parametrize("script", ["train", "sample", "calibrate"])
def test_missing_package_is_one_line_before_anything_runs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = forks.call(script, "wandb=offline", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"{script}.py: wandb: the package is not installed; pip install 'wandb>=0.31,<0.32'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "asked", "mode"),
    [("sample", (*SAMPLE, "hydra.run.dir=run"), "offline"), ("calibrate", CALIBRATE, "online")],
    ids=["no_folder", "no_account"],
)
def test_error_of_wandb_is_one_warning_after_the_results(
    script: str, asked: tuple[str, ...], mode: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    if mode == "offline":
        (tmp_path / "run/wandb").touch()
    done = forks.call(script, *asked, f"wandb={mode}", cwd=tmp_path)
    assert done.returncode == 0
    warning = done.stderr.splitlines()[-1]
    assert warning.startswith("wandb: ")
    assert warning.endswith("; the results are complete without W&B; `scoreline upload run` sends it later")
    assert ("Not a directory" if mode == "offline" else "API key") in warning
    assert "Traceback" not in done.stderr
    assert read_run(tmp_path / "run") is not None


def test_environment_of_wandb_wins_over_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "sweep/cell"
    root.mkdir(parents=True)
    own = names(root, "1234abcd", "sample")
    for key in ("RUN_ID", "PROJECT", "NAME", "JOB_TYPE"):
        monkeypatch.setenv(f"WANDB_{key}", "mine")
    assert names(root, "1234abcd", "sample") == {"group": None}
    assert names(root, "1234abcd", "sample", project="chosen")["project"] == "chosen"
    (root.parent / "multirun.yaml").touch()
    job = names(root, "1234abcd", "sample")
    assert job == {"id": own["id"], "name": "cell", "group": "sweep"}, "one variable names no job of a sweep"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
    assert names(root, "1234abcd", "sample") == {"group": "sweep"}


class Server(BaseHTTPRequestHandler):
    """What `wandb sweep` and `wandb agent` need of a server: it takes a sweep and gives out one job."""

    config = ""
    beats = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        assert name
        answer = json.dumps({"data": self.answer(name[1], asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "teams": {"edges": []}, "flags": "{}"}}
        if name == "UpsertSweep":
            Server.config = variables["config"]
            project = {"id": "p", "name": "scoreline", "entity": {"id": "e", "name": "me"}}
            return {"upsertSweep": {"sweep": {"name": "abcd1234", "project": project}, "configValidationWarnings": []}}
        if name == "SweepWithRuns":
            found = {"id": "s", "name": "abcd1234", "state": "RUNNING", "config": Server.config, "runs": {"edges": []}}
            return {"project": {"sweep": found}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a"}}}
        assert name == "Heartbeat"
        return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(self.commands(variables))}}

    def commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        Server.beats += 1
        parameters = yaml.safe_load(Server.config)["parameters"]
        first = {name: {"value": each["values"][0]} for name, each in parameters.items()}
        if Server.beats == 1:
            return [{"type": "run", "run_id": "theirs", "program": "sample.py", "args": first}]
        return [{"type": "exit"}] if variables["runState"] == "{}" else []

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.mark.slow
def test_agent_runs_the_sweep_of_conf(server: str, tmp_path: Path) -> None:
    """W&B's own `wandb sweep` and `wandb agent` against a stand-in for its server; the jobs stay offline."""
    text = (ROOT / "conf/wandb_sweep.yaml").read_text()
    (tmp_path / "sweep.yaml").write_text(text.replace("seeds=0-4999", "seeds=0-15"))
    folder = Path(sys.executable).parent
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "WANDB_BASE_URL": server, "WANDB_API_KEY": "a" * 40}
    for words, more in ((["sweep", "sweep.yaml"], {}), (["agent", "me/scoreline/abcd1234"], {"WANDB_MODE": "offline"})):
        command = [str(folder / "wandb"), *words]
        environment = {**os.environ, **path, **more}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert f"```yaml\n{text}```\n" in (ROOT / "docs/dashboards.md").read_text()
    (root,) = tmp_path.glob("outputs/sample/*")
    run = the_run(root)
    assert root.name.startswith("ddim-nfe5-")
    assert (run.id, run.sweep, run.project, run.job, run.exit_code) == ("theirs", "abcd1234", "scoreline", "sample", 0)
    assert (run.config["solver"], run.config["nfe"]) == ("ddim", 5)
    assert yaml.safe_load(text)["metric"]["name"] in sampled(run, root)
