"""Run directories that nobody ran: what jobs leave when they are done, stopped, killed or refused."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tables_files import ran

DEAD = 2**22 + 1
"""A process number above Linux's largest."""


def unfinished(folder: Path, images: int = 3, seeds: str = "0-9", **config: Any) -> Path:
    """A run of sample.py with some images in a shard, and no results."""
    ran(folder, config={"seeds": seeds, **config})
    (folder / "metrics.json").unlink()
    (folder / "shards").mkdir()
    save_file({"index": torch.arange(images)}, folder / "shards/000000000.safetensors")
    return folder


def locked(folder: Path, pid: int = DEAD, host: str | None = None, **more: Any) -> Path:
    """A lock that a killed process left in a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"host": host or socket.gethostname(), "pid": pid, "since": "now", "started": "1", **more}
    (folder / ".lock").write_text(json.dumps(about))
    return folder


def trained(folder: Path, images: int = 2000, duration: float = 2, config: str = "", **last: Any) -> Path:
    """A run of train.py."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / f"checkpoints/{images:010d}.ckpt").write_text("")
    (folder / "model.safetensors").write_text("weights")
    text = f"name: digits_vp\nduration_kimg: {duration}\nobjective:\n  _target_: o\nidentity: abcd0123\n"
    (folder / "config.yaml").write_text(text + config)
    records = [{"kimg": 0.5, "fixed_loss": 0.5, "fixed_loss_error": 0.01}, {"kimg": images / 1000, "loss": 0.4} | last]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def calibrated(folder: Path, checkpoint: str = "digits_vp", done: bool = True) -> Path:
    """A run of calibrate.py."""
    folder.mkdir(parents=True)
    text = f"checkpoint: {checkpoint}\nnfe: 20\ncalibration:\n  _target_: c\nidentity: abcd0123\n"
    (folder / "config.yaml").write_text(text)
    if done:
        (folder / "score_norm.safetensors").write_text("record")
    return folder


def swept(folder: Path, *words: str) -> None:
    """What Hydra writes beside the runs of a sweep, cut down."""
    task = "".join(f"    - {word}\n" for word in words)
    text = f"hydra:\n  sweep:\n    subdir: ${{scoreline.cell:}}\n  overrides:\n    task:\n{task}"
    (folder / "multirun.yaml").write_text(text)


def aged(folder: Path, days: float) -> Path:
    """A run directory whose files are so many days old."""
    for path in folder.iterdir():
        moment = path.stat().st_mtime - 86400 * days
        os.utime(path, (moment, moment))
    return folder
