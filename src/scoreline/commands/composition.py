"""Solvers and schedules from the same files as sample.py reads, for commands that are no Hydra scripts."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from scoreline import entry
from scoreline.errors import InputError


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


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of sample.py with these overrides and its checkpoint's model filled in.

    Raises:
        InputError, HydraException: as sample.py does, explained by `entry.explain`.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    from scoreline.checkpoints import load_model

    GlobalHydra.instance().clear()
    entry.register_resolvers()
    with initialize_config_dir(str(entry.conf_dir()), version_base="1.3"):
        cfg = compose("sample", list(overrides))
    checkpoint = load_model(entry.model_path(cfg.checkpoint), tuple(cfg.trust))
    with open_dict(cfg):
        entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
        if cfg.record == "auto":
            cfg.record = str(entry.record_beside(checkpoint.path, "score_norm"))
    return cfg


def built(node: DictConfig) -> Any:
    """The object that a config node describes."""
    from hydra.utils import instantiate

    return instantiate(node)
