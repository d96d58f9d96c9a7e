"""Conversion of a picture of any format, size and colour to uint8 (C, H, W) of one shape."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scoreline.datasets.decode import PNG_SIGNATURE, load_image, upright
from scoreline.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
CROPS = ("center", "none", "stretch", "adm")
FILTERS = ("lanczos", "box")
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
SIXTEEN_BITS = ("PNG", "PPM")  # formats of which Pillow reads 16 bits as mode I
BITS_PER_SAMPLE = 258  # the number of the TIFF tag


class UnusableError(Exception):
    """A picture cannot be used.

    Attributes:
        reason: one of few sentences, under which a report counts it.
        detail: what is particular to this picture.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Converted(NamedTuple):
    """A converted picture.

    Attributes:
        pixels: uint8 (C, H, W).
        changes: what the conversion changed, each one of few sentences.
    """

    pixels: NDArray[np.uint8]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """A rule that makes a picture of any kind one of a fixed shape.

    In this order: decode (the first frame), turn upright, keep the upper 8 of 16 bits, put on the background where
    transparent, convert to grey or RGB (ITU-R 601-2 luma for grey), crop, resize. A picture that has the size and
    colour already keeps its pixels to the bit. Colour profiles are not applied.

    Attributes:
        width: of the result.
        height: of the result.
        channels: 1 or 3.
        crop: `center` cuts out the largest central part of the result's aspect ratio, then resizes; `none` refuses
            other aspect ratios; `stretch` distorts them; `adm` is ADM's rule for ImageNet, whose filters are its own.
        resize: Pillow's filter, with antialiasing: `lanczos` or `box`.
        upscale: whether pictures that are too small are enlarged rather than refused.
        background: the colour behind transparent pixels.

    Source: `center` is the central crop of Karras et al. (2022), arXiv:2206.00364, reference data set tool; `adm` the
    crop of Dhariwal & Nichol (2021), arXiv:2105.05233, reference code.
    """

    width: int
    height: int
    channels: int = 3
    crop: str = "center"
    resize: str = "lanczos"
    upscale: bool = False
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, data: bytes) -> Converted:
        """Convert a file.

        Raises:
            UnusableError: for a file that is no picture, damaged, too large or too small, or of another aspect ratio.
        """
        raw = _load(data)
        changes = list(_properties(raw, data))
        picture = upright(raw)
        if picture is not raw:
            changes.append("turned upright as EXIF says")
        picture = _eight_bits(picture, raw.format)
        if _has_alpha(picture):
            picture, transparent = _flatten(picture, self.background)
            changes += ["transparent parts put on the background"] if transparent else []
        was_grey = picture.mode in GREY_MODES
        picture = _in_mode(picture, "L" if self.channels == 1 else "RGB")
        if was_grey != (self.channels == 1):
            changes.append("grey stored as RGB" if was_grey else "colour turned into grey")
        before, picture = picture.size, self._fit(picture)
        if picture.size != before:
            changes.append(f"cropped or resized (crop={self.crop})")
        pixels = np.array(picture)
        pixels = pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return Converted(pixels, tuple(changes))

    def _fit(self, picture: "Image") -> "Image":
        """Crop and resize."""
        target = (self.width, self.height)
        box = (0, 0, *picture.size) if self.crop == "stretch" else _central(picture.size, target)
        size = (box[2] - box[0], box[3] - box[1])
        if self.crop == "none" and size != picture.size:
            raise UnusableError("other aspect ratio (crop=center or crop=stretch takes it)", _by(picture.size))
        if not self.upscale and (size[0] < self.width or size[1] < self.height):
            raise UnusableError(f"smaller than {_by(target)} (upscale=allow enlarges it)", _by(picture.size))
        if self.crop == "adm":
            return _adm(picture, self.width)
        return _resize(picture.crop(box), target, self.resize.upper())


