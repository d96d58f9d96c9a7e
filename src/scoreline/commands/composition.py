"""Configs composed as the scripts compose them, for commands that are no Hydra scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline import conf_folder, run_names
from scoreline.annotations import refuse_wrong_types
from scoreline.config.model_source import bound, plain_model, read_source, replaced
from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.specs import Spec


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of sample.py with these overrides and the model of its checkpoint.

    Raises:
        InputError, HydraException: as sample.py does, explained by `mistakes.explain`.
    """
    cfg = plain_config(overrides)
    found = bound(cfg, read_source(cfg).load())
    OmegaConf.set_struct(found, False)
    return found


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


def described_model(choice: str, overrides: Sequence[str]) -> "Spec":
    """A choice of conf/model with some of its keys changed.

    Raises:
        InputError, HydraException: for an unknown choice or key.
    """
    found = plain_model(plain_config([f"model={choice}", *overrides]))
    if found is None:
        raise InputError(f"model={choice}: give a choice of conf/model")
    return found


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


def followed(cfg: DictConfig, span: tuple[float, float], nfe: int) -> tuple[DictConfig, tuple[str, str] | None]:
    """If solver= chooses among the others, the config with the two files of its choice, and their names.

    The record may come from anybody, so it can only name choices that exist.

    Raises:
        InputError: if its record was measured on another range, or names no choice of conf/.
    """
    from scoreline.calibration.search import Recommendation

    recommendation = built(cfg.solver)
    if not isinstance(recommendation, Recommendation):
        return cfg, None
    names = zip(GROUPS, recommendation.at(nfe, span), strict=True)
    known = {group: conf_folder.choice(group, name, "solver.path", without=CHOOSERS) for group, name in names}
    chosen = conf_folder.composed("sample", [f"{group}={name}" for group, name in known.items()])
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
