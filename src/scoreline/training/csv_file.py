"""metrics.jsonl as a table that a spreadsheet opens."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from scoreline.files import write_atomically
from scoreline.history import history
from scoreline.training.callbacks import dispensable


class CsvFile(Logger):
    """metrics.csv in the run directory, made anew from metrics.jsonl at the end of every fit, failed or not.

    It always holds the whole history that is kept, also after a resume. Figures without a value in a row are empty.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.root = Path(save_dir)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.root)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Nothing: the records are in metrics.jsonl already."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        rows = [row for row in history(self.root) if "previews" not in row]
        if not rows:
            return
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
        with dispensable(self.root / "metrics.csv"):
            write_atomically(
                self.root / "metrics.csv", lambda temporary: temporary.write_text(text.getvalue(), newline="")
            )
