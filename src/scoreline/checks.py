"""What is wrong with a config whatever the model is, told before torch is imported."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from scoreline.choices import (
    check_compile,
    check_final,
    check_format,
    check_lock,
    check_on_error,
    check_precision,
    check_switch,
    check_wandb,
)
from scoreline.cores import threads_of
from scoreline.errors import InputError
from scoreline.label_rules import check_rule
from scoreline.run_names import model_path
from scoreline.seeds import parse_seeds
from scoreline.tables.schema import parse

WHOLE: dict[str, tuple[Any, ...]] = {
    "nfe": (),
    "batch_size": (),
    "network_batch": (None, "auto"),
    "trajectory_nfe": (),
    "jobs": (None,),
}
"""Keys of whole numbers, at least 1, and what else they may be."""

CHOICES: dict[str, Callable[[object], object]] = {
    "precision": check_precision,
    "compile": check_compile,
    "channels_last": functools.partial(check_switch, "channels_last"),
    "graphs": functools.partial(check_switch, "graphs"),
    "final": check_final,
    "format": check_format,
    "labels": check_rule,
    "lock": check_lock,
    "sweep.on_error": check_on_error,
    "wandb": check_wandb,
}
"""Keys of named choices, and what refuses others."""

ABSENT = object()
"""In place of a key that a script does not have."""


def refuse_plain_mistakes(cfg: DictConfig) -> None:
    """Numbers, seeds and paths that are wrong whatever the model is, told before torch is imported.

    Raises:
        InputError: in the words of the code that reads the key.
    """
    for key, others in WHOLE.items():
        if key in cfg and cfg[key] not in others:
            whole(key, cfg[key])
    if "threads" in cfg and cfg.threads is not None:
        threads_of(cfg.threads)
    for key, check in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is not ABSENT:
            check(value)
    for key in ("seeds", "trajectories"):
        if cfg.get(key) is not None:
            parse_seeds(cfg[key], key)
    for key in ("duration_kimg", "memory_mib"):
        if cfg.get(key) is not None:
            number(key, cfg[key])
    if "sigma_max" in cfg:
        for key, zero in (("sigma_max", False), ("sigma_min", True)):
            if cfg[key] is not None:
                number(key, cfg[key], zero=zero)
    if cfg.get("table") is not None:
        data = OmegaConf.to_container(cfg.table, resolve=False)
        parse(HydraConfig.get().runtime.choices["table"], data).ranges(str(cfg.budget))
    elif isinstance(cfg.get("checkpoint"), str):
        refuse_absent_checkpoint(cfg.checkpoint)


def refuse_absent_checkpoint(checkpoint: str) -> None:
    """Raises InputError if a checkpoint is neither a URL nor a shipped model nor a path at which something lies."""
    path = model_path(checkpoint)
    if "://" not in checkpoint and not path.exists() and not Path(checkpoint).exists():
        raise InputError(f"checkpoint={path}: no such file; give a model.safetensors written by train.py")


def whole(key: str, value: Any, least: int = 1) -> int:
    """A whole number from the config.

    Raises:
        InputError: naming the key if it is no integer or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value}: must be a whole number, at least {least}")
    return value


def number(key: str, value: Any, above: float = 0.0, zero: bool = False) -> float:
    """A finite number from the config.

    Args:
        zero: whether 0 is allowed too.

    Raises:
        InputError: naming the key if it is no number or not greater than `above`.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (above < value < float("inf") or (zero and value == 0)):
        raise InputError(f"{key}={value}: must be a number greater than {above:g}{', or 0' if zero else ''}")
    return float(value)
