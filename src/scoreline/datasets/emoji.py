"""The colour pictures of an emoji font, a small RGB data set."""

import numpy as np
import torch

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.bases import belongs, unique
from scoreline.datasets.color_font import Text, read_glyphs
from scoreline.datasets.debian_package import DebianPackage
from scoreline.datasets.digits import SPLITS
from scoreline.datasets.emoji_classes import GROUPS, group
from scoreline.datasets.emoji_groups import base
from scoreline.datasets.thumbnails import check_size, thumbnail
from scoreline.errors import InputError
from scoreline.values import check_choice

NOTO = DebianPackage("fonts-noto-color-emoji", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LABELS = ("groups", "none")


class Emoji(ArrayDataset):
    """The pictures inside a CBDT colour font, 3 x `resolution` x `resolution`, in 10 classes or without labels.

    Each picture is flattened on the middle of a square of grey level `background` and resized by Pillow's LANCZOS
    filter; of pictures that are equal before resizing only the first stays. `train` and `test` share no base picture
    (see `emoji_groups.base`): base b is held out if SHA-256(b) mod 10 = 0, at any resolution and in any font. Pictures
    that no text selects have no base and are left out.

    When to use it: for colour experiments of some hours; the test split shows memorisation.

    Args:
        font: path of a font with CBDT colour bitmaps, or of a Debian package that holds one; None for the installed
            fonts-noto-color-emoji, else the one in the cache.
        split: `train`, `test` or `all`.
        resolution: height and width of the images.
        background: grey level from 0 (black) to 255 (white).
        labels: `groups` (the class of an image is the group of its base picture, numbered as `emoji_classes.GROUPS`) or
            `none`. Images, their order and the splits are the same.
        download: download the package (10 MB) by apt if there is no font and none is given; nothing is installed.

    Source: Google, Noto Color Emoji (SIL Open Font License 1.1); Debian package fonts-noto-color-emoji. The groups are
    those of Unicode's emoji-test.txt (Unicode licence).

    Attributes:
        bases: the base picture of each image, its code points in hexadecimal, such as `1f692-1f9d1`.
        left_out: number of pictures that no text selects.

    Raises:
        InputError: for a missing or unsuitable font, another split or labels, a size below 1, a grey level outside
            0..255, a failed download.
    """

    heldout_split = "test"
    licence = "SIL Open Font License 1.1 (pictures of Noto Color Emoji)"

    def __init__(
        self,
        font: str | None = None,
        split: str = "train",
        resolution: int = 32,
        background: int = 255,
        labels: str = "none",
        download: bool = False,
    ) -> None:
        check_choice("dataset.split", SPLITS, split)
        check_choice("dataset.labels", LABELS, labels)
        check_size(resolution, background)
        path = NOTO.find(font, "dataset.font", download)
        glyphs = read_glyphs(path)
        reachable = [glyph for glyph in glyphs if glyph.texts]
        if not reachable:
            raise InputError(f"dataset.font={path}: no text selects any of its pictures; give NotoColorEmoji.ttf")
        small = [thumbnail(glyph.png, background, resolution, f"dataset.font={path}") for glyph in reachable]
        bases = unique([[base(text) for text in glyph.texts] for glyph in reachable], (it.fingerprint for it in small))
        chosen = {index: text for index, text in bases.items() if belongs(_name(text), split)}
        if not chosen:
            raise InputError(f"dataset.font={path} holds no picture for dataset.split={split}: use split=all")
        images = np.stack([small[index].pixels for index in chosen]).transpose(0, 3, 1, 2)
        classes = torch.tensor([group(text) for text in chosen.values()]) if labels == "groups" else None
        number = 0 if classes is None else len(GROUPS)
        super().__init__(f"emoji-{split}", torch.from_numpy(np.ascontiguousarray(images)), classes, number)
        self.bases = [_name(text) for text in chosen.values()]
        self.left_out = len(glyphs) - len(reachable)


def _name(text: Text) -> str:
    return "-".join(f"{code:x}" for code in text)
