"""The folder conf/ of the package and a folder of the user's own: their choices and keys.

Nothing else says which code a config may name: the working directory's conf/ is read where `--config-dir` names it,
and only there.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scoreline.errors import InputError, printable

NO_NAME = re.compile(r"null|true|false|[-+.\d]+")
"""Values that Hydra reads as something else than a name of a choice."""

OWN_FOLDER = "SCORELINE_CONFIG_DIR"
"""Where processes of this one find the folder that `--config-dir` named."""

OPTIONS = ("--config-dir", "-cd")

SCRIPTS = ("train", "sample", "calibrate")


def conf_dir() -> Path:
    """conf/ of the package: inside it where it was installed, else at the top of its source tree.

    Raises:
        InputError: if there is none.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "conf", here.parents[2] / "conf"):
        if (folder / "sample.yaml").is_file():
            return folder
    raise InputError("conf: scoreline was installed without its configs; install it again")


def script(name: str) -> Path:
    """train.py, sample.py or calibrate.py: at the top of the source tree, or in the installed package."""
    root = conf_dir().parent
    return root / name if (root / name).is_file() else root / "scripts" / name


def use_own_folder(words: Sequence[str]) -> list[str]:
    """Take `--config-dir FOLDER` from a command line, for this process and those that it starts; the other words.

    Raises:
        InputError: if the option has no folder, or there is no such folder.
    """
    rest, given = list[str](), iter(words)
    for word in given:
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            rest.append(word)
            continue
        folder = Path(value if equals else next(given, ""))
        if str(folder) == "." or not folder.is_dir():
            raise InputError(f"{option} {folder}: no such folder; give one that holds solver/NAME.yaml or the like")
        os.environ[OWN_FOLDER] = str(folder.resolve())
    return rest


def own_folder() -> Path | None:
    """The folder that the user named by `--config-dir`."""
    return Path(os.environ[OWN_FOLDER]) if os.environ.get(OWN_FOLDER) else None


def folders() -> list[Path]:
    """Where configs may come from: the package's conf/, and the user's own folder."""
    own = own_folder()
    return [conf_dir(), *([own] if own else [])]


def files(group: str) -> dict[str, Path]:
    """The files of a group by name, in order of their names; one of the package's goes before one of the user's."""
    found = {path.stem: path for folder in reversed(folders()) for path in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def choice(group: str, name: str, key: str, without: Collection[str] = ()) -> str:
    """A name that somebody's file gives, if it is a choice of the group; such a name may then be composed.

    Args:
        key: what the user knows the file by.
        without: choices that such a file may not make.

    Raises:
        InputError: if it is none.
    """
    known = files(group)
    if name not in known or name in without:
        raise InputError(
            f"{key}: it names {group}='{printable(name)[:60]}', which is no choice of conf/{group}; make the file again"
        )
    return next(known_name for known_name in known if known_name == name)


def refuse_lost_choices(words: Sequence[str]) -> None:
    """What Hydra takes, or has no words for: `solver=null`, `~solver`, `solver=../x`, `=x`.

    Raises:
        InputError: for such a word.
    """
    for word in words:
        key, equals, name = word.partition("=")
        if not key and equals:
            raise InputError(f"{word}: not of the form key=value")
        if word.startswith("~") and "." not in word:
            raise InputError(f"{word}: every script reads this key; drop the word, or give the key a value")
        known = files(key) if key.isidentifier() else {}
        if known and (NO_NAME.fullmatch(name) or ".." in Path(name).parts):
            raise InputError(f"{word}: there is no such choice; leave the key out, or choose one of {', '.join(known)}")


def composed(name: str, overrides: Sequence[str], whole: bool = False) -> DictConfig:
    """The config of script `name` with overrides of the user's; within a script that runs, from its search path.

    Args:
        whole: whether Hydra's own part is in it.

    Raises:
        HydraException: for unknown keys and choices.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    refuse_lost_choices(overrides)
    if GlobalHydra.instance().is_initialized():
        return compose(name, list(overrides), return_hydra_config=whole)
    own = own_folder()
    path = [f"hydra.searchpath=[{quoted(f'file://{own}')}]"] if own else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, [*overrides, *path], return_hydra_config=whole)


def quoted(text: str) -> str:
    """A text as one value of Hydra's command line."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def known_keys() -> set[str]:
    """Every key and group that this script accepts, dotted; those of sample.py for commands that are no script.

    Keys below a group are those of the choice that the command line makes.
    """
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    name = Path(sys.argv[0]).stem
    config = composed(name if name in SCRIPTS else "sample", _chosen(sys.argv[1:]))
    groups = {entry.name for entry in conf_dir().iterdir() if entry.is_dir() and entry.name in config}
    return set(_dotted(OmegaConf.to_container(config, resolve=False), "")) | groups | {"experiment"}


def _chosen(words: Sequence[str]) -> list[str]:
    """The choices of groups among the words of a command line, without those that there are not."""
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    return [word for word, group, name in pairs if group.isidentifier() and name in files(group)]


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")
