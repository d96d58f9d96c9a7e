"""Solvers and schedules from the same files as sample.py reads, for commands that are no Hydra scripts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline import conf_folder, run_names
from scoreline.annotations import refuse_wrong_types
from scoreline.config.model_source import bound, plain_model, read_source, replaced
from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.checkpoints import Checkpoint
    from scoreline.specs import Spec


def split(words: Sequence[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """key=value words: a command's own keys with their defaults filled in, and the overrides for the config.

    Raises:
        InputError: for a word without `=`.
    """
    values, overrides = dict(own), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{word}: not of the form key=value")
        if key in own:
            values[key] = value
        else:
            overrides.append(word)
    return values, overrides


def refuse_blocked(given: str, folder: Path) -> None:
    """Refuse a folder to write to that cannot be, before anybody spends time.

    Args:
        given: how the user named it.

    Raises:
        InputError: if a file stands in its way.
    """
    there = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{given}: {there} is a file, no folder; choose another place")


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of sample.py with these overrides and its checkpoint's model filled in.

    Raises:
        InputError, HydraException: as sample.py does, explained by `mistakes.explain`.
    """
    cfg = plain_config(overrides)
    found = bound(cfg, open_checkpoint(cfg))
    OmegaConf.set_struct(found, False)
    return found


def plain_config(overrides: Sequence[str], **values: Any) -> DictConfig:
    """The config of sample.py with these overrides and values, before any checkpoint is looked at.

    Raises:
        HydraException: as sample.py does, explained by `mistakes.explain`.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    run_names.register_resolvers()
    cfg = sample_config(overrides)
    for key, value in values.items():
        cfg[key] = value
    refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def open_checkpoint(cfg: DictConfig) -> "Checkpoint":
    """The model that `checkpoint` names: a file of ours, or one of another project, imported into the cache.

    Raises:
        InputError: if it cannot be loaded, or `model` is given for a file that describes itself.
    """
    return read_source(cfg).load()


def described_model(choice: str, overrides: Sequence[str]) -> "Spec":
    """A choice of conf/model with some of its keys changed.

    Raises:
        InputError, HydraException: for an unknown choice or key.
    """
    found = plain_model(plain_config([f"model={choice}", *overrides]))
    if found is None:
        raise InputError(f"model={choice}: give a choice of conf/model")
    return found


def sample_config(overrides: Sequence[str]) -> DictConfig:
    """The config of sample.py; within a script that runs, from that script's search path."""
    return conf_folder.composed("sample", overrides)


def script_config(script: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a script with Hydra's part, as the script itself sees it when it runs.

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
    """What `calibration.solvers` and `calibration.schedules` name, built for the checkpoint of a running script.

    With `all`, what this checkpoint cannot have (a record or a file is missing) is left out; what is named must work.

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
"""Files of conf/solver that `all` leaves out: a learned table exists at its own NFE only, and on the seeds that made it
it would win unfairly."""


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
    return sample_config(chosen).families


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


def followed(cfg: DictConfig, span: tuple[float, float], nfe: int) -> tuple[DictConfig, tuple[str, str] | None]:
    """Where solver= chooses among the others: the config with the files of its choice, and their names.

    The record is a file that may be anybody's: it can only name choices that exist.

    Raises:
        InputError: if what it chooses from was measured on another range, or names no choice of conf/.
    """
    from scoreline.calibration.search import Recommendation

    recommendation = built(cfg.solver)
    if not isinstance(recommendation, Recommendation):
        return cfg, None
    names = zip(GROUPS, recommendation.at(nfe, span), strict=True)
    known = {group: conf_folder.choice(group, name, "solver.path", without=CHOOSERS) for group, name in names}
    chosen = sample_config([f"{group}={name}" for group, name in known.items()])
    nodes = {group: OmegaConf.to_container(chosen[group], resolve=False) for group in known}
    return replaced(cfg, **nodes), (known["solver"], known["schedule"])


def built(node: DictConfig, plain: bool = False) -> Any:
    """The object that a config node describes.

    Args:
        node: with a `_target_`.
        plain: whether lists and mappings below it become plain ones.
    """
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all") if plain else instantiate(node)
