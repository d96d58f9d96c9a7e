"""`metrics=fidelity`: seven distances between generated images and a reference set, each with its standard error."""

import hashlib
import math

from torch import Tensor

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.base import ALONE, Metrics, Score
from scoreline.metrics.feature_pass import Features, extract, read, shared
from scoreline.metrics.features import DigitFeatures, FeatureExtractor
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.jackknife import Replicates, assign_groups
from scoreline.metrics.kid import kernel_replicates
from scoreline.metrics.precision_recall import support_replicates
from scoreline.metrics.references import Reference, images_of, statistics_of
from scoreline.metrics.sliced_wasserstein import directions, project, sliced_wasserstein_replicates
from scoreline.metrics.statistics import Statistics
from scoreline.parts import Parts, Tensors
from scoreline.sampling import Progress

FEW = 1000
PROJECTION_SEED = 0


class Fidelity(Metrics):
    """Distances between generated images and `reference`, in features and in pixels.

    | name | what it is | best | in |
    |--|--|--|--|
    | frechet_distance | `frechet.frechet_distance` | 0 | features |
    | kid | `kid.kernel_distance`, unbiased, may be negative | 0 | features |
    | precision, recall, coverage | `precision_recall.support_replicates` | 1 | features |
    | density | same; may exceed 1 | 1 | features |
    | sliced_wasserstein | `sliced_wasserstein.sliced_wasserstein_distance` | 0 | pixels |

    The error is the delete-one-group jackknife's over the generated images; the reference counts as given. It is the
    spread to expect from other seeds, not the bias of a small n, which `warnings` tells. Against the true spread over
    60 sets of Gaussian samples it was right to about 10 % where distances were well above their floor, and elsewhere
    too large rather than too small: 1.5 times for distances between sets of one distribution, 1.7 times for recall.
    Values do not depend on the order of the images; errors do, through the groups.

    Args:
        reference: the images to compare with, or the path of some (`datasets.given.images`), or of an npz with
            statistics (`mu`, `sigma`), for which all but frechet_distance are left out.
        extractor: what turns images into features; by default the digits network in the package, for 1x8x8 images.
        neighbours: k of precision, recall, density and coverage.
        projections: number of directions of the sliced Wasserstein distance.
        groups: groups of the jackknife; one image each where there are fewer images.

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
        self.extractor = DigitFeatures() if extractor is None else extractor
        self.neighbours, self.groups, self.projections = neighbours, groups, projections
        _check_settings(neighbours, projections, groups)
        self._statistics, self.reference = statistics_of(reference), images_of(reference)
        self._directions = directions(math.prod(self.extractor.shape), projections, PROJECTION_SEED)
        if self._statistics is not None:
            _check_statistics(self._statistics, self.extractor, str(reference))
            self._gaussian = self._statistics.gaussian
            return
        assert self.reference is not None
        self._check(
            self.reference.shape, len(self.reference), f"the images of metrics.reference ({self.reference.name})"
        )
        images = read(self.reference, range(len(self.reference)))
        self._features = self.extractor(images)
        self._gaussian = GaussianStatistics.of(self._features)
        self._projected = project(images, self._directions).sort(1).values

    @property
    def protocol(self) -> dict[str, str | int]:
        against = self._statistics or self.reference
        assert against is not None
        return {
            "extractor": f"{self.extractor.name}:{self.extractor.digest[:8]}",
            "reference": f"{against.name}:{against.digest[:8]}",
            "reference_count": self._count or "unknown",
            "resize": "none",
            "neighbours": self.neighbours,
            "projections": f"{self.projections}:seed{PROJECTION_SEED}",
            "jackknife_groups": self.groups,
        }

    @property
    def _count(self) -> int | None:
        """Images of the reference, None where its file does not tell."""
        if self._statistics is not None:
            return self._statistics.count
        assert self.reference is not None
        return len(self.reference)

    def check(self, shape: tuple[int, int, int], n: int) -> None:
        self._check(shape, n, "the generated images")

    def __call__(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> dict[str, Score]:
        """Scores of images.

        Raises:
            InputError: if they are not of the extractor's shape, or fewer than neighbours + 2.
        """
        self._check(images.shape, len(images), "the generated images")
        kept = parts if parts.size > 1 else ALONE
        found = extract(images, self._measured, self._digest, kept, progress)
        settings = f"{self._digest} {sorted(self.protocol.items())}"
        return shared(images, parts, settings, lambda: self._scores(found))

    def _scores(self, found: Features) -> dict[str, Score]:
        group = assign_groups(found.n, min(self.groups, found.n))
        scores = self._replicates(found, group)
        return {name: Score(value=it.full, error=it.error, n=found.n) for name, it in scores.items()}

    def statistics(
        self, images: ImageDataset, parts: Parts = ALONE, progress: Progress = lambda images: None
    ) -> Statistics:
        self._check(images.shape, len(images), f"the images of {images.name}")
        gaussian = GaussianStatistics.of(extract(images, self._measured, self._digest, parts, progress).all("features"))
        about = {"extractor": self.extractor.name, "extractor_digest": self.extractor.digest, "resize": "none"}
        return Statistics(images.name, gaussian, None, about, len(images))

    def warnings(self, n: int) -> list[str]:
        said = []
        if n < FEW:
            said.append(
                f"{n} images are fewer than {FEW}: frechet_distance and sliced_wasserstein are biased upwards, the "
                "more the fewer the images; compare them only at equal n"
            )
        if self._statistics is not None:
            said.append("all but frechet_distance left out: the reference holds statistics, no images")
        if self._count is not None and self._count < FEW:
            said.append(f"the reference has only {self._count} images: distances from it are biased upwards")
        if n <= self.extractor.dimension:
            said.append(f"{n} images leave the covariance of {self.extractor.dimension} features singular")
        if n < 2 * self.groups:
            said.append(f"{n} images are fewer than two a jackknife group: the errors are rough")
        return said

    @property
    def _digest(self) -> str:
        projections = f"{PROJECTION_SEED} {self.projections}"
        return hashlib.sha256(f"{self.extractor.digest} {projections}".encode()).hexdigest()

    def _measured(self, images: Tensor) -> Tensors:
        return {"features": self.extractor(images), "projected": project(images, self._directions).T.contiguous()}

    def _replicates(self, found: Features, group: Tensor) -> dict[str, Replicates]:
        features = found.all("features")
        frechet = {"frechet_distance": frechet_replicates(features, self._gaussian, group)}
        if self._statistics is not None:
            return frechet
        projected = found.all("projected").T
        return {
            **frechet,
            "kid": kernel_replicates(features, self._features, group),
            **support_replicates(features, self._features, group, self.neighbours),
            "sliced_wasserstein": sliced_wasserstein_replicates(projected, self._projected, group),
        }

    def _check(self, shape: tuple[int, ...], count: int, what: str) -> None:
        if shape != self.extractor.shape:
            raise InputError(
                f"metrics=fidelity: its extractor {self.extractor.name} takes {_by(self.extractor.shape)} images, "
                f"{what} are {_by(shape)}; use metrics=none"
            )
        if count < self.neighbours + 2:
            raise InputError(
                f"metrics=fidelity: {what} are {count}, too few for metrics.neighbours={self.neighbours}; "
                f"give at least {self.neighbours + 2} or use metrics=none"
            )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _check_statistics(known: Statistics, extractor: FeatureExtractor, path: str) -> None:
    theirs = known.about.get("extractor_digest", "unknown")
    if theirs != extractor.digest:
        raise InputError(
            f"metrics.reference={path}: made with extractor {theirs[:8]}, not {extractor.digest[:8]}; make it with "
            "scoreline reference and the same metrics"
        )


def _check_settings(neighbours: int, projections: int, groups: int) -> None:
    for key, value, least in (("neighbours", neighbours, 1), ("projections", projections, 1), ("groups", groups, 2)):
        if value < least:
            raise InputError(f"metrics.{key}={value}: must be at least {least}")
