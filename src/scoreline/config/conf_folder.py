"""The configs of the package and of a user's own folder: their choices and keys.

Configs name the code that runs, so they come from these two folders alone: a conf/ in the working directory is read
only if `--config-dir` names it.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scoreline.config.moved_names import current
from scoreline.config.run_names import with_model_metrics
from scoreline.errors import InputError, printable
from scoreline.storage.config_files import conf_dir

NO_NAME = re.compile(r"null|true|false|[-+.\d]+")
"""Values that Hydra does not read as the name of a choice."""

NO_MODEL = {"model=null": "~model"}
"""The word for a model that a checkpoint describes, as Hydra takes it."""

OWN_FOLDER = "SCORELINE_CONFIG_DIR"
"""Environment variable that passes the folder of `--config-dir` to child processes."""

OPTIONS = ("--config-dir", "-cd")

SCRIPTS = ("train", "sample", "calibrate")


def script(name: str) -> Path:
    """Return the path of train.py, sample.py or calibrate.py, in the source tree or the installed package."""
    root = conf_dir().parent
    return root / name if (root / name).is_file() else root / "scripts" / name


def use_own_folder(words: Sequence[str]) -> list[str]:
    """Apply `--config-dir FOLDER` to this process and its children, and return the other words of the command line.

    Raises:
        InputError: if the option has no folder, or there is no such folder.
    """
    rest, remaining = list[str](), iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            rest.append(word)
            continue
        folder = Path(value if equals else next(remaining, ""))
        if str(folder) == "." or not folder.is_dir():
            raise InputError(f"{option} {folder}: no such folder; give one that holds solver/NAME.yaml or the like")
        os.environ[OWN_FOLDER] = str(folder.resolve())
    return rest


def own_folder() -> Path | None:
    """Return the folder of `--config-dir`, or None."""
    return Path(os.environ[OWN_FOLDER]) if os.environ.get(OWN_FOLDER) else None


def folders() -> list[Path]:
    """Return the folders of configs: the package's conf/, and the user's own folder if there is one."""
    own = own_folder()
    return [conf_dir(), *([own] if own else [])]


def files(group: str) -> dict[str, Path]:
    """Return the files of a group by name, in order of their names; the package's file wins over the user's."""
    paths = {path.stem: path for folder in reversed(folders()) for path in (folder / group).glob("*.yaml")}
    return dict(sorted(paths.items()))


def choice(group: str, name: str, key: str, without: Collection[str] = ()) -> str:
    """Return a name from an untrusted file if it is a choice of the group, so that it may be composed.

    Args:
        group: a folder of conf/, such as solver.
        name: the name in the file.
        key: the key that named the file, for the message.
        without: choices of the group that are not allowed here.

    Raises:
        InputError: if it is no such choice.
    """
    choices = files(group)
    if name not in choices or name in without:
        raise InputError(
            f"{key}: it names {group}='{printable(name)[:60]}', which is no choice of conf/{group}; make the file again"
        )
    return next(known_name for known_name in choices if known_name == name)


def whole_words(name: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line with those of train.py as Hydra takes them.

    `init=X` stands for `init.checkpoint=X`, and beside `model=null` a key of `model` is a new one, since the checkpoint
    gives the others.

    Args:
        name: train, sample or calibrate.
        words: the words.
    """
    if name != "train":
        return list(words)
    words = [re.sub(r"^(\+{0,2})init=(?!\{)", r"\1init.checkpoint=", word) for word in words]
    words = [NO_MODEL.get(word, word) for word in words]
    return [f"++{word}" if word.startswith("model.") and "~model" in words else word for word in words]


def refuse_lost_choices(words: Sequence[str]) -> None:
    """Refuse words that Hydra accepts, or reports badly: `solver=null`, `~solver`, `solver=../x`, `=x`.

    Hydra composes the command line of a script itself, and `compose_config` that of a command: both call this first.

    Raises:
        InputError: naming the word.
    """
    for word in words:
        key, equals, name = word.partition("=")
        if not key and equals:
            raise InputError(f"{word}: not of the form key=value")
        if word.startswith("~") and "." not in word and word not in NO_MODEL.values():
            raise InputError(f"{word}: every script reads this key; drop the word, or give the key a value")
        known = files(key) if key.isidentifier() else {}
        if known and (NO_NAME.fullmatch(name) or ".." in Path(name).parts):
            raise InputError(f"{word}: there is no such choice; leave the key out, or choose one of {', '.join(known)}")


def compose_config(name: str, overrides: Sequence[str], whole: bool = False) -> DictConfig:
    """Compose the config of a script; within a running script, use its search path.

    Args:
        name: train, sample or calibrate.
        overrides: the words of the command line.
        whole: whether to include Hydra's own part.

    Raises:
        HydraException: for unknown keys and choices.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    overrides = whole_words(name, overrides)
    refuse_lost_choices(overrides)
    if GlobalHydra.instance().is_initialized():
        return with_model_metrics(current(compose(name, list(overrides), return_hydra_config=whole)))
    own = own_folder()
    path = [f"hydra.searchpath=[{quote(f'file://{own}')}]"] if own else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return with_model_metrics(current(compose(name, [*overrides, *path], return_hydra_config=whole)))


def quote(text: str) -> str:
    """Quote a text as one value of Hydra's command line."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def known_keys() -> set[str]:
    """Return every key and group that this script accepts, dotted; a command that is no script gets those of sample.py.

    The keys below a group are those of the choice on the command line.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    name = Path(sys.argv[0]).stem
    config = compose_config(name if name in SCRIPTS else "sample", _chosen(sys.argv[1:]))
    groups = {entry.name for entry in conf_dir().iterdir() if entry.is_dir() and entry.name in config}
    return set(_dotted(OmegaConf.to_container(config, resolve=False), "")) | groups | {"experiment"}


def _chosen(words: Sequence[str]) -> list[str]:
    """Return the words of a command line that choose an existing file of a group."""
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    return [word for word, group, name in pairs if group.isidentifier() and name in files(group)]


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")
