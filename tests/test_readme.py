"""What the README says is so."""

import math
import re
from pathlib import Path

import pytest
import torch

from scoreline.commands import certify
from scoreline.errors import InputError
from scoreline.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import Solver

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def midpoint() -> Solver:
    block = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "class Midpoint" in code)
    space: dict = {"__name__": "midpoint"}
    exec(compile(block, "README.md", "exec"), space)
    return space["Midpoint"]()


def test_the_example_solver_works_and_has_its_order(midpoint: Solver, mixture: GaussianMixture) -> None:
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    truth = integrate(mixture.eps, x, DEIS(3, Power(1))(Power(7), 20.0, 0.05, 3000))
    errors = []
    for nfe in (100, 400):
        table = midpoint(Power(7), 20.0, 0.05, nfe)
        assert table.nfe == nfe
        assert table.residual < 1e-14
        errors.append(float((integrate(mixture.eps, x, table) - truth).norm()))
    assert math.log2(errors[0] / errors[1]) / 2 == pytest.approx(2.0, abs=0.15)
    with pytest.raises(InputError, match="nfe=3"):
        midpoint(Power(7), 20.0, 0.05, 3)


def test_the_tables_of_choices_list_what_there_is() -> None:
    listed = [line.split("|")[1:3] for line in README.splitlines() if line.startswith("| ")]
    for group in sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir()):
        if group in ("model", "objective", "target", "callbacks"):
            continue
        names = {name for first, second in listed if f"`{group}`" in first for name in re.findall(r"`(\w+)`", second)}
        if group == "solver":
            section = README.partition("## Solvers")[2].partition("\n## ")[0]
            names = set(re.findall(r"`(\w+)`", section))
        assert {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} <= names, group


def test_the_certificate_covers_every_solver() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "certify.md").read_text().splitlines()]
    kept = {cells[1].strip() for cells in rows if cells[0] == "" and len(cells) > 2 and cells[-2].strip() == "ok"}
    assert set(certify.named("")) == kept


def test_the_example_without_hydra_runs() -> None:
    block = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "scoreline.sample" in code)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10

    def net(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.shape == (16,)
        return (x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)).float()

    space: dict = {"__name__": "example", "net": net}
    exec(compile(block, "README.md", "exec"), space)
    assert space["images"].shape == (16, 3, 32, 32)
    assert float(space["images"].std()) == pytest.approx(1, abs=0.15)  # N(0, 1) data, ten evaluations


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_nothing_names_this_machine() -> None:
    import subprocess

    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".yaml", ".md", ".toml", ".lock", ".yml", ""} and path.is_file():
            assert not re.search(r"(^|[\s\"'=(])/(work|root|home|opt)/\w", path.read_text()), name
