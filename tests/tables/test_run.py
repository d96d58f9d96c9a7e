"""A table of the shipped digits model that really runs: killed in the middle, and the same command again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scoreline.config import run_identity
from scoreline.errors import InputError
from scoreline.storage.files import sha256
from scoreline.storage.run_lock import RunLock
from scoreline.tables import plan, table_run

ROOT = Path(__file__).parents[2]

DATA: dict[str, Any] = {
    "title": "Toy",
    "metric": "frechet_distance",
    "needs": ["the toy model"],
    "base": ["checkpoint=digits_vp", "metrics=digits", "metrics.groups=4", "metrics.neighbours=1"],
    "budgets": {"smoke": {"ranges": ["0-3"]}},
    "columns": {"label": "NFE", "key": "nfe", "values": [7, 5]},
    "rows": [
        {"name": "DDIM", "overrides": ["solver=ddim"]},
        {"name": "learned (ours)", "overrides": ["solver=learned"]},
    ],
}

DRIVER = """
import json, sys
from pathlib import Path
from scoreline.config import script
from scoreline.tables import table_run
try:
    options = table_run.Options("smoke", int(sys.argv[2]))
    table_run.main("toy", json.loads(sys.argv[1]), ["network_batch=4"], options, Path("out"))
except Exception as error:
    script.leave(error, "table")
