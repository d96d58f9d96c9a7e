"""Checks of config values that need neither the model nor torch, so that a mistake is reported at once."""

import os
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from scoreline.config.run_names import model_path
from scoreline.errors import InputError
from scoreline.runtime import cores

LARGEST_SEED = 2**63 - 1

MOST = {
    **{"nfe": 10_000, "trajectory_nfe": 10_000, "network_batch": 65_536, "jobs": 1024, "threads": cores.MOST},
    **{"workers": 1024, "seed": LARGEST_SEED},
}
"""Upper limits of keys on which time or memory depend."""

MOST_ELSE = 2**31 - 1
"""Upper limit of all other whole numbers."""

RECORDED = ("identity", "digest", "code_version")
"""Keys of config.yaml that the run itself fills in."""

LARGEST_BATCH = 2**20
"""Most images in a training step; the index of a larger one alone would fill the memory."""

LARGEST_KIMG = 10**9

KIMG = ("duration_kimg", "checkpoint_kimg", "preview_kimg", "fixed_loss_kimg", "log_kimg")
"""Keys of thousands of images, at least one image."""


def refuse_unusable() -> None:
    """Refuse a job that no script can run, whatever its own keys say.

    Raises:
        InputError: for an OMP_NUM_THREADS that is no number, a new key outside the groups, a key that a run records
            itself, or a run directory without a name.
    """
    cores.refuse_unreadable()
    hydra = HydraConfig.get()
    for override in hydra.overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        # `+typo=1` would pass silently: only arguments inside a group may be appended
        if override.startswith("+") and "." not in key and key not in hydra.runtime.choices:
            raise InputError(f"+{key}: no script reads a new key '{key}'; drop it")
        if key in RECORDED:
            raise InputError(f"{override}: {key} is recorded, not given; leave the key out")
    if hydra.run.dir in (None, ""):
        raise InputError("hydra.run.dir: names no directory; choose another directory or leave the key out")


def sigma_ends(cfg: DictConfig) -> tuple[float | None, float | None]:
    """Return `sigma_max` and `sigma_min` of a config, None where the model's own noise schedule decides.

    Raises:
        InputError: if one of them is no number in its range.
    """
    first = None if cfg.sigma_max is None else number("sigma_max", cfg.sigma_max)
    last = None if cfg.sigma_min is None else number("sigma_min", cfg.sigma_min, zero=True)
    return first, last


def refuse_absent_checkpoint(given: object) -> None:
    """Refuse a `checkpoint` that is neither a URL nor a shipped model nor an existing file or folder.

    Raises:
        InputError: naming the key, or the reason why the file cannot be read.
    """
    checkpoint = given if isinstance(given, str) else ""
    path = model_path(checkpoint)
    if "://" in checkpoint and not checkpoint.startswith(("http://", "https://")):
        raise InputError(
            f"checkpoint={given}: no such file, and only https:// and http:// are fetched; download it first"
        )
    if not checkpoint or not ("://" in checkpoint or os.path.isfile(path) or os.path.isdir(checkpoint)):
        name = path if checkpoint else given
        raise InputError(f"checkpoint={name}: no such file; give a model.safetensors written by train.py")
    if os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise InputError(f"checkpoint={path}: cannot be read ({error.strerror}); give another file") from error


def refuse_absent_record(given: object) -> None:
    """Refuse a value of `record` that is neither null nor auto nor the path of a file.

    Raises:
        InputError: naming the command that makes a record.
    """
    if given not in (None, "auto") and not (isinstance(given, str) and os.path.isfile(given)):
        raise InputError(
            f"record={given}: no such record; make one with: python calibrate.py calibration=score_norm checkpoint=..."
        )


def names(key: str, value: Any) -> tuple[str, ...]:
    """Return a list of names from the config.

    Args:
        key: its name in messages.
        value: the value of the key.

    Raises:
        InputError: if the value is no list of names.
    """
    if not isinstance(value, ListConfig | list | tuple) or not all(isinstance(part, str) for part in value):
        raise InputError(f"{key}={value}: must be a list of names, as in {key}=[mine]")
    return tuple(value)


def whole(key: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number from the config.

    Args:
        key: its name in messages.
        value: the value of the key.
        least: lower limit.
        most: upper limit; None takes that of `MOST`, else `MOST_ELSE`.

    Raises:
        InputError: if the value is no integer within the limits.
    """
    most = MOST.get(key, MOST_ELSE) if most is None else most
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value}: must be a whole number, at least {least}")
    if value > most:
        raise InputError(f"{key}={value}: must be a whole number, at most {most}")
    return value


def images(key: str, kimg: Any) -> int:
    """Return thousands of images from the config as a whole number of images, at least 1.

    Args:
        key: its name in messages.
        kimg: the value of the key.

    Raises:
        InputError: if the value is no such number, or above `LARGEST_KIMG`.
    """
    count = round(number(key, kimg) * 1000)
    if kimg > LARGEST_KIMG:
        raise InputError(f"{key}={kimg}: must be at most {LARGEST_KIMG}, in thousands of images")
    if not count:
        raise InputError(f"{key}={kimg}: less than one image; give 0.001 at least, in thousands of images")
    return count


def number(key: str, value: Any, above: float = 0.0, zero: bool = False) -> float:
    """Return a finite number from the config.

    Args:
        key: its name in messages.
        value: the value of the key.
        above: lower limit, itself not allowed.
        zero: whether 0 is allowed too.

    Raises:
        InputError: if the value is no finite number greater than `above`.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (above < value <= sys.float_info.max or (zero and value == 0)):
        raise InputError(f"{key}={value}: must be a number greater than {above:g}{', or 0' if zero else ''}")
    return float(value)
