"""Distances of the rows of `table=learned_digits`: `python benchmarks/learned_methods.py OUT [--images 1000]`.

The Frechet distances are the table's own. This adds the distance of every image from the end of a fine run with the
same noise, UniPC-3 with 200 evaluations, on three disjoint ranges of seeds that no tableau was learned from, and the
processor time that learning took. Records that are missing are learned first, as the table does it. OUT/distances.md
holds the tables, OUT/distances.json what they are made of.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import few_evaluations
import torch
import yaml
from few_evaluations import span_of, stored, subject_of, write_json
from torch import Tensor

from scoreline.calibration.distances import Ends, distances, fine_ends
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import conf_folder
from scoreline.config.compose import build_object, complete_config
from scoreline.records import load_record
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.storage.files import code_version, write_atomically
from scoreline.tables.render import with_error
from scoreline.tables.schema import Column, Row, Table, parse
from scoreline.tables.table_run import prepare

NAME = "learned_digits"
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "median": torch.median}
Figures = dict[str, dict[str, dict[str, list[float]]]]
"""By row, statistic and column, a value for each range of seeds."""


def table() -> Table:
    return parse(NAME, yaml.safe_load(conf_folder.files("table")[NAME].read_text()))


@dataclass(frozen=True)
class Bench:
    """The table's model, and the ends of its fine run on some ranges of seeds."""

    table: Table
    checkpoint: Checkpoint
    ends: dict[range, Tensor]

    def run(self, row: Row, column: Column) -> Tableau:
        """The run that sample.py makes of a cell."""
        words = [
            word for word in (*self.table.base, *row.overrides, *column.overrides) if not word.startswith("metrics")
        ]
        cfg = complete_config(words)
        return build_tableau(
            build_object(cfg.solver), build_object(cfg.schedule), span_of(self.checkpoint), cfg.nfe, "none"
        )

    def distances(self, run: Tableau) -> Iterator[Tensor]:
        """Those of every range of seeds."""
        for seeds, ends in self.ends.items():
            yield distances(subject_of(self.checkpoint, seeds), run, Ends(ends, ends))

    def figures(self) -> Figures:
        found: Figures = {}
        for row in self.table.rows:
            found[row.name] = {name: {} for name in STATISTICS}
            for column in self.table.columns:
                apart = list(self.distances(self.run(row, column)))
                for name, statistic in STATISTICS.items():
                    found[row.name][name][column.name] = [float(statistic(each)) for each in apart]
            print(row.name, {column: f"{mean(it):.4f}" for column, it in found[row.name]["mean"].items()}, flush=True)
        return found


def bench(out: Path, images: int) -> Bench:
    found = table()
    checkpoint = load_model(few_evaluations.run_names.model_path("digits_vp"))
    starts = [few_evaluations.FIRST_SEED + images * number for number in range(few_evaluations.RANGES)]
    ranges = [range(start, start + images) for start in starts]

    def ends(seeds: range) -> Tensor:
        path = out / f"fine-{seeds.start}-{len(seeds)}.safetensors"
        return stored(path, lambda: fine_ends(subject_of(checkpoint, seeds)).noisy)

    return Bench(found, checkpoint, {seeds: ends(seeds) for seeds in ranges})


def provenance(row: Row, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a row's record says of its learning; empty for a closed form."""
    path = next((word.partition("=")[2] for word in row.overrides if word.startswith("solver.path=")), None)
    return {} if path is None else load_record(path, "tableau", checkpoint.digest, "solver.path").provenance


def markdown(bench: Bench, figures: Figures) -> str:
    """A table for each statistic, the best of a column in bold, and the learning times."""
    parts = [_table(name, bench.table, figures) for name in STATISTICS]
    learned = {row.name: provenance(row, bench.checkpoint) for row in bench.table.rows}
    times = [f"| {name} | {it['seconds']:.0f} | {it['code_version']} |" for name, it in learned.items() if it]
    parts.append("\n".join(["| learned | processor seconds, all NFE | code_version |", "|--|--|--|", *times]))
    seeds = ", ".join(f"{each.start}-{each.stop - 1}" for each in bench.ends)
    return "\n\n".join([*parts, f"Seeds {seeds}; code_version {code_version()}."]) + "\n"


def _table(statistic: str, table: Table, figures: Figures) -> str:
    names = [column.name for column in table.columns]
    best = {name: min(mean(it[statistic][name]) for it in figures.values()) for name in names}
    lines = [
        f"| {statistic} distance | {' | '.join(f'NFE {name}' for name in names)} |",
        "|--" * (len(names) + 1) + "|",
    ]
    for row, found in figures.items():
        cells = [_cell(found[statistic][name], mean(found[statistic][name]) == best[name]) for name in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], bold: bool) -> str:
    text = " +- ".join(with_error(mean(values), stdev(values) / len(values) ** 0.5))
    return f"**{text}**" if bold else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="in each of the three ranges of seeds")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepare(table().prepare, asked.out / "prepare")
    here = bench(asked.out, asked.images)
    figures = here.figures()
    write_json(asked.out / "distances.json", figures)
    text = markdown(here, figures)
    write_atomically(asked.out / "distances.md", lambda temporary: temporary.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
