"""Where configs come from: the package's conf/, and a folder that the user names; never the working directory."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import own_package
import pytest
from forks import call

from scoreline.config import conf_folder
from scoreline.errors import InputError
from scoreline.storage.config_files import conf_dir

ROOT = Path(conf_folder.__file__).parents[3]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs with an odd name: a solver, a table, and one that the package has already."""
    monkeypatch.delenv(conf_folder.OWN_FOLDER, raising=False)
    folder = tmp_path / "it's [mine], {really}"
    (folder / "solver").mkdir(parents=True)
    shutil.copy(ROOT / "conf/solver/heun.yaml", folder / "solver/mine.yaml")
    (folder / "solver/ddim.yaml").write_text("_target_: no.such.module\n")
    return folder


@pytest.mark.parametrize("form", [["--config-dir", "HERE"], ["--config-dir=HERE"], ["-cd", "HERE"]])
def test_the_option_is_taken_wherever_it_stands(own: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]) -> None:
    monkeypatch.setenv(conf_folder.OWN_FOLDER, "")
    words = [word.replace("HERE", str(own)) for word in form]
    assert conf_folder.use_own_folder(["show", *words, "nfe=4"]) == ["show", "nfe=4"]
    assert conf_folder.folders() == [conf_dir(), own.resolve()]
    assert conf_folder.files("solver")["mine"] == own / "solver/mine.yaml"
    assert conf_folder.files("solver")["ddim"] == conf_dir() / "solver/ddim.yaml"
    assert conf_folder.compose_config("sample", ["solver=mine"]).solver._target_ == "scoreline.solvers.runge_kutta.heun"


@pytest.mark.parametrize("words", [["--config-dir"], ["--config-dir", "nowhere"], ["--config-dir="], ["-cd", __file__]])
def test_a_folder_that_is_none_is_refused(own: Path, words: list[str]) -> None:
    with pytest.raises(InputError, match=r"no such folder"):
        conf_folder.use_own_folder(words)


@pytest.mark.parametrize(
    "name", ["mine/../mine", "../solver/mine", "mine ", "", "mine,ddim", "{a: 1}", "mine\n", "auto"]
)
def test_only_file_names_are_choices(own: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(conf_folder.OWN_FOLDER, str(own))
    assert conf_folder.choice("solver", "mine", "solver.path") == "mine"
    with pytest.raises(InputError, match=r"solver\.path: it names") as refused:
        conf_folder.choice("solver", name, "solver.path", without=("auto",))
    assert "\n" not in str(refused.value)


def test_every_program_takes_it(own: Path) -> None:
    folder = ["--config-dir", str(own)]
    for words in (["show", "solver=mine", "nfe=4"], ["certify", "solver=mine"]):
        done = call("scoreline", *folder, *words, cwd=own.parent)
        assert done.returncode == 0, done.stderr
        assert call("scoreline", *words, cwd=own.parent).returncode == 2
    words = ["solver=mine", "nfe=4", "seeds=0-3", "metrics=none"]
    done = call("sample", *folder, "-m", *words, cwd=own.parent)
    assert done.returncode == 0, done.stderr
    assert "  mine" in call("scoreline", *folder, "show", "solver", cwd=own.parent).stdout


INSTALLED = """
import sys
import lightning
from pathlib import Path
from forks import ended, _fork
import scoreline

assert scoreline.__file__.startswith(sys.argv[1]), scoreline.__file__
program = Path("scoreline")
program.write_text("from scoreline.cli import main; main()")

def run(*words):
    with open("said", "w") as said:
        code = ended(_fork(str(program), Path(), {}, words, said, said))
    text = Path("said").read_text()
    assert code == 0, (words, text)
    return text

own, brief = ("--config-dir", "conf"), ("nfe=4", "seeds=0-3")
run("show", "solver=ddim", "nfe=4")
run("sample", *brief, "metrics=none")
assert "certify " in run("--help") and "nfe" in run("sample", "--help")
text = run("train", *own, *sys.argv[2:], "hydra.run.dir=out")
words = ["checkpoint=out", "trust=[mylab]"]
assert text.splitlines()[-1] == "next: scoreline sample --config-dir conf checkpoint=out 'trust=[mylab]'", text
run("calibrate", *own, *words, *brief)
for solver in ("own_euler", "deis_sn"):
    run("sample", *own, *words, *brief, f"solver={solver}", "metrics=own_brightness")
assert "own_euler" in run("certify", *own, "solver=own_euler")
"""


def test_an_installed_package_serves_a_package_of_the_users_own(tmp_path: Path) -> None:
    """The layout of the wheel, by what pyproject.toml puts into it; train, calibrate, sample and certify outside."""
    site, work = tmp_path / "site", tmp_path / "work"
    shutil.copytree(ROOT / "src/scoreline", site / "scoreline", ignore=shutil.ignore_patterns("__pycache__"))
    with open(ROOT / "pyproject.toml", "rb") as file:
        more = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, place in more.items():
        (site / place).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, site / place)
    own_package.write(work)
    path = os.pathsep.join(map(str, (site, work, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-P", "-c", INSTALLED, str(site), *own_package.TRAIN],
        cwd=work,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((work / "outputs/sample").glob("*/samples.npz"))) == 3