def is_colour(data: bytes, background: tuple[int, int, int]) -> bool:
    """Return whether a picture is in colour, by its header, or becomes so on the background; a broken one is not."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data), formats=_formats())
    except Exception:  # whatever a damaged header provokes, the conversion names it
        return False
    return picture.mode not in GREY_MODES or (_has_alpha(picture) and len(set(background)) > 1)


def _formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow can read."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _load(data: bytes) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return load_image(data, "", _formats())
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, UnidentifiedImageError):
            raise UnusableError("not a picture of a known format") from error
        if isinstance(cause, Image.DecompressionBombError):
            raise UnusableError("too many pixels", str(cause)) from error
        raise UnusableError("damaged", str(cause) or type(cause).__name__) from error
    except Exception as error:  # decoders let through whatever damage provokes
        raise UnusableError("damaged", str(error) or type(error).__name__) from error


def _properties(picture: "Image", data: bytes) -> Iterator[str]:
    """Yield what the conversion leaves out, before the picture is changed."""
    tags = getattr(picture, "tag_v2", {})
    if picture.mode.startswith("I") or _is_deep_png(data) or max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
        yield "16 bits a channel, of which the upper 8 are kept"
    if _is_animated(picture):
        yield "first of several frames"
    if picture.info.get("icc_profile"):
        yield "colour profile not applied"
    if picture.mode not in {*GREY_MODES, *ALPHA_MODES, "P", "RGB"}:
        yield f"{picture.mode} converted without a colour profile"


def _is_deep_png(data: bytes) -> bool:
    return data.startswith(PNG_SIGNATURE) and data[24:25] == b"\x10"


def _is_animated(picture: "Image") -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # the frames behind the first may be damaged
        return False


def _eight_bits(picture: "Image", form: str | None) -> "Image":
    """Keep the upper 8 of 16 bits, as Pillow itself does for colour; pictures of 8 bits stay as they are."""
    from PIL import Image

    if not picture.mode.startswith(("I", "F")):
        return picture
    if picture.mode == "F" or (picture.mode == "I" and form not in SIXTEEN_BITS):
        raise UnusableError("32 bits a channel, whose range is unknown")
    if "transparency" in picture.info:
        raise UnusableError("16-bit grey with a transparent colour")
    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def _in_mode(picture: "Image", mode: str) -> "Image":
    try:
        return picture.convert(mode)
    except ValueError as error:
        raise UnusableError("unknown colour space", str(error)) from error


def _has_alpha(picture: "Image") -> bool:
    return picture.mode in ALPHA_MODES or "transparency" in picture.info


def _flatten(picture: "Image", background: tuple[int, int, int]) -> tuple["Image", bool]:
    """Put a picture on the background; return whether any pixel was transparent too. Grey on grey stays grey."""
    from PIL import Image

    grey = picture.mode in GREY_MODES and len(set(background)) == 1
    layered = _in_mode(picture, "RGBA")
    flat = Image.new("RGB", picture.size, background)
    flat.paste(layered, (0, 0), layered)
    return flat.convert("L") if grey else flat, bool(np.asarray(layered)[..., 3].min() < 255)


def _central(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the largest central part of the target's aspect ratio."""
    (w, h), (width, height) = size, target
    wide = w * height >= h * width
    part = (max(1, _ratio(h * width, height)), h) if wide else (w, max(1, _ratio(w * height, width)))
    left, top = (w - part[0]) // 2, (h - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def _ratio(a: int, b: int) -> int:
    """Return a / b, rounded half up."""
    return (2 * a + b) // (2 * b)


def _resize(picture: "Image", size: tuple[int, int], resampling: str) -> "Image":
    from PIL import Image

    return picture if picture.size == size else picture.resize(size, Image.Resampling[resampling])


def _adm(picture: "Image", side: int) -> "Image":
    """Halve by means over 2x2 pixels while that leaves `side`, resize the shorter side bicubically, cut the centre."""
    while min(picture.size) >= 2 * side:
        picture = _resize(picture, (picture.width // 2, picture.height // 2), "BOX")
    scale = side / min(picture.size)
    picture = _resize(picture, (round(picture.width * scale), round(picture.height * scale)), "BICUBIC")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
