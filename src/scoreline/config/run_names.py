"""Names of runs: digests of everything that they depend on, directories, and the files behind a model's name."""

import glob
import hashlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scoreline.config.metrics_by_model import with_metrics
from scoreline.config.moved_names import former
from scoreline.numerics import NUMERICS_VERSION
from scoreline.storage.files import content_digest, sha256

ASSETS = Path(__file__).parents[1] / "assets"

FOREIGN = {".json", ".safetensors", ".bin"}
"""Suffixes of the files of a folder that a model is imported from."""


def register_resolvers() -> None:
    """Register the resolvers `${scoreline.digest:...}`, `.cell:`, `.sweep:...`, `.record:...` and so on."""
    OmegaConf.register_new_resolver("scoreline.at_least_one", lambda count: max(1, count or 1), replace=True)
    OmegaConf.register_new_resolver("scoreline.digest", run_digest, replace=True)
    OmegaConf.register_new_resolver("scoreline.cell", _cell_name, replace=True)
    OmegaConf.register_new_resolver("scoreline.record", _checkpoint_record, replace=True)
    OmegaConf.register_new_resolver("scoreline.directory", _directory, replace=True)
    OmegaConf.register_new_resolver("scoreline.sweep", _sweep_digest, replace=True, use_cache=True)


def run_digest(script: str, *, _root_: DictConfig) -> str:
    """Return the first eight digits of `run_sha256`, which name a run."""
    return run_sha256(_root_, script)[:8]


def run_sha256(cfg: DictConfig, script: str) -> str:
    """Return the SHA-256 of everything that a result depends on: runs with equal digests have equal results.

    It covers the configuration without the keys of `WITHOUT`, the content of the files and folders that it names
    (checkpoint, records, schedule, labels, data, reference, the state or weights that training starts from), the user's
    own code (`own_code`), and `NUMERICS_VERSION`. It leaves out the package's own sources, which may change without
    changing a number.

    Args:
        cfg: the composed config.
        script: `train`, `sample` or `calibrate`.
    """
    cfg = with_model_metrics(cfg)
    whole = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(whole, dict)
    left_out = (*NEVER, *OBSERVING.get(script, ()))
    raw = former({str(key): value for key, value in whole.items() if key not in left_out})
    without = WITHOUT[script] if script != "train" or _init(raw) else (*WITHOUT[script], *OF_INIT)
    decisive = {key: value for key, value in _without_unset(raw).items() if key not in without}
    text = json.dumps(decisive, sort_keys=True, default=str)
    values = {key: _selected(cfg, key) for key in sorted(_path_keys(raw))}
    named = [Path(os.path.expanduser(value)) for key, value in values.items() if _may_be_path(key, value)]
    read = map(_digest, _files_read(raw, named, "${record}" in text))
    digests = [digest for digest in read if digest] + [sha256(path) for path in own_code(raw)]
    return hashlib.sha256("".join([text, *digests, str(NUMERICS_VERSION)]).encode()).hexdigest()


