"""Distances between sets of images as modular metrics of torchmetrics, for any Lightning module.

They compute what `Fidelity` and `Inception` compute, by the same functions. torchmetrics has classes of three of them,
`FrechetInceptionDistance`, `KernelInceptionDistance` and `InceptionScore`, which give the same numbers for the same
features (docs/metrics.md), but no error over other sets of images, and bits that depend on the order of the images
(sums) or on the global generator (random subsets and splits). So `Metric` is what these use of torchmetrics: states,
reduction over processes, reset, cache, and plot.
"""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.utilities.data import dim_zero_cat

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.base import check_least
from scoreline.metrics.error_bar_metric import ErrorBarMetric
from scoreline.metrics.extractors import ClassProbabilities, Extractor, ModuleFeatures, PoolFeatures, extractor_of
from scoreline.metrics.feature_pass import reference_features
from scoreline.metrics.features import FeatureExtractor
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance, frechet_replicates
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.jackknife import Replicates, assign_groups
from scoreline.metrics.kid import kernel_distance, kernel_replicates
from scoreline.metrics.precision_recall import support, support_replicates
from scoreline.metrics.reference_set import Reference, ReferenceSet
from scoreline.metrics.sliced_wasserstein import (
    Projections,
    sliced_wasserstein_distance,
    sliced_wasserstein_replicates,
)
from scoreline.storage.pictures import to_uint8
from scoreline.storage.resumable import Tensors

BATCH = 64
"""Images a call of an extractor, the last one padded: the rounding of features depends on the size of a call."""


class ImageMetric(ErrorBarMetric):
    """A function of the features of a set of images.

    States are a row of features (float64) and a key for each image, the hash of its pixels. Rows are gathered from all
    processes and read in the order of their keys, so that value and error have the same bits for any order, batches
    and number of processes.

    When to use it: by its subclasses.

    Args:
        extractor: the features.
        settings: those of every `torchmetrics.Metric`.
    """

    sides: tuple[str, ...] = ("generated",)
    """The sets of images, each with states of its own."""

    generated_keys: list[Tensor]

    def __init__(self, extractor: FeatureExtractor, **settings: Any) -> None:
        super().__init__(**settings)
        self.extractor = extractor
        for name in self.sides:
            self.add_state(f"{name}_rows", [], dist_reduce_fx="cat")
            self.add_state(f"{name}_keys", [], dist_reduce_fx="cat")

    @property
    def n(self) -> int:
        """The number of images that this process has added since the last reset."""
        return sum(map(len, self.generated_keys))

    def update(self, images: Tensor) -> None:
        """Add images.

        Args:
            images: (B, C, H, W), uint8, or floating point in [-1, 1], which is rounded to it.

        Raises:
            InputError: for other numbers, or a shape that the extractor does not take.
        """
        self._add("generated", images)

    def _add(self, side: str, images: Tensor) -> None:
        pixels = _bytes(images)
        self.extractor.check(tuple(pixels.shape[1:]))
        if isinstance(self.extractor, ModuleFeatures):
            self.extractor.network.to(self.device)
        # Lightning's mixed precision reaches into validation steps, not into features
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            calls = [self.extractor(_padded(part))[: len(part)] for part in torch.split(pixels, BATCH)]
        getattr(self, f"{side}_rows").extend(calls)
        getattr(self, f"{side}_keys").append(_keys(pixels))

    def sync(self, *arguments: Any, **settings: Any) -> None:
        """Gather rows and keys; a process without images takes part with none, and rows move to the device."""
        if self.distributed_available_fn():
            empty = {
                "rows": torch.empty(0, self.extractor.dimension, dtype=torch.float64),
                "keys": _keys(torch.empty(0)),
            }
            for side, kind in ((side, kind) for side in self.sides for kind in empty):
                state = getattr(self, f"{side}_{kind}")
                if isinstance(state, list):
                    state[:] = [part.to(self.device) for part in [*state, empty[kind]]]
        super().sync(*arguments, **settings)

    def _ordered(self, side: str) -> Tensor:
        """Return the rows of a side in the order of their keys."""
        if not len(getattr(self, f"{side}_keys")):
            raise ValueError(f"{type(self).__name__}: no {side} images; call update before compute")
        rows, keys = (dim_zero_cat(getattr(self, f"{side}_{kind}")).cpu() for kind in ("rows", "keys"))
        return rows[keys.argsort(stable=True)]


