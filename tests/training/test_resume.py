"""A run that stops and goes on is the run that never stopped."""

import os
import random
import resource
import signal
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from bounded import refusal
from runs import assert_same_run, records, start, state, train, wait_for
from safetensors.torch import load_file

from scoreline.checkpoints import load_model
from scoreline.errors import InputError
from scoreline.training.resume import Start, resume_from
from scoreline.training.training_state import list_checkpoints, loadable


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(out, "duration_kimg=3.2")
    return out


def test_n_and_n_steps_equal_2n_steps(uninterrupted: Path) -> None:
    out = uninterrupted.parent / "halves"
    train(out, "duration_kimg=1.6")
    assert state(out)["global_step"] == 50
    assert float(load_model(out / "model.safetensors").card.training["kimg"]) == 1.6
    train(out, "duration_kimg=3.2")
    assert state(out)["global_step"] == 100
    assert_same_run(uninterrupted, out)
    told = [[(r["step"], r["loss"], r["loss_bins"], r["lr"]) for r in records(run)] for run in (out, uninterrupted)]
    assert told[0] == told[1]


def test_another_seed_is_another_run(uninterrupted: Path) -> None:
    out = uninterrupted.parent / "seed"
    train(out, "duration_kimg=0.64", "seed=1")
    first = load_file(out / "model.safetensors")
    assert any(not torch.equal(value, load_file(uninterrupted / "model.safetensors")[k]) for k, value in first.items())


def test_kill_9_leaves_loadable_files(uninterrupted: Path) -> None:
    """Killed at three moments, once at least after a checkpoint was written; every file found is whole."""
    out, choose = uninterrupted.parent / "killed", random.Random(0)
    for attempt in range(3):
        before = list_checkpoints(out)[:1]
        process = start(out, "duration_kimg=3.2")
        wait_for(lambda first=not attempt, before=before: first or list_checkpoints(out)[:1] != before, process)
        time.sleep(choose.uniform(0, 0.3) if attempt else choose.uniform(0.5, 2))
        process.end(signal.SIGKILL)
        assert all(loadable(path) for path in list_checkpoints(out))
        if (out / "model.safetensors").exists():
            load_model(out / "model.safetensors")
    assert list_checkpoints(out)
    train(out, "duration_kimg=3.2")
    assert_same_run(uninterrupted, out)


def test_damaged_checkpoint_falls_back_to_the_former(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, former = list_checkpoints(uninterrupted)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / newest.name).write_bytes(newest.read_bytes()[:1000])
    (root / former.name).write_bytes(former.read_bytes())
    found = resume_from(tmp_path, "auto", 32)
    assert (found.path, found.own, found.images) == (root / former.name, True, int(former.stem))
    assert f"{root / newest.name}: damaged, passed over" in capsys.readouterr().err
    with pytest.raises(InputError, match="no loadable checkpoint"):
        resume_from(tmp_path / "empty", str(root / newest.name), 32)
    with pytest.raises(InputError, match="resume=never"):
        resume_from(tmp_path, "never", 32)
    assert resume_from(tmp_path / "empty", "auto", 32) == resume_from(tmp_path / "empty", "never", 32) == Start()
    (root / former.name).write_bytes(b"")
    with pytest.raises(InputError, match="no checkpoint can be read"):
        resume_from(tmp_path, "auto", 32)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_the_state_and_stops(uninterrupted: Path, number: signal.Signals) -> None:
    out = uninterrupted.parent / number.name
    process = start(out, "duration_kimg=3.2", "checkpoint_kimg=1000")
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    code, output = process.end(number)
    assert code == 75, output
    stopped = state(out)["global_step"]
    assert 10 <= stopped < 100
    assert f"{number.name}: stopped at {stopped * 32 / 1000:g} kimg, state saved" in output
    assert "Traceback" not in output
    train(out, "duration_kimg=3.2")
    assert_same_run(uninterrupted, out)


def test_full_disk_keeps_the_checkpoint_before(uninterrupted: Path) -> None:
    """The system refuses to write files as large as a checkpoint: every write fails half-way."""
    out = uninterrupted.parent / "full"
    train(out, "duration_kimg=0.64")
    kept = {path: path.read_bytes() for path in [*list_checkpoints(out), out / "model.safetensors"]}
    room = min(map(len, kept.values())) // 2

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # which the child inherits
    try:
        process = start(out, "duration_kimg=3.2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    code, errors = process.end()
    assert code == 2, errors
    assert errors.count("not written") >= 4
    assert "train.py: checkpoint: the last one could not be written" in errors
    assert "it continues from 0000000640.ckpt" in errors
    assert "Traceback" not in errors
    assert records(out)[-1]["step"] == 100
    assert {path: path.read_bytes() for path in [*list_checkpoints(out), out / "model.safetensors"]} == kept
    assert not list(out.rglob("*.part"))
    train(out, "duration_kimg=3.2")
    assert_same_run(uninterrupted, out)


def test_infinite_gradients_stop_with_a_saved_state(tmp_path: Path) -> None:
    out = tmp_path / "bad"
    output = train(out, "duration_kimg=0.64", "loss_scale=1e40", "gradients.patience=3", code=2)
    assert "train.py: gradients.patience=3: " in output
    assert state(out)["global_step"] == 2
    assert state(out)["gradients"] == {"bad_steps": 3, "in_a_row": 3}
    load_model(out / "model.safetensors")


def test_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'marker'}",))

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, path)
    assert not loadable(path)
    assert not (tmp_path / "marker").exists()


def test_checkpoint_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            file.write(b"\x80\x02}")
            for _ in range(8):
                file.write(bytes(2**24))
        archive.writestr("archive/version", "3\n")

    def resume() -> None:
        if not loadable(path):
            raise InputError("not loadable")

    assert refusal(resume, room=2**26) == "not loadable"


def test_checkpoint_with_endless_keys_is_refused(tmp_path: Path) -> None:
    nested: object = ()
    for _ in range(60):
        nested = (nested, nested)
    path = tmp_path / "hash.ckpt"
    torch.save({"state_dict": {}, "x": nested}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:  # {..., the tuple: None}
        for name, data in content.items():
            changed = data.removesuffix(b"u.") + b"h\x3fNu." if name.endswith("data.pkl") else data
            archive.writestr(name, changed)

    def resume() -> None:
        if not loadable(path):
            raise InputError("not loadable")

    assert refusal(resume, seconds=10) == "not loadable"


def test_what_torch_admits_is_loadable(tmp_path: Path) -> None:
    content = {
        "state_dict": {"w": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}],
        "lr_schedulers": [{"milestones": Counter({10: 1})}],
        "loops": {"fit": {"progress": {"total": 1, "ready": None}}},
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "generator": torch.get_rng_state(),
    }
    torch.save(content, tmp_path / "a.ckpt")
    assert loadable(tmp_path / "a.ckpt")
