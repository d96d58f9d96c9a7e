"""Mathematics knows nothing of Lightning, Hydra, W&B or files of pictures."""

import ast
import subprocess
import sys
from pathlib import Path

import scoreline

PACKAGE = Path(scoreline.__file__).parent
PURE = [
    "schedules",
    "solvers",
    "networks",
    "parameterisations",
    "denoiser",
    "targets",
    "objective",
    "sampling",
    "noise",
]
PURE += [
    "ema",
    "exact",
    "labels",
    "seeds",
    "errors",
    "metrics",
    "datasets",
    "calibration",
    "likelihood",
    "weak_error",
    "certification",
    "thresholding",
    "guidance",
    "augmentation",
    "wavelets",
    "post_hoc_ema",
    "shards",
    "ema_snapshots",
    "history",
    "verification",
    "generation",
    "label_rules",
    "choices",
    "parts",
    "foreign",
    "safe_pickle",
    "reading",
    "npy",
    "checkpoints",
    "downloads",
]
BLOCKED = [
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "torchmetrics",
    "PIL",
    "matplotlib",
    "sklearn",
    "pooch",
    "requests",
    "huggingface_hub",
]


AROUND_HYDRA = {
    *("entry.py", "checks.py", "conf_folder.py", "mistakes.py", "run_config.py", "run_names.py"),
    "commands/composition.py",
}
COMPOSING = ("config/", "scripts/", "commands/", "doctor/", "tables/identity.py")
"""Where a config is composed or turned into a frozen dataclass."""


def modules(name: str) -> list[str]:
    path = PACKAGE / name.replace(".", "/")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [".".join(["scoreline", *file.relative_to(PACKAGE).with_suffix("").parts]) for file in files]


def test_pure_modules_import_with_everything_else_blocked() -> None:
    names = [m for name in PURE for m in modules(name)]
    assert len(names) > 40
    code = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\nimport importlib\n"
    code += f"for name in {names}: importlib.import_module(name)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_only_the_scripts_and_what_they_share_touch_hydra() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(
            line.lstrip().startswith(("import hydra", "from hydra", "from omegaconf"))
            for line in path.read_text().splitlines()
        )
    }
    assert {name for name in users if not name.startswith(("config/", "scripts/"))} == AROUND_HYDRA


def test_nothing_below_the_scripts_sees_the_composed_config() -> None:
    """A script turns it into a frozen dataclass; run_config.py reads the plain data of a file with OmegaConf."""
    names = {"cfg", "DictConfig", "ListConfig", "OmegaConf"}
    seeing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if names & {getattr(node, key, None) for key in ("id", "arg", "attr", "name")}
    }
    assert {name for name in seeing if not name.startswith(COMPOSING)} <= AROUND_HYDRA


def test_nothing_writes_to_the_composed_config() -> None:
    for path in [*PACKAGE.glob("config/*.py"), *PACKAGE.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                assert not ast.unparse(node).startswith("cfg"), (path, node.lineno)


def test_nothing_loads_pickles() -> None:
    for path in [*PACKAGE.rglob("*.py")]:
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "allow_pickle=True" not in text, path
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in [ast.unparse(word) for word in call.keywords], path
