"""The jobs of a finished or interrupted sweep, from the multirun.yaml that Hydra leaves in its directory."""

from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from scoreline.config.run_names import cell_name
from scoreline.errors import InputError
from scoreline.storage import run_config

NAME = "multirun.yaml"

MOST = 10_000
"""Jobs of the largest sweep that is listed."""


def words(root: Path) -> list[str]:
    """Return the words of a sweep's command line; none without a readable multirun.yaml."""
    try:
        node: Any = run_config.read(root, NAME) or {}
    except InputError:
        return []
    for key in ("hydra", "overrides", "task"):
        node = node.get(key) if isinstance(node, dict) else None
    return [word for word in node if isinstance(word, str)] if isinstance(node, list) else []


def jobs(root: Path) -> dict[Path, tuple[str, ...]]:
    """Return the run directory of each job of a sweep with the words of its command line.

    The list is empty if the words do not tell the jobs, as in a search by Optuna.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(words(root))
        lists = [_words(override) for override in parsed]
    except HydraException:
        return {}
    total = 1
    for choices in lists:
        total *= len(choices)
    combinations = product(*lists) if 1 < total <= MOST else []
    return {root / cell_name(chosen): tuple(chosen) for chosen in combinations}


def _words(override: Any) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]
