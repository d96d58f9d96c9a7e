"""Features of the Inception network of the literature, from the TorchScript file of StyleGAN2-ADA and clean-fid."""

import hashlib
import io
import warnings
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoreline.errors import InputError
from scoreline.runtime import distributed
from scoreline.runtime.device import choose_device
from scoreline.runtime.threads import one_core_each
from scoreline.storage import bounded_reading
from scoreline.storage.downloads import fetch
from scoreline.storage.resumable import Tensors
from scoreline.values import check_choice

PUBLISHED = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""SHA-256 of inception-2015-12-05.pt (95,607,719 bytes), which several public projects record independently."""

BATCH = 64
"""Images a network call, the last one padded: float32 rounding depends on the size of a call."""

SIDE = 299
RESIZES = ("network", "clean")
STEM = (
    *("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1"),
    *("mixed", "mixed_1", "mixed_2", "mixed_3", "mixed_4", "mixed_5"),
)
SPATIAL = "mixed_6"
REST = ("mixed_7", "mixed_8", "mixed_9", "mixed_10", "pool2")
CHANNELS = 7
CLOSE = 1e-3


class InceptionFeatures:
    """Pool features (2048) and spatial features (2023: 7 channels of mixed_6/conv) of 8-bit images of any size.

    A TorchScript file is a program. Its own interpreter runs it, not Python, but that is no sandbox: only a file with
    the expected SHA-256 is loaded, and a user who gives another `sha256` vouches for that file.

    Calls are `network(uint8 NCHW, return_features=True)`, in float32 with TF32 off; grey images become three equal
    channels. Spatial features come from a walk through the named layers of the published file, after TensorFlow's
    bilinear resize and (x - 128) / 128. If that walk does not end at the features of the file's own call, there are
    no spatial features (`no_spatial`).

    When to use it: as the extractor of `Inception`; `resize="clean"` for Clean-FID, `network` for all other papers.

    Args:
        path: the file; None downloads it.
        url: address of the published file.
        sha256: expected SHA-256 of the file.
        resize: `network`, the bilinear resize inside the file; `clean`, Pillow's bicubic resize to 299x299 before it.
        device: where the network runs; auto takes a GPU if there is one.

    Attributes:
        name: short name for protocols.
        digest: the file's SHA-256, or one over it and the resize.

    Source: Szegedy et al. (2016), arXiv:1512.00567, weights of 2015-12-05; as a measure Heusel et al. (2017),
    arXiv:1706.08500; the file Karras et al. (2020), arXiv:2006.06676; spatial features Nash et al. (2021),
    arXiv:2103.03841, layer as in Dhariwal & Nichol (2021), arXiv:2105.05233; clean resize Parmar et al. (2022),
    arXiv:2104.11222.

    Raises:
        InputError: for an unknown resize. The file is opened or downloaded on the first access to `network`.
    """

    def __init__(
        self,
        path: str | None = None,
        url: str = "",
        sha256: str = PUBLISHED,
        resize: str = "network",
        device: str = "auto",
    ) -> None:
        check_choice("metrics.extractor.resize", RESIZES, resize)
        self.path, self.url, self.sha256, self.resize, self.device = path, url, str(sha256).lower(), resize, device
        self.digest = (
            self.sha256 if resize == "network" else hashlib.sha256(f"{self.sha256} {resize}".encode()).hexdigest()
        )
        self.name = "inception" if self.sha256 == PUBLISHED else "inception-like"

    @cached_property
    def network(self) -> Any:
        """The loaded program.

        Raises:
            InputError: if the file is missing, is not the expected one, or is no program of this interface.
        """
        content = self._content()
        place = choose_device(self.device, distributed.current().local)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                network = torch.jit.load(io.BytesIO(content), map_location=place)  # type: ignore[no-untyped-call]
            features = network.eval()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=place), return_features=True)
            if features.ndim != 2 or len(features) != 1 or not bool(features.isfinite().all()):
                raise RuntimeError(f"features of one image are {tuple(features.shape)}, not finite (1, d)")
        except (RuntimeError, AttributeError, TypeError) as error:
            raise InputError(
                f"metrics.extractor.path={self.path}: not a TorchScript file that is called as "
                f"network(images, return_features=True) ({' '.join(str(error).split())[-160:]}); leave the key out for "
                "the published one"
            ) from error
        self._place, self.dimension = place, features.shape[1]
        return network

    def _content(self) -> bytes:
        remedy = "fetch it elsewhere and put it there, or give metrics.extractor.path=FILE"
        if self.path is None:
            file = fetch(self.url, sha256=self.sha256, remedy=remedy)
        elif (file := bounded_reading.place(self.path, "metrics.extractor.path")).is_file():
            pass
        else:
            raise InputError(
                f"metrics.extractor.path={self.path}: no such file; leave it out to fetch the published one"
            )
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise InputError(
                f"metrics.extractor.path={file}: its SHA-256 is {digest}, not {self.sha256}, and a TorchScript file is "
                "a program: get the published one, or give metrics.extractor.sha256 of a file that you trust"
            )
        return content

    def check(self, shape: tuple[int, int, int]) -> None:
        """Check the channels of the images, and that the file can be used.

        Raises:
            InputError: for images of other than 1 or 3 channels, and for a file that `network` refuses.
        """
        if shape[0] not in (1, 3):
            raise InputError(f"metrics=inception: takes images of 1 or 3 channels, not {shape[0]}; use metrics=none")
        _ = self.network

    @cached_property
    def no_spatial(self) -> str | None:
        """The reason why there are no spatial features, None if there are."""
        layers = getattr(self.network, "layers", None)
        names = dict(layers.named_children()) if layers is not None else {}
        missing = [name for name in (*STEM, SPATIAL, *REST) if name not in names]
        if missing or not hasattr(names[SPATIAL], "conv"):
            return f"the file has no layer {missing[0] if missing else f'{SPATIAL}.conv'}"
        images = (torch.arange(2 * 3 * 32 * 32) * 7 % 256).to(torch.uint8).reshape(2, 3, 32, 32)
        own, walked = (self(images, spatial)["features"] for spatial in (False, True))
        gap = float((walked - own).abs().max() / own.abs().max().clamp(min=1e-30)) if walked.shape == own.shape else 1.0
        return None if gap <= CLOSE else f"the layers of the file lead to features {gap:.1g} off its own call"

    def classifier(self) -> Tensor | None:
        """Return the last layer's weights W (K, d) in float64, for class probabilities softmax(W f), or None."""
        weight = getattr(getattr(self.network, "output", None), "weight", None)
        fits = isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == self.dimension
        return weight.detach().double().cpu() if fits and weight is not None else None

    def __call__(self, images: Tensor, spatial: bool) -> Tensors:
        """Map images uint8 (N, C, H, W) to features float32 (N, d), and to spatial ones (N, d') if asked, on the CPU.

        On a CPU the calls run side by side, each on one core, so that the bits depend on neither cores nor threads.
        """
        network, parts = self.network, torch.split(images, BATCH)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact:
            if self._place.type == "cpu":
                calls = one_core_each(lambda part: self._call(network, self._input(part), spatial), parts)
            else:
                calls = [self._call(network, x, spatial) for x in one_core_each(self._input, parts)]
            rows = {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
            return {name: value[: len(images)].float().cpu() for name, value in rows.items()}

    def _input(self, images: Tensor) -> Tensor:
        """Pad to BATCH images of three channels, resized if the network does not do it."""
        x = pad(images.expand(-1, 3, -1, -1), (0, 0, 0, 0, 0, 0, 0, BATCH - len(images)))
        return clean_resize(x) if self.resize == "clean" else x

    @torch.no_grad()
    def _call(self, network: Any, images: Tensor, spatial: bool) -> Tensors:
        x = images.to(self._place)
        with unfused():
            return walk(network.layers, x) if spatial else {"features": network(x, return_features=True)}


def unfused() -> AbstractContextManager[None]:
    """Run TorchScript as written: its optimiser fuses operations after the first calls, which changes the rounding."""
    context: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return context


def walk(layers: Any, x: Tensor) -> Tensors:
    """Compute pool and spatial features of images 0..255 (N, 3, H, W), layer by layer.

    Spatial features are the first 7 channels of mixed_6/conv in the order (row, column, channel), as in ADM's files.
    """
    x = (tf_bilinear(x.float(), SIDE) - 128) / 128
    for name in STEM:
        x = getattr(layers, name)(x)
    mixed = getattr(layers, SPATIAL)
    spatial = mixed.conv(x)[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1)
    x = mixed(x)
    for name in REST:
        x = getattr(layers, name)(x)
    return {"features": x.flatten(1), "spatial": spatial}


def tf_bilinear(x: Tensor, side: int) -> Tensor:
    """Resize images (N, C, H, W) to (N, C, side, side) as TensorFlow 1 does: bilinear, without aligned corners.

    Pixel i of the result lies at i H / side of the source and mixes its two neighbours there; the last row repeats.
    """
    return _weights(x.shape[2], side, x) @ x @ _weights(x.shape[3], side, x).T


def _weights(size: int, side: int, like: Tensor) -> Tensor:
    """Return the resize as a matrix (side, size), each row with the two weights of one pixel."""
    at = torch.arange(side, dtype=torch.float64) * (size / side)
    below = at.floor().long()
    share = at - below
    rows, matrix = torch.arange(side), torch.zeros(side, size, dtype=torch.float64)
    matrix[rows, below] += 1 - share
    matrix[rows, (below + 1).clamp(max=size - 1)] += share
    return matrix.to(like)


def clean_resize(images: Tensor) -> Tensor:
    """Resize images uint8 (N, C, H, W) to float32 (N, C, 299, 299) in [0, 255] with Pillow's bicubic filter.

    The filter averages when it shrinks; each channel is floating point, clipped and not rounded.

    Source: Parmar, Zhang & Zhu (2022), arXiv:2104.11222, section 3.
    """
    import numpy as np
    from PIL import Image

    def plane(pixels: Tensor) -> Tensor:
        small = Image.fromarray(pixels.float().numpy(), mode=None).resize(
            (SIDE, SIDE), resample=Image.Resampling.BICUBIC
        )
        return torch.from_numpy(np.array(small, dtype=np.float32)).clip(0, 255)

    planes = [plane(pixels) for pixels in images.flatten(0, 1)]
    return torch.stack(planes).reshape(*images.shape[:2], SIDE, SIDE)
