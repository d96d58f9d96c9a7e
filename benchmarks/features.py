"""What features rank: `python benchmarks/features.py OUT --model MODEL [--font FONT] [--clipart PACKAGE] [--draws 5]`.

Every cell is the distance of a set of 318 pictures, the number of held-out emoji, from the training emoji: Frechet in
the features of metrics=imagenet and metrics=emoji, sliced Wasserstein in pixels. A family changes training pictures, or
the model's NFE, from the best level to the worst; a representation orders a step of it if the distance grows by more
than two standard errors of the difference, paired by draw. Draws share pictures, noise and labels between levels. What
is in OUT already is not done again; OUT/features.md, features.png and rows.json hold the results.
"""

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from few_evaluations import write_json
from torch import Tensor
from torch.nn.functional import conv2d, pad

from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.emoji import Emoji
from scoreline.datasets.openclipart import Openclipart
from scoreline.metrics.features import EmojiFeatures, FeatureExtractor
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance, frechet_replicates
from scoreline.metrics.imagenet_features import ImagenetFeatures
from scoreline.metrics.jackknife import assign_groups
from scoreline.metrics.sliced_wasserstein import (
    directions,
    project,
    sliced_wasserstein_distance,
    sliced_wasserstein_replicates,
)
from scoreline.schedules.spacings import Power
from scoreline.solvers.tableau import build_tableau
from scoreline.solvers.unipc import UniPC
from scoreline.storage.figures import PAGE, figure
from scoreline.storage.files import write_atomically
from scoreline.storage.pictures import to_uint8, to_unit

NOISE, BLUR, JPEG = (0.05, 0.1, 0.2, 0.4), (0.5, 1.0, 2.0), (75, 30, 10)
CLASSES, NFE = (7, 4, 1), (20, 10, 5, 3)
REPRESENTATIONS = ("imagenet", "emoji", "pixels")
GROUPS = 20
Make = Callable[[int], Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """Sets of pictures of one kind; `make` maps the number of a draw to them."""

    family: str
    name: str
    make: Make
    single: bool = False

    @property
    def key(self) -> str:
        return f"{self.family} {self.name}"


class Sets:
    """All levels, from the best of each family to the worst."""

    def __init__(self, train: ArrayDataset, held_out: Tensor, clipart: Tensor, model: Checkpoint, count: int) -> None:
        self.train, self.held_out, self.clipart, self.model, self.count = train, held_out, clipart, model, count

    def levels(self) -> list[Level]:
        return [
            Level("real", "training", self.chosen),
            Level("real", "held out", lambda draw: self.held_out[: self.count], single=True),
            Level("real", "clip art", lambda draw: self.clipart[pick(draw, len(self.clipart), self.count)]),
            *(Level("noise", f"{size:g}", partial(self.noisy, size)) for size in NOISE),
            *(Level("blur", f"{size:g}", partial(self.blurred, size)) for size in BLUR),
            *(Level("JPEG", f"{quality}", partial(self.compressed, quality)) for quality in JPEG),
            *(Level("classes", f"{kept} of 10", partial(self.of_classes, kept)) for kept in CLASSES),
            *(Level("model", f"NFE {nfe}", partial(self.sampled, nfe)) for nfe in NFE),
        ]

    def chosen(self, draw: int) -> Tensor:
        return self.train.images[pick(draw, len(self.train), self.count)]

    def noisy(self, size: float, draw: int) -> Tensor:
        """Gaussian noise of this standard deviation on pixels in [-1, 1]; levels of a draw scale the same noise."""
        x = to_unit(self.chosen(draw))
        return to_uint8(x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(draw)))

    def blurred(self, size: float, draw: int) -> Tensor:
        """Gaussian blur of this standard deviation in pixels, edges repeated."""
        x, reach = to_unit(self.chosen(draw)), round(3 * size)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / size).square())
        weights = (weights / weights.sum()).reshape(1, 1, 1, -1)
        n, channels, height, width = x.shape
        rows = conv2d(pad(x, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None], weights)
        return to_uint8(conv2d(rows, weights.mT).reshape(n, channels, height, width))

    def compressed(self, quality: int, draw: int) -> Tensor:
        """JPEG of this quality by Pillow, with its subsampled colours."""
        return torch.stack([jpeg(image, quality) for image in self.chosen(draw)])

    def of_classes(self, kept: int, draw: int) -> Tensor:
        """Pictures of the most frequent classes alone."""
        frequent = torch.bincount(self.train.labels).argsort(descending=True)[:kept]
        images = self.train.images[torch.isin(self.train.labels, frequent)]
        return images[pick(draw, len(images), self.count)]

    @torch.inference_mode()
    def sampled(self, nfe: int, draw: int) -> Tensor:
        """Samples by UniPC-3 on Karras steps, with the classes of the draw's pictures and its own seeds."""
        schedule = self.model.noise_schedule
        run = build_tableau(UniPC(3), Power(7), (schedule.sigma_max, schedule.sigma_min), nfe, "none")
        seeds = range(draw * self.count, (draw + 1) * self.count)
        labels = self.train.labels[pick(draw, len(self.train), self.count)]
        subject = Subject(self.model.denoiser, run, self.model.card.shape, seeds, 64, labels)
        return torch.cat([to_uint8(batch.x) for batch in subject.samples(run)])


