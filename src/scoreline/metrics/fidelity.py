"""`metrics=fidelity`: seven distances between generated images and a reference set, each with its standard error."""

import hashlib
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.decode import CONVERSION
from scoreline.errors import InputError
from scoreline.metrics.base import ALONE, Metrics, Score, check_least, sample_warnings
from scoreline.metrics.feature_pass import Features, extract, reference_features, share_scores
from scoreline.metrics.features import DigitFeatures, FeatureExtractor, by
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.jackknife import Replicates, assign_groups
from scoreline.metrics.kid import kernel_replicates
from scoreline.metrics.precision_recall import support_replicates
from scoreline.metrics.reference_set import Reference, ReferenceSet
from scoreline.metrics.reference_statistics import Statistics
from scoreline.metrics.sliced_wasserstein import SEED, Projections, sliced_wasserstein_replicates
from scoreline.sampling import Progress
from scoreline.storage.files import cache_folder
from scoreline.storage.resumable import Parts, Tensors

FEW = 1000


class ReferenceFeatures(NamedTuple):
    """The reference: statistics of its features, and features and projections of its images if they are there."""

    gaussian: GaussianStatistics
    tensors: Tensors | None


class Fidelity(Metrics):
    """Distances between generated images and `reference`, in features and in pixels.

    | name | definition | best | in |
    |--|--|--|--|
    | frechet_distance | `frechet.frechet_distance` | 0 | features |
    | kid | `kid.kernel_distance`, unbiased, may be negative | 0 | features |
    | precision, recall, coverage | `precision_recall.support_replicates` | 1 | features |
    | density | same; may exceed 1 | 1 | features |
    | sliced_wasserstein | `sliced_wasserstein.sliced_wasserstein_distance` | 0 | pixels |

    The error is that of `jackknife.Replicates` over the generated images, with the reference held fixed. It estimates
    the spread over other seeds, not the bias of a small n, of which `warnings` tells; docs/metrics.md has what it is
    worth, from repeated draws. Values do not depend on the order of the images; the errors of recall, coverage and
    sliced_wasserstein do, through their groups.

    When to use it: with the features of `metrics=digits`, `emoji`, `imagenet` or `dinov2`. For numbers that compare
    with papers use `Inception`: the features differ, so that this is never an FID.

    Args:
        reference: the images to compare with, or their path (`datasets.generated_images.images`), or an npz file of
            statistics (`mu`, `sigma`), or the name of statistics that ship, such as emoji-train. With statistics all
            but frechet_distance are left out. None is for `statistics` alone.
        extractor: the features; by default the digits network in the package, for 1x8x8 images.
        neighbours: k of precision, recall, density and coverage.
        projections: number of directions of the sliced Wasserstein distance.
        groups: groups of images that the jackknife of recall, coverage and sliced_wasserstein leaves out; one image
            each if there are fewer. The other scores leave out single images.

    Raises:
        InputError: if the reference has another shape than the extractor takes, or too few images.
    """

    def __init__(
        self,
        reference: Reference,
        extractor: FeatureExtractor | None = None,
        neighbours: int = 3,
        projections: int = 256,
        groups: int = 20,
    ) -> None:
        self.reference, self.extractor = reference, DigitFeatures() if extractor is None else extractor
        self.neighbours, self.groups, self.projections = neighbours, groups, projections
        for key, least in {"neighbours": 1, "projections": 1, "groups": 2}.items():
            check_least(key, getattr(self, key), least)
        self.keeps_features = self.extractor.slow
        self._measured_reference: ReferenceFeatures | None = None
        if reference is not None:
            self._check_reference()

    @cached_property
    def _set(self) -> ReferenceSet:
        return ReferenceSet.open(self.reference, self.extractor.name)

    def _check_reference(self) -> None:
        if self._set.statistics is not None:
            self._set.check_extractor(self.reference, self.extractor.digest, unknown="unknown")
        elif (data := self._set.images) is not None:
            self._check(data.shape, len(data), f"the images of metrics.reference ({data.name})")

    def _reference(self, parts: Parts) -> ReferenceFeatures:
        """Return the features of the reference, measured at the first call."""
        if self._measured_reference is None:
            known, data = self._set.statistics, self._set.images
            if known is not None:
                self._measured_reference = ReferenceFeatures(known.gaussian, None)
            else:
                assert data is not None
                tensors = reference_features(data, self._measured, self._digest, self.extractor.slow, parts)
                gaussian = GaussianStatistics.of(tensors["features"])
                self._measured_reference = ReferenceFeatures(gaussian, tensors)
        return self._measured_reference

    @property
    def protocol(self) -> dict[str, str | int]:
        return {
            "extractor": f"{self.extractor.name}:{self.extractor.digest[:8]}",
            **self._set.protocol,
            "resize": self.extractor.resize,
            "neighbours": self.neighbours,
            "projections": f"{self.projections}:seed{SEED}",
            "jackknife_groups": self.groups,
        }

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        self._check(shape, n, "the generated images")
        data = self._set.images
        if data is not None and tuple(data.shape) != tuple(shape):
            raise InputError(
                f"metrics.reference: the images of {data.name} are {by(data.shape)}, the generated ones {by(shape)}; "
                f"give a reference of that size; {CONVERSION} makes one"
            )

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        self.check(images.shape, len(images))
        reference = self._reference(parts)
        kept = parts if parts.size > 1 or self.keeps_features else ALONE
        features = extract(images, self._measured, self._digest, kept, progress)
        settings = f"{self._digest} {sorted(self.protocol.items())}"
        return share_scores(images, parts, settings, lambda: self._scores(features, reference))

    def _scores(self, features: Features, reference: ReferenceFeatures) -> dict[str, Score]:
        group = assign_groups(features.n, min(self.groups, features.n))
        scores = self._replicates(features, reference, group)
        return {name: Score(value=it.full, error=it.error, n=features.n) for name, it in scores.items()}

    def statistics(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> Statistics:
        self._check(images.shape, len(images), f"the images of {images.name}")
        kept = parts.at(cache_folder("features"), "") if self.keeps_features and parts.folder is None else parts
        gaussian = GaussianStatistics.of(extract(images, self._measured, self._digest, kept, progress).all("features"))
        extractor = self.extractor
        about = {"extractor": extractor.name, "extractor_digest": extractor.digest, "resize": extractor.resize}
        return Statistics(images.name, gaussian, None, about, len(images))

    def warnings(self, n: int) -> list[str]:
        warnings = []
        if n < FEW:
            warnings.append(
                f"{n} images are fewer than {FEW}: frechet_distance and sliced_wasserstein are biased upwards, the "
                "more the fewer the images; compare them only at equal n"
            )
        if self._set.statistics is not None:
            warnings.append("all but frechet_distance left out: the reference holds statistics, no images")
        if self._set.count is not None and self._set.count < FEW:
            warnings.append(f"the reference has only {self._set.count} images: distances from it are biased upwards")
        return warnings + sample_warnings(n, self.extractor.dimension, self.groups)

    @property
    def _digest(self) -> str:
        return hashlib.sha256(f"{self.extractor.digest} {Projections(self.projections).digest}".encode()).hexdigest()

    def _measured(self, images: Tensor) -> Tensors:
        """Return features (N, d) and projections (N, projections) of images uint8 (N, C, H, W)."""
        return {"features": self.extractor(images), "projected": Projections(self.projections)(images)}

    def _replicates(self, parts: Features, reference: ReferenceFeatures, group: Tensor) -> dict[str, Replicates]:
        features = parts.all("features")
        frechet = {"frechet_distance": frechet_replicates(features, reference.gaussian)}
        if reference.tensors is None:
            return frechet
        theirs, projected = reference.tensors["features"], reference.tensors["projected"].T.sort(1).values
        return {
            **frechet,
            "kid": kernel_replicates(features, theirs),
            **support_replicates(features, theirs, group, self.neighbours),
            "sliced_wasserstein": sliced_wasserstein_replicates(parts.all("projected").T, projected, group),
        }

    def _check(self, shape: tuple[int, ...], count: int, what: str) -> None:
        self.extractor.check(shape, what)
        if count < self.neighbours + 2:
            raise InputError(
                f"metrics: {what} are {count}, too few for metrics.neighbours={self.neighbours}; "
                f"give at least {self.neighbours + 2} or use metrics=none"
            )
