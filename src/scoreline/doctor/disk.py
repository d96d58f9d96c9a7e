"""Folders that a job writes to: whether it may, and how much room they have."""

import os
import shutil
from pathlib import Path

from scoreline.doctor.findings import Finding, amount

TIGHT = 0.9
"""Share of the free room above which a forecast is no longer comfortable."""


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def judged(topic: str, path: Path, needed: float = 0.0, files: int = 0) -> Finding:
    """Whether `needed` bytes and `files` files can be made at `path`, a folder that need not be there."""
    place = existing(path)
    if not place.is_dir():
        return Finding("fail", topic, f"{path}: {place} is a file, not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("fail", topic, f"{path}: may not be written to ({place}); choose another place")
    free, nodes = shutil.disk_usage(place).free, os.statvfs(place).f_favail
    text = f"{path}: {amount(free)} free"
    if needed > free:
        return Finding("fail", topic, f"{text}, {amount(needed)} are needed; make room or choose another place")
    if files and 0 < nodes < files:
        return Finding("fail", topic, f"{text}, but room for {nodes:,} files of {files:,}; use format=zip or npz")
    tight = needed > TIGHT * free
    return Finding("warn" if tight else "ok", topic, text + (f", {amount(needed)} are needed" if tight else ""))
