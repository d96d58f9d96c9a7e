"""Colour fonts with a few pictures, for tests."""

import io
from pathlib import Path

import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, BitmapGlyphMetrics
from PIL import Image

TONES = range(0x1F3FB, 0x1F400)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def strike(pictures: dict[str, bytes], ppem: int):
    """One CBDT/CBLC strike, format 17 (small metrics and a PNG file)."""
    glyphs = {}
    for name, data in pictures.items():
        glyphs[name] = C_B_D_T_.cbdt_bitmap_format_17(b"", None)
        metrics = glyphs[name].metrics = BitmapGlyphMetrics.SmallGlyphMetrics()
        metrics.height, metrics.width, metrics.BearingX, metrics.BearingY, metrics.Advance = 8, 8, 0, 8, 8
        glyphs[name].imageData = data
    index = E_B_L_C_.eblc_index_sub_table_1(b"", None)
    index.names, index.indexFormat, index.imageFormat = list(pictures), 1, 17
    located = E_B_L_C_.Strike()
    located.indexSubTables = [index]
    size = located.bitmapSizeTable
    for side in ("hori", "vert"):
        line = E_B_L_C_.SbitLineMetrics()
        for field in (
            *("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset"),
            *("minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"),
        ):
            setattr(line, field, 0)
        setattr(size, side, line)
    size.colorRef, size.startGlyphIndex, size.endGlyphIndex = 0, 1, len(pictures)
    size.ppemX, size.ppemY, size.bitDepth, size.flags = ppem, ppem, 32, 1
    return glyphs, located


def write_font(path: Path, pictures: dict[str, np.ndarray], texts: dict[str, tuple[int, ...]]) -> str:
    """A font whose glyph `name` shows pictures[name] and is reached by texts[name], by cmap or by ligature.

    A second, smaller strike shows every glyph white.
    """
    characters = {code: f"c{code:x}" for text in texts.values() for code in text}
    characters |= {text[0]: name for name, text in texts.items() if len(text) == 1}
    names = [".notdef", *pictures, *sorted(set(characters.values()) - set(pictures))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(characters)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader()
    builder.setupPost()
    rules = [
        f"sub {' '.join(characters[code] for code in text)} by {name};" for name, text in texts.items() if len(text) > 1
    ]
    if rules:
        builder.addOpenTypeFeatures(f"feature ccmp {{ {' '.join(rules)} }} ccmp;")
    small = strike({name: png(np.full((8, 8, 4), 255, np.uint8)) for name in pictures}, 8)
    large = strike({name: png(picture) for name, picture in pictures.items()}, 109)
    data, locations = newTable("CBDT"), newTable("CBLC")
    data.version = locations.version = 3.0
    data.strikeData, locations.strikes = [small[0], large[0]], [small[1], large[1]]
    builder.font["CBDT"], builder.font["CBLC"] = data, locations
    builder.font.save(path)
    return str(path)


def colour(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """An opaque picture of one random colour with a random corner."""
    rng = np.random.default_rng(seed)
    picture = np.empty((height, width, 4), np.uint8)
    picture[:], picture[: height // 2, : width // 2] = rng.integers(0, 256, 4), rng.integers(0, 256, 4)
    picture[..., 3] = 255
    return picture


def many_objects(count: int) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """`count` objects from U+1F400 on, each with its five skin tones, all pictures different."""
    texts = {f"o{i}": (0x1F400 + i,) for i in range(count)}
    texts |= {f"o{i}t{t}": (0x1F400 + i, tone) for i in range(count) for t, tone in enumerate(TONES)}
    return {name: colour(seed) for seed, name in enumerate(texts)}, texts
