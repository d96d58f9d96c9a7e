"""Does the colour model memorise, and what does guidance add? `python benchmarks/colour_study.py OUT [--part NAME ..]`.

`nearest`: distances of generated and of held-out emoji to the nearest training emoji, in pixels and in the features of
two networks, and a picture of 64 generated emoji beside their nearest ones. `sets`: Frechet distances from the training
set of equally many training, held-out and generated emoji. `guidance`: classifier-free guidance, and autoguidance by
the guide that ships or by --guide, at several scales; the scale is chosen on one range of seeds and reported on three
others. OUT gets a table for each part (Markdown and JSON) and pictures. Runs that are finished are not done again.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from colour_model import NAME, supply
from few_evaluations import ROOT, write_json
from torch import Tensor

from scoreline.config import run_names
from scoreline.datasets import generated_images
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.emoji import NOTO, Emoji
from scoreline.errors import InputError
from scoreline.metrics.features import EmojiFeatures, FeatureExtractor
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.metrics.imagenet_features import ImagenetFeatures
from scoreline.storage.files import write_atomically
from scoreline.storage.pictures import save_png, sheet, to_unit

GUIDE = "emoji32_edm_guide"

NFE = 50
"""Evaluations a sample of `nearest` and `sets`, so that the model is judged and not the solver."""

GUIDED_NFE = 20
SCALES = (1.25, 1.5, 2.0, 3.0)
CHOICE, REPORT = "40000-40299", ("41000-41299", "42000-42299", "43000-43299")
"""Seeds on which a scale is chosen, and those on which it is reported."""

DRAWS = 5
SHOWN = 64


@dataclass(frozen=True)
class Study:
    """The checkpoint, the guide, and the directory of the results."""

    out: Path
    model: Path
    guide: Path

    @cached_property
    def sets(self) -> dict[str, Emoji]:
        return {split: Emoji(str(NOTO.place()), split, labels="groups") for split in ("train", "test")}

    @cached_property
    def extractors(self) -> dict[str, FeatureExtractor]:
        return {"imagenet": ImagenetFeatures(), "emoji": EmojiFeatures()}

    @cached_property
    def training_features(self) -> dict[str, Tensor]:
        return {name: extractor(self.sets["train"].images) for name, extractor in self.extractors.items()}

    def samples(self, name: str, seeds: str, *words: str) -> ArrayDataset:
        """Sample, unless the run is finished, and return the images with their classes."""
        run = self.out / "runs" / name / seeds
        if not (run / "metrics.json").exists():
            print(f"colour_study: {name}, seeds {seeds}", flush=True)
            command = [sys.executable, str(ROOT / "sample.py"), f"checkpoint={self.model}", f"seeds={seeds}", *words]
            subprocess.run([*command, "metrics=none", f"hydra.run.dir={run}"], check=True, stdout=subprocess.DEVNULL)
        images = generated_images.images(str(run))
        return ArrayDataset(name, *images.read(range(len(images))))

    def nearest(self) -> None:
        """Distances to the nearest training emoji."""
        train, test = self.sets["train"].images, self.sets["test"].images
        drawn = self.samples("unguided", f"30000-{30000 + len(test) - 1}", f"nfe={NFE}")
        rows, found = [], {}
        for name, features in {"pixels": _pixels, **self.extractors}.items():
            known = features(train)
            ours, at = torch.cdist(features(drawn.images), known).min(1)
            theirs = torch.cdist(features(test), known).min(1).values
            low = float((ours < theirs.quantile(0.05)).double().mean())
            rows.append(
                {"distance in": name, "generated": _text(ours), "held out": _text(theirs), "share": f"{low:.3f}"}
            )
            found[name] = train[at[:SHOWN]]
        self.table("nearest", rows)
        blocks = [drawn.images[:SHOWN], found["pixels"], found["imagenet"]]
        self.picture("nearest", blocks)

    def frechet(self, images: Tensor) -> dict[str, float]:
        """Frechet distances from the whole training set, by representation."""
        return {
            name: frechet_distance(GaussianStatistics.of(extractor(images)), GaussianStatistics.of(known))
            for (name, extractor), known in zip(self.extractors.items(), self.training_features.values(), strict=True)
        }

    def equal_sets(self) -> None:
        """Frechet distances of sets of the size of the held-out one."""
        train, test = self.sets["train"].images, self.sets["test"].images
        n, generator = len(test), torch.Generator().manual_seed(0)
        chosen = [torch.randperm(len(train), generator=generator)[:n] for _ in range(DRAWS)]
        starts = [30000 + n * draw for draw in range(DRAWS)]
        drawn = [self.samples("unguided", f"{it}-{it + n - 1}", f"nfe={NFE}").images for it in starts]
        found = {
            f"{DRAWS} draws from the training set": [self.frechet(train[it]) for it in chosen],
            "held out": [self.frechet(test)],
            f"generated, NFE {NFE}, {DRAWS} ranges": [self.frechet(images) for images in drawn],
        }
        self.table("sets", [{"set": name, "n": n, **_means(values)} for name, values in found.items()])

    def guidance(self) -> None:
        """The best scale of each guidance, and what it changes on other seeds."""
        kinds = {
            "classifier-free": ["guidance=classifier_free"],
            "autoguidance": ["guidance=autoguidance", f"guidance.checkpoint={self.guide}"],
        }
        trials, best = [], {"unguided": (1.0, ["guidance=none"])}
        for kind, words in kinds.items():
            scored = {scale: self.guided(kind, scale, words, CHOICE) for scale in SCALES}
            trials += [{"guidance": kind, "scale": scale, **_values(scores)} for scale, scores in scored.items()]
            scale = min(scored, key=lambda it: scored[it]["imagenet/frechet_distance"])
            best[kind] = (scale, words)
        trials.insert(0, {"guidance": "none", "scale": 1, **_values(self.guided("unguided", 1.0, [], CHOICE))})
        self.table("guidance_trials", trials)
        rows, pictures = [], []
        for kind, (scale, words) in best.items():
            scores = [self.guided(kind, scale, words, seeds) for seeds in REPORT]
            rows.append({"guidance": kind, "scale": scale, "ranges": len(REPORT), **_means(scores)})
            pictures.append(self.guided_images(kind, scale, words, REPORT[0]).images[:SHOWN])
        self.table("guidance", rows)
        self.picture("guidance", pictures)

    def guided_images(self, kind: str, scale: float, words: Sequence[str], seeds: str) -> ArrayDataset:
        scaled = [] if scale == 1 else [*words, f"guidance.scale={scale}"]
        return self.samples(f"{kind}-{scale:g}", seeds, f"nfe={GUIDED_NFE}", *scaled)

    def guided(self, kind: str, scale: float, words: Sequence[str], seeds: str) -> dict[str, float]:
        """Scores of a range of seeds in both representations."""
        images = self.guided_images(kind, scale, words, seeds)
        scores: dict[str, float] = {}
        for name, extractor in self.extractors.items():
            found = Fidelity(self.sets["train"], extractor)(images)
            wanted = ("frechet_distance", "precision", "recall")
            scores |= {f"{name}/{key}": found[key]["value"] for key in wanted}
        return scores

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print and write rows of one kind."""
        head = list(rows[0])
        lines = ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)]
        lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
        print(f"\n{name}\n{text}", flush=True)
        write_json(self.out / f"{name}.json", [dict(row) for row in rows])
        write_atomically(self.out / f"{name}.md", lambda path: path.write_text(text))

    def picture(self, name: str, blocks: Sequence[Tensor]) -> None:
        """Write blocks of eight columns beside each other."""
        sheets = [sheet(block, columns=8, scale=1) for block in blocks]
        space = torch.full((3, sheets[0].shape[1], 8), 255, dtype=torch.uint8)
        parts = [part for block in sheets for part in (block, space)][:-1]
        whole = torch.cat(parts, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
        save_png(self.out / f"{name}.png", whole)


def _pixels(images: Tensor) -> Tensor:
    """Pixels such that distances are root mean squares over values in [-1, 1]."""
    flat = to_unit(images).flatten(1).double()
    return flat / flat.shape[1] ** 0.5


def _text(distances: Tensor) -> str:
    return f"{float(distances.mean()):.4g} +- {float(distances.std()) / len(distances) ** 0.5:.2g}"


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Mean and standard error over sets, by score; one set has no error."""
    several = len(values) > 1
    by_name = {name: [it[name] for it in values] for name in values[0]}
    return {
        name: f"{mean(it):.3f} +- {stdev(it) / len(it) ** 0.5:.2g}" if several else f"{it[0]:.3f}"
        for name, it in by_name.items()
    }


def _values(scores: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{score:.3f}" for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=run_names.model_path(NAME))
    parser.add_argument("--guide", type=Path, default=run_names.model_path(GUIDE), help="a worse model of the pictures")
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, if it is not installed")
    parser.add_argument("--part", action="append", choices=["nearest", "sets", "guidance"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out.resolve()
    try:
        study = Study(out, supply(out, asked.checkpoint, asked.font), asked.guide.resolve())
        parts: dict[str, Callable[[], None]] = {
            "nearest": study.nearest,
            "sets": study.equal_sets,
            "guidance": study.guidance,
        }
        for name in asked.part or parts:
            parts[name]()
    except (InputError, subprocess.CalledProcessError) as error:
        sys.exit(f"colour_study: {error}")


if __name__ == "__main__":
    main()