def _bytes(images: Tensor) -> Tensor:
    """Return images uint8 (B, C, H, W) in new memory of the CPU: convolutions round other strides differently."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            f"images: {images.dtype} {tuple(images.shape)}; give (B, C, H, W) of uint8, or floating point in [-1, 1]"
        )
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    return torch.empty(pixels.shape, dtype=torch.uint8).copy_(pixels)


def _padded(images: Tensor) -> Tensor:
    return pad(images, (0, 0, 0, 0, 0, 0, 0, BATCH - len(images)))


def _keys(images: Tensor) -> Tensor:
    """Return 64 bits of a hash of each image, (B,) int64."""
    digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image in images]
    return torch.tensor([int.from_bytes(it, "little", signed=True) for it in digests], dtype=torch.int64)


@dataclass(frozen=True)
class ReferenceRows:
    """The features of the reference: rows, or their statistics alone."""

    rows: Tensor | None
    known: GaussianStatistics | None = None

    @cached_property
    def gaussian(self) -> GaussianStatistics:
        return GaussianStatistics.of(self.all) if self.known is None else self.known

    @property
    def all(self) -> Tensor:
        assert self.rows is not None
        return self.rows


class SetDistance(ImageMetric):
    """A distance of generated images from a reference, which is given once, or anew after each `reset`.

    Groups of the jackknife are a fixed shuffle of the images in the order of their keys.

    When to use it: by its subclasses.

    Args:
        reference: what `Fidelity` takes, or None.
        extractor: the features.
        groups: groups of images that the jackknife of `PrecisionRecall` and `SlicedWasserstein` leaves out; one image
            each if there are fewer. The other two leave out single images.
        settings: those of every `torchmetrics.Metric`.

    Raises:
        InputError: for a reference that cannot be read or that the distance cannot use, or a bad setting.
    """

    sides = ("generated", "real")
    needs_images = True
    """Whether statistics of the reference are not enough."""

    def __init__(
        self, reference: Reference = None, extractor: Extractor | None = None, groups: int = 20, **settings: Any
    ) -> None:
        super().__init__(extractor_of(extractor), **settings)
        check_least("groups", groups, 2)
        self.groups, self.reference = groups, reference
        self._measured: ReferenceRows | None = None
        self._set = None if reference is None else ReferenceSet.open(reference, self.extractor.name)
        if self._set is not None:
            self._check(self._set)

    def _check(self, given: ReferenceSet) -> None:
        if given.images is not None:
            self.extractor.check(given.images.shape, f"the images of the reference ({given.images.name})")
        elif self.needs_images:
            raise InputError(
                f"{type(self).__name__}: the reference {self.reference} holds statistics, no images; give the images"
            )
        if given.statistics is not None:
            unknown = None if isinstance(self.extractor, PoolFeatures) else "unknown"
            given.check_extractor(self.reference, self.extractor.digest, unknown)

    def update(self, images: Tensor, real: bool = False) -> None:
        """Add images.

        Args:
            images: (B, C, H, W), uint8, or floating point in [-1, 1], which is rounded to it.
            real: whether they belong to the reference.

        Raises:
            InputError: for other numbers, a shape that the extractor does not take, or real images beside a reference.
        """
        if real and self.reference is not None:
            raise InputError(f"{type(self).__name__}: has a reference; leave it out to give real images by update")
        self._add("real" if real else "generated", images)

    def compute(self) -> Any:
        """Return the distance over all processes, a scalar float64."""
        return _tensors(self.distance(self._ordered("generated"), self._reference()))

    def error(self) -> Any:
        """Return the standard error of `compute` over other sets of as many images, by the jackknife."""
        with self.everywhere():
            x = self._ordered("generated")
            found = self.replicates(x, self._reference(), assign_groups(len(x), min(self.groups, len(x))))
        if isinstance(found, dict):
            return _tensors({name: it.error for name, it in found.items()})
        return _tensors(found.error)

    @abstractmethod
    def distance(self, x: Tensor, reference: ReferenceRows) -> float | dict[str, float]:
        """Return the distance of rows x (n, d)."""

    @abstractmethod
    def replicates(self, x: Tensor, reference: ReferenceRows, group: Tensor) -> Replicates | dict[str, Replicates]:
        """Return the distance of rows x (n, d), and without each group of `group` (n,)."""

    def _reference(self) -> ReferenceRows:
        """Return the features of the reference, measured at the first call if it was given once."""
        if self._set is None:
            return ReferenceRows(self._ordered("real"))
        if self._measured is None:
            known, images = self._set.statistics, self._set.images
            if known is not None and not self.needs_images:
                self._measured = ReferenceRows(None, known.gaussian)
            else:
                assert images is not None
                self._measured = ReferenceRows(self._pass(images))
        return self._measured

    def _pass(self, images: ImageDataset) -> Tensor:
        def extractor(batch: Tensor) -> Tensors:
            return {"features": self.extractor(batch)}

        digest = hashlib.sha256(self.extractor.digest.encode()).hexdigest()
        return reference_features(images, extractor, digest, self.extractor.slow)["features"]


class FrechetDistance(SetDistance):
    """`frechet.frechet_distance` of the features; of Inception features the FID.

    When to use it: to log a distance in any Lightning module and to stop by it. For few images `KernelDistance` is
    better. The same number as `torchmetrics.image.FrechetInceptionDistance` to 1e-9 of it; that one keeps sums, d x d
    numbers for each side, where this keeps d numbers for each image, of which it makes the error.

    Args:
        reference: images, their path, a file of statistics, or the name of statistics that ship; None if
            `update(images, real=True)` gives the real images of every epoch.
        extractor: a `FeatureExtractor`, `InceptionFeatures`, or an `nn.Module` from images uint8 (N, C, H, W) to
            vectors (N, d) with the attribute `num_features`; by default the digits network.
        groups: without effect; the jackknife leaves out single images.
        settings: those of every `torchmetrics.Metric`.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    needs_images = False

    def distance(self, x: Tensor, reference: ReferenceRows) -> float:
        return frechet_distance(GaussianStatistics.of(x), reference.gaussian)

    def replicates(self, x: Tensor, reference: ReferenceRows, group: Tensor) -> Replicates:
        return frechet_replicates(x, reference.gaussian)