"""


def words(data: dict[str, Any], jobs: int) -> list[str]:
    return [sys.executable, "-c", DRIVER, json.dumps(data), str(jobs)]


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256(path)) for path in files}


def test_killed_table_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 once the first cell is finished: its files stay, the others are made, one is refused by sample.py."""
    out = tmp_path / "out"
    process = subprocess.Popen(words(DATA, 1), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    limit = time.monotonic() + 200
    while not list(out.glob("cells/*/*/*/metrics.json")):
        assert process.poll() is None, process.stdout and process.stdout.read().decode()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (first,) = [path.parent for path in out.glob("cells/*/*/*/metrics.json")]
    assert first.relative_to(out).parts[1:3] == ("DDIM", "7")
    kept = stamps(first)
    done = subprocess.run(words(DATA, 2), cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert stamps(first) == kept
    assert "1 of 4 runs were finished before, 3 are missing" in done.stderr
    assert re.search(
        r"^table toy: 4/4 cell, .* cell/s, ETA 0:00, (DDIM|learned \(ours\)), 5, seeds 0-3$", done.stderr, re.M
    )
    drawn = plan.load(out).cells
    assert [plan.outcome(cell, out).state for cell in drawn] == ["finished", "finished", "refused", "finished"]
    refusal = [line for line in done.stderr.splitlines() if line.startswith("learned (ours), 7, seeds 0-3: refused: ")]
    assert len(refusal) == 1
    assert refusal[0].endswith("(log: out/cells/learned_ours_/7/0-3-" + drawn[2].identity + "/cell.log)")
    text = (out / "table.md").read_text()
    assert done.stdout == f"{text}\n3 runs, 1 cannot be -> out\n"
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0][1:] == ["NFE 7", "NFE 5 |"]
    assert lines[2][1] == "- [a]"
    for row, column, place in ((1, 1, 0), (1, 2, 1), (2, 2, 3)):
        value = json.loads((out / drawn[place].directory / "metrics.json").read_text())["metrics"]["frechet_distance"]
        shown = float(lines[row][column].strip("*| ").partition(" +- ")[0].strip("*"))
        assert shown == pytest.approx(value["value"], rel=0.05)
    assert all((out / f"table.{form}").is_file() for form in ("tex", "csv", "png"))
    before = stamps(out)
    monkeypatch.chdir(tmp_path)
    table_run.main("toy", DATA, ["network_batch=4"], table_run.Options("smoke", 1), Path("out"))
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    assert not [name for name in changed if name.startswith("cells/") and "learned_ours_/7/" not in name]


def mistaken(**changes: Any) -> dict[str, Any]:
    return {**DATA, **changes}


@pytest.mark.parametrize(
    ("data", "overrides", "sentence"),
    [
        (mistaken(base=["chekpoint=x"]), [], "chekpoint: there is no such key; did you mean 'checkpoint'?"),
        (mistaken(base=["schedule=karas"]), [], "schedule=karas: there is no such choice; did you mean 'karras'?"),
        (DATA, ["nfe=7"], "nfe=7: '7' of table=toy sets nfe; leave it out"),
        (mistaken(base=["checkpoint=nowhere"]), [], "checkpoint=nowhere: no such file; table=toy needs the toy model"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(
    data: dict[str, Any], overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        table_run.main("toy", data, overrides, table_run.Options("smoke"), tmp_path / "out")
    assert str(caught.value) == sentence
    assert not (tmp_path / "out").exists()


def test_a_table_is_run_by_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="table=toy: starts processes of its own; run it without torchrun, as one"):
        table_run.main("toy", DATA, [], table_run.Options("smoke"), tmp_path / "out")


def test_one_command_at_a_time_runs_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one is refused, or waits, and plans anew then: what was prepared meanwhile is there."""
    out, planned = tmp_path / "out", []
    whole = table_run.plan.make_plan
    monkeypatch.setattr(table_run.plan, "make_plan", lambda *words: planned.append(1) or whole(*words))
    monkeypatch.setattr(table_run, "run_planned", lambda drafted, out, options: planned.append(drafted.budget))
    with RunLock(out):
        with pytest.raises(InputError, match="works there; wait for it with lock=wait, or choose another directory"):
            table_run.main("toy", DATA, [], table_run.Options("smoke"), out)
        assert planned == [1]
        assert [path.name for path in out.iterdir()] == [".lock"]
    table_run.main("toy", DATA, [], table_run.Options("smoke"), out)
    assert planned == [1, 1, "smoke"]
    former = RunLock(out)
    monkeypatch.setattr(time, "sleep", lambda seconds: former.release())
    table_run.main("toy", DATA, [], table_run.Options("smoke", lock="wait"), out)
    assert planned == [1, 1, "smoke", 1, 1, "smoke"]
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "plan.json"]


@pytest.mark.parametrize(
    "former", ["table: null\nnfe: 10\n", "table: other\nbudget: smoke\n", "table: toy\nbudget: small\n"]
)
def test_the_directory_of_another_run_is_left_alone(tmp_path: Path, former: str) -> None:
    (tmp_path / "config.yaml").write_text(former)
    with pytest.raises(InputError, match=r"hydra\.run\.dir=.*: holds another run, not table=toy"):
        table_run.main("toy", DATA, ["network_batch=4"], table_run.Options("smoke"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == former


def test_cells_do_not_get_the_lock_key() -> None:
    words = ["table=toy", "lock=wait", "output_url=s3://a/b", "solver.order=2", "hydra.run.dir=x"]
    assert table_run.of_cells(words) == ["solver.order=2"]
    with pytest.raises(InputError, match="lock=maybe: there is no such choice"):
        table_run.Options(lock="maybe")


def test_identity_follows_overrides_and_seeds() -> None:
    found = run_identity.identities(["solver=ddim", "nfe=5"], ["0-3", "4-7"])
    assert len(set(found)) == 2
    assert found == run_identity.identities(["solver=ddim", "nfe=5", "batch_size=9"], ["0-3", "4-7"])
    assert found[0] not in run_identity.identities(["solver=ddim", "nfe=6"], ["0-3"])


class Fake:
    """A pool that ends cells as told, in place of processes."""

    def __init__(self, states: dict[str, str]) -> None:
        self.states = states

    def __call__(self, root: Path, command: Any, places: Any, on_error: str, report: Any, *how: Any) -> Any:
        self.root, self.report, self.command, self.shared = root, report, command, how[-1]
        return self

    def run(self, cells: Any) -> None:
        for cell in cells:
            state = self.states.get(f"{cell.row} {cell.column}", "missing")
            found = plan.Outcome(state, "why it is so")  # type: ignore[arg-type]
            if state != "missing":
                plan.record(cell, self.root, found)
                self.report(cell, found)


PLACES = ("DDIM 7", "DDIM 5", "learned (ours) 7", "learned (ours) 5")


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        (
            {"DDIM 7": "refused", "DDIM 5": "failed"},
            "table=toy: 1 of 4 runs failed, 2 did not start; OUT/table.md has the rest, the same command runs what is",
        ),
        (dict.fromkeys(PLACES, "failed"), "table=toy: 4 of 4 runs failed; OUT/table.md has the rest, the same command"),
        (dict.fromkeys(PLACES, "refused"), "no cell can be run: why it is so; table=toy needs the toy model"),
    ],
)
def test_what_is_missing_is_the_last_line(
    states: dict[str, str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the table is there all the same."""
    monkeypatch.setattr(table_run.pool, "Pool", Fake(states))
    with pytest.raises(InputError) as caught:
        table_run.main("toy", DATA, [], table_run.Options("smoke", 1), tmp_path)
    assert str(caught.value).startswith(sentence.replace("OUT", str(tmp_path)))
    printed = capsys.readouterr()
    assert "| DDIM | - [a] |" in printed.out
    assert f"DDIM, 7, seeds 0-3: {states['DDIM 7']}: why it is so (log: {tmp_path}/cells/DDIM/7/0-3-" in printed.err


def test_a_shared_table_is_written_by_whoever_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What others have is no failure; cells get a directory each in the object store, and wait for another process."""
    fake = Fake({"DDIM 7": "refused"})
    monkeypatch.setattr(table_run.pool, "Pool", fake)
    options = table_run.Options("smoke", 1, lock="share", output_url="memory://bucket/toy")
    former = RunLock(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: former.release())
    table_run.main("toy", DATA, [], options, tmp_path)
    cell = plan.load(tmp_path).cells[1]
    assert fake.shared
    assert fake.command(cell)[-2:] == ["lock=wait", f"output_url='memory://bucket/toy/{cell.directory}'"]
    assert capsys.readouterr().out.endswith(
        f"\n0 of 4 runs -> {tmp_path}; 3 are at work in other processes, the last of which writes the whole table\n"
    )
    assert "- [a]" in (tmp_path / "table.md").read_text()
    RunLock(tmp_path).release()


def test_devices_by_the_names_that_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5")
    assert table_run.devices([]) == ["GPU-a", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert table_run.devices([]) == ["0", "1"]
    assert table_run.devices(["device=cpu"]) == []
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
