"""The tutorials as a reader follows them: every block in order, in an empty directory.

By default shorter than they are written, in processes that fork from this one; `-m slow` runs them to the letter.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning  # noqa: F401  forked commands start with it
import numpy as np
import pages
import pytest
import torch
from PIL import Image

from scoreline.calibration.record import load_record
from scoreline.checkpoints import load_model
from scoreline.commands.composition import composed
from scoreline.datasets.image_folder import ImageFolder
from scoreline.files import sha256
from scoreline.foreign.ddpm import table

NAMES = ("toy", "foreign_checkpoint", "own_pictures")
GOLDEN = json.loads((pages.ROOT / "tests" / "foreign" / "golden_ddpm.json").read_text())
"""Names that pytorch_diffusion's own network has."""

Run = Callable[[list[str], Path], tuple[int, str]]

SHORTER = {
    r"duration_kimg=\d+": "duration_kimg=1.024 preview_kimg=1.024 fixed_loss_kimg=0.512 log_kimg=0.256",
    r"nfe=100\b": "nfe=10",
    r"nfe=5,10,20\b": "nfe=3,4",
    r"nfe=20\b": "nfe=3",
    r"images=32\b": "images=8",
    r"levels=8\b": "levels=4",
    r"seeds=0-499\b": "seeds=0-15",
    r"seeds=0-31\b": "seeds=0-3",
}


def page(name: str) -> str:
    return pages.read(f"tutorials/{name}.md")


