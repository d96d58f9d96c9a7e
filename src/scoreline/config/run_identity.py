"""The identity that sample.py gives a run, known before the run starts."""

from collections.abc import Sequence
from typing import Any

from scoreline.config import conf_folder, explain, run_names
from scoreline.config.model_source import with_values
from scoreline.errors import InputError


def identities(overrides: Sequence[str], ranges: Sequence[str]) -> list[str]:
    """Return the `identity` of sample.py with these overrides, for each seed range.

    Raises:
        InputError: for overrides that sample.py does not take, in its words.
    """
    run_names.register_resolvers()
    cfg = _composed(overrides)
    return [str(with_values(cfg, seeds=seeds).identity) for seeds in ranges]


def checkpoint(overrides: Sequence[str]) -> str:
    """Return the checkpoint that these overrides name."""
    return str(_composed(overrides).checkpoint)


def _composed(overrides: Sequence[str]) -> Any:
    try:
        return conf_folder.compose_config("sample", overrides)
    except Exception as error:
        sentence = explain.explain(error)
        if sentence is None:
            raise
        raise InputError(sentence) from error
