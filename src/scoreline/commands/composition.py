"""Configs composed as the scripts compose them, for commands that are no Hydra scripts."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline import checks, conf_folder, entry, run_names
from scoreline.annotations import refuse_wrong_types
from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.checkpoints import Checkpoint
    from scoreline.foreign.conversion import Options
    from scoreline.specs import Spec


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of sample.py with these overrides and the model of its checkpoint.

    Raises:
        InputError, HydraException: as sample.py does, explained by `mistakes.explain`.
    """
    cfg = plain_config(overrides)
    adopt(cfg, open_checkpoint(cfg))
    return cfg


def plain_config(overrides: Sequence[str], **values: Any) -> DictConfig:
    """The config of sample.py with these overrides and values, without the model of its checkpoint.

    Raises:
        HydraException: as sample.py does, explained by `mistakes.explain`.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    run_names.register_resolvers()
    cfg = conf_folder.composed("sample", overrides)
    for key, value in values.items():
        cfg[key] = value
    refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def open_checkpoint(cfg: DictConfig) -> "Checkpoint":
    """The model that `checkpoint` names: a file of ours, or one of another project, imported into the cache.

    Raises:
        InputError: if it cannot be loaded, or `model` is given for a file that describes itself.
    """
    from scoreline.checkpoints import load_model
    from scoreline.foreign.conversion import cached, is_url

    checks.refuse_absent_checkpoint(cfg.checkpoint)
    word, trust = str(cfg.checkpoint), checks.names("trust", cfg.trust)
    path, is_import = _source(word)
    if not is_import:
        if cfg.model is not None:
            raise InputError(f"model: {path} describes itself; leave the key out")
        return load_model(path, trust)
    source = word if is_url(word) else str(path)
    try:
        target = cached(source, import_options(cfg))
    except InputError as error:
        raise InputError(f"checkpoint={word}: {str(error).removeprefix(f'{source}: ')}") from error
    print(f"checkpoint={word}: imported as {target}", file=sys.stderr)
    return load_model(target, trust)


def local_checkpoint(cfg: DictConfig) -> "Checkpoint | None":
    """The model that `checkpoint` names, None where it would have to be downloaded or imported first.

    Raises:
        InputError: if it is damaged.
    """
    from scoreline.checkpoints import load_model
    from scoreline.foreign.conversion import cached_place

    path, is_import = _source(str(cfg.checkpoint))
    if is_import and path.exists():
        path = cached_place(path, import_options(cfg))
    return load_model(path, checks.names("trust", cfg.trust)) if path.is_file() else None


def _source(word: str) -> tuple[Path, bool]:
    """Where the file behind `checkpoint=` lies, a URL's in the cache; and whether it has to be imported."""
    from scoreline.downloads import cached_path
    from scoreline.foreign.conversion import is_url
    from scoreline.foreign.families import is_diffusers, is_foreign

    if is_url(word):
        return cached_path(word), True
    path = Path(word) if is_diffusers(Path(word)) else run_names.model_path(word)
    is_ours = path.suffix == ".safetensors" and not is_foreign(path)
    return path, path.exists() and not is_ours


def import_options(cfg: DictConfig) -> "Options":
    """How `import.*` and `model` say that a checkpoint of another project is read."""
    from scoreline.foreign.conversion import Options

    asked = cfg["import"]
    allow = checks.names("import.allow", asked.allow)
    return Options(asked["from"], plain_model(cfg), asked.weights, allow, asked.sha256)


def adopt(cfg: DictConfig, checkpoint: "Checkpoint") -> None:
    """Put the checkpoint's model and the place of its record into the config, as sample.py does."""
    from omegaconf import open_dict

    with open_dict(cfg):
        entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
        if cfg.get("record") == "auto":
            cfg.record = str(run_names.record_beside(checkpoint.path, "score_norm"))


