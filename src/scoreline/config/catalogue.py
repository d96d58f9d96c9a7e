"""Descriptions of the groups, choices and keys of conf/, from the comments of its files.

A file begins with a sentence about its choice; a comment behind a key explains the key. `--help`,
`scoreline show GROUP` and docs/reference/choices.md use them, without Hydra, so that they appear at once.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scoreline.config.conf_folder import files, folders
from scoreline.storage.config_files import conf_dir

WIDTH = 100
"""Columns of a terminal that `--help` fits."""

KEY = re.compile(r"^( *)(\w+):(?: +(?!#)(.*?))?(?: +# (.*))?$")

END_OF_SENTENCE = re.compile(r"(?<!\.)[.](?=\s+[A-Z\d]|\s*$)")


class Key(NamedTuple):
    """A key of a YAML file.

    Attributes:
        name: the key as the command line names it, `ema.rampup`.
        value: its value as the file writes it; empty for a node.
        comment: the comment behind it.
        details: the comment lines above it.
    """

    name: str
    value: str
    comment: str
    details: str


def keys(text: str) -> Iterator[Key]:
    """Yield the keys of a YAML text in order, without those that begin with an underscore."""
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip("# "))
            continue
        if match := KEY.match(line):
            indent, name, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
            parents = [*[parent for parent in parents if parent[0] < indent], (indent, name)]
            if not name.startswith("_"):
                yield Key(".".join(part for _, part in parents), value, comment, " ".join(above))
        above = []


def about(path: Path) -> str:
    """Return the sentence about a choice: the first one of the comment at the top of its file, or a table's title."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @")]
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    text = " ".join(line.strip("# ") for line in lines[:count])
    if not text:
        return next((key.value.strip("\"'") for key in keys("\n".join(lines)) if key.name == "title"), "")
    return END_OF_SENTENCE.split(text, maxsplit=1)[0].rstrip(".:")


def groups() -> list[str]:
    """Return the groups of all folders of configs, `hydra/launcher` included."""
    names = {path.parent.relative_to(folder).as_posix() for folder in folders() for path in folder.rglob("*/*.yaml")}
    return sorted(names)


def listing(group: str) -> str:
    """Return the choices of a group with their sentences, as text for a terminal."""
    choices = files(group)
    column = max(map(len, choices)) + 4
    lines = [_hanging(f"  {name}", about(path), column) for name, path in choices.items()]
    return "\n".join([f"{group}: {_count(choices)}", *lines])


def default_choices(config_name: str) -> dict[str, str]:
    """Return the groups of a script with their default choices."""
    return dict(re.findall(r"- (\w+): (\S+)", _config(config_name)[0]))


def keys_of(config_name: str) -> list[Key]:
    """Return the keys of a script without its groups and without the keys that the script records itself."""
    known, groups = keys(_config(config_name)[1].partition("\nhydra:")[0]), default_choices(config_name)
    return [key for key in known if key.name not in groups and not key.comment.startswith("recorded")]


def help_text(description: str, config_name: str) -> str:
    """Return the text of a script's `--help`: docstring, groups and keys with their defaults.

    Args:
        description: the docstring of the script.
        config_name: the name of its file in conf/.
    """
    groups = [
        f"  {f'{group}={default}':26}{_count(files(group)) + ':':13}scoreline show {group}"
        for group, default in default_choices(config_name).items()
    ]
    keys = [_hanging(f"  {key.name}={key.value}", key.comment, 28) for key in keys_of(config_name) if key.value]
    return "\n".join([description.rstrip(), "", "Groups:", *groups, "", "Keys:", *keys])


def _config(name: str) -> tuple[str, str]:
    """Return the list of defaults and the rest of a script's config."""
    defaults, _, rest = (conf_dir() / f"{name}.yaml").read_text().partition("\n\n")
    return defaults, rest


def _count(choices: Iterable[str]) -> str:
    number = len(list(choices))
    return f"{number} choice{'s' * (number != 1)}"


def _hanging(name: str, text: str, column: int) -> str:
    """Return a name and its text, wrapped with a hanging indent of `column`."""
    first = f"{name:{column}}" if len(name) < column else f"{name}  "
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * column) if text else first.rstrip()