class KernelDistance(SetDistance):
    """`kid.kernel_distance` of the features, over all pairs of images; of Inception features the KID.

    When to use it: for few images. `torchmetrics.image.KernelInceptionDistance` is the mean over random subsets of an
    equal number of images a side, and equals this to 1e-9 of it where the subset is the set.

    Args:
        reference: images or their path; None if `update(images, real=True)` gives the real ones of every epoch.
        extractor: a `FeatureExtractor`, `InceptionFeatures`, or an `nn.Module` from images uint8 (N, C, H, W) to
            vectors (N, d) with the attribute `num_features`; by default the digits network.
        groups: without effect; the jackknife leaves out single images.
        settings: those of every `torchmetrics.Metric`.
    """

    higher_is_better = False

    def distance(self, x: Tensor, reference: ReferenceRows) -> float:
        return kernel_distance(x, reference.all)

    def replicates(self, x: Tensor, reference: ReferenceRows, group: Tensor) -> Replicates:
        return kernel_replicates(x, reference.all)


class PrecisionRecall(SetDistance):
    """A dictionary of precision, recall, density and coverage, `precision_recall.support_replicates` of the features.

    When to use it: to tell a model that makes few good images from one that makes many poor ones. Log it by
    `self.log_dict(self.metric.compute())` and `reset`, since Lightning logs metrics of one number only.

    Args:
        reference: images or their path; None if `update(images, real=True)` gives the real ones of every epoch.
        extractor: a `FeatureExtractor`, `InceptionFeatures`, or an `nn.Module` from images uint8 (N, C, H, W) to
            vectors (N, d) with the attribute `num_features`; by default the digits network.
        neighbours: k.
        groups: groups of images that the jackknife leaves out.
        settings: those of every `torchmetrics.Metric`.
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(
        self,
        reference: Reference = None,
        extractor: Extractor | None = None,
        neighbours: int = 3,
        groups: int = 20,
        **settings: Any,
    ) -> None:
        super().__init__(reference, extractor, groups, **settings)
        check_least("neighbours", neighbours, 1)
        self.neighbours = neighbours

    def distance(self, x: Tensor, reference: ReferenceRows) -> dict[str, float]:
        return support(x, reference.all, self.neighbours)

    def replicates(self, x: Tensor, reference: ReferenceRows, group: Tensor) -> dict[str, Replicates]:
        return support_replicates(x, reference.all, group, self.neighbours)


class SlicedWasserstein(SetDistance):
    """`sliced_wasserstein.sliced_wasserstein_distance` of the pixels.

    When to use it: for images of any shape, without features.

    Args:
        reference: images or their path; None if `update(images, real=True)` gives the real ones of every epoch.
        projections: number of directions.
        groups: groups of images that the jackknife leaves out.
        settings: those of every `torchmetrics.Metric`.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, reference: Reference = None, projections: int = 256, groups: int = 20, **settings: Any) -> None:
        check_least("projections", projections, 1)
        super().__init__(reference, Projections(projections), groups, **settings)

    def distance(self, x: Tensor, reference: ReferenceRows) -> float:
        return sliced_wasserstein_distance(x.T.sort(1).values, reference.all.T.sort(1).values)

    def replicates(self, x: Tensor, reference: ReferenceRows, group: Tensor) -> Replicates:
        return sliced_wasserstein_replicates(x.T, reference.all.T.sort(1).values, group)


