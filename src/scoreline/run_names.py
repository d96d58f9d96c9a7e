"""Names of runs: digests of what they depend on, directories, and the files that stand behind a model's name."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scoreline.files import code_version, sha256

ASSETS = Path(__file__).parent / "assets"

FOREIGN = {".json", ".safetensors", ".bin"}
"""Suffixes of the files of a folder that a model is imported from."""


def register_resolvers() -> None:
    """`${scoreline.digest:...}`, `.cell:`, `.sweep:...`, `.record:...` and `.directory:`."""
    OmegaConf.register_new_resolver("scoreline.digest", run_digest, replace=True)
    OmegaConf.register_new_resolver("scoreline.cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("scoreline.record", checkpoint_record, replace=True)
    OmegaConf.register_new_resolver("scoreline.directory", sample_directory, replace=True)
    OmegaConf.register_new_resolver("scoreline.sweep", sweep_digest, replace=True, use_cache=True)


def run_digest(*without: str, _root_: DictConfig) -> str:
    """Eight digits that name a run: config, content of the files it names, code version.

    Args:
        without: keys that cannot change a result.
    """
    raw = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(raw, dict)
    config = {str(key): value for key, value in raw.items() if key not in (*without, "hydra")}
    text = json.dumps(config, sort_keys=True, default=str)
    named = [str(OmegaConf.select(_root_, key) or "") for key in ("schedule.path", "solver.path", "labels")]
    files = [path for path in _files_read(config, named, "${record}" in text) if path.is_file()]
    return _short("".join([text, *map(sha256, files), code_version()]))


def _files_read(config: dict[str, Any], named: list[str], with_record: bool) -> list[Path]:
    """Checkpoint, guide, files of schedule and solver, records that may be read, whether they exist or not."""
    checkpoint, guide = config.get("checkpoint"), config.get("guidance", {}).get("checkpoint")
    files = [model_path(name) for name in (checkpoint, guide) if isinstance(name, str)]
    files += map(Path, named)
    if isinstance(checkpoint, str) and not files[0].exists():
        files += foreign_files(Path(checkpoint))
    if "load_recommendation" in str(config.get("solver")):
        files += sorted(files[0].parent.glob(f"{files[0].stem}.*.safetensors"))
    record = config.get("record") if with_record and isinstance(checkpoint, str) else None
    if record is None:
        return files
    return [*files, record_beside(files[0], "score_norm") if record == "auto" else Path(str(record))]


def foreign_files(folder: Path) -> list[Path]:
    """Weights and descriptions in another project's folder, such as diffusers', in order; none if it is no folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix in FOREIGN) if folder.is_dir() else []


def record_beside(checkpoint: Path, kind: str) -> Path:
    """Where the record of a checkpoint is looked for: model.safetensors -> model.score_norm.safetensors."""
    return checkpoint.with_name(f"{checkpoint.stem}.{kind}.safetensors")


def checkpoint_record(kind: str, *, _root_: DictConfig) -> str:
    """Where a config finds the record of that kind for its checkpoint: beside it."""
    return str(record_beside(model_path(str(_root_.checkpoint)), kind))


def sample_directory(*, _root_: DictConfig) -> str:
    """Where a run of sample.py lies: outputs/table/NAME-BUDGET, or outputs/sample/SOLVER-nfeNFE-IDENTITY."""
    chosen = _root_.hydra.runtime.choices
    if _root_.table is not None:
        return f"outputs/table/{chosen.table}-{_root_.budget}"
    return f"outputs/sample/{chosen.solver}-nfe{_root_.nfe}-{_root_.identity}"


def sweep_digest(overrides: list[str]) -> str:
    """Eight digits that name a sweep: what was asked for on the command line, and the code version."""
    return _short(json.dumps(sorted(overrides)) + code_version())


def cell_name(*, _root_: DictConfig) -> str:
    """`nfe=5,solver=ddim`: the choices of one job of a sweep, safe as a directory name."""
    name = ",".join(_safe(str(override)) for override in sorted(_root_.hydra.overrides.task)) or "default"
    return name if len(name) <= 120 else f"{name[:110]}-{_short(name)}"


def _safe(override: str) -> str:
    """A path keeps its last part and a digest of the whole: models of several directories are often named alike."""
    key, _, value = override.partition("=")
    short = f"{value.rstrip('/').rpartition('/')[2]}-{_short(value)}" if "/" in value else value
    return re.sub(r"[^\w.=+-]+", "_", f"{key}={short}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_path(checkpoint: str) -> Path:
    """`digits_vp` names a model that ships with the package, a directory stands for its model.safetensors."""
    shipped = ASSETS / f"{checkpoint}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(checkpoint)
    return path / "model.safetensors" if path.is_dir() else path
