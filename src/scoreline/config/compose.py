"""Composition of configs for commands, equal to that of the scripts, and construction of the objects in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline.config import conf_folder, run_names
from scoreline.config.model_source import plain_model, read_source, with_model, with_sigma_data, with_values
from scoreline.descriptions.annotations import refuse_wrong_types
from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.checkpoints import Checkpoint
    from scoreline.descriptions.specs import Spec


def complete_config(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of sample.py with these overrides and the description of its checkpoint's model.

    Raises:
        InputError: for a checkpoint that cannot be loaded.
        HydraException: for unknown keys and choices; `explain.explain` explains it.
    """
    cfg = plain_config(overrides)
    checkpoint = read_source(cfg).load()
    cfg = with_sigma_data(with_model(cfg, checkpoint), checkpoint)
    OmegaConf.set_struct(cfg, False)
    return cfg


def plain_config(overrides: Sequence[str], **values: Any) -> DictConfig:
    """Compose the config of sample.py without loading its checkpoint.

    Args:
        overrides: words of a command line.
        values: values of further keys.

    Raises:
        HydraException: for unknown keys and choices; `explain.explain` explains it.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    run_names.register_resolvers()
    cfg = with_values(conf_folder.compose_config("sample", overrides), **values)
    refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def described_model(choice: str, overrides: Sequence[str]) -> "Spec":
    """Return the description of a choice of conf/model.

    Args:
        choice: the name of the file.
        overrides: words that change some of its keys.

    Raises:
        InputError: if the choice is null.
        HydraException: for an unknown choice or key.
    """
    model = plain_model(plain_config([f"model={choice}", *overrides]))
    if model is None:
        raise InputError(f"model={choice}: give a choice of conf/model")
    return model


def script_config(script: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of a script with Hydra's part, as the running script sees it.

    Args:
        script: train, sample or calibrate.
        overrides: words of a command line.

    Raises:
        HydraException: for unknown keys and choices; `explain.explain` explains it.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    run_names.register_resolvers()
    GlobalHydra.instance().clear()
    cfg = conf_folder.compose_config(script, overrides, whole=True)
    HydraConfig.instance().set_config(cfg)
    refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
    return cfg


def families(cfg: DictConfig, checkpoint: "Checkpoint") -> dict[str, dict[str, Any]]:
    """Build the solvers and schedules of `calibration.solvers` and `calibration.schedules` for a checkpoint.

    `all` leaves out those without the record or file that they need; one that the user names must work.

    Args:
        cfg: the config of calibrate.py.
        checkpoint: the model.

    Raises:
        InputError: for a list that names none, or one twice.
        InstantiationException: if a named one cannot be built.
    """
    choices = {group: cfg.calibration[f"{group}s"] for group in GROUPS}
    names = {group: _named(group, value) for group, value in choices.items()}
    record = str(run_names.record_beside(checkpoint.path, "score_norm"))
    whole = with_sigma_data(OmegaConf.create({**cfg, "record": record, "families": _nodes(names)}), checkpoint)
    return {
        group: {
            name: candidate
            for name in names[group]
            if (candidate := _tried(whole.families[group][name], optional=choices[group] == "all")) is not None
        }
        for group in names
    }


GROUPS = ("solver", "schedule")

CHOOSERS = ("auto",)
"""Files of conf/solver that choose among the others."""

BOUND = (*CHOOSERS, "learned")
"""Files of conf/solver that `all` leaves out. A learned tableau exists at its own NFE only, and it would win unfairly
on its training seeds."""


def _named(group: str, value: Any) -> list[str]:
    if value == "all":
        return [name for name in conf_folder.files(group) if name not in BOUND]
    names = [value] if isinstance(value, str) else value
    whole = isinstance(names, Sequence) and bool(names) and all(isinstance(name, str) for name in names)
    if not whole or len(set(names)) < len(names) or set(names) & set(CHOOSERS):
        raise InputError(
            f"calibration.{group}s={value}: give all, or a list of different names of conf/{group}"
            f"{' other than auto' * (group == 'solver')}"
        )
    return list(names)


def _nodes(names: dict[str, list[str]]) -> Any:
    """Return the content of config files, composed together."""
    chosen = [f"+{group}@families.{group}.{name}={name}" for group in names for name in names[group]]
    return conf_folder.compose_config("sample", chosen).families


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


def follow_recommendation(
    cfg: DictConfig, checkpoint: "Checkpoint", span: tuple[float, float], nfe: int
) -> tuple[DictConfig, tuple[str, str] | None]:
    """Replace a solver that chooses among the others (`solver=auto`) and the schedule by its recommendation.

    The record is untrusted, so it can only name existing choices.

    Args:
        cfg: the config, completed with the model.
        checkpoint: the model.
        span: (sigma_max, sigma_min).
        nfe: evaluations of the solver.

    Returns:
        The config, and the names of solver and schedule; None if the solver is an ordinary one.

    Raises:
        InputError: if the record was measured on another range, or names no choice of conf/.
    """
    from scoreline.calibration.search import Recommendation

    recommendation = build_object(cfg.solver)
    if not isinstance(recommendation, Recommendation):
        return cfg, None
    names = zip(GROUPS, recommendation.at(nfe, span), strict=True)
    choices = {group: conf_folder.choice(group, name, "solver.path", without=CHOOSERS) for group, name in names}
    chosen = conf_folder.compose_config("sample", [f"{group}={name}" for group, name in choices.items()])
    nodes = {group: OmegaConf.to_container(chosen[group], resolve=False) for group in choices}
    return with_sigma_data(with_values(cfg, **nodes), checkpoint), (choices["solver"], choices["schedule"])


def build_object(node: DictConfig, plain: bool = False) -> Any:
    """Return the object that a config node describes.

    Args:
        node: a node with a `_target_`.
        plain: whether to pass lists and mappings below it as plain Python objects.
    """
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all") if plain else instantiate(node)
