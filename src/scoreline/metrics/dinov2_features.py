"""Features of DINOv2, for the Frechet distance FD-DINOv2, from weights in Hugging Face's layout."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from scoreline.errors import InputError
from scoreline.metrics.features import FeatureExtractor
from scoreline.runtime import distributed
from scoreline.runtime.device import choose_device
from scoreline.runtime.threads import one_core_each
from scoreline.storage import bounded_reading
from scoreline.storage.downloads import fetch
from scoreline.storage.resumable import Tensors

SIDE = 224
BATCH = 32
"""Images a network call, the last one padded: float32 rounding depends on the size of a call."""

HEAD = 64
"""Channels of an attention head in all four published networks."""

OFFSET = 0.1
"""Patches that the authors add to the new grid when they resize the position embeddings."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POSITIONS = "embeddings.position_embeddings"
REMEDY = "give metrics.extractor.path=FOLDER of model.safetensors, such as that of facebook/dinov2-large"


class Dinov2Features(FeatureExtractor):
    """The class token of DINOv2 after the last layer norm; 1024 numbers for ViT-L/14, the network of the literature.

    An image of any size, with grey as three equal channels, is resized to 224 x 224 by Pillow's bicubic filter, rounded
    to 8 bits, and normalised by the mean and deviation of ImageNet. The position embeddings are resized as the authors
    do: bicubic, by the factor (16 + 0.1) / 37. The network runs in float32, and its size follows from the weights.

    When to use it: with a GPU and several thousand images, for numbers like those of papers that give FD-DINOv2. We
    tested it on random weights only: compare one published number before you trust others. It is no FID.

    Args:
        path: a folder with `model.safetensors` in Hugging Face's layout, or such a file.
        url: address of such a file, in place of a path; it is kept in the cache.
        sha256: expected SHA-256 of the file; a URL needs one.
        device: where the network runs; auto takes a GPU if there is one.

    Attributes:
        digest: the file's SHA-256.

    Source: Oquab et al. (2023), arXiv:2304.07193; as a measure of generative models Stein et al. (2023),
    arXiv:2306.04675, whose program resizes so.

    Raises:
        InputError: for a URL without a checksum. The file is opened or fetched on first use, which refuses a missing or
            different file, and a missing package.
    """

    name = "dinov2"
    shape = None
    slow = True
    resize = f"Pillow bicubic {SIDE}"

    def __init__(
        self, path: str | None = None, url: str | None = None, sha256: str | None = None, device: str = "auto"
    ) -> None:
        if url is not None and sha256 is None:
            raise InputError(f"metrics.extractor.url={url}: give metrics.extractor.sha256 of the file too")
        self.path, self.url, self.device = path, url, device
        self.sha256 = None if sha256 is None else str(sha256).lower()

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        return hashlib.sha256(self._content).hexdigest()

    @cached_property
    def dimension(self) -> int:  # type: ignore[override]
        return int(self.network.config.hidden_size)

    @cached_property
    def _content(self) -> bytes:
        file = self._file()
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self.sha256 not in (None, digest):
            raise InputError(f"metrics.extractor.path={file}: its SHA-256 is {digest}, not {self.sha256}; {REMEDY}")
        return content

    def _file(self) -> Path:
        if self.path is None and self.url is not None:
            return fetch(self.url, sha256=self.sha256, remedy=REMEDY)
        if self.path is None:
            raise InputError(f"metrics=dinov2: there are no weights; {REMEDY}")
        place = bounded_reading.place(self.path, "metrics.extractor.path")
        file = place / "model.safetensors" if place.is_dir() else place
        if not file.is_file():
            raise InputError(f"metrics.extractor.path={self.path}: no file {file.name} there; {REMEDY}")
        return file

    @cached_property
    def network(self) -> Any:
        """The network with the weights of the file.

        Raises:
            InputError: if the package or the file is missing, or the file holds another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self._content
        try:
            network = _network(load(content))
        except ImportError as error:
            raise InputError(
                "metrics=dinov2: needs the package transformers; pip install scoreline[dinov2], or metrics=none"
            ) from error
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"metrics.extractor.path={self.path}: not the weights of a DINOv2 in Hugging Face's layout ({reason}); "
                f"{REMEDY}"
            ) from error
        return network.to(self._place)

    @cached_property
    def _place(self) -> torch.device:
        return choose_device(self.device, distributed.current().local)

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        super().check(shape, what)
        _ = self.network

    def __call__(self, images: Tensor) -> Tensor:
        """Map images uint8 (N, C, H, W) to features float64 (N, d).

        On a CPU the calls run side by side, each on one core, so that the bits depend on neither cores nor threads.
        """
        _ = self.network
        parts = torch.split(images, BATCH)
        if self._place.type == "cpu":
            rows = one_core_each(self._call, parts)
        else:
            rows = [self._call(part) for part in parts]
        return torch.cat(rows).double()

    @torch.no_grad()
    def _call(self, images: Tensor) -> Tensor:
        x = pad(pixels(images), (0, 0, 0, 0, 0, 0, 0, BATCH - len(images)))
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact:
            tokens: Tensor = self.network(pixel_values=x.to(self._place)).last_hidden_state
        return tokens[: len(images), 0].cpu()


def pixels(images: Tensor) -> Tensor:
    """Resize images uint8 (N, C, H, W) as the class describes, to normalised float32 (N, 3, 224, 224)."""
    from PIL import Image

    def resized(image: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        return torch.from_numpy(np.array(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))

    x = torch.stack([resized(image) for image in images.expand(-1, 3, -1, -1)]).permute(0, 3, 1, 2) / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def _network(weights: Tensors) -> Any:
    """Build the network that the shapes of the weights describe.

    Raises:
        ImportError: without the package transformers.
        ValueError: if a weight is missing or left over.
    """
    from transformers import Dinov2Config, Dinov2Model

    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    width = weights[POSITIONS].shape[-1]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in weights),
        num_attention_heads=width // HEAD,
        image_size=SIDE,
        patch_size=patch,
        use_swiglu_ffn=any(name.endswith(".weights_in.weight") for name in weights),
    )
    resized = {**weights, POSITIONS: resize_positions(weights[POSITIONS], SIDE // patch)}
    loaded: Any = Dinov2Model.from_pretrained(
        None,
        config=config,
        state_dict=resized,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    network, report = loaded
    wrong = [str(name) for names in report.values() for name in names]
    if wrong:
        raise ValueError(f"{', '.join(wrong[:3])} do not fit")
    return network.eval().requires_grad_(False)


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Resize position embeddings (1, 1 + M^2, d), the class token's first, to a grid of `side` patches.

    Source: Oquab et al. (2023), arXiv:2304.07193, the authors' program.
    """
    own, patches = positions[:, :1].float(), positions[:, 1:].float()
    size = round(patches.shape[1] ** 0.5)
    if size == side:
        return positions
    grid = patches.reshape(1, size, size, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(side + OFFSET) / size, mode="bicubic")
    return torch.cat([own, grid.flatten(2).transpose(1, 2)], 1)