def pick(draw: int, total: int, count: int) -> Tensor:
    """`count` of `total` places without repetition."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(draw))[:count]


def jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


class Ruler:
    """The three distances of a set from the training pictures; `errors` are those of a single set, by the jackknife."""

    def __init__(self, train: Tensor, extractors: dict[str, FeatureExtractor]) -> None:
        self.extractors = extractors
        self.gaussians = {name: GaussianStatistics.of(it(train)) for name, it in extractors.items()}
        self.along = directions(train[0].numel(), 256)
        self.projected = project(train, self.along).sort(1).values

    def distances(self, images: Tensor) -> dict[str, float]:
        features = {name: GaussianStatistics.of(it(images)) for name, it in self.extractors.items()}
        found = {name: frechet_distance(it, self.gaussians[name]) for name, it in features.items()}
        return {
            **found,
            "pixels": sliced_wasserstein_distance(project(images, self.along).sort(1).values, self.projected),
        }

    def errors(self, images: Tensor) -> dict[str, float]:
        found = {
            name: frechet_replicates(it(images), self.gaussians[name]).error for name, it in self.extractors.items()
        }
        group = assign_groups(len(images), GROUPS)
        pixels = sliced_wasserstein_replicates(project(images, self.along), self.projected, group)
        return {**found, "pixels": pixels.error}


def measure(out: Path, sets: Sets, ruler: Callable[[], Ruler], draws: int) -> list[Row]:
    """Return a row for each level, measuring the cells that are missing."""
    rows: list[Row] = json.loads((out / "rows.json").read_text()) if (out / "rows.json").exists() else []
    known, opened = {row["key"] for row in rows}, None
    for level in sets.levels():
        if level.key in known:
            continue
        opened = opened or ruler()
        images = [level.make(draw) for draw in range(1 if level.single else draws)]
        row: Row = {"key": level.key, "family": level.family, "name": level.name, "n": sets.count}
        row["values"] = {name: [] for name in REPRESENTATIONS}
        for each in images:
            for name, value in opened.distances(each).items():
                row["values"][name].append(value)
        row["jackknife"] = opened.errors(images[0]) if level.single else None
        rows.append(row)
        write_json(out / "rows.json", rows)
        print(f"{level.key}: {', '.join(f'{name} {cell(row, name)}' for name in REPRESENTATIONS)}", flush=True)
    return rows


def error(row: Row, name: str) -> float:
    """Standard error of the mean over draws, or the jackknife's where there is one set."""
    values = row["values"][name]
    return float(row["jackknife"][name]) if row["jackknife"] else stdev(values) / len(values) ** 0.5


def cell(row: Row, name: str) -> str:
    return f"{mean(row['values'][name]):.3f} +- {error(row, name):.3f}"


