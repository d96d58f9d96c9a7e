"""Small square pictures of PNG files that may be of any shape and transparent."""

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scoreline.datasets.decode import MAX_PIXELS, open_image
from scoreline.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


class Thumbnail(NamedTuple):
    """A small picture.

    Attributes:
        fingerprint: digest of the flattened picture before it is resized; equal pictures have an equal one.
        pixels: uint8 (H, W, 3).
    """

    fingerprint: bytes
    pixels: NDArray[np.uint8]


def thumbnail(png: bytes, background: int, resolution: int, where: str) -> Thumbnail:
    """Flatten a picture on the middle of a square of grey level `background` and resize it by Pillow's LANCZOS filter.

    Args:
        png: the PNG file.
        background: grey level from 0 (black) to 255 (white).
        resolution: height and width of the result.
        where: the name of the file in errors.

    Raises:
        InputError: for a damaged file, or one that is `too_large`.
    """
    from PIL.Image import Resampling

    if too_large(png):
        raise InputError(f"{where} is wider or higher than {math.isqrt(MAX_PIXELS)} pixels: make it smaller")
    square = _flatten(open_image(png, where).convert("RGBA"), background)
    small = square.resize((resolution, resolution), Resampling.LANCZOS)
    return Thumbnail(hashlib.sha256(repr(square.size).encode() + square.tobytes()).digest(), np.array(small))


def too_large(png: bytes) -> bool:
    """Return whether the square round a picture has more than 2^26 pixels, by the header of its PNG file."""
    return max(int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) ** 2 > MAX_PIXELS


def _flatten(picture: "Image", background: int) -> "Image":
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGB", (side, side), (background,) * 3)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2), picture)
    return square


def check_size(resolution: int, background: int) -> None:
    """Check the arguments of `thumbnail`.

    Raises:
        InputError: for a size below 1, or a grey level outside 0..255.
    """
    if resolution < 1:
        raise InputError(f"dataset.resolution={resolution}: give a number of pixels, at least 1")
    if not 0 <= background <= 255:
        raise InputError(f"dataset.background={background}: give a grey level from 0 (black) to 255 (white)")
