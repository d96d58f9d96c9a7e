"""`scoreline evaluate SAMPLES REFERENCE`: scores of images that anybody made, against images or statistics.

scoreline evaluate outputs/sample/NAME dataset=digits                     a run directory of sample.py
scoreline evaluate samples.npz cifar10-32x32.npz out=scores.json          arr_0 against mu and sigma, such as EDM's file
scoreline evaluate FOLDER dataset=cifar10 dataset.path=cifar-10-python.tar.gz metrics.protocol=edm
scoreline evaluate ours.zip theirs.zip metrics=inception metrics.scores=[fid,kid] device=cuda

SAMPLES and REFERENCE are each a folder of PNG files, a zip of them, an npz file (arr_0, uint8 NHWC) or a run directory;
REFERENCE may also be an npz file of statistics, from scoreline reference, EDM or ADM. Every image counts, once; both
sides must be of one size, nothing is resized. Features of Inception are kept (8 KB an image, 16 with sfid), in a run
directory's folder features, else in the cache: other scores of the same images need no second pass.

Keys: dataset= (a choice of conf/dataset, in place of REFERENCE, with its keys), metrics=digits | inception (by default
digits for 1x8x8 images) with its keys, device=auto, out=FILE.json.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreline.commands.reference import Asked, build, node, parse
from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.files import cache_folder, code_version, write_atomically
from scoreline.metrics.base import HIGHER_IS_BETTER, Metrics, Score
from scoreline.metrics.reference_set import images_of
from scoreline.parts import Parts
from scoreline.progress import ImageProgress

FORMAT = "scoreline/evaluate/1"


def main(words: list[str]) -> None:
    """Print a table of scores with their errors, on what they depend, and what to know before trusting them.

    Raises:
        InputError: for what cannot be used, as one sentence.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    asked = parse(words, ("dataset", "metrics", "device", "out"))
    place, reference = sides(asked)
    out = destination(asked.own.get("out", ""))
    images = generated_images.images(place)
    metrics = build(asked, images.shape, reference)
    check_sizes(images, metrics)
    metrics.check(images.shape, len(images))
    with ImageProgress(len(images), "features") as progress:
        scores = metrics(images, parts_for(Path(place), metrics), progress.update)
    print(report(images, metrics, scores))
    if out is not None:
        content = json.dumps(record(place, images, metrics, scores), indent=2) + "\n"
        write_atomically(out, lambda path: path.write_text(content))
        print(f"-> {out}")


def sides(asked: Asked) -> tuple[str, Any]:
    """The place of the samples, and the reference: a path or the config of a data set.

    Raises:
        InputError: for fewer or more.
    """
    wanted = 1 if "dataset" in asked.own else 2
    if len(asked.places) != wanted:
        raise InputError(
            f"{' '.join(asked.places) or 'no SAMPLES'}: give SAMPLES and REFERENCE, or SAMPLES and dataset=; "
            "scoreline evaluate --help shows both"
        )
    return asked.places[0], node(asked) if wanted == 1 else asked.places[1]


def check_sizes(images: ImageDataset, metrics: Metrics) -> None:
    """Compare the two sides before the metrics fetch or load their network.

    Raises:
        InputError: if their images are of different shapes.
    """
    reference = getattr(metrics, "reference", None)
    others = None if reference is None else images_of(reference)
    if others is not None and others.shape != images.shape:
        theirs, ours = ("x".join(map(str, side.shape)) for side in (others, images))
        raise InputError(
            f"the images of {images.name} are {ours}, those of {others.name} {theirs} (CxHxW): give two sets of one "
            "size; nothing is resized here"
        )


def destination(out: str) -> Path | None:
    """Where the scores go, if anywhere.

    Raises:
        InputError: if something is there.
    """
    if not out:
        return None
    if Path(out).exists():
        raise InputError(f"out={out}: is there already and is not overwritten; choose another name")
    return Path(out)


def parts_for(place: Path, metrics: Metrics) -> Parts:
    """Where the features of the samples are kept."""
    if not metrics.keeps_features:
        return Parts()
    return Parts(place / "features" if place.is_dir() and generated_images.is_run(place) else cache_folder("features"))


def report(images: ImageDataset, metrics: Metrics, scores: Mapping[str, Score]) -> str:
    """The table, the protocol and the notes."""
    width = max(map(len, scores), default=0)
    lines = [f"{len(images)} images of {images.name}, {'x'.join(map(str, images.shape))}"]
    for name, score in scores.items():
        better = "higher" if name in HIGHER_IS_BETTER else "lower"
        about = "" if score["n"] == len(images) else f", of {score['n']} images"
        lines.append(f"{name:<{width}}  {score['value']:10.5g} +- {score['error']:.2g}  ({better} is better{about})")
    protocol = metrics.fingerprint(len(images))
    lines.append(", ".join(f"{key} {value}" for key, value in protocol.items()))
    return "\n".join([*lines, *(f"note: {text}" for text in metrics.warnings(len(images)))])


def record(place: str, images: ImageDataset, metrics: Metrics, scores: Mapping[str, Score]) -> dict[str, Any]:
    """What out= keeps."""
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
