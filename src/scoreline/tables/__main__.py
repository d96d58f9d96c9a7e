"""`python -m scoreline.tables DIR [METRIC]`: `scoreline report DIR metric=METRIC`, its figure named METRIC.png."""

import sys
from collections.abc import Sequence
from pathlib import Path

from scoreline.commands.report import METRIC, grid
from scoreline.errors import InputError
from scoreline.tables import report


def main(arguments: Sequence[str]) -> None:
    """The command of the module."""
    root, metric = Path(arguments[0]), arguments[1] if len(arguments) > 1 else METRIC
    print(report.files(grid(root, metric), root, picture=f"{metric}.png"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["."])
    except InputError as error:
        print(f"tables: {error}", file=sys.stderr)
        sys.exit(2)