class InceptionScore(ImageMetric):
    """The mean of `inception_score.inception_score` over splits, of the images in the order of their keys.

    When to use it: to compare with older papers. `torchmetrics.image.InceptionScore` shuffles by the global generator,
    and equals this to 1e-9 of it for one split.

    Args:
        extractor: `InceptionFeatures`, an `nn.Module` from images uint8 (N, C, H, W) to logits (N, K) with
            `num_features` K, or the classifier of `DigitFeatures` (the default) or `EmojiFeatures`.
        splits: number of splits; for fewer images one each.
        settings: those of every `torchmetrics.Metric`.

    Raises:
        InputError: for an extractor that is no classifier, or no splits.
    """

    higher_is_better = True
    plot_lower_bound = 1.0

    def __init__(self, extractor: Extractor | None = None, splits: int = 10, **settings: Any) -> None:
        super().__init__(ClassProbabilities(extractor_of(extractor)), **settings)
        check_least("splits", splits, 1)
        self.splits = splits

    def compute(self) -> Tensor:
        """Return the mean of the scores of the splits over all processes, a scalar float64."""
        return torch.tensor(mean(self._scores()), dtype=torch.float64)

    def error(self) -> Tensor:
        """Return the standard deviation of the scores of the splits by the root of their number; NaN for one split."""
        with self.everywhere():
            scores = self._scores()
        return torch.tensor(stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else math.nan, dtype=torch.float64)

    def _scores(self) -> Sequence[float]:
        rows = self._ordered("generated")
        return inception_score([rows], len(rows), min(self.splits, len(rows)))


def _tensors(values: float | dict[str, float]) -> Tensor | dict[str, Tensor]:
    if isinstance(values, dict):
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return torch.tensor(values, dtype=torch.float64)
