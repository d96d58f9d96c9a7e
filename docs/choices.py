"""Write docs/reference/choices.md from conf/: python docs/choices.py."""

from collections.abc import Iterable
from pathlib import Path

from scoreline.config import catalogue
from scoreline.config.conf_folder import SCRIPTS, files

PAGE = Path(__file__).parent / "reference/choices.md"

INTRODUCTION = """\
# Choices and keys

Every key, group and choice of the three scripts; `python docs/choices.py` writes this page from `conf/`. The command
line takes `GROUP=CHOICE` and `KEY=VALUE` words:

```bash
python sample.py solver=unipc_3 solver.variant=bh1 nfe=8
```

`scoreline show GROUP` prints the choices of a group. [Extending](../extending.md) shows how to add one.
"""

BRIEF = ("model", "table", "experiment", "trainer", "hydra/launcher")
"""Groups of whose choices only the meaning is shown: their keys are many and seldom set by hand."""


def markdown() -> str:
    """The page."""
    scripts = [_script(name) for name in SCRIPTS]
    groups = [_group(group) for group in catalogue.groups()]
    return "\n".join([INTRODUCTION, *scripts, *groups])


def _script(name: str) -> str:
    keys = [key for key in catalogue.keys_of(name) if key.value or key.comment]
    rows = [(f"`{key.name}`", _code(key.value), f"{key.comment}. {key.details}") for key in keys]
    return f"## {name}.py\n\n" + _table(("key", "default", "meaning"), rows)


def _group(group: str) -> str:
    uses = [
        f"{name}.py, default `{catalogue.default_choices(name)[group]}`"
        for name in SCRIPTS
        if group in catalogue.default_choices(name)
    ]
    head = f"## {group}\n\n" + (f"Used by {'; '.join(uses)}.\n\n" if uses else "")
    found = files(group)
    if group in BRIEF:
        return head + _table(
            ("choice", "meaning"), [(f"`{name}`", catalogue.about(path)) for name, path in found.items()]
        )
    keys = {name: _keys(group, path) for name, path in found.items()}
    rows = [(f"`{name}`", catalogue.about(path), _settings(keys[name])) for name, path in found.items()]
    return head + _table(("choice", "meaning", "keys"), rows) + _meanings(keys)


def _keys(group: str, path: Path) -> list[catalogue.Key]:
    """The keys of a choice under the names that the command line has for them."""
    text = path.read_text()
    prefix = "" if text.startswith("# @package _global_") else group.replace("/", ".") + "."
    return [key._replace(name=prefix + key.name) for key in catalogue.keys(text) if key.name != "defaults"]


def _settings(keys: Iterable[catalogue.Key]) -> str:
    return " ".join(_code(f"{key.name}={key.value}") for key in keys if key.value)


def _meanings(keys: dict[str, list[catalogue.Key]]) -> str:
    """The table of the comments of a group's keys, each with the choices that it holds for."""
    users: dict[tuple[str, str], list[str]] = {}
    for choice, own in keys.items():
        for key in own:
            if key.comment:
                users.setdefault((f"`{key.name}`", key.comment), []).append(f"`{choice}`")
    rows = [(*key, ", ".join(choices)) for key, choices in users.items()]
    return "\n" + _table(("key", "meaning", "choices"), rows) if rows else ""


def _code(text: str) -> str:
    return f"`{text}`" if text and not text.startswith("${hydra:") else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [head, ("--",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.strip(". ").replace("|", "\\|") for cell in row) + " |\n" for row in cells)


if __name__ == "__main__":
    PAGE.write_text(markdown())
