"""The folder conf/: where it lies, which keys and choices it has, and the help that is made of it."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scoreline.errors import InputError

QUIET_OPTIONS = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir=", "hydra.output_subdir=")
"""Hydra's own keys of a command line that say nothing of a sweep."""


def mode_is_unset(words: Sequence[str], conf: Path) -> bool:
    """Whether neither the command line nor any config of `conf` can set hydra.mode."""
    chosen = [word for word in words if not word.startswith(QUIET_OPTIONS)]
    if any(word.lstrip("+~").startswith(("hydra", "--config", "-c")) for word in chosen):
        return False
    setting = re.compile(rb"^\s+mode:\s*['\"]?(RUN|MULTIRUN)", re.M)
    return not any(setting.search(path.read_bytes()) for path in conf.rglob("*.yaml"))


def help_text(about: str, config_name: str) -> str:
    """What a script's `--help` prints: its docstring, the choices of its groups, and its keys with their comments.

    Hydra's own help deep-copies every config of every group and takes seconds.
    """
    conf = conf_dir()
    defaults, _, rest = (conf / f"{config_name}.yaml").read_text().partition("\n\n")
    chosen = dict(re.findall(r"- (\w+): (\S+)", defaults))
    groups = [f"  {group + '=':14}{_choices(conf / group, default)}" for group, default in chosen.items()]
    keys = [f"  {line}" for line in rest.partition("\nhydra:")[0].splitlines()]
    return "\n".join([about, "Groups (default first):", *groups, "", "Keys:", *keys])


def _choices(folder: Path, default: str) -> str:
    return " | ".join(sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != default, name)))


def known_keys() -> set[str]:
    """Every key and group that this script accepts, dotted; those of sample.py for commands that are no script."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    folder, name = conf_dir(), Path(sys.argv[0]).stem
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name if (folder / f"{name}.yaml").is_file() else "sample")
    groups = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name in config}
    return set(_dotted(OmegaConf.to_container(config, resolve=False), "")) | groups | {"experiment"}


def conf_dir() -> Path:
    """conf/ beside the script that runs, else of the working directory, else of the source tree.

    Raises:
        InputError: if there is none.
    """
    for folder in (Path(sys.argv[0]).resolve().parent, Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "conf" / "sample.yaml").is_file():
            return folder / "conf"
    raise InputError("conf: no conf/sample.yaml here; run this in a checkout of scoreline")


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")
