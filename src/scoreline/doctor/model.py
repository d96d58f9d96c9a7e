"""The model of a job, where it can be had without fetching or converting anything."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scoreline import entry, run_names
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config.model_source import plain_model
from scoreline.downloads import cached_path
from scoreline.files import cache_folder
from scoreline.foreign.conversion import REVISION, Options, digest, is_url
from scoreline.foreign.families import is_foreign


def options(cfg: Any) -> Options:
    """How the job reads a checkpoint of another project."""
    asked = cfg["import"]
    return Options(asked["from"], plain_model(cfg), asked.weights, tuple(asked.allow), asked.sha256)


def imported_place(source: Path, how: Options) -> Path:
    """Where `foreign.conversion.cached` keeps what it makes of a file or folder."""
    identity = {**asdict(how), "revision": REVISION, "source": digest(source)}
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=list).encode()).hexdigest()[:16]
    return cache_folder("imported", f"{source.resolve().stem}-{name}") / "model.safetensors"


def source_of(word: str) -> Path:
    """Where what `checkpoint=` names lies or would lie."""
    if is_url(word):
        return cached_path(word)
    return Path(word) if Path(word).is_dir() and not _is_ours(word) else run_names.model_path(word)


def _is_ours(word: str) -> bool:
    path = run_names.model_path(word)
    return path.suffix == ".safetensors" and path.is_file() and not is_foreign(path)


def model_file(cfg: Any) -> Path | None:
    """The file of ours that the job loads, None where it has to be fetched or imported first."""
    word = str(cfg.checkpoint)
    if not is_url(word) and _is_ours(word):
        return run_names.model_path(word)
    source = source_of(word)
    if not source.exists():
        return None
    place = imported_place(source, options(cfg))
    return place if place.is_file() else None


def loaded(cfg: Any) -> Checkpoint | None:
    """The checkpoint, and its description put into the config as the scripts do.

    Raises:
        InputError: if it is damaged.
    """
    path = model_file(cfg)
    if path is None:
        return None
    checkpoint = load_model(path, tuple(cfg.trust))
    entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
    if cfg.get("record") == "auto":
        cfg.record = str(run_names.record_beside(checkpoint.path, "score_norm"))
    return checkpoint
