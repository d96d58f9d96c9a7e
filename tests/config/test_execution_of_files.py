"""No text of a file decides which code runs: every place that turns names into code is listed with its reason."""

import ast
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import call
from safetensors import safe_open
from safetensors.torch import save_file

import scoreline
from scoreline.config.run_names import ASSETS

PACKAGE = Path(scoreline.__file__).parent
ROOT = PACKAGE.parents[1]

MAKERS = {
    *("compose", "instantiate", "get_object", "get_class", "get_method", "get_static_method"),
    *("import_module", "__import__", "run_path", "run_module", "exec", "eval", "find_spec"),
}
"""Functions that turn a text into code, by the last part of their names."""

CONFIG = "a config composed of the package's conf/, the folder of --config-dir and the command line"

LISTED = {
    ("config/script.py", "instantiate"): f"{CONFIG}: guidance and threshold",
    ("config/compose.py", "instantiate"): (
        f"{CONFIG}; a card in it, or a description in a checkpoint of a training, was accepted by specs.rebuild, "
        "names out of a record pass conf_folder.choice"
    ),
    (
        "config/conf_folder.py",
        "compose",
    ): "overrides of the command line, of conf/table, or names from conf_folder.choice",
    ("__init__.py", "import_module"): "a module of _MODULES, or a module inside one that it names: constants",
    (
        "descriptions/annotations.py",
        "import_module",
    ): f"modules of scoreline that {CONFIG} names, for their annotations",
    ("cli.py", "import_module"): "a script of SCRIPTS or a verb of VERBS",
    (
        "interface/named_choices.py",
        "import_module",
    ): "a module of PACKAGES that a file of the package's conf/ names; a user's text only chooses among those files",
    ("foreign/families.py", "import_module"): "a value of FAMILIES",
    ("descriptions/specs.py", "import_module"): "a class of a card, in PACKAGES or in a package that the user trusts",
    ("tables/worker.py", "import_module"): "modules of PACKAGES, MODULES and LIBRARIES",
    ("tables/worker.py", "run_path"): "the script of a cell, which the table's own process names",
    ("config/run_names.py", "find_spec"): "looks for a file of a top-level name and imports nothing",
    ("config/local_launcher.py", "find_spec"): "the constant PLUGIN",
    ("config/optuna_study.py", "find_spec"): "the constant PLUGIN",
    ("datasets/digits.py", "find_spec"): "a constant",
    ("runtime/ray_cluster.py", "find_spec"): "a constant",
}


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            method_of_a_module = isinstance(node.func, ast.Attribute) and name in ("eval", "compose")
            if name in MAKERS and not (method_of_a_module and not _from_hydra(node.func)):
                yield name


def _from_hydra(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function).startswith(("hydra", "builtins"))


def sources() -> dict[str, Path]:
    found = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    return found | {name: ROOT / name for name in ("train.py", "sample.py", "calibrate.py")}


def test_every_execution_of_text_is_listed() -> None:
    found = {(name, call) for name, path in sources().items() for call in calls(path)}
    assert found == set(LISTED)


def test_makers_are_called_by_their_names() -> None:
    """Nobody gives one of them another name, under which the walk would miss it."""
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert not [one for one in node.names if one.asname and one.name in MAKERS], name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "hydra.utils." not in node.value or node.value in ("hydra.utils",), (name, node.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from hydra.utils import instantiate\ninstantiate(x)", ["instantiate"]),
        ("import hydra\nhydra.utils.get_object(x)", ["get_object"]),
        ("importlib.import_module(x)", ["import_module"]),
        ("hydra.compose(x)", ["compose"]),
        ("exec(x); eval(x)", ["exec", "eval"]),
        ("network.eval()", []),
    ],
)
def test_the_walk_finds_what_it_looks_for(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "a.py").write_text(text)
    assert list(calls(tmp_path / "a.py")) == found


