"""All figures of the colour model, from a checkpoint: `python benchmarks/colour_model.py OUT [--part NAME ..]`.

Parts, in this order: the calibrations that ship beside the model (`score_norm`, `score_optimal`,
`score_optimal_predictor`, `target_variance`, `search`, `tableau`), the `tables` of conf/table on fresh seeds, each with
a sheet of its second representation and with ratios, and the `distances` of the cells of solvers_emoji from a fine run
of the same seeds, with one emoji of each cell in pictures.png. What is in OUT already is not done again, so that the
same command goes on after a kill; an unfinished search begins anew, tables and learned budgets that are finished stay.
OUT/assets holds the records under the names that ship, OUT/seconds.json what each part took.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from few_evaluations import FINE, REFERENCE, ROOT, write_json

from scoreline.config import run_names
from scoreline.datasets.emoji import NOTO
from scoreline.errors import InputError
from scoreline.storage.files import write_atomically
from scoreline.tables.plan import load, safe

NAME = "emoji32_edm"
BUDGETS = (3, 4, 5, 6, 8, 10, 15, 20)
PAIRED = (
    *("deis_tab3", "deis_sn", "dpm_solver_v3", "dpmpp_2m", "ipndm2", "ipndm3", "scire_multistep_2"),
    *("scire_multistep_3", "unipc_3", "velocity_ab3", "velocity_abm2_open", "velocity_sn"),
)
"""Solvers that the search tries: those of one evaluation a step, which were the nearest of all on other models."""

STEPS = "[karras,nsr_log,log_snr,score_optimal,linear_vp_few,linear_vp_quadratic]"
"""Steps that the search combines with every solver."""

CALIBRATIONS = {
    "score_norm": ["calibration=score_norm", "nfe=300", "seeds=0-255"],
    "score_optimal": ["calibration=score_optimal", "calibration.levels=100", "seeds=0-127"],
    "score_optimal_predictor": [
        *("calibration=score_optimal", "calibration.cost=predictor"),
        *("calibration.levels=40", "seeds=0-11"),
    ],
    "target_variance": ["calibration=target_variance", "dataset=emoji"],
    "search": [
        "calibration=search",
        f"calibration.budgets={[*BUDGETS]}",
        f"calibration.solvers=[{','.join(PAIRED)}]",
        f"calibration.schedules={STEPS}",
        "seeds=0-95",
    ],
    "tableau": [
        "calibration=tableau",
        f"calibration.budgets={[*BUDGETS]}",
        "calibration.evaluations=10000",
        "seeds=0-191",
    ],
}
"""Words of calibrate.py by the name of the record. All seeds are below 10,000, those of tables and distances above."""

TABLES = ("solvers_emoji", "deis_emoji", "deis_sn_emoji", "scire_emoji", "score_optimal_emoji", "stf_emoji")
SOLVERS = TABLES[0]
"""The table whose cells are compared with a fine run."""

BASES = {
    "deis_emoji": ("DDIM", "rhoAB3"),
    "deis_sn_emoji": ("DEIS, order 2", "DEIS, order 3"),
    "scire_emoji": ("DPM-Solver-2", "DPM-Solver-3"),
    "score_optimal_emoji": ("Heun, rho = 7", "Euler, rho = 7", "DEIS-tAB3, rho = 7"),
    "stf_emoji": ("DSM, 16 kimg", "DSM, 32 kimg", "DSM, 64 kimg"),
}
"""Rows of a table that others are divided by."""

FIRST, SECOND = "imagenet/frechet_distance", "emoji/frechet_distance"
"""The metric of the tables, and that of their second sheets."""


@dataclass(frozen=True)
class Job:
    """The model's place in OUT, with its records beside it."""

    out: Path
    budget: str

    @property
    def model(self) -> Path:
        return self.out / "models" / NAME / "model.safetensors"

    def record(self, name: str) -> Path:
        return run_names.record_beside(self.model, name)

    def script(self, name: str, *words: str) -> None:
        """Run a script of the package, in OUT, where `prepare` of a table puts its trainings."""
        subprocess.run([sys.executable, str(ROOT / name), *words], check=True, cwd=self.out)

    def calibrate(self, name: str) -> None:
        """Write the record of a name beside the model, unless there is one, and among the assets."""
        out, words = self.out / "calibrate" / name, CALIBRATIONS[name]
        if name == "score_optimal_predictor":
            self.calibrate("score_optimal")  # which calibrate.py puts beside the model unless one is there
        if not self.record(name).exists():
            self.script("calibrate.py", f"checkpoint={self.model}", *words, f"hydra.run.dir={out}")
            _copy(out / f"{words[0].partition('=')[2]}.safetensors", self.record(name))
        _copy(self.record(name), self.out / "assets" / f"{NAME}.{name}.safetensors")

    def table(self, name: str) -> Path:
        return self.out / "tables" / name

    def tables(self) -> None:
        """Run the tables one after the other, each with a sheet of its second representation and its ratios."""
        for name in TABLES:
            out = self.table(name)
            own = [] if name == "stf_emoji" else [f"checkpoint={self.model}"]
            self.script("sample.py", f"table={name}", f"budget={self.budget}", *own, f"hydra.run.dir={out}")
            self.sheet(out, "emoji", f"metric={SECOND}")
            for base in BASES.get(name, ()):
                for metric in (FIRST, SECOND):
                    self.report(out, f"over={base}", f"metric={metric}")
                    _copy(out / "ratios.md", out / safe(f"ratios {metric} {base}.md"))
            self.report(out)

    def distances(self) -> None:
        """Compare the cells of a finished `SOLVERS` with a fine run of the same seeds."""
        out, fine = self.table(SOLVERS), self.out / "fine"
        seeds = ",".join(load(out).table.ranges(self.budget))
        words = [f"checkpoint={self.model}", f"seeds='{seeds}'", f"nfe={FINE}", "metrics=none"]
        method = [f"solver={REFERENCE.solver}", f"schedule={REFERENCE.schedule}"]
        self.script("sample.py", *words, *method, f"hydra.run.dir={fine}")
        self.sheet(out, "distance", f"fine={fine}", "pictures=1")
        self.report(out)

    def sheet(self, out: Path, name: str, *words: str) -> None:
        """Report a table otherwise, and keep the files under NAME_table."""
        self.report(out, *words)
        for path in out.glob("table.*"):
            _copy(path, out / f"{name}_{path.name}")

    def report(self, *words: str | Path) -> None:
        command = [sys.executable, "-P", "-c", "from scoreline.cli import main; main()", "report", *map(str, words)]
        subprocess.run(command, check=True, cwd=self.out, stdout=subprocess.DEVNULL)

    def parts(self) -> dict[str, Callable[[], None]]:
        found: dict[str, Callable[[], None]] = {name: self._calibration(name) for name in CALIBRATIONS}
        return {**found, "tables": self.tables, "distances": self.distances}

    def _calibration(self, name: str) -> Callable[[], None]:
        return lambda: self.calibrate(name)


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copy(source, temporary))


