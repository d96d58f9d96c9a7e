"""What is wrong with a config whatever the model is, told before torch is imported."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from scoreline import cores
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

WHOLE: dict[str, tuple[Any, ...]] = {
    "nfe": (),
    "batch_size": (),
    "network_batch": (None, "auto"),
    "trajectory_nfe": (),
    "jobs": (None,),
    "micro_batch": (None,),
}
"""Keys of whole numbers, at least 1, and what else they may be."""

MOST = {"nfe": 10_000, "trajectory_nfe": 10_000, "network_batch": 65_536, "jobs": 1024, "threads": cores.MOST}
"""The largest of those whose work or memory grows with them, whatever the model and the number of images are."""

MOST_ELSE = 2**31 - 1

RECORDED = ("identity", "digest", "code_version")
"""Keys of config.yaml that a run fills in."""

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

LARGEST_SEED = 2**63 - 1

FROM_ZERO = {"workers": 1024, "seed": LARGEST_SEED}
"""Keys of whole numbers that may be 0, and the largest."""

LARGEST_BATCH = 2**20
"""Images in a training step: the numbers of a larger one alone would fill the memory."""

LARGEST_KIMG = 10**9

KIMG = ("duration_kimg", "checkpoint_kimg", "preview_kimg", "fixed_loss_kimg", "log_kimg")
"""Keys of thousands of images, at least one image."""

NUMBERS: dict[str, bool] = {
    "memory_mib": False,
    "device_mib": True,
    "lr_rampup_kimg": True,
    "loss_scale": False,
    "optimiser.lr": True,
}
"""Keys of numbers above 0, and whether they may be 0."""

ABSENT = object()
"""In place of a key that a script does not have."""


def refuse_plain_mistakes(cfg: DictConfig) -> None:
    """Numbers, seeds and paths that are wrong whatever the model is, told before torch is imported.

    Raises:
        InputError: in the words of the code that reads the key.
    """
    cores.refuse_unreadable()
    for key in RECORDED:
        refuse_recorded(key)
    if HydraConfig.initialized() and HydraConfig.get().run.dir in (None, ""):
        raise InputError("hydra.run.dir: names no directory; choose another directory or leave the key out")
    for key, others in WHOLE.items():
        if key in cfg and cfg[key] not in others:
            whole(key, cfg[key])
    if "threads" in cfg:
        threads_of(cfg.threads)
    for key, check in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is not ABSENT:
            check(value)
    for key in ("seeds", "trajectories"):
        if key in cfg and (key == "seeds" or cfg[key] is not None):
            parse_seeds(cfg[key], key)
    _refuse_numbers(cfg)
    for key in ("trust", "import.allow"):
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is not ABSENT:
            names(key, value)
    if "import" in cfg and not isinstance(cfg["import"], DictConfig):
        raise InputError(
            f"import={cfg['import']}: has the keys import.from, import.weights, ..; give these, or drop it"
        )
    if cfg.get("record", "auto") not in (None, "auto"):
        refuse_absent_record(cfg.record)
    if "sigma_max" in cfg:
        for key, zero in (("sigma_max", False), ("sigma_min", True)):
            if cfg[key] is not None:
                number(key, cfg[key], zero=zero)
    if cfg.get("table") is None and "checkpoint" in cfg:
        refuse_absent_checkpoint(cfg.checkpoint)


def _refuse_numbers(cfg: DictConfig) -> None:
    for key, most in FROM_ZERO.items():
        if key in cfg:
            whole(key, cfg[key], 0, most)
    for key in KIMG:
        if key in cfg:
            images(key, cfg[key])
    for key, zero in NUMBERS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None:
            number(key, value, zero=zero)


def refuse_recorded(key: str) -> None:
    """Raises InputError if the command line gives a key that a run fills in itself."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for override in given:
        if override.lstrip("+~").partition("=")[0] == key:
            raise InputError(f"{override}: {key} is recorded, not given; leave the key out")


def refuse_absent_checkpoint(given: object) -> None:
    """Raises InputError if a checkpoint is neither a URL nor a shipped model nor a path at which something lies."""
    checkpoint = given if isinstance(given, str) else ""
    path = model_path(checkpoint)
    if "://" in checkpoint and not checkpoint.startswith(("http://", "https://")):
        raise InputError(
            f"checkpoint={given}: no such file, and only https:// and http:// are fetched; download it first"
        )
    if not checkpoint or not ("://" in checkpoint or os.path.isfile(path) or os.path.isdir(checkpoint)):
        shown = path if checkpoint else given
        raise InputError(f"checkpoint={shown}: no such file; give a model.safetensors written by train.py")
    if os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise InputError(f"checkpoint={path}: cannot be read ({error.strerror}); give another file") from error


def refuse_absent_record(given: object) -> None:
    """Raises InputError if a record that the user names is no file."""
    if not isinstance(given, str) or not os.path.isfile(given):
        raise InputError(
            f"record={given}: no such record; make one with: python calibrate.py calibration=score_norm checkpoint=..."
        )


def names(key: str, value: Any) -> tuple[str, ...]:
    """A list of names from the config.

    Raises:
        InputError: naming the key if it is none.
    """
    if not isinstance(value, ListConfig | list | tuple) or not all(isinstance(part, str) for part in value):
        raise InputError(f"{key}={value}: must be a list of names, as in {key}=[mine]")
    return tuple(value)


def whole(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from the config.

    Raises:
        InputError: naming the key if it is no integer, below `least`, or above `most` or what `MOST` says.
    """
    most = MOST.get(key, MOST_ELSE) if most is None else most
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value}: must be a whole number, at least {least}")
    if value > most:
        raise InputError(f"{key}={value}: must be a whole number, at most {most}")
    return value


def images(key: str, kimg: Any) -> int:
    """Thousands of images from the config as a whole number of images, at least 1.

    Raises:
        InputError: naming the key if it is no such number, or more than `LARGEST_KIMG`.
    """
    found = round(number(key, kimg) * 1000)
    if kimg > LARGEST_KIMG:
        raise InputError(f"{key}={kimg}: must be at most {LARGEST_KIMG}, in thousands of images")
    if not found:
        raise InputError(f"{key}={kimg}: less than one image; give 0.001 at least, in thousands of images")
    return found


def number(key: str, value: Any, above: float = 0.0, zero: bool = False) -> float:
    """A finite number from the config.

    Args:
        zero: whether 0 is allowed too.

    Raises:
        InputError: naming the key if it is no number or not greater than `above`.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (above < value <= sys.float_info.max or (zero and value == 0)):
        raise InputError(f"{key}={value}: must be a number greater than {above:g}{', or 0' if zero else ''}")
    return float(value)
