"""Rooms import downwards only, and mathematics knows nothing of Lightning, Hydra, W&B or files of pictures."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoreline

PACKAGE = Path(scoreline.__file__).parent

ORDER = [
    *("errors", "numerics", "storage", "values", "runtime", "networks"),
    *("safe_pickle", "datasets", "records", "schedules", "solvers", "parameterisations"),
    *("denoiser", "thresholding", "sampling", "targets", "objective", "execution", "likelihood", "descriptions"),
    *("checkpoints", "guidance", "foreign", "metrics", "generation", "verification", "interface"),
    *("calibration", "calibration.learned", "calibration.calibrate", "integrations"),
    *("training", "config", "doctor", "tables", "runs", "report_page"),
    *("scripts", "commands", "cli"),
]
"""Rooms and the files at the root, from the lowest up: each imports those before it, and itself."""

NOT_PURE = {
    *(
        "storage",
        "integrations",
        "config",
        "training",
        "doctor",
        "runs",
        "tables",
        "report_page",
        "scripts",
        "commands",
    ),
    "cli",
}
"""Rooms above mathematics, and the one that reads and writes files."""

HYDRA = {"config", "scripts", "commands"}
"""Rooms that may import Hydra or OmegaConf."""

NAMING = {"storage.run_config", "tables.worker", "foreign.lightning", "safe_pickle.machine"}
"""Files outside them: one parses YAML by OmegaConf, one preloads libraries, two name classes of pickles."""

BLOCKED = [
    *("lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "torchmetrics", "PIL", "matplotlib", "sklearn"),
    *("pooch", "requests", "huggingface_hub"),
]

MODULAR = {"metrics.error_bar_metric", "metrics.modular_metrics"}
"""Pure files that import torchmetrics, which takes seconds: nothing else in their room imports them."""

COMPOSING = {"config", "scripts", "commands", "doctor"}
"""Rooms in which a config is composed or turned into a frozen dataclass."""

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.?")


def module_names() -> dict[str, Path]:
    """Every module of the package without the prefix `scoreline.`."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


MODULES = module_names()


def names_imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, by statement or by a string that spells a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module)):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.Constant(value=str(text)) if "." in text and DOTTED.fullmatch(text):
                yield text.rstrip(".") if text.startswith("scoreline.") else text


def room(module: str) -> str:
    """The longest name of `ORDER` that a module lies in."""
    inside = [name for name in ORDER if f"{module}.".startswith(f"{name}.")]
    return max(inside, key=len, default=module)


def module_of(name: str) -> str | None:
    """The module of the package that a dotted name is, or is defined in."""
    head, _, rest = name.partition(".")
    while head == "scoreline" and rest:
        if rest in MODULES:
            return rest
        rest = rest.rpartition(".")[0]
    return None


def arrows() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) -> the imports."""
    found = defaultdict(set)
    for module, path in MODULES.items():
        for target in filter(None, map(module_of, names_imported(path))):
            if room(module) != room(target):
                found[room(module), room(target)].add(f"{module} -> {target}")
    return found


def test_every_module_lies_in_a_known_room() -> None:
    assert {room(module) for module in MODULES} - {"__init__"} == set(ORDER)
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_no_import_points_upwards() -> None:
    upwards = [words for (a, b), words in arrows().items() if a != "__init__" and ORDER.index(b) > ORDER.index(a)]
    assert not upwards


def test_file_names_have_one_meaning() -> None:
    places = defaultdict(list)
    for module in (name for name, path in MODULES.items() if path.name != "__init__.py"):
        places[module.rpartition(".")[2]].append(module)
    assert {name for name, modules in places.items() if len(modules) > 1} == SAME_SENSE


SAME_SENSE = {"base", "calibrate", "ddim", "edm", "ema", "likelihood", "score_optimal"}
"""File names that occur twice and mean the same."""


def test_only_the_upper_rooms_touch_hydra() -> None:
    users = {
        module
        for module, path in MODULES.items()
        for name in names_imported(path)
        if name.split(".")[0] in ("hydra", "omegaconf") and not name.endswith(".")
    }
    assert {room(module) for module in users - NAMING} <= HYDRA


@pytest.mark.parametrize("text", ['get_object("scoreline.tables.plan")', "from scoreline.tables import plan"])
def test_a_module_spelt_in_a_string_counts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "evader.py"
    path.write_text(text)
    assert "tables.plan" in map(module_of, names_imported(path))


def test_pure_modules_import_with_everything_else_blocked() -> None:
    pure = {module for module in MODULES if room(module) not in NOT_PURE} - {"__init__"} - MODULAR
    names = [f"scoreline.{module}" for module in sorted(pure)]
    code = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\nimport importlib\n"
    code += f"for name in {names}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_modular_metrics_alone_import_torchmetrics() -> None:
    imports = {module: set(names_imported(path)) for module, path in MODULES.items()}
    of_torchmetrics = {module for module, names in imports.items() if any("torchmetrics." in f"{it}." for it in names)}
    assert {module for module in of_torchmetrics if room(module) == "metrics"} == MODULAR
    for module in MODULAR:
        assert not {name.split(".")[0] for name in imports[module]} & (set(BLOCKED) - {"torchmetrics"})
    users = {module for module, names in imports.items() if MODULAR & set(filter(None, map(module_of, names)))}
    assert {room(module) for module in users - MODULAR - {"__init__"}} == {"training"}


def test_nothing_below_the_scripts_sees_a_config() -> None:
    names = {"cfg", "DictConfig", "ListConfig", "OmegaConf"}
    users = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if names & {getattr(node, key, None) for key in ("id", "arg", "attr", "name")}
    }
    assert {room(module) for module in users - {"storage.run_config"}} <= COMPOSING


def test_nothing_writes_to_the_composed_config() -> None:
    for path in (path for module, path in MODULES.items() if room(module) in COMPOSING):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                assert not ast.unparse(node).startswith("cfg"), (path, node.lineno)


def test_nothing_loads_pickles() -> None:
    for path in MODULES.values():
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "allow_pickle=True" not in text, path
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in [ast.unparse(word) for word in call.keywords], path
