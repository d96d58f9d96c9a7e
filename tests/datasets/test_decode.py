import io
import zlib

import numpy as np
import pytest
from picture_files import encoded, raw_png
from PIL import Image, ImageOps

from scoreline.datasets import decode as module
from scoreline.datasets.decode import decode
from scoreline.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_grey_and_colour_arrive_unchanged():
    assert np.array_equal(decode(encoded(Image.fromarray(GREY)), "a.png"), GREY[None])
    assert np.array_equal(decode(encoded(Image.fromarray(COLOUR)), "a.png"), COLOUR.transpose(2, 0, 1))


def test_hand_written_png():
    image = decode(raw_png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 250, 251, 252])), "a.png")
    assert image.tolist() == [[[1, 250]], [[2, 251]], [[3, 252]]]


def test_palette_and_bilevel_lose_nothing():
    few = Image.fromarray(COLOUR // 128 * 255)
    palette = few.quantize(8)
    assert np.array_equal(decode(encoded(palette), "a.png"), np.array(palette.convert("RGB")).transpose(2, 0, 1))
    bits = Image.fromarray(GREY > 127)
    assert np.array_equal(decode(encoded(bits), "a.png"), np.where(GREY > 127, 255, 0)[None])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(RNG.integers(0, 256, (4, 4, 4), dtype=np.uint8)), {}),
        (Image.fromarray(RNG.integers(0, 256, (4, 4, 2), dtype=np.uint8)), {}),
        (Image.fromarray(COLOUR), {"transparency": (1, 2, 3)}),
        (Image.fromarray(COLOUR).quantize(4), {"transparency": 0}),
    ],
    ids=["RGBA", "LA", "RGB with tRNS", "palette with tRNS"],
)
def test_alpha_is_refused(image, options):
    with pytest.raises(InputError, match=r"^x/a\.png has an alpha channel: scoreline dataset SRC DEST"):
        decode(encoded(image, **options), "x/a.png")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_16_bits_are_refused(colour, channels):
    with pytest.raises(InputError, match="16 bits a channel: scoreline dataset"):
        decode(raw_png(1, 1, 16, colour, b"\0" + b"\1\2" * channels), "a.png")


def test_jpeg_only_where_admitted():
    data = encoded(Image.fromarray(GREY), "JPEG")
    with pytest.raises(InputError, match=r"a\.png cannot be read as PNG"):
        decode(data, "a.png")
    assert decode(data, "a.jpg", ["JPEG"]).shape == (1, 5, 7)


def test_other_colour_spaces_are_refused():
    with pytest.raises(InputError, match=r"mode CMYK, .*: scoreline dataset"):
        decode(encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "a.jpg", ["JPEG"])


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", "half", "flipped"])
def test_damaged_files_are_named(damage):
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    middle = len(whole) // 2
    cases = {"half": whole[:middle], "flipped": whole[:60] + bytes(b ^ 255 for b in whole[60:90]) + whole[90:]}
    with pytest.raises(InputError, match=r"^a\.png cannot be read"):
        decode(cases.get(damage, damage), "a.png")


def test_a_huge_declared_size_is_refused_before_decoding(monkeypatch):
    with pytest.raises(InputError, match="8192 x 8193 pixels are too many"):
        decode(raw_png(8192, 8193, 8, 0, b""), "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png cannot be read"):
        decode(raw_png(10**6, 10**6, 8, 0, b""), "bomb.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 35)
    assert decode(encoded(Image.fromarray(GREY)), "a.png").shape == (1, 5, 7)


PICTURE = Image.fromarray(RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8))


def oriented(orientation: object, form: str = "PNG", **more: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in more.items():
        exif[int(tag.removeprefix("t"))] = value
    return encoded(PICTURE, form, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    data = oriented(orientation)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data, "a.png").transpose(1, 2, 0), upright)
    assert decode(oriented(orientation, "JPEG"), "a.jpg", ["JPEG"]).shape == (3, *upright.shape[:2])


@pytest.mark.parametrize("orientation", [6, 3])
def test_grey_and_palette_pictures_are_turned_too(orientation):
    for mode in ("L", "P", "1"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(PICTURE.convert(mode), exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB" if mode == "P" else "L"))
        found = decode(data, "a.png")
        assert np.array_equal(found[0] if mode != "P" else found.transpose(1, 2, 0), np.array(upright))


def test_other_numbers_turn_nothing():
    for orientation in (0, 9, 65535):
        assert np.array_equal(decode(oriented(orientation), "a.png"), decode(oriented(1), "a.png"))


def test_damaged_exif_neither_stops_nor_turns():
    whole = decode(encoded(PICTURE), "a.png")
    assert np.array_equal(decode(encoded(PICTURE, exif=b"Exif\0\0junk"), "a.png"), whole)
    good = oriented(6, t271="a maker")
    start = good.index(b"eXIf") + 4
    size = int.from_bytes(good[start - 8 : start - 4], "big")
    for place in range(size):
        data = bytearray(good)
        data[start + place] ^= 0xFF
        data[start + size : start + size + 4] = zlib.crc32(data[start - 4 : start + size]).to_bytes(4, "big")
        assert decode(bytes(data), "a.png").shape in ((3, 6, 4), (3, 4, 6))