def supply(out: Path, checkpoint: Path, font: Path | None) -> Path:
    """Put the model into OUT, and the font into a cache there if it is not installed; return the model's place.

    Raises:
        InputError: if OUT belongs to another checkpoint.
    """
    model = Job(out, "").model
    if not model.exists():
        _copy(checkpoint, model)
    if model.read_bytes() != checkpoint.read_bytes():
        raise InputError(f"{out}: holds the figures of another checkpoint than {checkpoint}; choose another directory")
    if font is not None:
        os.environ["SCORELINE_CACHE"] = str(out / "cache")
        if not NOTO.place().exists():
            _copy(font, NOTO.place())
    return model


def work(job: Job, chosen: Sequence[str]) -> None:
    """The chosen parts, with what each took."""
    seconds, path = {}, job.out / "seconds.json"
    if path.exists():
        seconds = json.loads(path.read_text())
    for name, part in job.parts().items():
        if name in chosen:
            print(f"colour_model: {name}", flush=True)
            began = time.perf_counter()
            part()
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            write_json(path, seconds)
            print(f"colour_model: {name} done, {seconds[name]:.0f} s in all", flush=True)


def main() -> None:
    every = list(Job(Path(), "").parts())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=run_names.model_path(NAME))
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, if it is not installed")
    parser.add_argument("--part", action="append", choices=every, help="one of the parts; all by default")
    parser.add_argument("--budget", default="small", help="of the tables")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out.resolve()
    try:
        supply(out, asked.checkpoint, asked.font)
        work(Job(out, asked.budget), asked.part or every)
    except (InputError, subprocess.CalledProcessError) as error:
        sys.exit(f"colour_model: {error}")


if __name__ == "__main__":
    main()
