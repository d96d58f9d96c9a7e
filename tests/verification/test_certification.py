"""`scoreline certify` and `scoreline show`."""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from scoreline import cli
from scoreline.commands import certify as certify_command
from scoreline.commands import show
from scoreline.schedules.base import Schedule
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.tableau import Tableau
from scoreline.storage.config_files import conf_dir
from scoreline.verification.certification import MODELS, SPAN, certify, markdown, start, truth

SOLVERS = certify_command.solver_names("")


def test_only_checkpoint_bound_solvers_are_left_out() -> None:
    files = {path.stem: path.read_text() for path in conf_dir().glob("solver/*.yaml")}
    reads = {name for name, text in files.items() if "${scoreline.record:" in text and "${digest}" in text}
    assert set(certify_command.BOUND) == reads
    assert sorted(SOLVERS) == sorted(files.keys() - reads)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_that_ships_keeps_its_promises(name: str) -> None:
    found = certify(name, certify_command.maker(name, []))
    assert found.breaches == ()
    assert found.orders or name in ("rk45", "dop853")


@dataclass(frozen=True)
class Faulty:
    """DDIM with one thing wrong."""

    fault: str
    convergence: float = 1.0

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        table = DDIM()(schedule, sigma_max, sigma_min, nfe + (self.fault == "budget"))
        if self.fault == "residual":
            return replace(table, N=table.N * (1 + 1e-6))
        return table


@pytest.mark.parametrize(
    ("fault", "convergence", "sentence"),
    [("budget", 1.0, "NFE 2 where 1 were requested"), ("residual", 1.0, "residual"), ("order", 2.0, "order 1.00 on")],
)
def test_each_kind_of_breach_is_found(fault: str, convergence: float, sentence: str) -> None:
    found = certify(fault, lambda native: Faulty(fault, convergence))
    assert any(breach.startswith(sentence) for breach in found.breaches)
    assert sentence in markdown([found])


def test_a_wrong_adaptive_solver_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    good = certify("rk45", lambda native: Adaptive("RK45", rtol=1e-5, atol=1e-5))
    assert good.breaches == ()
    bad = certify("rk45", lambda native: Adaptive("RK45", rtol=1e-5, atol=10.0))
    assert all(breach.startswith("error") for breach in bad.breaches)
    assert len(bad.breaches) == 2


def test_the_reference_agrees_with_another_method() -> None:
    """The classical Runge-Kutta method in ln rho, written out, 2,000 steps."""
    v = torch.linspace(*(math.log(level) for level in SPAN), 2001, dtype=torch.float64).tolist()
    h = v[1] - v[0]
    for model, make in MODELS.items():
        eps, x = make().eps, start(model)
        for here in v[:-1]:
            low, middle, high = (math.exp(here + part * h) for part in (0, 0.5, 1))
            k1 = low * eps(x, low)
            k2 = middle * eps(x + h / 2 * k1, middle)
            k3 = middle * eps(x + h / 2 * k2, middle)
            k4 = high * eps(x + h * k3, high)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        torch.testing.assert_close(x, truth(model), rtol=0, atol=1e-9)


def test_setup_and_scale_use_the_solver_as_configured() -> None:
    """The scale of a record is kinked: its own residual is reported, the order is that of the method."""
    found = certify("deis_sn", certify_command.maker("deis_sn", []))
    assert found.theory == 4.0
    assert found.residual < 1e-12


def test_stochastic_methods_are_measured_in_law() -> None:
    found = certify("edm", lambda native: EDMHeun(S_churn=40, S_noise=1.1))
    assert set(found.orders) == {"Gaussian (weak)"}
    assert found.orders["Gaussian (weak)"] == pytest.approx(2, abs=0.15)


def test_a_breach_is_written_and_returns_one(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert certify_command.main(["solver=ddim,heun", f"out={tmp_path}"]) == 0
    assert "2 of 2 solvers keep their promises; none breaks one" in capsys.readouterr().out
    rows = json.loads((tmp_path / "certify.json").read_text())
    assert [row["name"] for row in rows] == ["ddim", "heun"]
    assert (tmp_path / "certify.md").read_text().count("| ok |") == 2
    monkeypatch.setattr(certify_command, "maker", lambda name, overrides: lambda native: Faulty("order", 3.0))
    assert certify_command.main(["solver=ddim", f"out={tmp_path}"]) == 1
    assert "not: ddim" in capsys.readouterr().out


def test_show_prints_every_number_of_a_tableau(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    show.main(["solver=ddim", "schedule=karras", "nfe=2", "sigma_max=80", "sigma_min=0.002", f"out={tmp_path}"])
    printed = capsys.readouterr().out
    middle = float(Power(7).inverse(torch.tensor((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2, dtype=torch.float64)))
    assert f"= x_0 - {80 - middle:.6g} eps_0" in printed
    assert "NFE 2, 2 rows" in printed
    assert (tmp_path / "nfe=2,schedule=karras,sigma_max=80,sigma_min=0.002,solver=ddim.png").stat().st_size > 5000
    table = DEIS(1, Power(1))(Power(7), 80.0, 0.002, 2)
    assert show.text(table).count("eps_") == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sho"], "scoreline: sho: there is no such command; did you mean 'show'?"),
        (["show", "solver=dimm"], "scoreline show: solver=dimm: there is no such choice; did you mean 'ddim'?"),
        (["show", "nfe=0"], "scoreline show: nfe=0: must be a whole number"),
        (["show", "sovler=ddim"], "scoreline show: sovler: there is no such key; did you mean 'solver'?"),
        (["show", "solver=dop853"], "has no tableau"),
        (["certify", "solver=ddim,learned"], "scoreline certify: solver=learned: it belongs to one checkpoint"),
        (["certify", "solver=auto"], "scoreline certify: solver=auto: it belongs to one checkpoint"),
        (["certify", "heun"], "scoreline certify: heun: not of the form key=value"),
        (["likelihood", "--checkpoint", "nowhere.safetensors"], "scoreline likelihood: checkpoint=nowhere"),
        (["likelihood", "images=0"], "scoreline likelihood: --images=0: must be at least 1"),
        (["likelihood", "imagse=3"], "scoreline likelihood: unrecognized arguments: --imagse=3"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["scoreline", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence in error
    assert error.count("\n") == 1
