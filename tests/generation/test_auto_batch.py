"""`network_batch=auto`: found once for a run directory, whatever the memory is when it goes on."""

import subprocess
from pathlib import Path

import pytest
from forks import call
from omegaconf import OmegaConf


def started(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return call("sample", "checkpoint=digits_vp", f"hydra.run.dir={folder}", "network_batch=auto", *words, cwd=folder.parent)


def test_the_first_start_fixes_it(tmp_path: Path) -> None:
    words = ("metrics=none", "nfe=4", "seeds=0-9")
    first = started(tmp_path / "run", *words, "memory_mib=3")
    assert first.returncode == 0, first.stderr
    size = OmegaConf.load(tmp_path / "run" / "config.yaml").network_batch
    assert 1 < size < 64
    assert size & (size - 1) == 0
    images = (tmp_path / "run" / "samples.npz").read_bytes()
    for name in ("metrics.json", "samples.npz"):
        (tmp_path / "run" / name).unlink()
    again = started(tmp_path / "run", *words, "memory_mib=3000", "threads=2")
    assert again.returncode == 0, again.stderr
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").network_batch == size
    assert (tmp_path / "run" / "samples.npz").read_bytes() == images


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memory_mib=0.001",), "network_batch=auto: one image takes"),
        (("memory_mib=-1",), "memory_mib=-1: must be a number greater than 0"),
    ],
)
def test_what_cannot_fit_is_told(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = started(tmp_path / "run", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sample.py: {said}")
    assert len(done.stderr.splitlines()) == 1
