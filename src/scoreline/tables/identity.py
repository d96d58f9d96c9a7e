"""The identity that sample.py will give a run, known before it is started."""

from collections.abc import Sequence
from typing import Any

from scoreline import conf_folder, mistakes, run_names
from scoreline.errors import InputError


def identities(overrides: Sequence[str], ranges: Sequence[str]) -> list[str]:
    """`identity` of sample.py with these overrides, for each seed range.

    Raises:
        InputError: for overrides that sample.py does not take, in its words.
    """
    run_names.register_resolvers()
    found = []
    cfg = _composed(overrides)
    for seeds in ranges:
        cfg.seeds = seeds
        found.append(str(cfg.identity))
    return found


def checkpoint(overrides: Sequence[str]) -> str:
    """The checkpoint of a run, as it was given."""
    return str(_composed(overrides).checkpoint)


def absent(checkpoint: str) -> bool:
    """Whether a checkpoint is a path at which nothing lies."""
    return "://" not in checkpoint and not run_names.model_path(checkpoint).exists()


def _composed(overrides: Sequence[str]) -> Any:
    try:
        return conf_folder.composed("sample", overrides)
    except Exception as error:
        sentence = mistakes.explain(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
