"""scoreline evaluate SAMPLES REFERENCE [KEY=VALUE ..]
scoreline evaluate SAMPLES dataset=NAME [KEY=VALUE ..]
Score images of any origin against images or statistics.

  scoreline evaluate outputs/sample/NAME dataset=digits
  scoreline evaluate samples.npz cifar10-32x32.npz out=scores.json
  scoreline evaluate FOLDER dataset=cifar10 metrics.protocol=edm
  scoreline evaluate ours.zip theirs.zip metrics.scores=[fid,kid] device=cuda

SAMPLES    a folder or zip of PNG files, an npz file (arr_0, uint8 NHWC), or a
           run directory of sample.py, or the address of one in an object store
           (s3://BUCKET/NAME); every image counts, once
REFERENCE  the same, or an npz file of statistics from scoreline reference, EDM
           or ADM; images of both sides have one size, nothing is resized
dataset    a choice of conf/dataset in place of REFERENCE; dataset.KEY=VALUE
           changes it
metrics    digits | inception (default: digits for 1x8x8 images), with its keys
           metrics.KEY=VALUE
device     auto (default) | cpu | cuda
out        a JSON file for the scores; it must not exist yet

Features of Inception are kept (8 KB an image, 16 with sfid), in a run
directory's folder features, else in the cache, so that other scores of the
same images need no second pass.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreline.commands.reference import GROUPS, OWN, build, node
from scoreline.commands.words import Words, new_file, parse
from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.datasets.decode import CONVERSION
from scoreline.errors import InputError
from scoreline.metrics.base import Metrics, Score, check_scores, higher_is_better
from scoreline.metrics.reference_set import images_of
from scoreline.runtime.progress import ImageProgress
from scoreline.storage.files import cache_folder, code_version, write_atomically
from scoreline.storage.object_store import on_this_machine
from scoreline.storage.resumable import Parts

FORMAT = "scoreline/evaluate/1"


def main(words: list[str]) -> None:
    """Print a table of scores with their errors, the protocol, and warnings.

    Raises:
        InputError: for unusable arguments or files.
    """
    arguments = parse(words, {**OWN, "out": ""}, GROUPS)
    place, reference = _sides(arguments)
    out = Path(arguments.own["out"]) if arguments.own["out"] else None
    if out is not None:
        new_file(f"out={out}", out)
    with on_this_machine(place, "SAMPLES") as path:
        images = generated_images.images(path)
        metrics = build(arguments, images.shape, reference)
        _check_sizes(images, metrics)
        metrics.check(images.shape, len(images))
        with ImageProgress(len(images), "features") as progress:
            scores = check_scores(metrics, metrics(images, parts_for(Path(path), metrics), progress.update))
        print(report(images, metrics, scores))
        if out is not None:
            content = json.dumps(record(place, images, metrics, scores), indent=2) + "\n"
            write_atomically(out, lambda part: part.write_text(content))
            print(f"-> {out}")


def _sides(arguments: Words) -> tuple[str, Any]:
    """Return the path of the samples, and the reference: a path or the config of a data set.

    Raises:
        InputError: for a wrong number of paths.
    """
    count = 1 if arguments.own["dataset"] else 2
    if len(arguments.paths) != count:
        raise InputError(
            f"{' '.join(arguments.paths) or 'no SAMPLES'}: give SAMPLES and REFERENCE, or SAMPLES and dataset=; "
            "scoreline evaluate --help shows both"
        )
    return arguments.paths[0], node(arguments) if count == 1 else arguments.paths[1]


def _check_sizes(images: ImageDataset, metrics: Metrics) -> None:
    """Compare the shapes of both sides, before the metrics download or load their network.

    Raises:
        InputError: if the shapes differ.
    """
    reference = getattr(metrics, "reference", None)
    others = None if reference is None else images_of(reference)
    if others is not None and others.shape != images.shape:
        theirs, ours = ("x".join(map(str, side.shape)) for side in (others, images))
        raise InputError(
            f"the images of {images.name} are {ours}, those of {others.name} {theirs} (CxHxW): give two sets of one "
            f"size and colour; {CONVERSION} makes one"
        )


def parts_for(place: Path, metrics: Metrics) -> Parts:
    """Return the parts that hold the features of the samples, in a run directory or the cache."""
    if not metrics.keeps_features:
        return Parts()
    return Parts(place / "features" if place.is_dir() and generated_images.is_run(place) else cache_folder("features"))


def report(images: ImageDataset, metrics: Metrics, scores: Mapping[str, Score]) -> str:
    """Return the table, the protocol and the notes as text."""
    width = max(map(len, scores), default=0)
    lines = [f"{len(images)} images of {images.name}, {'x'.join(map(str, images.shape))}"]
    for name, score in scores.items():
        better = "higher" if higher_is_better(name) else "lower"
        about = "" if score["n"] == len(images) else f", of {score['n']} images"
        lines.append(f"{name:<{width}}  {score['value']:10.5g} +- {score['error']:.2g}  ({better} is better{about})")
    protocol = metrics.fingerprint(len(images))
    lines.append(", ".join(f"{key} {value}" for key, value in protocol.items()))
    return "\n".join([*lines, *(f"note: {text}" for text in metrics.warnings(len(images)))])


def record(place: str, images: ImageDataset, metrics: Metrics, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    shape: Sequence[int] = images.shape
    return {
        "format": FORMAT,
        "samples": {"place": place, "digest": images.digest, "shape": list(shape)},
        "images": len(images),
        "metrics": scores,
        "protocol": metrics.fingerprint(len(images)),
        "warnings": metrics.warnings(len(images)),
        "code_version": code_version(),
    }
