"""`metrics=inception`: the scores of the literature, from one pass of its Inception network."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from statistics import mean, stdev
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.datasets.decode import CONVERSION
from scoreline.errors import InputError
from scoreline.metrics import protocols
from scoreline.metrics.base import ALONE, Metrics, Score, check_least, sample_warnings
from scoreline.metrics.feature_pass import Features, extract, share_scores
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.inception_features import PUBLISHED
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.jackknife import Replicates, assign_groups
from scoreline.metrics.kid import kernel_replicates
from scoreline.metrics.precision_recall import support_replicates
from scoreline.metrics.reference_set import Reference, ReferenceSet
from scoreline.metrics.reference_statistics import Statistics
from scoreline.runtime.progress import ImageProgress
from scoreline.sampling import Progress
from scoreline.storage.files import cache_folder
from scoreline.storage.resumable import Parts, Tensors
from scoreline.values import check_choice

SUPPORT = ("precision", "recall", "density", "coverage")
SCORES = ("fid", "sfid", "kid", "inception_score", *SUPPORT)
OF_IMAGES = ("kid", *SUPPORT)
"""Scores that need the reference's images; its statistics are not enough."""


class Extractor(Protocol):
    """The part of `inception_features.InceptionFeatures` that `Inception` uses."""

    name: str
    digest: str
    resize: str
    sha256: str
    dimension: int

    @property
    def no_spatial(self) -> str | None: ...
    def check(self, shape: tuple[int, int, int]) -> None: ...
    def classifier(self) -> Tensor | None: ...
    def __call__(self, images: Tensor, spatial: bool) -> Tensors: ...


class ReferenceFeatures(NamedTuple):
    """The reference: statistics of its features and spatial features, and feature rows for scores of images."""

    gaussian: GaussianStatistics
    spatial: GaussianStatistics | None
    rows: Tensor | None


