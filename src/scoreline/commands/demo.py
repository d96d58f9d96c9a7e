"""A short tour (`./run demo`): train, calibrate, sample a sweep and print its table."""

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from scoreline.commands.report import METRIC, grid
from scoreline.config import conf_folder
from scoreline.numerics import NUMERICS_VERSION
from scoreline.tables import table_files

WHERE = Path(f"outputs/demo-{version('scoreline')}-{NUMERICS_VERSION}")


def _step(title: str, *arguments: str) -> None:
    """Run one of the scripts as a user would, and print how long it takes."""
    print(f"\n--- {title}\n    python {' '.join(arguments)}", flush=True)
    began, script = time.monotonic(), conf_folder.script(arguments[0])
    subprocess.run([sys.executable, str(script), *arguments[1:]], check=True)
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Write everything below one directory; a second start skips the parts that are finished."""
    model, sweep = WHERE / "model", WHERE / "sweep"
    _step("train a score model on real digits", "train.py", f"hydra.run.dir={model}", "duration_kimg=48")
    if not (model / "model.score_norm.safetensors").exists():
        run = f"hydra.run.dir={WHERE / 'calibration'}"
        _step("measure mean |eps| per noise level", "calibrate.py", f"checkpoint={model}", "nfe=200", run)
    _step(
        "sample with four solvers at three budgets",
        *("sample.py", "-m", f"checkpoint={model}", "solver=ddim,heun,deis_sn,velocity_ab3", "nfe=5,10,20"),
        *("seeds=0-511", "batch_size=512", f"hydra.sweep.dir={sweep}"),
    )
    print("\n--- Frechet distance (features of the shipped digits network; lower is better)\n")
    print(table_files.write(grid(sweep, METRIC), sweep))
    print(f"figure: {sweep / 'table.png'}; samples: {sweep}/*/grid.png")


if __name__ == "__main__":
    main()
