"""Where files that were fetched or made from others are kept between runs."""

import os
from pathlib import Path


def folder(*parts: str) -> Path:
    """A folder of the cache: $SCORELINE_CACHE, else $XDG_CACHE_HOME/scoreline, else ~/.cache/scoreline.

    It need not exist. A relative XDG_CACHE_HOME counts as unset, as its specification demands.
    """
    own, shared = os.environ.get("SCORELINE_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if own:
        return Path(own).expanduser().joinpath(*parts)
    return (shared if shared.is_absolute() else Path.home() / ".cache").joinpath("scoreline", *parts)
