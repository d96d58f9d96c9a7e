"""A job as its script would see it, without running the script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline import conf_folder, mistakes, run_names
from scoreline.commands.composition import built
from scoreline.errors import InputError

SCRIPTS = ("sample", "train", "calibrate")


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
    run_names.register_resolvers()
    _hydra("core.global_hydra.GlobalHydra").instance().clear()
    with _hydra("initialize_config_dir")(str(conf_folder.conf_dir()), version_base="1.3"):
        cfg = _hydra("compose")(script, list(overrides), return_hydra_config=True)
    _hydra("core.hydra_config.HydraConfig").instance().set_config(cfg)
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
    return Job(script, cfg, choices, str(cfg.hydra.launcher.get("_target_", "")), Path(str(cfg.hydra.run.dir)))


def _hydra(name: str) -> Any:
    """Something of Hydra, which only the scripts' own modules import."""
    described: Any = {"_target_": "hydra.utils.get_object", "path": f"hydra.{name}"}
    return built(described)
