"""Sweeps with several jobs at a time: devices, threads, and the files of conf/hydra/launcher."""

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scoreline.config import local_launcher
from scoreline.config.local_launcher import OneDeviceEach, jobs, on_cpu, place
from scoreline.errors import InputError

ROOT = Path(__file__).parents[2]

APP = """
import os, sys, time
import hydra
from scoreline.config import local_launcher

local_launcher.visible_devices = lambda: NAMES

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    from pathlib import Path
    from hydra.core.hydra_config import HydraConfig
    shown = [os.environ.get(key, "none") for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")] + [str(os.getpid())]
    number = HydraConfig.get().job.num
    began = time.time()
    time.sleep(1.0 if number == 0 else 0.2)
    (Path(cfg.out) / f"{number}.txt").write_text(" ".join([*shown, str(began), str(time.time())]))

main()
"""


def sweep(tmp_path: Path, devices: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(APP.replace("NAMES", repr(devices))))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", local_launcher.JOBS)
    }
    search = f"hydra.searchpath=[file://{ROOT / 'conf'}]"
    command = [sys.executable, str(script), "-m", search, "hydra/launcher=local", f"hydra.sweep.dir={tmp_path}/sweep"]
    return subprocess.run(
        [*command, f"+out={tmp_path}", *words], capture_output=True, text=True, timeout=200, env=environment
    )


def found(tmp_path: Path, count: int) -> list[list[str]]:
    return [(tmp_path / f"{number}.txt").read_text().split() for number in range(count)]


def test_each_worker_keeps_one_device(tmp_path: Path) -> None:
    done = sweep(tmp_path, ["GPU-a", "GPU-b"], "+x=0,1,2,3")
    assert done.returncode == 0, done.stderr
    rows = found(tmp_path, 4)
    device_of = {row[2]: row[0] for row in rows}
    assert all(device_of[row[2]] == row[0] for row in rows)
    assert sorted(device_of.values()) == ["GPU-a", "GPU-b"]
    spans = sorted((row[0], float(row[3]), float(row[4])) for row in rows)
    overlapping = [one for one, other in itertools.pairwise(spans) if one[0] == other[0] and one[2] > other[1]]
    assert not overlapping


def test_cpu_jobs_share_threads_without_a_device(tmp_path: Path) -> None:
    done = sweep(tmp_path, ["GPU-a"], "+x=0,1", "+device=cpu", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    import joblib

    for row in found(tmp_path, 2):
        assert row[0] == os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        assert row[1] == str(max(joblib.cpu_count() // 2, 1))


def test_an_impossible_number_of_jobs_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"hydra": {"launcher": {"n_jobs": 0}}, "device": "cpu"})
    with pytest.raises(SystemExit) as left:
        OneDeviceEach().on_multirun_start(config)
    assert left.value.code == 2
    assert "hydra.launcher.n_jobs=0: must be a whole number" in capsys.readouterr().err


def test_processes_beyond_the_devices_share_them_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_launcher, "visible_devices", lambda: ["3", "5"])
    monkeypatch.setattr(local_launcher, "jobs", lambda config: 5)
    monkeypatch.setenv(local_launcher.JOBS, "5")
    callback = OneDeviceEach()
    callback.on_multirun_start({})
    assert callback.names == ["3", "5", "3", "5", "3"]


def test_place_belongs_to_one_process(tmp_path: Path) -> None:
    own = place(str(tmp_path), 2)
    assert place(str(tmp_path), 2) == own == 0
    code = f"from scoreline.config.local_launcher import place; print(place({str(tmp_path)!r}, 2))"
    others = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100) for _ in range(2)
    ]
    assert [other.stdout.strip() for other in others] == ["1", "1"]


def test_without_the_plugin_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_launcher, "PLUGIN", "hydra_plugins.hydra_no_launcher")
    with pytest.raises(InputError, match=r"pip install 'scoreline\[sweep\]'"):
        jobs({})


@pytest.mark.parametrize("count", [-2, 1.5, True, "all"])
def test_jobs_refuses(count: object) -> None:
    config = SimpleNamespace(hydra=SimpleNamespace(launcher=SimpleNamespace(n_jobs=count)))
    with pytest.raises(InputError, match=rf"hydra\.launcher\.n_jobs={count}"):
        jobs(config)


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("sample", [], False),
        ("sample", ["device=cpu"], True),
        ("train", ["trainer=cpu"], True),
        ("train", ["trainer=gpu"], False),
    ],
)
def test_jobs_that_need_no_gpu_are_known(script: str, words: list[str], expected: bool) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert on_cpu(compose(script, words)) is expected


@pytest.mark.parametrize("script", ["sample", "train", "calibrate"])
def test_the_launcher_composes_for_every_script(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local_launcher.JOBS, "3")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(script, ["hydra/launcher=local"], return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith("JoblibLauncher")
    assert cfg.hydra.launcher.n_jobs == 3
    assert cfg.hydra.callbacks.one_device_each._target_ == "scoreline.config.local_launcher.OneDeviceEach"


def test_devices_follow_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x, GPU-y")
    assert local_launcher.visible_devices() == ["GPU-x", "GPU-y"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local_launcher.visible_devices() == ["0", "1"]
