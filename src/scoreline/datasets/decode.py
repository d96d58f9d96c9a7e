"""Lossless decoding of image files to uint8 (C, H, W)."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scoreline.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**26  # 8192 x 8192: beyond any image of this field, and under 256 MiB once decoded
ORIENTATION = 0x0112  # the number of the EXIF tag
ORIENTED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where Pillow looks for it
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation -> Pillow's name of the transposition that turns the picture upright."""

CONVERSION = "scoreline dataset SRC DEST.zip resolution=N"
"""The command that makes usable images of any pictures, for messages."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes, where: str, formats: Sequence[str] = ("PNG",)) -> NDArray[np.uint8]:
    """Decode an image file to uint8 (C, H, W) with C = 1 (grey) or 3 (RGB), upright.

    Args:
        data: the whole file.
        where: the name of the file in errors.
        formats: Pillow's names of the formats admitted; no other decoder is tried.

    Raises:
        InputError: for a damaged file or one of another format, more than 2^26 pixels, 16 bits a channel, an alpha
            channel, or a colour space other than grey, palette and RGB.
    """
    if data.startswith(PNG_SIGNATURE) and data[24:25] == b"\x10":
        raise InputError(f"{where} has 16 bits a channel: {CONVERSION} keeps the upper 8")
    image = open_image(data, where, formats, f"replace it; {CONVERSION} leaves it out")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        raise InputError(f"{where} has an alpha channel: {CONVERSION} puts it on a background")
    if image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode not in ("L", "RGB"):
        raise InputError(f"{where} has Pillow mode {image.mode}, neither grey nor RGB: {CONVERSION} converts it")
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_image(data: bytes, where: str, formats: Sequence[str] = ("PNG",), remedy: str = "replace it") -> "Image":
    """Decode an image of any mode and turn it upright; arguments and errors are those of `load_image`."""
    return upright(load_image(data, where, formats, remedy))


def load_image(data: bytes, where: str, formats: Sequence[str], remedy: str = "replace it") -> "Image":
    """Decode an image of any mode; the size is checked before a pixel is decoded.

    Args:
        data: the whole file.
        where: the name of the file in errors.
        formats: Pillow's names of the formats admitted.
        remedy: the end of the sentence about an unusable file.

    Raises:
        InputError: for a damaged file, one of another format, or more than 2^26 pixels.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=list(formats))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are too many")
        image.load()
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{where} cannot be read as {' or '.join(formats)} ({reason}): {remedy}") from error
    return image


def upright(image: "Image") -> "Image":
    """Return the image turned as its EXIF orientation says, or itself where that says nothing."""
    from PIL import Image

    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _orientation(image: "Image") -> int:
    """Return 1 to 8; 1, upright, also if the EXIF data cannot be read, as in every viewer.

    Pillow's `exif_transpose` rewrites the rest of the EXIF data, which fails on the odd data of some cameras.
    """
    if not image.info.keys() & ORIENTED:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow lets through whatever damaged tags provoke
        return 1
