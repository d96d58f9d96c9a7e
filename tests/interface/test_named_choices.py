"""Solvers and schedules by name: the objects that Hydra builds from the same files, or a refusal with the remedy."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scoreline.checkpoints import load_model
from scoreline.config import run_names
from scoreline.errors import InputError
from scoreline.interface import named_choices
from scoreline.interface.named_choices import schedule_from, schedule_named, solver_named
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Power
from scoreline.schedules.tabulated import Tabulated
from scoreline.schedules.vp import LinearVP
from scoreline.storage.config_files import conf_dir

CHOICES = [(group, path.stem) for group in ("solver", "schedule") for path in sorted((conf_dir() / group).iterdir())]
SPEC = {"_target_": "scoreline.schedules.discrete.DiscreteVP"}
RECORDS = {
    **{("solver", name): "score_norm" for name in ("dpm_solver_v3", "velocity_sn", "deis_sn", "deis_sn_published")},
    **{("solver", "auto"): "search", ("solver", "learned"): "tableau"},
    ("schedule", "score_optimal"): "score_optimal",
}
"""Choices that read a record -> its kind."""


@pytest.fixture(scope="module")
def hydra() -> Iterator[None]:
    run_names.register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def built_by_hydra(group: str, name: str, path: Path, digest: str) -> Any:
    node = OmegaConf.to_container(compose("sample", [f"{group}={name}"])[group], resolve=False)
    if "path" in node:
        node["path"] = str(path)
    model = {"model": {"noise_schedule": SPEC}, "sigma_data": 0.37, "digest": digest, "record": str(path)}
    cfg = OmegaConf.create({group: node, **model})
    return instantiate(cfg[group])


def named(group: str, name: str) -> Any:
    return solver_named(name, DiscreteVP(), 0.37) if group == "solver" else schedule_named(name, DiscreteVP())


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["/".join(choice) for choice in CHOICES])
@pytest.mark.usefixtures("hydra")
def test_the_object_is_that_of_hydra_or_the_refusal_says_how_to_get_it(group: str, name: str, tmp_path: Path) -> None:
    path, digest, reads_a_file = tmp_path / "levels.txt", "", (group, name) in RECORDS or name == "from_file"
    path.write_text("80\n1\n0.1\n")
    if (group, name) in RECORDS:
        path = run_names.ASSETS / f"digits_vp.{RECORDS[group, name]}.safetensors"
        digest = load_model(run_names.model_path("digits_vp")).digest
    expected = built_by_hydra(group, name, path, digest)
    try:
        found = named(group, name)
        assert not reads_a_file
    except InputError as refused:
        found = evaluated(str(refused), path, digest)
        assert reads_a_file
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


def evaluated(refusal: str, path: Path, digest: str) -> Any:
    """The object of the expression in a refusal."""
    expression = re.split(r"instead: |, with the SHA", refusal)[1]
    names = {"PATH": path, "DIGEST": digest, "noise_schedule": DiscreteVP(), "sigma_data": 0.37}
    for module in re.findall(r"(scoreline[\w.]*)\.\w+\(", expression):
        exec(f"import {module}", names)
    return eval(expression, names)


def test_names_are_those_of_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="solver='dpmp_2m': no such name; did you mean 'dpmpp_2m'"):
        solver_named("dpmp_2m")
    with pytest.raises(InputError, match="schedule='ddim': no such name; choose from cosine"):
        schedule_named("ddim")
    for name in ("../schedule/karras", "ddim.yaml", "", "ddim\n", str(conf_dir() / "solver/ddim"), "scoreline.DDIM"):
        with pytest.raises(InputError, match="no such name"):
            solver_named(name)


def test_what_a_choice_reads_of_the_model_is_asked_for() -> None:
    with pytest.raises(InputError, match="solver='deis_tab3' reads the model's own time; pass noise_schedule="):
        solver_named("deis_tab3")
    with pytest.raises(InputError, match="solver='velocity_ab3' reads the data's standard deviation; pass sigma_data="):
        solver_named("velocity_ab3", LinearVP())
    with pytest.raises(InputError, match="schedule='time_quadratic' reads the model's own time"):
        schedule_named("time_quadratic")
    assert solver_named("dpmpp_2m") == solver_named("dpmpp_2m", LinearVP(), 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "_target_: subprocess.run\nargs: [touch, canary]",
        "_target_: scoreline.solvers.ddim.DDIM\ninner:\n  _target_: os.system\n  command: touch canary",
        "_target_: scoreline.solversEvil.x",
        "_target_: scoreline.solvers.ddim.DDIM\nvalue: ${oc.env:HOME}",
    ],
)
def test_code_comes_from_two_rooms(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver/evil.yaml").write_text(text)
    monkeypatch.setattr(named_choices, "conf_dir", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pass its object"):
        solver_named("evil")
    assert not Path("canary").exists()


def test_levels_are_a_schedule() -> None:
    levels = [80.0, 2.0, 0.5, 0.002]
    expected = Tabulated(tuple(levels))
    for value in (levels, tuple(levels), torch.tensor(levels, dtype=torch.float64), np.array(levels), iter(levels)):
        assert schedule_from(value) == expected
    assert schedule_from("karras") == Power(7)
    assert schedule_from(Power(3)) == Power(3)
    for value in (7, ["a"], torch.ones(2, 2), None):
        with pytest.raises(InputError, match="give a name such as 'karras'"):
            schedule_from(value)
    with pytest.raises(InputError, match=r"number 3 is 2 after 1"):
        schedule_from([80, 1, 2])


def test_names_need_no_hydra() -> None:
    code = "import sys, torch, scoreline\ndenoise = scoreline.predictions.edm(lambda x, label: x)\n"
    code += "scoreline.sample(denoise, torch.ones(1, 2), 'unipc_3_noise', 'time_cubic', nfe=3)\n"
    code += "assert not {'hydra', 'omegaconf', 'lightning', 'scoreline.config'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
