"""A short tour (`./run demo`): train on digits, then sample the colour model by four solvers at three budgets.

It writes one picture and one table: rows are solvers, columns NFE, all from the same noise as a fine run.
"""

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from scoreline.commands.report import METRIC, Beside, beside_fine
from scoreline.config import conf_folder
from scoreline.metrics.base import Score
from scoreline.numerics import NUMERICS_VERSION
from scoreline.tables import table_files
from scoreline.tables.fine_run import DISTANCE, note
from scoreline.tables.grid import Grid

WHERE = Path(f"outputs/demo-{version('scoreline')}-{NUMERICS_VERSION}")

SOLVERS, BUDGETS, SEEDS, FINE = "ddim,heun,deis_tab3,dpmpp_2m", "3,5,10", "0-127", 100
"""Of the sweep; `FINE` is the NFE of the fine run."""

SHOWN = 4
"""Images in a cell of the picture."""


def _step(title: str, *arguments: str) -> None:
    """Run one of the scripts as a user would, and print how long it takes."""
    print(f"\n--- {title}\n    python {' '.join(arguments)}", flush=True)
    began, script = time.monotonic(), conf_folder.script(arguments[0])
    subprocess.run([sys.executable, str(script), *arguments[1:]], check=True)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def table(grid: Grid) -> str:
    """Return a grid as Markdown, each cell with its distance to the fine run and its Frechet distance."""
    lines = ["| distance; Frechet distance | " + " | ".join(f"NFE {column}" for column in grid.columns) + " |"]
    lines.append("|--" * (1 + len(grid.columns)) + "|")
    cells = {place: entry for part in grid.parts for place, entry in part.entries.items()}
    for row in grid.rows:
        entries = [cells.get((row, column)) for column in grid.columns]
        texts = [
            "-" if it is None else f"{_text(it.score(DISTANCE), 3)}; {_text(it.score(METRIC), 2)}" for it in entries
        ]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _text(score: Score | None, digits: int) -> str:
    return "-" if score is None else f"{score['value']:.{digits}f} +- {score['error']:.{digits}f}"


def main() -> None:
    """Write everything below one directory; a second start skips the parts that are finished."""
    model, sweep, fine = WHERE / "model", WHERE / "sweep", WHERE / "fine"
    _step("train a score model on real digits", "train.py", f"hydra.run.dir={model}", "duration_kimg=48")
    _step("sample it", "sample.py", f"checkpoint={model}", f"hydra.run.dir={WHERE / 'digits'}")
    _step(
        "sample the colour model that ships with four solvers at three budgets, from the same noise",
        *(
            "sample.py",
            "-m",
            f"solver={SOLVERS}",
            "schedule=karras",
            f"nfe={BUDGETS}",
            f"seeds={SEEDS}",
            f"hydra.sweep.dir={sweep}",
        ),
    )
    _step(
        "and with many evaluations, to compare with",
        *("sample.py", "solver=unipc_3", "schedule=log_snr", f"nfe={FINE}", f"seeds={SEEDS}"),
        *("metrics=none", f"hydra.run.dir={fine}"),
    )
    found: Beside = beside_fine(sweep, fine, DISTANCE, SHOWN)
    text = (
        f"{table(found.grid)}\n{note(found.fine)} Frechet distance to the training emoji in the features of a small\n"
    )
    text += f"classifier of emoji, of {found.images} images; lower is better in both.\n"
    table_files.write_text(sweep / "table.md", text)
    print(f"\n--- how far are few evaluations from many?\n\n{text}")
    print(f"picture: {sweep / 'pictures.png'}\ntable: {sweep / 'table.md'}\nsamples: {sweep}/*/grid.png")


if __name__ == "__main__":
    main()
