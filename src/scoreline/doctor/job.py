"""A job as its script would see it, without running the script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline import mistakes
from scoreline.commands.composition import script_config
from scoreline.errors import InputError


@dataclass(frozen=True)
class Job:
    """The config of a script, the choices in its groups, and the directory it would write to."""

    script: str
    cfg: Any
    choices: dict[str, str]
    launcher: str
    folder: Path


def composed(script: str, overrides: Sequence[str]) -> Job:
    """The job that `python SCRIPT.py OVERRIDES` stands for; nothing is made or loaded.

    Raises:
        InputError: for keys, choices and values that the script does not take, in its words.
    """
    try:
        return _job(script, overrides)
    except Exception as error:
        raise InputError(sentence(error)) from error


def sentence(error: Exception) -> str:
    """What the script would say of an error that is no defect of ours; others go on."""
    found = mistakes.explain(error)
    if found is None:
        raise error
    return found


def _job(script: str, overrides: Sequence[str]) -> Job:
    cfg = script_config(script, overrides)
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
    return Job(script, cfg, choices, str(cfg.hydra.launcher.get("_target_", "")), Path(str(cfg.hydra.run.dir)))
