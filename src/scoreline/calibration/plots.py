"""The figures of calibration records."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a matplotlib figure and its axes; write it to `path` as a PNG when the block ends.

    Args:
        path: file of the picture.
        rows: rows of axes.
        columns: columns of axes.
        options: of `pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(rows, columns, layout="constrained", **options)
    yield canvas, axes
    canvas.savefig(path, dpi=120, format="png")
    pyplot.close(canvas)
