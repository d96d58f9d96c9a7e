"""`scoreline reference IMAGES OUT.npz`: reference statistics, the mean and covariance of the features of images.

scoreline reference dataset=digits digits.npz
scoreline reference dataset=cifar10 dataset.path=cifar-10-python.tar.gz cifar10.npz    50,000 images through Inception
scoreline reference celeba64.zip celeba64.npz device=cuda                              a zip, folder or npz of images
scoreline reference ... metrics=inception metrics.scores=[fid,sfid] OUT.npz            mu_s and sigma_s too

OUT.npz holds mu and sigma (float64), n, and about: data set, split, count, resize and extractor with their digests, as
JSON. Other programs read its mu and sigma, and metrics.reference=OUT.npz takes it, as it takes EDM's and ADM's files.
Features of Inception are kept in the cache (8 KB an image), where a killed run goes on and metrics find them.

Keys: dataset= (a choice of conf/dataset, with its keys dataset.split=..), metrics=digits | inception (by default digits
for 1x8x8 images) with its keys, device=auto.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoreline.commands.composition import built, composed, refuse_blocked
from scoreline.datasets import generated_images
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError, did_you_mean
from scoreline.files import code_version
from scoreline.metrics.base import Metrics
from scoreline.metrics.reference_set import split_of
from scoreline.metrics.reference_statistics import write_statistics
from scoreline.progress import ImageProgress

OWN = ("dataset", "metrics", "device", "out")
SMALL = (1, 8, 8)


@dataclass(frozen=True)
class Asked:
    """Words of the command line: paths, the command's own keys, and the keys below dataset and metrics."""

    places: list[str]
    own: dict[str, str]
    below: list[str]


def main(words: list[str]) -> None:
    """Write the statistics and say what they are of.

    Raises:
        InputError: for what cannot be used, as one sentence.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    asked = parse(words, ("dataset", "metrics", "device"))
    images, out = images_and_out(asked)
    metrics = build(asked, images.shape)
    with ImageProgress(len(images), "features") as progress:
        found = metrics.statistics(images, progress=progress.update)
    about = {
        **found.about,
        "dataset": images.name,
        "dataset_digest": images.digest,
        "split": split_of(images),
        "count": len(images),
        "shape": list(images.shape),
        "code_version": code_version(),
    }
    write_statistics(out, replace(found, about=about))
    print(
        f"{len(images)} images of {images.name} ({_by(images.shape)}), {len(found.gaussian.mean)} features of "
        f"{about['extractor']}{'' if found.spatial is None else ', spatial ones too'} -> {out}"
    )


def parse(words: Sequence[str], keys: Sequence[str]) -> Asked:
    """Sort the words; existing paths may hold =.

    Raises:
        InputError: for a key that there is not.
    """
    places, own, below = [], {}, []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).exists():
            places.append(word)
        elif key in keys:
            own[key] = value
        elif key.partition(".")[0] in ("dataset", "metrics"):
            below.append(word)
        else:
            raise InputError(f"{key}: there is no such key{did_you_mean(key, keys)}")
    return Asked(places, own, below)


def images_and_out(asked: Asked) -> tuple[ImageDataset, Path]:
    """The images of dataset= or of the first path, and where the statistics go, both checked."""
    wanted = 1 if "dataset" in asked.own else 2
    if len(asked.places) != wanted or not asked.places[-1].endswith(".npz"):
        raise InputError(
            f"{' '.join(asked.places) or 'no OUT.npz'}: give images and where to write, as in scoreline reference "
            "dataset=digits OUT.npz or scoreline reference FOLDER OUT.npz"
        )
    out = Path(asked.places[-1])
    if out.exists():
        raise InputError(f"{out} is there already and is not overwritten; choose another name")
    refuse_blocked(str(out), out.parent)
    return (dataset(asked) if wanted == 1 else generated_images.images(asked.places[0])), out


def dataset(asked: Asked) -> ImageDataset:
    """The data set that dataset= and its keys name."""
    found: ImageDataset = built(node(asked))
    return found


def node(asked: Asked) -> Any:
    """The config of that data set."""
    words = [word for word in asked.below if word.startswith("dataset.")]
    return composed([f"+dataset={asked.own['dataset']}", *words]).dataset


def build(asked: Asked, shape: tuple[int, int, int], reference: Any = None) -> Metrics:
    """The metrics that metrics= and its keys name.

    Args:
        shape: of the images that are measured; decides where metrics= is not given.
        reference: a path, or the config of a data set, in place of their own reference.

    Raises:
        InputError: for keys of a data set without dataset=, or metrics that compare with nothing.
    """
    lost = [word for word in asked.below if word.startswith("dataset.")]
    if lost and "dataset" not in asked.own:
        raise InputError(f"{lost[0]}: give dataset= too, a choice of conf/dataset")
    name = asked.own.get("metrics", "digits" if tuple(shape) == SMALL else "inception")
    words = [word for word in asked.below if word.startswith("metrics.")]
    words += [f"device={asked.own['device']}"] if "device" in asked.own else []
    cfg = composed([f"metrics={name}", *words])
    if reference is not None:
        if "reference" not in cfg.metrics:
            raise InputError(f"metrics={name}: compares with nothing; use metrics=digits or metrics=inception")
        cfg.metrics.reference = reference
    found: Metrics = built(cfg.metrics)
    return found


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
