"""The colour bitmaps of a font file, and the texts that select each of them."""

import io
from collections import defaultdict
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import IO, Any, NamedTuple

from scoreline.datasets.decode import PNG_SIGNATURE
from scoreline.errors import InputError
from scoreline.storage import debian

Text = tuple[int, ...]  # Unicode code points
LONGEST = 64  # ligatures of ligatures double their texts again and again; the longest emoji has ten characters
EXTENSION = 7  # the GSUB lookup type that only points to another
LIGATURE = 4
LARGEST = 2**28  # bytes of a font in a package; that of Noto has 10 MB


class Glyph(NamedTuple):
    """A picture of a font: its PNG file and every text that shows it; none if it is unreachable."""

    png: bytes
    texts: list[Text]


def read_glyphs(path: Path) -> list[Glyph]:
    """Read the PNG pictures of the largest CBDT strike, in the order of the font.

    Args:
        path: the font, or a Debian package that holds one.

    Source: OpenType specification 1.9, tables CBDT, CBLC, cmap and GSUB (lookup type 4, ligatures).

    Raises:
        InputError: if the file is no font or holds no PNG bitmaps.
    """
    from fontTools.ttLib import TTFont

    try:
        with _font_file(path) as handle, TTFont(handle, lazy=True) as font:
            pictures = _pictures(font)
            texts = _texts(font)
            order = font.getGlyphOrder()
    except Exception as error:  # fontTools lets through whatever a damaged table provokes
        raise InputError(f"dataset.font={path} is not a font with CBDT colour bitmaps ({error!r})") from error
    if not pictures:
        raise InputError(f"dataset.font={path} holds no PNG bitmaps: give NotoColorEmoji.ttf in its CBDT form")
    return [Glyph(pictures[name], texts.get(name, [])) for name in order if name in pictures]


def _font_file(path: Path) -> IO[bytes]:
    if not debian.is_package(path):
        return open(path, "rb")
    return io.BytesIO(next((content for _, content in debian.package_files(path, ".ttf", LARGEST)), b""))


def _pictures(font: Any) -> dict[str, bytes]:
    sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
    strike = font["CBDT"].strikeData[sizes.index(max(sizes))]
    pictures = {name: getattr(glyph, "imageData", b"") for name, glyph in strike.items()}
    return {name: data for name, data in pictures.items() if data.startswith(PNG_SIGNATURE)}


def _texts(font: Any) -> dict[str, list[Text]]:
    """Collect every text of each glyph: its characters, and its ligatures with the first text of each part."""
    texts: dict[str, list[Text]] = defaultdict(list)
    for code, name in font.getBestCmap().items():
        texts[name].append((code,))
    waiting = list(_ligatures(font))
    while waiting:
        # a ligature is ready once each of its parts has a text; ligatures of ligatures take further rounds
        ready = [texts.keys() >= set(parts) for parts, _ in waiting]
        if not any(ready):
            break
        for parts, name in compress(waiting, ready):
            text = tuple(code for part in parts for code in texts[part][0])
            if len(text) > LONGEST:
                raise ValueError(f"a ligature of {len(text)} characters")
            texts[name].append(text)
        waiting = [pair for pair, done in zip(waiting, ready, strict=True) if not done]
    return texts


def _ligatures(font: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (parts, result) of every ligature, in the order of the font."""
    for lookup in font["GSUB"].table.LookupList.Lookup if "GSUB" in font else []:
        for table in lookup.SubTable:
            table = table.ExtSubTable if table.LookupType == EXTENSION else table
            if table.LookupType == LIGATURE:
                for first, ligatures in table.ligatures.items():
                    yield from (((first, *one.Component), one.LigGlyph) for one in ligatures)
