"""Checks of config values that need neither the model nor torch, so that a mistake is reported at once."""

import os

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from scoreline.config.run_names import model_path
from scoreline.errors import InputError
from scoreline.runtime import cores
from scoreline.storage.wandb_runs import import_wandb
from scoreline.values import check_wandb, real_number

RECORDED = ("identity", "digest", "code_version")
"""Keys of config.yaml that the run itself fills in."""


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
    first = None if cfg.sigma_max is None else real_number("sigma_max", cfg.sigma_max)
    last = None if cfg.sigma_min is None else real_number("sigma_min", cfg.sigma_min, zero=True)
    return first, last


def sigma_data(cfg: DictConfig) -> float | None:
    """Return `sigma_data` of a config, None where the model's own number decides.

    Raises:
        InputError: if it is no number in its range.
    """
    return None if cfg.sigma_data is None else real_number("sigma_data", cfg.sigma_data)


def wandb(cfg: DictConfig) -> str:
    """Return `wandb` of a config, once the package is known to be there.

    Raises:
        InputError: for a value that is not one of `values.WANDB`, or a missing package.
    """
    mode = check_wandb(cfg.wandb)
    if mode != "off":
        import_wandb()
    return mode


def refuse_absent_checkpoint(given: object, key: str = "checkpoint") -> None:
    """Refuse a checkpoint that is neither a URL nor a shipped model nor an existing file or folder.

    Args:
        given: the value of the key.
        key: its name in messages.

    Raises:
        InputError: naming the key, or the reason why the file cannot be read.
    """
    checkpoint = given if isinstance(given, str) else ""
    path = model_path(checkpoint)
    if "://" in checkpoint and not checkpoint.startswith(("http://", "https://")):
        raise InputError(f"{key}={given}: no such file, and only https:// and http:// are fetched; download it first")
    if not checkpoint or not ("://" in checkpoint or os.path.isfile(path) or os.path.isdir(checkpoint)):
        name = path if checkpoint else given
        raise InputError(f"{key}={name}: no such file; give a model.safetensors written by train.py")
    if os.path.isfile(path):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise InputError(f"{key}={path}: cannot be read ({error.strerror}); give another file") from error


def refuse_absent_record(record: object) -> None:
    """Refuse a value of `record` that is neither null nor auto nor the path of a file.

    Raises:
        InputError: naming the command that makes a record.
    """
    if record not in (None, "auto") and not (isinstance(record, str) and os.path.isfile(record)):
        raise InputError(
            f"record={record}: no such record; make one with: python calibrate.py calibration=score_norm checkpoint=..."
        )
