"""A foreign checkpoint as a model file of ours: where the user wants it, or in the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scoreline.checkpoints import Card, save_model
from scoreline.downloads import fetch
from scoreline.errors import InputError
from scoreline.files import cache_folder, sha256
from scoreline.foreign.families import is_ours, load
from scoreline.foreign.translation import ForeignModel
from scoreline.specs import Spec

REVISION = 1
"""Counts changes of what an import makes of the same file, so that the cache makes it anew."""


@dataclass(frozen=True)
class Options:
    """How a foreign checkpoint is read.

    Attributes:
        family: `edm`, `score_sde`, ..; None recognises it.
        model: description as in conf/model, for files that do not describe themselves.
        weights: ema or raw.
        allow: names of classes that its pickle may hold besides, kept as inert records.
        sha256: of a file, or of what a URL must deliver.
    """

    family: str | None = None
    model: Spec | None = None
    weights: str = "ema"
    allow: Sequence[str] = ()
    sha256: str | None = None


def is_url(word: str) -> bool:
    return word.startswith(("https://", "http://"))


def located(word: str, digest: str | None = None) -> Path:
    """The path of a source; a URL is downloaded into the cache once.

    Raises:
        InputError: if it is missing, or its SHA-256 is not `digest`.
    """
    if is_url(word):
        return fetch(word, sha256=digest)
    path = Path(word)
    if digest is not None and path.is_file() and sha256(path) != digest.lower():
        raise InputError(f"{path}: its SHA-256 is {sha256(path)}, not {digest}; fetch it again")
    return path


def convert(word: str, target: Path, options: Options) -> tuple[str, ForeignModel]:
    """Import a source and write it to `target`, which must not exist.

    Raises:
        InputError: for what cannot be imported, and if `target` exists.
    """
    if target.exists():
        raise InputError(f"{target}: is there already and is never overwritten; give another destination")
    path = located(word, options.sha256)
    if is_ours(path):
        raise InputError(f"{path}: is a file of scoreline already; use it as checkpoint={path}")
    family, imported = load(path, options.family, options.model, options.weights, options.allow)
    save_model(target, imported.weights, card(word, path, family, imported, options.weights))
    return family, imported


def card(word: str, path: Path, family: str, imported: ForeignModel, weights: str) -> Card:
    """What our file says of the source: its name, never its folder, and its SHA-256."""
    source = {
        "family": family,
        "file": word if is_url(word) else path.resolve().name,
        "sha256": digest(path),
        "weights": weights,
        **imported.notes,
    }
    return Card(imported.model, imported.shape, imported.num_classes, {"name": "unknown"}, {"imported": source})


def cached(word: str, options: Options) -> Path:
    """The converted file in the cache, made if it is not there yet.

    Raises:
        InputError: as `convert` does.
    """
    path = located(word, options.sha256)
    identity = {**asdict(options), "revision": REVISION, "source": digest(path)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=list).encode()).hexdigest()[:16]
    target = cache_folder("imported", f"{path.resolve().stem}-{name}") / "model.safetensors"
    if not target.is_file():
        family, imported = load(path, options.family, options.model, options.weights, options.allow)
        save_model(target, imported.weights, card(word, path, family, imported, options.weights))
    return target


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and SHA-256 of a folder's files in order.

    Raises:
        InputError: if there is no such file or folder.
    """
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a checkpoint, a diffusers folder or a URL")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    text = "\n".join(f"{file.relative_to(path).as_posix()} {sha256(file)}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()
