"""What the README says is so."""

import math
import re
from pathlib import Path

import pytest
import torch

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


def test_the_table_of_choices_lists_what_there_is() -> None:
    for group in ("solver", "schedule", "experiment", "dataset", "calibration", "metrics", "trainer", "logger"):
        line = next(
            line for line in README.splitlines() if line.startswith("| `") and f"`{group}`" in line.split("|")[1]
        )
        named = set(re.findall(r"`(\w+)`", line.split("|")[2]))
        if "deis_tab0" in named:
            named |= {"deis_tab1", "deis_tab2"}
        assert {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} <= named


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
