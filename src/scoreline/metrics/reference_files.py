"""The files that metrics read besides the images, told by their config before anything is loaded."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scoreline.datasets import given
from scoreline.files import sha256

KEYS = ("reference", "path", "weights", "font")
"""Keys of metrics, extractors and data sets that may hold a path; elsewhere a text with a / in it may be one."""

IMAGES = (".png", ".jpg", ".jpeg")
LABELS = "dataset.json"


def reference_files(metrics: Mapping[str, Any]) -> list[Path]:
    """Files behind the `metrics` node of a config, in order; of a folder those that its reader reads.

    What has no file is left out: data sets and weights of the package, names on a hub, downloads with a checksum in the
    config, paths at which nothing lies.
    """
    return [file for root in _roots(metrics) for file in _files(root)]


def reference_digest(metrics: Mapping[str, Any]) -> str:
    """SHA-256 over names and contents of `reference_files`; the place of a folder does not matter, its inside does."""
    digest = hashlib.sha256()
    for root in _roots(metrics):
        for file in _files(root):
            digest.update(f"{os.path.relpath(file, root)} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _roots(node: Mapping[str, Any]) -> Iterator[Path]:
    """Paths in a config at which something lies."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _roots(value)
        elif isinstance(value, str) and value and (key in KEYS or "/" in value):
            place = Path(value).expanduser()
            if place.is_file() or place.is_dir():
                yield place


def _files(root: Path) -> list[Path]:
    """A file itself; of a run directory its images; of a folder its images and labels, or all files if it has none."""
    if root.is_file():
        return [root]
    if given.is_run(root):
        kept = next((root / name for name in given.RUN if (root / name).exists()), None)
        return [] if kept is None else _files(kept)
    visible = sorted(_visible(root))
    images = [file for file in visible if file.suffix.lower() in IMAGES]
    labels = [file for file in visible if file == root / LABELS]
    return images + labels if images else [file for file in visible if not file.name.startswith("cache-")]


def _visible(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if not name.startswith("."))