# ---- hostile records and run directories, as processes


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with the shipped model; a canary is made in the working directory if anything of it runs."""
    (tmp_path / "hostile").mkdir()
    shutil.copy(ASSETS / "digits_vp.safetensors", tmp_path / "hostile" / "model.safetensors")
    return tmp_path


def target(word: str = "canary") -> dict[str, Any]:
    return {"_target_": "subprocess.run", "args": ["touch", word]}


def record(folder: Path, kind: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with safe_open(ASSETS / f"digits_vp.{kind}.safetensors", framework="pt") as file:
        metadata, values = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = json.loads(metadata["provenance"])
    told["checkpoint"] = hashlib.sha256((folder / "hostile/model.safetensors").read_bytes()).hexdigest()
    metadata["provenance"] = json.dumps(change(told))
    save_file(values, folder / f"hostile/model.{kind}.safetensors", metadata)


def named_pair(solver: str, schedule: str = "karras") -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda told: {**told, "candidates": [[[[solver, schedule]]] for _ in told["candidates"]]}


def inline_solver(folder: Path) -> list[str]:
    record(folder, "search", named_pair("{_target_:subprocess.run,args:[touch,canary]}"))
    return ["checkpoint=hostile", "solver=auto"]


def inline_schedule(folder: Path) -> list[str]:
    record(folder, "search", named_pair("ddim", "{_target_:subprocess.run,args:[touch,canary]}"))
    return ["checkpoint=hostile", "solver=auto"]


def path_out_of_conf(folder: Path) -> list[str]:
    (folder / "hostile/evil.yaml").write_text(json.dumps(target()))
    up = "/".join([".."] * 12)
    record(folder, "search", named_pair(f"{up}{folder}/hostile/evil"))
    return ["checkpoint=hostile", "solver=auto"]


def further_override(folder: Path) -> list[str]:
    record(folder, "search", named_pair("ddim, +evil={_target_:subprocess.run,args:[touch,canary]}"))
    return ["checkpoint=hostile", "solver=auto"]


def itself(folder: Path) -> list[str]:
    record(folder, "search", named_pair("auto"))
    return ["checkpoint=hostile", "solver=auto"]


def target_in_provenance(folder: Path) -> list[str]:
    record(folder, "score_norm", lambda told: {**told, "solver": target(), "states": "${oc.env:HOME}", **target()})
    return ["checkpoint=hostile", "solver=deis_sn", "nfe=5"]


def target_in_card(folder: Path) -> list[str]:
    with safe_open(ASSETS / "digits_vp.safetensors", framework="pt") as file:
        metadata, values = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["model"] = json.dumps({**json.loads(metadata["model"]), "noise_schedule": target()})
    save_file(values, folder / "hostile/model.safetensors", metadata)
    return ["checkpoint=hostile", "nfe=5"]


def interpolation_in_card(folder: Path) -> list[str]:
    with safe_open(ASSETS / "digits_vp.safetensors", framework="pt") as file:
        metadata, values = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = json.loads(metadata["model"])
    model["noise_schedule"]["_target_"] = "${oc.env:CANARY}"
    metadata["model"] = json.dumps(model)
    save_file(values, folder / "hostile/model.safetensors", metadata)
    return ["checkpoint=hostile", "nfe=5"]


def tag_in_config_of_a_run(folder: Path) -> list[str]:
    (folder / "hostile/config.yaml").write_text("identity: !!python/object/apply:os.system ['touch canary']")
    return ["hydra.run.dir=hostile", "nfe=5", "network_batch=auto"]


def conf_of_the_working_directory(folder: Path) -> list[str]:
    (folder / "conf/solver").mkdir(parents=True)
    shutil.copy(ROOT / "conf/sample.yaml", folder / "conf")
    (folder / "conf/solver/ddim.yaml").write_text(json.dumps(target()))
    (folder / "conf/solver/evil.yaml").write_text(json.dumps(target()))
    return ["solver=evil", "nfe=5"]


HOSTILE = (
    *(inline_solver, inline_schedule, path_out_of_conf, further_override, itself),
    *(target_in_card, interpolation_in_card, tag_in_config_of_a_run, conf_of_the_working_directory),
)


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_file_is_refused_and_runs_nothing(hostile: Path, make: Callable[..., list[str]]) -> None:
    words = make(hostile)
    done = call("sample", *words, "seeds=0-7", "metrics=none", cwd=hostile)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (hostile / "canary").exists()
    assert not (hostile / "outputs").exists()


def test_only_numbers_of_a_record_are_read(hostile: Path) -> None:
    done = call("sample", *target_in_provenance(hostile), "seeds=0-7", cwd=hostile)
    assert "Traceback" not in done.stderr
    assert not (hostile / "canary").exists()


@pytest.mark.parametrize("words", [["show", "solver=ddim", "nfe=4"], ["certify", "solver=ddim"]])
def test_commands_read_no_conf_of_the_working_directory(hostile: Path, words: list[str]) -> None:
    conf_of_the_working_directory(hostile)
    done = call("scoreline", *words, cwd=hostile)
    assert done.returncode == 0, done.stderr
    assert not (hostile / "canary").exists()
    words[1] = "solver=evil"
    assert call("scoreline", *words, cwd=hostile).returncode == 2
    assert not (hostile / "canary").exists()


def test_a_plan_of_a_stranger_runs_nothing(hostile: Path) -> None:
    """`scoreline report` reads plan.json, metrics.json and config.yaml of a table that somebody sent."""
    cell = {"row": "A", "column": "5", "seeds": "0-7", "overrides": ["solver={_target_:os.system}"], "identity": "a"}
    for directory in ("../../elsewhere", "/tmp", "a"):
        plan = {"table": "x", "budget": "small", "overrides": ["solver=x"], "data": target()}
        (hostile / "hostile/plan.json").write_text(json.dumps({**plan, "cells": [{**cell, "directory": directory}]}))
        done = call("scoreline", "report", "hostile", cwd=hostile)
        assert done.returncode == 2, done.stderr
        assert "plan.json" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (hostile / "canary").exists()
