"""Pages of docs/ as the tests read them."""

import re
import sys
from pathlib import Path

import forks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(name: str) -> str:
    """The text of a page below docs/."""
    return (DOCS / name).read_text()


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second level, up to the next one."""
    _, found, rest = page.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks of these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M)
    return [(language, code) for language, code in found if language in languages]


def table(text: str) -> list[list[str]]:
    """The cells of the lines of the tables in a text, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [number for number, row in enumerate(rows) if all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    heads = {number - 1 for number in rules}
    return [row for number, row in enumerate(rows) if number not in heads and number not in rules]


def code(cell: str) -> str | None:
    """The first piece of code in a cell."""
    match = re.search(r"`([^`]+)`", cell)
    return match[1] if match else None


def links(page: str) -> list[str]:
    """Where a page leads, places on the web left out."""
    return [target for target in re.findall(r"\]\(([^)#]+)\)", page) if not target.startswith("http")]


LAUNCHER = """
import runpy, sys, warnings
warnings.resetwarnings()
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leaving:
    sys.exit(0 if leaving.code is None else leaving.code)
"""
"""Gives a forked process the warnings of a fresh one, and an exit code that is a number."""


def script(words: list[str]) -> list[str]:
    """`python train.py ..` or `scoreline ..` as a file of Python and its arguments."""
    if words[0] == "python":
        return [str(ROOT / words[1]), *words[2:]]
    assert words[0] == "scoreline", words
    return [str(Path(sys.executable).with_name("scoreline")), *words[1:]]


def forked(words: list[str], where: Path) -> tuple[int, str]:
    """Exit code and words of a command, run in the directory `where` by a fork of this process."""
    launcher = where / "launcher.py"
    launcher.write_text(LAUNCHER)
    (child,) = forks.start(str(launcher), where, *script(words))
    return forks.ended(child), (where / "said-0").read_text()