def _without_unset(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without the keys of `LATER` that are null."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for name in LATER:
        above, _, key = name.rpartition(".")
        node = kept.get(above) if above else kept
        if isinstance(node, dict) and node.get(key) is None:
            node.pop(key, None)
    return kept


def _digest(path: Path) -> str | None:
    """Return the digest of a file or folder, or None if it is missing or unreadable; its reader reports that."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        return None
    try:
        return content_digest(path)
    except OSError:
        return None


WITHOUT = {
    "train": (
        *("name", "resume", "duration_kimg", "workers", "log_kimg", "preview_kimg", "checkpoint_kimg"),
        *("fixed_loss_kimg", "logger", "wandb", "trainer", "micro_batch", "compile", "channels_last", "device_mib"),
    ),
    "sample": (
        *("device", "batch_size", "memory_mib", "threads", "output_url", "launcher"),
        *("table", "budget", "jobs", "sweep", "wandb", "optimise"),
    ),
    "calibrate": ("device", "batch_size", "wandb"),
}
"""Keys of each script that change results by rounding at most. For `resume`, the content of its file counts."""

OF_INIT = ("init", "trust", "import")
"""Keys of train.py that count if `init.checkpoint` is given; earlier versions lack them."""

NEVER = ("hydra", "identity", "digest", "code_version", "lock", "start")
"""Keys without influence on results, and keys that follow from others; `start` is `RunDirectory.save_config`'s."""

OBSERVING = {"train": ("validation", "metrics", "metrics_every_kimg", "metrics_images", "metrics_nfe")}
"""Keys of a script that measure its result, with the files they name; none of them counts."""

LATER = ("keep_best", "sigma_data", "guidance", "import.size")
"""Keys that runs of earlier versions lack. They count unless they are null; a null `sigma_data` is the checkpoint's."""

PATHS = ("path", "font", "reference", "resume", "labels", "weights")
"""Last parts of the keys whose values may name a file or a folder."""

WORDS = ("labels", "weights")
"""Those of them with values such as `random` and `ema`, which are words unless they look like a path."""

AUTO = {"resume": ("auto", "never"), "solver": ("auto",), "schedule": ("auto",)}
"""Values that are words, never paths, by the first part of the key; `record=auto` reaches solver and schedule."""


def _path_keys(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _path_keys(value, f"{prefix}{name}.")
        elif name in PATHS:
            yield f"{prefix}{name}"


def _may_be_path(key: str, value: str) -> bool:
    word = key.rpartition(".")[2] in WORDS and not Path(value).suffix and os.sep not in value
    return bool(value) and not word and value not in AUTO.get(key.partition(".")[0], ())


def _selected(cfg: DictConfig, key: str) -> str:
    """Return a value as text; empty if it cannot be resolved, which the reader of the key reports."""
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return ""
    return value if isinstance(value, str) else ""


LIBRARIES = {
    *("builtins", "scoreline", "torch", "lightning", "pytorch_lightning", "torchmetrics"),
    *("numpy", "scipy", "sklearn", "hydra", "omegaconf", "wandb", "diffusers", "datasets"),
}
"""Packages in configs whose code is not the user's own."""


def own_code(config: Any) -> list[Path]:
    """Return the sources of the user's own modules that a config names as `_target_` or in `trust`, in order.

    A module in a package stands for the whole package, any other module for its file. Nothing is imported, and imports
    of other packages are not followed.
    """
    return [path for top in sorted(own_packages(_targets(config))) for path in _sources(top)]


def own_packages(targets: Iterable[str]) -> set[str]:
    """Return the top-level names of dotted names that are neither scoreline's nor a library's: the user's own code."""
    return {target.partition(".")[0] for target in targets} - LIBRARIES - set(sys.stdlib_module_names)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            elif key == "trust" and isinstance(value, list):
                yield from map(str, value)
            else:
                yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _sources(top: str) -> list[Path]:
    try:
        spec = find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []
    return sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py"))


def _files_read(config: dict[str, Any], named: list[Path], with_record: bool) -> list[Path]:
    """Return the checkpoint, the guide, the files that keys name, and possible records, whether they exist or not."""
    checkpoint, guide = config.get("checkpoint") or _init(config), (config.get("guidance") or {}).get("checkpoint")
    files = [model_path(name) for name in (checkpoint, guide) if isinstance(name, str)]
    files += named
    if isinstance(checkpoint, str) and not os.path.exists(files[0]):
        files += _foreign_files(Path(checkpoint))
    if "load_recommendation" in str(config.get("solver")):
        files += sorted(files[0].parent.glob(f"{files[0].stem}.*.safetensors"))
    record = config.get("record") if with_record and isinstance(checkpoint, str) else None
    if record is None:
        return files
    return [*files, record_path(record, files[0])]


def _init(config: dict[str, Any]) -> Any:
    """Return `init.checkpoint` of a config of train.py, or None."""
    init = config.get("init")
    return init.get("checkpoint") if isinstance(init, dict) else init


def _foreign_files(folder: Path) -> list[Path]:
    """Return the weights and descriptions in another project's folder, in order; empty if it is no folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix in FOREIGN) if os.path.isdir(folder) else []


def record_beside(checkpoint: Path, kind: str) -> Path:
    """Return the path of a checkpoint's record: model.safetensors -> model.score_norm.safetensors."""
    return checkpoint.with_name(f"{checkpoint.stem}.{kind}.safetensors")


def record_path(record: object, checkpoint: Path) -> Path:
    """Return the path of the record that `record=` names; auto stands for the score norms beside the checkpoint."""
    return record_beside(checkpoint, "score_norm") if record == "auto" else Path(str(record))


def _checkpoint_record(kind: str, *, _root_: DictConfig) -> str:
    """Return the path of the record of a kind beside the checkpoint of a config."""
    return str(record_beside(model_path(str(_root_.checkpoint)), kind))


def _directory(script: str, *, _root_: DictConfig) -> str:
    """Return the run directory of a script outside a sweep, whose name says what is run.

    outputs/sample/CHECKPOINT-SOLVER-SCHEDULE-nfeNFE-IDENTITY, outputs/table/NAME-BUDGET,
    outputs/train/NAME-IDENTITY with the data set before the identity unless NAME contains it, and
    outputs/calibrate/CALIBRATION-CHECKPOINT-IDENTITY.
    """
    chosen = {group: str(choice) for group, choice in _root_.hydra.runtime.choices.items()}
    if script == "train":
        name, data = str(_root_.name), chosen["dataset"]
        return _begun(f"outputs/train/{name}", () if data in name else (data,), str(_root_.identity))
    model = model_name(str(_root_.checkpoint))
    if script == "calibrate":
        return _begun(f"outputs/calibrate/{chosen['calibration']}", (model,), str(_root_.identity))
    if _root_.table is not None:
        return f"outputs/table/{chosen['table']}-{_root_.budget}"
    schedule = () if str(_root_.solver._target_).rpartition(".")[2] in UNSCHEDULED else (chosen["schedule"],)
    parts = (chosen["solver"], *schedule, f"nfe{_root_.nfe}")
    return _begun(f"outputs/sample/{model}", parts, str(_root_.identity))


UNSCHEDULED = ("load_recommendation", "load_learned")
"""Functions that load a solver with its own schedule from a record: no name tells the choice of `schedule`."""

LONGEST_NAME = 79
"""Most characters of the name of a run directory; the identity tells runs of shortened names apart."""


def _begun(first: str, others: Sequence[str], identity: str) -> str:
    """Return the directory of a run: one whose name ends in its identity, else a new one of these parts.

    Versions before 0.14 name fewer parts, and a user may rename a directory; the same command goes on there.
    """
    folder, _, name = first.rpartition("/")
    there = sorted(path for path in glob.glob(f"{glob.escape(folder)}/*-{identity}") if os.path.isdir(path))
    return there[0] if there else f"{folder}/{'-'.join(_shortened([name, *others]))}-{identity}"


def _shortened(parts: Iterable[str]) -> list[str]:
    """Return parts of a name without characters that a shell or Hydra reads, cut so that the name is short enough."""
    kept = [re.sub(r"[^\w.+-]+", "_", part, flags=re.ASCII) for part in parts]
    while len("-".join(kept)) > LONGEST_NAME - len("-01234567"):
        longest = max(range(len(kept)), key=lambda k: len(kept[k]))
        kept[longest] = kept[longest][:-1]
    return kept


def model_name(checkpoint: str) -> str:
    """Return a short name of a model for names of runs: a shipped model, a run, or a file.

    `digits_vp`; `digits_vp-e8c72d25` for that run directory or its model.safetensors; `digits_vp-e8c72d25-best` for
    another model file of a run; the name of any other file or address without its suffix.
    """
    *above, last = [part for part in checkpoint.split("/") if part] or [""]
    stem = re.sub(r"\.(safetensors|pkl|pth?|ckpt|bin)$", "", last)
    of_run = bool(above) and re.fullmatch(r"(model|best)(-.*)?", stem) is not None
    return "-".join([above[-1], *([] if stem == "model" else [stem])]) if of_run else stem


def _sweep_digest(overrides: list[str]) -> str:
    """Return eight digits that name a sweep, from its command line and `NUMERICS_VERSION`."""
    return _short(json.dumps(_naming(overrides)) + str(NUMERICS_VERSION))


def sweep_size(overrides: Sequence[str]) -> int | None:
    """Return the number of jobs of a sweep, from the words of its command line; None if Hydra does not read them."""
    words = _words_of_jobs(overrides)
    return None if words is None else math.prod(map(len, words))


def sweep_jobs(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the words of each job of a sweep, from those of its command line; none if Hydra does not read them, or
    for more than `MOST_JOBS`."""
    words = _words_of_jobs(overrides) or []
    return list(itertools.product(*words)) if words and math.prod(map(len, words)) <= MOST_JOBS else []


MOST_JOBS = 10_000
"""Jobs of a sweep that are listed."""


def _words_of_jobs(overrides: Sequence[str]) -> list[list[str]] | None:
    """Return, for each word of a sweep's command line, the words of its jobs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def of_jobs(word: Any) -> list[str]:
        swept = word.is_sweep_override()
        values = word.sweep_string_iterator() if swept else [word.get_value_element_as_str()]
        return [f"{word.get_key_element()}={value}" for value in values]

    try:
        return [of_jobs(word) for word in OverridesParser.create().parse_overrides(list(overrides))]
    except HydraException:
        return None


def _naming(overrides: Iterable[str]) -> list[str]:
    """Return the words that name a sweep and its jobs, in order: not `wandb`, so that it may come later."""
    return sorted(str(override) for override in overrides if not str(override).startswith("wandb="))


def _cell_name(*, _root_: DictConfig) -> str:
    """Return the choices of one job of a sweep, `nfe=5,solver=ddim`, safe as a directory name."""
    return cell_name(map(str, _root_.hydra.overrides.task))


def cell_name(overrides: Iterable[str]) -> str:
    """Return the name of the run directory of a job of a sweep, from the words of its own command line."""
    name = ",".join(map(_safe, _naming(overrides))) or "default"
    return name if len(name) <= 120 else f"{name[:110]}-{_short(name)}"


def _safe(override: str) -> str:
    """Shorten a path to its last part and a digest, since models in several directories often share a name."""
    key, _, value = override.partition("=")
    short = f"{value.rstrip('/').rpartition('/')[2]}-{_short(value)}" if "/" in value else value
    return re.sub(r"[^\w.=+-]+", "_", f"{key}={short}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_path(checkpoint: str) -> Path:
    """Return the path of a model: `emoji32_edm` and `digits_vp` ship, a directory stands for its model.safetensors."""
    shipped = ASSETS / f"{checkpoint}.safetensors"
    if os.path.isfile(shipped):  # which is false, as that of a Path is not, for a name that no file can have
        return shipped
    path = Path(checkpoint)
    return path / "model.safetensors" if os.path.isdir(path) else path


def with_model_metrics(cfg: DictConfig) -> DictConfig:
    """Return the config with the metrics that `metrics=auto` stands for; the config itself without that choice
    or a checkpoint."""
    return with_metrics(cfg, model_path(_selected(cfg, "checkpoint"))) if "checkpoint" in cfg else cfg
