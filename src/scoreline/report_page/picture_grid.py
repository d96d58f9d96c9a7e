"""Pictures of the cells of a page as data URIs: the same seeds in each, within a limit for all of them together."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.datasets import generated_images
from scoreline.errors import InputError
from scoreline.report_page.cell_runs import CellRun
from scoreline.storage.pictures import png_bytes, sheet
from scoreline.values import parse_seeds, seed_ranges

MOST = 3_000_000
"""Bytes of all pictures together before base64, which makes them 4/3 as long."""

WIDE = 4
"""Images side by side."""

ROOM, LEAST, LARGEST = 1000, 128, 320
"""Pixels of the width at which the pictures of a row are shown, and limits of one of them."""


PROBE = 4
"""Pictures after which the bytes of all are expected."""


class Coding(NamedTuple):
    """A way to store a picture: the most pixels a side of an image, and the quality of WebP; 0 stands for PNG."""

    side: int
    quality: int

    def about(self, side: int) -> str:
        """Return how images of so many pixels a side are stored."""
        smaller = f"scaled to {self.side} and " if side > self.side else ""
        how = f"WebP of quality {self.quality}" if self.quality else "PNG, pixel for pixel"
        return f"images of {side} pixels a side, {smaller}stored as {how}"


SMALL = 64
"""Pixels a side of images whose pixels are shown as squares."""

CODINGS = (
    Coding(SMALL, 0),
    Coding(256, 85),
    Coding(192, 85),
    Coding(128, 85),
    Coding(96, 80),
    Coding(64, 75),
    Coding(48, 60),
)
"""From the best to the smallest; PNG for small images alone."""


@dataclass(frozen=True)
class Picture:
    """A picture of a cell: its data URI, its size in pixels, and the factor at which it is shown."""

    uri: str
    width: int
    height: int
    factor: float
    pixelated: bool


@dataclass(frozen=True)
class Pictures:
    """The pictures of a page by the key of their cell, the seeds that they show, and how they are stored."""

    by_cell: Mapping[str, Picture] = field(default_factory=dict)
    seeds: str = ""
    about: str = ""


def draw(cells: Mapping[str, Sequence[CellRun]], count: int, columns: int = 1, most: int = MOST) -> Pictures:
    """Draw the first seeds that all cells have in common.

    Args:
        cells: the runs of each cell, of which unfinished ones do not count.
        count: images of a cell.
        columns: cells that should fit beside each other.
        most: bytes of all pictures.
    """
    finished = {key: [run for run in runs if run.result is not None] for key, runs in cells.items()}
    finished = {key: runs for key, runs in finished.items() if runs}
    seeds = _common(list(finished.values()), count)
    images = {key: _images(runs, seeds) for key, runs in finished.items()} if seeds else {}
    there = {key: found for key, found in images.items() if found is not None}
    if not there:
        return Pictures()
    side = max(max(found.shape[2:]) for found in there.values())
    coding, files = _within(there, [one for one in CODINGS if one.quality or side <= one.side], most)
    width = min(max(ROOM / columns, LEAST), LARGEST)
    pictures = {
        key: _picture(content, size, coding, width, min(side, coding.side) <= SMALL)
        for key, (content, size) in files.items()
    }
    return Pictures(pictures, _listed(seeds), coding.about(side))


def _seeds(run: CellRun) -> str:
    return str((run.result or {})["seeds"])


def _common(cells: Sequence[Sequence[CellRun]], count: int) -> list[int]:
    """Return the first seeds of the first cell that all cells have."""
    spans = [[span for run in runs for span in seed_ranges(_seeds(run))] for runs in cells]
    seeds: list[int] = []
    for seed in parse_seeds(_seeds(cells[0][0])) if cells else ():
        if all(any(first <= seed <= last for first, last in ranges) for ranges in spans):
            seeds.append(seed)
        if len(seeds) == count:
            break
    return seeds


def _listed(seeds: Sequence[int]) -> str:
    """Return `seeds 0-7`, or all of them where they do not follow each other."""
    follow = list(seeds) == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1
    text = f"{seeds[0]}-{seeds[-1]}" if follow else ", ".join(map(str, seeds))
    return f"seed{'s' * (len(seeds) > 1)} {text}"


def _images(runs: Sequence[CellRun], seeds: Sequence[int]) -> Tensor | None:
    """Return the images of these seeds, uint8 (N, C, H, W); None if a run kept no images that can be read."""
    found: dict[int, Tensor] = {}
    try:
        for run in runs:
            places = {seed: place for place, seed in enumerate(parse_seeds(_seeds(run)))}
            here = [seed for seed in seeds if seed in places]
            if here:
                images = generated_images.images(str(run.directory)).read([places[seed] for seed in here])[0]
                found |= dict(zip(here, images, strict=True))
    except (InputError, IndexError):
        return None
    return torch.stack([found[seed] for seed in seeds])


File = tuple[bytes, tuple[int, int]]
"""The content of a picture's file, and its width and height."""


def _within(cells: Mapping[str, Tensor], codings: Sequence[Coding], most: int) -> tuple[Coding, dict[str, File]]:
    """Encode all pictures by the first coding that needs at most `most` bytes, else by the last one."""
    for coding in codings:
        files, total = dict[str, File](), 0
        for key, images in cells.items():
            files[key] = _file(images, coding)
            total += len(files[key][0])
            expected = total if len(files) < PROBE else total / len(files) * len(cells)
            if max(total, expected) > most and coding is not codings[-1]:
                break
        else:
            break
    return coding, files


def _file(images: Tensor, coding: Coding) -> File:
    """Encode images as one sheet."""
    side = max(images.shape[2:])
    if side > coding.side:
        size = [max(1, round(length * coding.side / side)) for length in images.shape[2:]]
        smaller = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = smaller.round().clip(0, 255).to(torch.uint8)
    picture = sheet(images, WIDE, scale=1)[:, :-1, :-1]
    size_shown = (picture.shape[2], picture.shape[1])
    return (_webp(picture, coding.quality) if coding.quality else png_bytes(picture)), size_shown


def _webp(picture: Tensor, quality: int) -> bytes:
    from PIL import Image

    array = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="WEBP", quality=quality)
    return file.getvalue()


def _picture(content: bytes, size: tuple[int, int], coding: Coding, width: float, pixelated: bool) -> Picture:
    """Return a picture that is shown in about this width, squares of pixels by a whole factor."""
    kind = "webp" if coding.quality else "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, *size, max(1, width // size[0]) if pixelated else width / size[0], pixelated)
