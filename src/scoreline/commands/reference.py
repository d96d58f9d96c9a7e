"""scoreline reference IMAGES OUT.npz [KEY=VALUE ..]
scoreline reference dataset=NAME OUT.npz [KEY=VALUE ..]
Write reference statistics: mean and covariance of the features of images.

  scoreline reference dataset=digits digits.npz
  scoreline reference dataset=cifar10 dataset.path=FILE.tar.gz cifar10.npz
  scoreline reference celeba64.zip celeba64.npz device=cuda

IMAGES   a zip, folder or npz of images
OUT.npz  gets mu and sigma (float64), n, and about: data set, split, count,
         resize and extractor with their digests, as JSON; it must not exist
         yet. metrics.reference=OUT.npz reads it, as it reads EDM's and ADM's
         files, and other programs read its mu and sigma.
dataset  a choice of conf/dataset; dataset.KEY=VALUE changes it
metrics  digits | emoji | imagenet | dinov2 | inception (default: digits for
         1x8x8 images, else inception);
         metrics.scores=[fid,sfid] adds mu_s and sigma_s
device   auto (default) | cpu | cuda

Features of Inception stay in the cache (8 KB an image): a killed run goes on
from there, and metrics find them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scoreline.commands.words import Words, new_file, parse, refuse_blocked
from scoreline.config.compose import build_object, complete_config
from scoreline.config.model_source import with_values
from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.base import Metrics
from scoreline.metrics.reference_set import split_of
from scoreline.metrics.reference_statistics import write_statistics
from scoreline.runtime.progress import ImageProgress
from scoreline.storage.files import code_version

OWN = {"dataset": "", "metrics": "", "device": ""}
GROUPS = ("dataset", "metrics")
SMALL = (1, 8, 8)
NO_REFERENCE = "null"
"""For metrics that compare with nothing, since the statistics of a reference are made."""


def main(words: list[str]) -> None:
    """Write the statistics and print what they describe.

    Raises:
        InputError: for unusable arguments or files.
    """
    arguments = parse(words, OWN, GROUPS)
    images, out = _images_and_out(arguments)
    metrics = build(arguments, images.shape, NO_REFERENCE)
    with ImageProgress(len(images), "features") as progress:
        statistics = metrics.statistics(images, progress=progress.update)
    about = {
        **statistics.about,
        "dataset": images.name,
        "dataset_digest": images.digest,
        "split": split_of(images),
        "count": len(images),
        "shape": list(images.shape),
        "code_version": code_version(),
    }
    write_statistics(out, replace(statistics, about=about))
    print(
        f"{len(images)} images of {images.name} ({_by(images.shape)}), {len(statistics.gaussian.mean)} features of "
        f"{about['extractor']}{'' if statistics.spatial is None else ', spatial ones too'} -> {out}"
    )


def _images_and_out(arguments: Words) -> tuple[ImageDataset, Path]:
    """Return the images of `dataset=` or of the first path, and the path of the statistics.

    Raises:
        InputError: for missing paths, or if the file exists already.
    """
    count = 1 if arguments.own["dataset"] else 2
    if len(arguments.paths) != count or not arguments.paths[-1].endswith(".npz"):
        raise InputError(
            f"{' '.join(arguments.paths) or 'no OUT.npz'}: give images and where to write, as in scoreline reference "
            "dataset=digits OUT.npz or scoreline reference FOLDER OUT.npz"
        )
    out = new_file(arguments.paths[-1], Path(arguments.paths[-1]))
    refuse_blocked(str(out), out.parent)
    return (dataset(arguments) if count == 1 else generated_images.images(arguments.paths[0])), out


def dataset(arguments: Words) -> ImageDataset:
    """Return the data set of `dataset=` and its keys."""
    data: ImageDataset = build_object(node(arguments))
    return data


def node(arguments: Words) -> Any:
    """Return the config of that data set."""
    words = [word for word in arguments.overrides if word.startswith("dataset.")]
    return complete_config([f"+dataset={arguments.own['dataset']}", *words]).dataset


def build(arguments: Words, shape: tuple[int, int, int], reference: Any = None) -> Metrics:
    """Return the metrics of `metrics=` and its keys.

    Args:
        arguments: the words of the command line.
        shape: (C, H, W) of the images, which decides if `metrics=` is missing.
        reference: a path, the config of a data set, or NO_REFERENCE, in place of the metrics' own reference.

    Raises:
        InputError: for keys of a data set without dataset=, or metrics without a reference.
    """
    lost = [word for word in arguments.overrides if word.startswith("dataset.")]
    if lost and not arguments.own["dataset"]:
        raise InputError(f"{lost[0]}: give dataset= too, a choice of conf/dataset")
    name = arguments.own["metrics"] or ("digits" if tuple(shape) == SMALL else "inception")
    words = [word for word in arguments.overrides if word.startswith("metrics.")]
    words += [f"device={arguments.own['device']}"] if arguments.own["device"] else []
    cfg = complete_config([f"metrics={name}", *words])
    if reference == NO_REFERENCE:
        cfg = with_values(cfg, **{"metrics.reference": None}) if "reference" in cfg.metrics else cfg
    elif reference is not None:
        if "reference" not in cfg.metrics:
            raise InputError(f"metrics={name}: compares with nothing; use metrics=digits or metrics=inception")
        cfg = with_values(cfg, **{"metrics.reference": reference})
    metrics: Metrics = build_object(cfg.metrics)
    return metrics


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
