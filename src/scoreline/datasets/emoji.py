"""The colour pictures of an emoji font, a small RGB data set without a download."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.color_font import Glyph, Text, read_glyphs
from scoreline.datasets.decode import open_image
from scoreline.datasets.digits import SPLITS
from scoreline.datasets.emoji_classes import GROUPS, group
from scoreline.datasets.emoji_groups import base, merge
from scoreline.errors import InputError
from scoreline.storage import bounded_reading
from scoreline.values import check_choice

if TYPE_CHECKING:
    from PIL.Image import Image

NOTO = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
LABELS = ("groups", "none")
TEST_SHARE = 10  # one base picture in ten is held out


class Emoji(ArrayDataset):
    """The pictures inside a CBDT colour font, 3 x `resolution` x `resolution`, in 10 classes or without labels.

    Each picture is flattened on the middle of a square of grey level `background` and resized by Pillow's LANCZOS
    filter; of pictures that are equal before resizing only the first stays. `train` and `test` share no base picture
    (see `emoji_groups.base`): base b is held out if SHA-256(b) mod 10 = 0, at any resolution and in any font. Pictures
    that no text selects have no base and are left out.

    When to use it: for colour experiments of some hours; the test split shows memorisation.

    Args:
        font: path of a font with CBDT colour bitmaps.
        split: `train`, `test` or `all`.
        resolution: height and width of the images.
        background: grey level from 0 (black) to 255 (white).
        labels: `groups` (the class of an image is the group of its base picture, numbered as `emoji_classes.GROUPS`) or
            `none`. Images, their order and the splits are the same.

    Source: Google, Noto Color Emoji (SIL Open Font License 1.1); Debian package fonts-noto-color-emoji.

    Attributes:
        bases: the base picture of each image, its code points in hexadecimal, such as `1f692-1f9d1`.
        left_out: number of pictures that no text selects.

    Raises:
        InputError: for a missing or unsuitable font, another split or labels, a size below 1, a grey level outside
            0..255.
    """

    licence = "SIL Open Font License 1.1 (pictures of Noto Color Emoji)"

    def __init__(
        self,
        font: str = NOTO,
        split: str = "train",
        resolution: int = 32,
        background: int = 255,
        labels: str = "none",
    ) -> None:
        _check(split, resolution, background, labels)
        glyphs = read_glyphs(_existing(font))
        reachable = [glyph for glyph in glyphs if glyph.texts]
        if not reachable:
            raise InputError(f"dataset.font={font}: no text selects any of its pictures; give NotoColorEmoji.ttf")
        prints, small = zip(
            *(_picture(glyph.png, background, resolution, f"dataset.font={font}") for glyph in reachable), strict=True
        )
        chosen = {index: text for index, text in _unique(reachable, prints).items() if _belongs(_name(text), split)}
        if not chosen:
            raise InputError(f"dataset.font={font} holds no picture for dataset.split={split}: use split=all")
        images = np.stack([small[index] for index in chosen]).transpose(0, 3, 1, 2)
        classes = torch.tensor([group(text) for text in chosen.values()]) if labels == "groups" else None
        number = 0 if classes is None else len(GROUPS)
        super().__init__(f"emoji-{split}", torch.from_numpy(np.ascontiguousarray(images)), classes, number)
        self.bases = [_name(text) for text in chosen.values()]
        self.left_out = len(glyphs) - len(reachable)


def _check(split: str, resolution: int, background: int, labels: str) -> None:
    check_choice("dataset.split", SPLITS, split)
    check_choice("dataset.labels", LABELS, labels)
    if resolution < 1:
        raise InputError(f"dataset.resolution={resolution}: give a number of pixels, at least 1")
    if not 0 <= background <= 255:
        raise InputError(f"dataset.background={background}: give a grey level from 0 (black) to 255 (white)")


def _existing(font: str) -> Path:
    path = bounded_reading.place(font, "dataset.font")
    if not path.is_file():
        raise InputError(
            f"dataset.font={font}: no such file; `apt-get install fonts-noto-color-emoji`, or give the path of "
            "NotoColorEmoji.ttf with dataset.font="
        )
    return path


def _picture(png: bytes, background: int, resolution: int, where: str) -> tuple[bytes, NDArray[np.uint8]]:
    """Return a fingerprint of the flattened picture, and the picture at `resolution` as uint8 (H, W, 3)."""
    from PIL.Image import Resampling

    square = _flatten(open_image(png, where).convert("RGBA"), background)
    small = square.resize((resolution, resolution), Resampling.LANCZOS)
    return hashlib.sha256(repr(square.size).encode() + square.tobytes()).digest(), np.array(small)


def _flatten(picture: "Image", background: int) -> "Image":
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGB", (side, side), (background,) * 3)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2), picture)
    return square


def _unique(glyphs: list[Glyph], prints: Iterable[bytes]) -> dict[int, Text]:
    """Map the first index of each distinct picture to its base; glyphs that share a picture share a base."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, fingerprint in enumerate(prints):
        same[fingerprint].append(index)
    bases = [[base(text) for index in indices for text in glyphs[index].texts] for indices in same.values()]
    merged = merge(bases)
    return {indices[0]: merged[texts[0]] for indices, texts in zip(same.values(), bases, strict=True)}


def _name(text: Text) -> str:
    return "-".join(f"{code:x}" for code in text)


def _belongs(name: str, split: str) -> bool:
    held_out = int.from_bytes(hashlib.sha256(name.encode()).digest()) % TEST_SHARE == 0
    return split == "all" or held_out == (split == "test")
