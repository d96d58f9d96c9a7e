"""Conversion of foreign checkpoints to model files of this package, at a path of the user or in the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scoreline.checkpoints import Card, save_model
from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign.families import is_ours, load
from scoreline.foreign.translation import ForeignModel
from scoreline.storage.downloads import fetch
from scoreline.storage.files import cache_folder, sha256

REVISION = 1
"""Version of the conversion; a change invalidates the cache."""


@dataclass(frozen=True)
class Options:
    """Options of an import.

    Attributes:
        family: `edm`, `score_sde`, ..; None recognises it.
        model: description as in conf/model, for files that do not describe themselves.
        weights: ema or raw.
        allow: further names of classes that the pickle may hold, kept as inert records.
        sha256: expected SHA-256 of the file or download.
        size: (H, W) of the images, for folders that do not say it.
    """

    family: str | None = None
    model: Spec | None = None
    weights: str = "ema"
    allow: Sequence[str] = ()
    sha256: str | None = None
    size: tuple[int, int] | None = None


def is_url(word: str) -> bool:
    return word.startswith(("https://", "http://"))


def _local_path(word: str, digest: str | None = None) -> Path:
    """Return the path of a source; a URL is downloaded into the cache once.

    Raises:
        InputError: if the download fails, or the SHA-256 is not `digest`.
    """
    if is_url(word):
        return fetch(word, sha256=digest)
    path = Path(word)
    if digest is not None and path.is_file() and sha256(path) != digest.lower():
        raise InputError(f"{path}: its SHA-256 is {sha256(path)}, not {digest}; fetch it again")
    return path


def convert(word: str, target: Path, options: Options) -> tuple[str, ForeignModel]:
    """Import a source and write it to `target`, which must not exist.

    When to use it: to keep a checkpoint as a file of this package; `cached_file` serves `checkpoint=PATH` directly.

    Args:
        word: path or URL of the source.
        target: the safetensors file to write.
        options: options of the import.

    Returns:
        The family, and the model that was written.

    Raises:
        InputError: for a source that cannot be imported, and if `target` exists.
    """
    if target.exists():
        raise InputError(f"{target}: is there already and is never overwritten; give another destination")
    path = _local_path(word, options.sha256)
    if is_ours(path):
        raise InputError(f"{path}: is a file of scoreline already; use it as checkpoint={path}")
    return _save(word, path, target, options)


def _save(word: str, path: Path, target: Path, options: Options) -> tuple[str, ForeignModel]:
    family, model = load(path, options.family, options.model, options.weights, options.allow, options.size)
    save_model(target, model.weights, card(word, path, family, model, options.weights))
    return family, model


def card(word: str, path: Path, family: str, model: ForeignModel, weights: str) -> Card:
    """Describe the model and its source: the name, never the folder, and the SHA-256."""
    source = {
        "family": family,
        "file": word if is_url(word) else path.resolve().name,
        "sha256": digest(path),
        "weights": weights,
        **model.notes,
    }
    return Card(model.model, model.shape, model.num_classes, {"name": "unknown"}, {"imported": source})


def cached_file(word: str, options: Options) -> Path:
    """Return the converted file in the cache; the first call converts it.

    Raises:
        InputError: for a source that cannot be imported.
    """
    path = _local_path(word, options.sha256)
    target = cached_place(path, options)
    if not target.is_file():
        _save(word, path, target, options)
    return target


def cached_place(path: Path, options: Options) -> Path:
    """The file in the cache to which `cached_file` converts the source at `path`; it need not exist yet."""
    identity = {**asdict(options), "revision": REVISION, "source": digest(path)}
    if options.size is None:
        del identity["size"]  # places in the cache from before the option
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=list).encode()).hexdigest()[:16]
    return cache_folder("imported", f"{path.resolve().stem}-{name}") / "model.safetensors"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or that over names and SHA-256 of a folder's files in order.

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
