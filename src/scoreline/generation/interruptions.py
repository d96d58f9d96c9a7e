"""Report how many images are kept when sampling stops early."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scoreline.errors import InputError
from scoreline.files import without_space
from scoreline.generation.shards import Shards


@contextmanager
def report_kept(shards: Shards, speaks: bool = True) -> Iterator[None]:
    """Report how many images are kept when the disk is full or Ctrl-C is pressed; what is kept is whole.

    Args:
        shards: of the run.
        speaks: whether this process answers Ctrl-C.

    Raises:
        InputError: for a full disk.
    """
    try:
        yield
    except Exception as error:
        if not without_space(error):
            raise
        raise InputError(
            f"hydra.run.dir={shards.folder.parent}: no space is left on its disk; {_kept(shards)}, free some space, or "
            "raise how large a file may be (ulimit -f), and start the same command again"
        ) from error
    except KeyboardInterrupt:
        if speaks:
            print(f"\ninterrupted: {_kept(shards)}, the same command goes on from there", file=sys.stderr)
        raise


def _kept(shards: Shards) -> str:
    total = len(shards.seeds)
    return f"{total - len(shards.find(check=False).missing)} of {total} images are kept"