class Inception(Metrics):
    """Scores of generated images against a reference, each with its standard error over other seeds.

    | name | definition |
    |--|--|
    | fid | `frechet.frechet_distance` of the pool features |
    | sfid | the same of the spatial features |
    | kid | `kid.kernel_distance`, the unbiased estimator over all pairs of the compared images, no random subsets |
    | inception_score | `inception_score.inception_score`, mean over consecutive splits, error sd / sqrt(splits) |
    | precision, recall, density, coverage | `precision_recall.support_replicates` of the compared images |

    The network runs in float32, features are kept in float32, and sums are float64. Errors come from the jackknife
    (`jackknife.Replicates`), that of the inception score from its splits. KID and the last four compare at most
    `compared` images a side, evenly spread over all, because their work grows with the square.

    The folder of `parts`, if there is one, keeps the features of the generated images; the cache keeps those of the
    reference (`features/`, 8 KB an image and another 8 KB for sfid) under the digests of extractor and data set.

    When to use it: for colour images, and for numbers to stand beside those of papers; set `protocol` for the exact
    conditions. On the 8x8 digits use `Fidelity`.

    Args:
        extractor: `inception_features.InceptionFeatures`.
        reference: a data set; a path of images (folder, zip, npz, run directory); an npz of statistics (`mu`,
            `sigma`), which leave only fid, sfid and inception_score; or an npz in ADM's layout, which holds both.
        scores: names from the table; a score that this extractor or reference cannot give is left out, and `warnings`
            gives the reason.
        neighbours: k of precision, recall, density and coverage.
        compared: number of images a side for kid and these four.
        splits: number of splits of the inception score.
        groups: number of groups of images that the jackknife of recall and coverage leaves out.
        protocol: `edm`, `adm`, `clean` or None; see `protocols.verdict`.

    Raises:
        InputError: for an unknown score or protocol, or settings out of range.
    """

    keeps_features = True

    def __init__(
        self,
        extractor: Extractor,
        reference: Reference = None,
        scores: Sequence[str] = SCORES,
        neighbours: int = 3,
        compared: int = 10_000,
        splits: int = 10,
        groups: int = 20,
        protocol: str | None = None,
    ) -> None:
        self.extractor, self.reference, self.scores = extractor, reference, tuple(scores)
        self.neighbours, self.compared, self.splits, self.groups = neighbours, compared, splits, groups
        self.named = protocol
        self._kept: ReferenceFeatures | None = None
        protocols.check(protocol)
        for name in self.scores:
            check_choice("metrics.scores", SCORES, name)
        for key, least in {"neighbours": 1, "compared": neighbours + 2, "splits": 2, "groups": 2}.items():
            check_least(key, getattr(self, key), least)

    @cached_property
    def _set(self) -> ReferenceSet:
        return ReferenceSet.open(self.reference)

    @property
    def protocol(self) -> dict[str, str | int]:
        return {
            "extractor": f"{self.extractor.name}:{self.extractor.digest[:8]}",
            **self._set.protocol,
            "resize": self.extractor.resize,
            "neighbours": self.neighbours,
            "compared": self.compared,
            "splits": self.splits,
            "jackknife_groups": self.groups,
        }

    def fingerprint(self, n: int) -> dict[str, str | int]:
        if self.named is None:
            return self.protocol
        known, data = self._set.statistics, self._set.images
        facts = protocols.Facts(
            n=n,
            published=self.extractor.sha256 == PUBLISHED,
            resize=self.extractor.resize,
            split=self._set.split,
            adm_file=known is not None and known.spatial is not None and data is not None,
        )
        return {"protocol": protocols.verdict(self.named, facts), **self.protocol}

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        self.extractor.check(shape)
        known, data = self._set.statistics, self._set.images
        least = max(self.neighbours + 2, self.splits)
        if n < least:
            raise InputError(f"metrics=inception: the generated images are {n}, too few; give at least {least}")
        if data is not None and tuple(data.shape) != tuple(shape):
            theirs, ours = ("x".join(map(str, it)) for it in (data.shape, shape))
            raise InputError(
                f"metrics.reference: images of {data.name} are {theirs}, the generated ones {ours} (CxHxW): give a "
                f"reference of that size; {CONVERSION} makes one"
            )
        if data is not None and len(data) < self.neighbours + 2:
            raise InputError(
                f"metrics.reference: {data.name} has {len(data)} images; give at least {self.neighbours + 2}"
            )
        if known is not None:
            self._check_statistics(known)

    def _check_statistics(self, statistics: Statistics) -> None:
        dimension = len(statistics.gaussian.mean)
        if dimension != self.extractor.dimension:
            raise InputError(
                f"metrics.reference={self.reference}: of {dimension} features, the extractor gives "
                f"{self.extractor.dimension}; make it with scoreline reference"
            )
        self._set.check_extractor(self.reference, self.extractor.digest, unknown=None)

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        self.check(images.shape, len(images))
        spatial = "sfid" in self.scores and self._no("sfid") is None
        reference = self._reference_features(parts, spatial)
        features = self._pass(images, parts, progress, spatial)
        settings = f"{self._digest(spatial)} {sorted(self.protocol.items())} {self.scores}"
        return share_scores(images, parts, settings, lambda: self._scores(features, reference))

    def statistics(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> Statistics:
        self.extractor.check(images.shape)
        spatial = "sfid" in self.scores and self.extractor.no_spatial is None
        kept = parts.at(cache_folder("features"), "") if parts.folder is None else parts
        features = self._pass(images, kept, progress, spatial)
        extractor = self.extractor
        about = {"extractor": extractor.name, "extractor_digest": extractor.digest, "resize": extractor.resize}
        sides = [_gaussian(features.stream(name)) for name in (["features", "spatial"] if spatial else ["features"])]
        return Statistics(images.name, sides[0], sides[1] if spatial else None, about, len(images))

    def _pass(self, images: ImageDataset, parts: Parts, progress: Progress, spatial: bool) -> Features:
        def extractor(batch: Tensor) -> Tensors:
            return self.extractor(batch, spatial)

        return extract(images, extractor, self._digest(spatial), parts, progress)

    def _digest(self, spatial: bool) -> str:
        return hashlib.sha256(f"{self.extractor.digest} {spatial}".encode()).hexdigest()

    def _reference_features(self, parts: Parts, spatial: bool) -> Features | None:
        """Return features of the reference images, None if no score needs them."""
        data, known = self._set.images, self._set.statistics
        if data is None or (known is not None and not set(OF_IMAGES) & set(self.scores)):
            return None
        kept = parts.at(cache_folder("features"), "")
        shown = parts.rank == 0
        with ImageProgress(len(data), "features of the reference", enabled=shown) as progress:
            return self._pass(data, kept, progress.update, spatial and known is None)

    def _compared(self, features: Features | None) -> ReferenceFeatures:
        known = self._set.statistics
        needs_images = features is not None and bool(set(OF_IMAGES) & set(self.scores))
        rows = features.rows("features", self.compared) if features is not None and needs_images else None
        if known is not None:
            return ReferenceFeatures(known.gaussian, known.spatial, rows)
        assert features is not None
        spatial = _gaussian(features.stream("spatial")) if "spatial" in features.parts[0] else None
        return ReferenceFeatures(_gaussian(features.stream("features")), spatial, rows)

    def _scores(self, features: Features, reference: Features | None) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        if self._kept is None:
            self._kept = self._compared(reference)
        for name in self.scores:
            if name not in scores and self._no(name) is None:
                scores |= self._score(name, features, self._kept)
        return {name: scores[name] for name in self.scores if name in scores}

    def _score(self, name: str, features: Features, compared: ReferenceFeatures) -> dict[str, Score]:
        if name == "inception_score":
            return {name: self._inception_score(features)}
        if name in ("fid", "sfid"):
            side = compared.gaussian if name == "fid" else compared.spatial
            assert side is not None
            x = features.all("features" if name == "fid" else "spatial")
            return {name: _scored(frechet_replicates(x, side), len(x))}
        x, y = features.rows("features", self.compared), compared.rows
        assert y is not None
        if name == "kid":
            return {name: _scored(kernel_replicates(x, y), len(x))}
        four = support_replicates(x, y, self._groups(len(x)), self.neighbours)
        return {key: _scored(it, len(x)) for key, it in four.items()}

    def _inception_score(self, features: Features) -> Score:
        weights = self.extractor.classifier()
        assert weights is not None
        probabilities = (torch.softmax(part.double() @ weights.T, 1) for part in features.stream("features"))
        by_split = inception_score(probabilities, features.n, self.splits)
        return Score(value=mean(by_split), error=stdev(by_split) / len(by_split) ** 0.5, n=features.n)

    def _groups(self, n: int) -> Tensor:
        return assign_groups(n, min(self.groups, n))

    def _no(self, name: str) -> str | None:
        """Return the reason why a score is left out, None if it is computed."""
        known, data = self._set.statistics, self._set.images
        if name in OF_IMAGES and data is None:
            return "the reference holds statistics, no images"
        if name == "inception_score" and self.extractor.classifier() is None:
            return "the file has no layer output.weight that takes its features"
        if name == "sfid" and self.extractor.no_spatial is not None:
            return self.extractor.no_spatial
        if name == "sfid" and known is not None and known.spatial is None:
            return "the reference holds no statistics of spatial features (mu_s, sigma_s)"
        return None

    def warnings(self, n: int) -> list[str]:
        """Return warnings about the scores, and the reasons for those that are left out."""
        reasons = {name: reason for name in self.scores if (reason := self._no(name)) is not None}
        warnings = [
            f"{', '.join(name for name in reasons if reasons[name] == reason)} left out: {reason}"
            for reason in dict.fromkeys(reasons.values())
        ]
        if n < protocols.IMAGES:
            warnings.append(
                f"{n} images are fewer than the 50,000 of the literature: fid is biased upwards, compare at equal n"
            )
        warnings += sample_warnings(n, self.extractor.dimension, self.groups)
        if self.named is not None and (actual := str(self.fingerprint(n)["protocol"])) != self.named:
            warnings.append(f"metrics.protocol={self.named}: {actual}")
        return warnings


def _gaussian(stream: Iterator[Tensor]) -> GaussianStatistics:
    return reduce(GaussianStatistics.merge, (GaussianStatistics.of(part) for part in stream))


def _scored(replicates: Replicates, n: int) -> Score:
    return Score(value=replicates.full, error=replicates.error, n=n)
