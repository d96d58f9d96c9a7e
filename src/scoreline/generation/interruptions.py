"""Report how many images are kept if sampling stops early."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scoreline.errors import InputError
from scoreline.generation.shards import Shards
from scoreline.runtime.stop_signals import Requeue
from scoreline.storage.files import without_space


@contextmanager
def report_kept(shards: Shards, speaks: bool = True) -> Iterator[None]:
    """Report how many images are kept if the disk fills up, the user presses Ctrl-C, or a scheduler sends a signal.

    Every kept image is whole.

    Args:
        shards: the images of the run.
        speaks: whether this process answers Ctrl-C and signals.

    Raises:
        InputError: if the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not without_space(error):
            raise
        raise InputError(
            f"hydra.run.dir={shards.folder.parent}: no space is left on its disk; {_kept(shards)}, free some space, or "
            "raise the limit of file sizes (ulimit -f), and repeat the command"
        ) from error
    except (KeyboardInterrupt, Requeue) as stop:
        if speaks:
            name = stop.name if isinstance(stop, Requeue) else "interrupted"
            print(f"\n{name}: {_kept(shards)}; the same command resumes", file=sys.stderr)
        raise


def _kept(shards: Shards) -> str:
    total = len(shards.seeds)
    return f"{total - len(shards.find(check=False).missing)} of {total} images are kept"
