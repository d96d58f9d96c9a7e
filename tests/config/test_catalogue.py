"""The comments of conf/ as `--help`, `scoreline show GROUP` and the site show them."""

import re
import runpy
from pathlib import Path

import pytest

import scoreline
from scoreline.commands import show
from scoreline.config import catalogue
from scoreline.config.catalogue import Key
from scoreline.config.conf_folder import files
from scoreline.storage.config_files import conf_dir

ROOT = Path(__file__).parents[2]

TEXT = """\
# @package _global_
# What Xu et al. (2023) do. More of it.
_target_: somewhere
# Twice as
# long.
solver:
  _target_: somewhere
  order: 3 # of .. 4
  scale:
    path: ${record}
list: [1, 2] # | pair
"""


def test_keys_carry_value_and_comments() -> None:
    assert list(catalogue.keys(TEXT)) == [
        Key("solver", "", "", "Twice as long."),
        Key("solver.order", "3", "of .. 4", ""),
        Key("solver.scale", "", "", ""),
        Key("solver.scale.path", "${record}", "", ""),
        Key("list", "[1, 2]", "| pair", ""),
    ]


def test_about_is_the_first_sentence(tmp_path: Path) -> None:
    path = tmp_path / "choice.yaml"
    for text, sentence in ((TEXT, "What Xu et al. (2023) do"), ("title: 'A table'\n", "A table"), ("a: 1\n", "")):
        path.write_text(text)
        assert catalogue.about(path) == sentence


@pytest.mark.parametrize("group", catalogue.groups())
def test_show_lists_a_group(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(map(catalogue.about, files(group).values())), "each file begins with a sentence"
    show.main([group])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{group}: {len(files(group))} choice")
    assert {line.split()[0] for line in lines if line[2] != " "} == set(files(group))
    assert max(map(len, lines)) <= catalogue.WIDTH


def test_every_group_of_conf_is_known() -> None:
    assert {path.parent.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*/*.yaml")} == set(
        catalogue.groups()
    )


def test_the_page_of_choices_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs/choices.py"))
    assert page["PAGE"].read_text() == page["markdown"](), "python docs/choices.py writes it"


def test_the_reference_covers_the_public_names() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", pages, re.M)}
    assert set(scoreline.__all__) - {"__version__"} == documented