def described_model(choice: str, overrides: Sequence[str]) -> "Spec":
    """A choice of conf/model with some of its keys changed.

    Raises:
        InputError, HydraException: for an unknown choice or key.
    """
    found = plain_model(plain_config([f"model={choice}", *overrides]))
    if found is None:
        raise InputError(f"model={choice}: give a choice of conf/model")
    return found


def plain_model(cfg: DictConfig) -> "Spec | None":
    """`model` with everything resolved, None where none was chosen."""
    if cfg.model is None:
        return None
    whole = OmegaConf.to_container(OmegaConf.create({"model": cfg.model}), resolve=True)
    assert isinstance(whole, dict)
    return dict(whole["model"])


def script_config(script: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a script with Hydra's part, as the running script sees it.

    Raises:
        HydraException: as the script does, explained by `mistakes.explain`.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    run_names.register_resolvers()
    GlobalHydra.instance().clear()
    cfg = conf_folder.composed(script, overrides, whole=True)
    HydraConfig.instance().set_config(cfg)
    refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def families(cfg: DictConfig, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Solvers and schedules that `calibration.solvers` and `calibration.schedules` name, built for a checkpoint.

    With `all`, those that this checkpoint cannot have (a record or a file is missing) are left out; one that is named
    has to work.

    Raises:
        InputError: if a named one cannot be built.
    """
    asked = {group: cfg.calibration[f"{group}s"] for group in GROUPS}
    names = {group: _named(group, value) for group, value in asked.items()}
    record = str(run_names.record_beside(checkpoint, "score_norm"))
    whole = OmegaConf.create({**cfg, "record": record, "families": _nodes(names)})
    return {
        group: {
            name: found
            for name in names[group]
            if (found := _tried(whole.families[group][name], optional=asked[group] == "all")) is not None
        }
        for group in names
    }


GROUPS = ("solver", "schedule")

CHOOSERS = ("auto",)
"""Files of conf/solver that choose among the others."""

BOUND = (*CHOOSERS, "learned")
"""Files of conf/solver that `all` leaves out. A learned table exists at its own NFE only, and it would win unfairly on
the seeds that it was learned on."""


def _named(group: str, asked: Any) -> list[str]:
    if asked == "all":
        return [name for name in conf_folder.files(group) if name not in BOUND]
    names = [asked] if isinstance(asked, str) else asked
    whole = isinstance(names, Sequence) and bool(names) and all(isinstance(name, str) for name in names)
    if not whole or len(set(names)) < len(names) or set(names) & set(CHOOSERS):
        raise InputError(
            f"calibration.{group}s={asked}: give all, or a list of different names of conf/{group}"
            f"{' other than auto' * (group == 'solver')}"
        )
    return list(names)


def _nodes(names: dict[str, list[str]]) -> Any:
    """The content of config files, all in one composition."""
    chosen = [f"+{group}@families.{group}.{name}={name}" for group in names for name in names[group]]
    return conf_folder.composed("sample", chosen).families


def _tried(node: DictConfig, optional: bool) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    try:
        return instantiate(node)
    except (InstantiationException, OmegaConfBaseException):
        if optional:
            return None
        raise


def follow(cfg: DictConfig, span: tuple[float, float], nfe: int) -> tuple[str, str] | None:
    """If solver= chooses among the others, put its choice into the config and return the names of both files.

    The record may come from anybody, so it can only name choices that exist.

    Raises:
        InputError: if its record was measured on another range, or names no choice of conf/.
    """
    from scoreline.calibration.search import Recommendation

    recommendation = built(cfg.solver)
    if not isinstance(recommendation, Recommendation):
        return None
    names = zip(GROUPS, recommendation.at(nfe, span), strict=True)
    known = {group: conf_folder.choice(group, name, "solver.path", without=CHOOSERS) for group, name in names}
    chosen = conf_folder.composed("sample", [f"{group}={name}" for group, name in known.items()])
    for group in known:
        cfg[group] = OmegaConf.to_container(chosen[group], resolve=False)
    return known["solver"], known["schedule"]


def built(node: DictConfig) -> Any:
    """The object that a config node describes."""
    from hydra.utils import instantiate

    return instantiate(node)