def commands(code: str) -> list[tuple[list[str], int]]:
    """The lines of a block of bash as words, and the exit code that their comment foretells."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        foretold = re.search(r"# exit code (\d+)", line)
        if words := shlex.split(line, comments=True):
            found.append((words, int(foretold[1]) if foretold else 0))
    return found


def shortened(words: list[str]) -> list[str]:
    text = shlex.join(words)
    for long, short in SHORTER.items():
        text = re.sub(long, short, text)
    return shlex.split(text)


def unchanged(words: list[str]) -> list[str]:
    return words


def process(words: list[str], where: Path) -> tuple[int, str]:
    """A command in a process of its own."""
    asked = words[1:] if words[:2] == ["python", "-m"] else pages.script(words)
    done = subprocess.run([sys.executable, *asked], cwd=where, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def follow(name: str, where: Path, run: Run, change: Callable[[list[str]], list[str]]) -> dict[str, str]:
    """Run a tutorial; what each of its commands said."""
    said = {}
    for language, code in pages.blocks(page(name), "bash", "python"):
        if language == "python":
            code_of_block = compile(code, f"{name}.md", "exec")
            exec(code_of_block, {"__name__": name})
            continue
        for words, foretold in commands(code):
            exit_code, text = run(change(words), where)
            assert exit_code == foretold, f"{shlex.join(words)}\n{text}"
            said[shlex.join(words)] = text
    return said


def named(name: str, short: bool) -> list[str]:
    """The files that a tutorial tells its reader to look at."""
    files = re.findall(r"`((?:outputs|models)/[^`\s]+\.\w+)`", page(name))
    assert files
    return [re.sub(r"previews/\d+", "previews/000001", file) if short else file for file in files]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_toy(where: Path, said: dict[str, str], short: bool) -> None:
    model = where / "outputs/toy/model/model.safetensors"
    record = load_record(model.with_name("model.score_norm.safetensors"), "score_norm", sha256(model))
    assert len(record.values["rho"]) == (10 if short else 100)
    text = (where / "outputs/toy/sweep/table.md").read_text()
    assert text.strip() in said["scoreline report outputs/toy/sweep"]
    printed = [row[0] for row in pages.table(page("toy"))]
    assert [row[0] for row in pages.table(text)] == printed
    losses = [json.loads(line) for line in (where / "outputs/toy/model/metrics.jsonl").read_text().splitlines()]
    losses = [line for line in losses if "loss" in line]
    assert losses[0]["loss"] > 0.8 or short
    assert losses[-1]["loss"] < (losses[0]["loss"] if short else 0.15)
    assert losses[-1]["non_finite_steps"] == 0
    if not short:
        found = {
            row[0].split(" ")[0]: [float(re.sub(r" .*|\*", "", cell)) for cell in row[1:]] for row in pages.table(text)
        }
        assert all(a > b for a, b in zip(found["ddim"][:2], found["deis_tab3"][:2], strict=True))
        assert found["ddim"][2] > found["deis_tab3"][1]
        means = record.values["mean_abs_eps"]
        assert float(means[-1]) == pytest.approx(0.8, abs=0.05)
        assert float(means[0]) == pytest.approx(0.5, abs=0.1)


def check_foreign_checkpoint(where: Path, said: dict[str, str], short: bool) -> None:
    theirs = torch.load(where / "stand_in.ckpt", weights_only=True)
    assert set(theirs) <= set(GOLDEN["shapes"])
    checkpoint = load_model(where / "models/stand_in/model.safetensors")
    weights = checkpoint.denoiser.network.state_dict()
    taken = 0
    for name, rule in table(checkpoint.denoiser.network).items():  # type: ignore[arg-type]
        rows = len(rule.sources)
        for place, source in enumerate(rule.sources):
            assert torch.equal(weights[name][place::rows] if rows > 1 else weights[name], theirs[source]), name
            taken += 1
    assert taken == len(theirs)
    assert (checkpoint.denoiser.parameterisation.label_scale, checkpoint.card.shape) == (1.0, (1, 8, 8))  # type: ignore[attr-defined]
    wrong, right = (text for words, text in said.items() if "verify" in words)
    assert "fail  loss" in wrong
    assert "pass  ddim" in wrong
    assert short or "eps at sigma_max is" in wrong.partition("fail  scale")[2].splitlines()[0]
    assert "no check fails" in right
    assert "family                   ddpm" in said["scoreline inspect stand_in.ckpt"]
    assert "is not in the file" in next(text for words, text in said.items() if "models/wrong" in words)
    assert not (where / "models/wrong").exists()
    result = json.loads((where / "outputs/foreign/samples/metrics.json").read_text())
    assert (f"{result['sigma_max']:.1f}", f"{result['sigma_end']:.4f}") == ("157.4", "0.0100")


def check_own_pictures(where: Path, said: dict[str, str], short: bool) -> None:
    data = ImageFolder(str(where / "pictures"), labels="folders")
    assert (len(data), data.shape, data.num_classes) == (1797, (3, 8, 8), 10)
    card = load_model(where / "outputs/pictures/model/model.safetensors").card
    assert (card.shape, card.num_classes, card.data["sha256"]) == ((3, 8, 8), 10, data.digest)
    samples = where / "outputs/pictures/samples"
    lines = (samples / "manifest.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2] for line in lines] == [str(seed % 10) for seed in range(80)]
    threes = (where / "outputs/pictures/threes/manifest.csv").read_text().splitlines()[1:]
    assert {line.split(",")[2] for line in threes} == {"3"}
    drawn = sorted((samples / "images").rglob("*.png"))
    assert len(drawn) == 80
    images = np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in drawn])
    assert images.shape == (80, 8, 8, 3)
    if not short:
        real = data.read(range(len(data)))[0].double().numpy().transpose(0, 2, 3, 1)
        assert images.mean() == pytest.approx(real.mean(), rel=0.25)
        assert np.abs(images.mean(0) - real.mean(0)).mean() < 15


CHECKS = {"toy": check_toy, "foreign_checkpoint": check_foreign_checkpoint, "own_pictures": check_own_pictures}


@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_tutorial(name: str, where: Path) -> None:
    said = follow(name, where, pages.forked, shortened)
    for file in named(name, short=True):
        assert (where / file).is_file(), file
    CHECKS[name](where, said, True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_as_written(name: str, where: Path) -> None:
    said = follow(name, where, process, unchanged)
    for file in named(name, short=False):
        assert (where / file).is_file(), file
    CHECKS[name](where, said, False)


@pytest.mark.parametrize("name", NAMES)
def test_messages_that_are_quoted_are_ours(name: str) -> None:
    source = "".join(path.read_text() for path in (pages.ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*f?"', "", source)
    for quoted in re.findall(r'\*\*"([^"]+)"\*\*', page(name)):
        assert quoted in joined, quoted


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    targets = pages.links(page(name))
    assert targets
    assert all((pages.DOCS / "tutorials" / target).is_file() for target in targets)


def test_every_tutorial_is_here() -> None:
    assert {path.stem for path in (pages.DOCS / "tutorials").glob("*.md")} == set(NAMES)


def test_inception_takes_a_folder_of_pictures_as_the_page_says() -> None:
    (words,) = re.findall(r"`(metrics=inception [^`]+)`", page("own_pictures"))
    found = composed(words.split()).metrics
    assert found._target_ == "scoreline.metrics.inception.Inception"
    assert found.reference == {
        "_target_": "scoreline.datasets.image_folder.ImageFolder",
        "path": "pictures",
        "resolution": None,
        "labels": "auto",
        "cache_mib": 1024,
    }
