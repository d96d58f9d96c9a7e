"""The code of README.md and of docs/, run in order in an empty directory, as a reader runs it.

A block whose first line is `# PATH` is a file; a line of bash may end with `# exit code N`. A block below the comment
`<!-- not run: REASON -->` is left out. By default commands are shortened; `-m slow` runs them to the letter.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import forks
import lightning  # noqa: F401  forked commands start with it
import pytest
import torch
from lucidrains_files import write_checkpoint

from scoreline import predictions

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/sampling.md",
    "docs/features.md",
    "docs/metrics.md",
    "docs/any_model.md",
    "docs/tables.md",
    "docs/runs.md",
    "docs/tuning.md",
    "docs/extending.md",
    "docs/conventions.md",
)
NOTEBOOKS = ("docs/calibration.md", "docs/tutorials/two_dimensions.md")
"""Pages of Python alone, whose blocks are one session."""
TUTORIALS = (
    *("docs/tutorials/toy.md", "docs/tutorials/foreign_checkpoint.md", "docs/tutorials/own_pictures.md"),
    *("docs/tutorials/fine_tuning.md", "docs/tutorials/lucidrains.md"),
)
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(\w+)\n(.*?)^```$", re.S | re.M)
BETAS = torch.linspace(1e-4, 0.02, 1000)
PIPELINE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
GIVEN = {
    "docs/conventions.md": {"velocity": lambda x_t, t: x_t},
    "docs/any_model.md": {
        **{"network": lambda x, label, y=None: x, "image": torch.zeros(1, 3, 8, 8), "labels": torch.zeros(4)},
        **{"betas": BETAS, "alphas_cumprod": (1 - BETAS).cumprod(0), "denoise": predictions.edm(lambda x, label: x)},
        "diffusion": SimpleNamespace(model=lambda x, label: x, alphas_cumprod=(1 - BETAS).cumprod(0)),
        "pipe": SimpleNamespace(
            unet=lambda x, timestep, class_labels: (x,), scheduler=SimpleNamespace(config=PIPELINE)
        ),
    },
}
"""Names that a page leaves to its reader."""

SHORT = "duration_kimg=1.024 preview_kimg=1.024 fixed_loss_kimg=0.512 log_kimg=0.256"
SHORTER = {
    r"duration_kimg=\d+": SHORT,
    r"nfe=(100|20|35)\b": "nfe=6",
    r"nfe=5,10,20\b": "nfe=3,4",
    r"images=32\b": "images=8",
    r"n_trials=\d+": "n_trials=2",
    r"levels=8\b": "levels=4",
    r"seeds=0-(499|4999)\b": "seeds=0-15",
    r"seeds=0-31\b": "seeds=0-3",
    r"^(python train.py)(?!.*duration_kimg)": rf"\1 {SHORT}",
    r"^(python calibrate.py)(?!.*nfe)": r"\1 nfe=10 seeds=0-3",
}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, code) of the blocks that are run."""
    for skipped, language, code in BLOCK.findall((ROOT / page).read_text()):
        if not skipped:
            yield language, code


def program(words: list[str]) -> list[str]:
    """`python train.py ..` or `scoreline ..` as a file of Python and its arguments."""
    if words[0] == "python":
        return [str(ROOT / words[1]), *words[2:]]
    assert words[0] == "scoreline", words
    return [str(Path(sys.executable).with_name("scoreline")), *words[1:]]


def forked(words: list[str], where: Path) -> tuple[int, str]:
    """Exit code and output of a command, run by a fork of this process."""
    script, *arguments = program(words)
    (child,) = forks.start(script, where, *arguments)
    return forks.ended(child), (where / "said-0").read_text()


def process(words: list[str], where: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *program(words)], cwd=where, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def bash(code: str, where: Path, short: bool) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        expected = re.search(r"# exit code (\d+)", line)
        for long, brief in SHORTER.items() if short else ():
            line = re.sub(long, brief, line)
        if words := shlex.split(line, comments=True):
            exit_code, text = (forked if short else process)(words, where)
            assert exit_code == (int(expected[1]) if expected else 0), f"{line}\n{text}"


def follow(page: str, where: Path, short: bool) -> None:
    assert list(blocks(page))
    if page == "docs/tutorials/lucidrains.md":
        write_checkpoint(where)  # their package and a file of it, which the page leaves to its reader
    session = {"__name__": page, **GIVEN.get(page, {})}
    for language, code in blocks(page):
        path = re.match(r"# (\S+/\S+\.\w+)\n", code)
        if path:
            (where / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (where / path[1]).write_text(code)
        elif language == "python":
            exec(compile(code, page, "exec"), session if page in NOTEBOOKS else dict(session))
        elif language == "bash":
            bash(code, where, short)
    named = re.findall(r"`((?:outputs|models)/[^`\s]+\.\w+)`", (ROOT / page).read_text())
    for file in named:
        path_of_run = re.sub(r"previews/\d+", "previews/000001", file) if short else file
        assert (where / path_of_run).is_file(), file


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # for forks, and PYTHONPATH for processes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_notebooks_as_written(page: str, where: Path) -> None:
    assert {language for language, _ in blocks(page)} == {"python"}
    follow(page, where, short=False)


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS])
def test_shortened(page: str, where: Path) -> None:
    follow(page, where, short=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS])
def test_as_written(page: str, where: Path) -> None:
    follow(page, where, short=False)