def step(better: Row, worse: Row, name: str) -> tuple[float, float]:
    """Growth of the distance from one level to the next and its error, paired by draw where both have draws."""
    a, b = better["values"][name], worse["values"][name]
    if len(a) == len(b) > 1:
        gaps = [y - x for x, y in zip(a, b, strict=True)]
        return mean(gaps), stdev(gaps) / len(gaps) ** 0.5
    return mean(b) - mean(a), (error(better, name) ** 2 + error(worse, name) ** 2) ** 0.5


def verdict(growth: float, wrong: float) -> str:
    if abs(growth) <= 2 * wrong:
        return "undecided"
    return "right" if growth > 0 else "wrong"


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by family, best first; untouched training pictures begin each but the model's."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        first = [] if row["family"] in ("real", "model") else [rows[0]]
        found.setdefault(row["family"], list(first)).append(row)
    return found


def report(out: Path, rows: Sequence[Row]) -> None:
    """Write the two tables and the figure."""
    text = [
        f"Distances from the training emoji of sets of {rows[0]['n']} pictures, mean and standard error.",
        "\n".join(["| family | level | " + " | ".join(REPRESENTATIONS) + " |", "|--" * 5 + "|", *_cells(rows)]),
        "Steps within a family, by more than two standard errors of the paired difference.",
        "\n".join(["| family | steps | " + " | ".join(REPRESENTATIONS) + " |", "|--" * 5 + "|", *_steps(rows)]),
    ]
    write_atomically(out / "features.md", lambda temporary: temporary.write_text("\n\n".join(text) + "\n"))
    _draw(out / "features.png", rows)
    print("\n\n".join(text))


def _cells(rows: Sequence[Row]) -> list[str]:
    return [
        f"| {row['family']} | {row['name']} | {' | '.join(cell(row, n) for n in REPRESENTATIONS)} |" for row in rows
    ]


def _steps(rows: Sequence[Row]) -> list[str]:
    lines = []
    for family, levels in families(rows).items():
        pairs = list(pairwise(levels))
        found = {name: [verdict(*step(a, b, name)) for a, b in pairs] for name in REPRESENTATIONS}
        names = " < ".join(row["name"] for row in levels)
        lines.append(f"| {family} | {names} | {' | '.join(', '.join(found[name]) for name in REPRESENTATIONS)} |")
    return lines


def _draw(path: Path, rows: Sequence[Row]) -> None:
    shown = families(rows)
    with figure(path, 1, len(shown), figsize=(PAGE, 2.2), sharey=True) as (_, axes):
        _draw_families(axes, rows, shown)


def _draw_families(axes: Any, rows: Sequence[Row], shown: Mapping[str, Sequence[Row]]) -> None:
    for axis, (family, levels) in zip(axes, shown.items(), strict=True):
        for name in REPRESENTATIONS:
            unit = mean(rows[0]["values"][name])
            heights = [mean(row["values"][name]) / unit for row in levels]
            axis.errorbar(
                range(len(levels)), heights, [error(row, name) / unit for row in levels], marker="o", label=name
            )
        axis.set_xticks(range(len(levels)), [row["name"] for row in levels], rotation=45, ha="right")
        axis.set(title=family, yscale="log")
    axes[0].set_ylabel("distance / that of training pictures")
    axes[0].legend()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, help="a class-conditional colour model's file")
    parser.add_argument("--font", help="NotoColorEmoji.ttf; by default the installed or cached one")
    parser.add_argument("--clipart", help="the package openclipart-png; by default the installed or cached one")
    parser.add_argument("--draws", type=int, default=5)
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    train, held_out = (Emoji(asked.font, split, labels="groups") for split in ("train", "test"))
    clipart = Openclipart(asked.clipart).images
    sets = Sets(train, held_out.images, clipart, load_model(asked.model), len(held_out))
    extractors: dict[str, FeatureExtractor] = {"imagenet": ImagenetFeatures(), "emoji": EmojiFeatures()}
    report(asked.out, measure(asked.out, sets, lambda: Ruler(train.images, extractors), asked.draws))


if __name__ == "__main__":
    main()
