"""Conversion of pictures, beside Pillow's operations written out and arithmetic on arrays."""

import io

import numpy as np
import pytest
from picture_files import encoded, raw_png
from PIL import Image, ImageCms, ImageOps

from scoreline.datasets.picture_conversion import FORMATS, Conversion, UnusableError, is_colour

RNG = np.random.default_rng(3)


def random_picture(height: int, width: int, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def opened(data: bytes, mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(data)).convert(mode)


def pixels(converted) -> np.ndarray:
    """(H, W, C) or (H, W), as Pillow has them."""
    found = converted.pixels
    assert found.dtype == np.uint8
    assert found.flags["C_CONTIGUOUS"]
    return found[0] if len(found) == 1 else found.transpose(1, 2, 0)


def reason(rule: Conversion, data: bytes) -> str:
    with pytest.raises(UnusableError) as caught:
        rule(data)
    return caught.value.reason


@pytest.mark.parametrize("rule", [Conversion(9, 7, crop=crop) for crop in ("center", "none", "stretch")])
@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_pictures_that_fit_keep_their_pixels(rule, form):
    colour = Image.fromarray(RNG.integers(0, 2, (7, 9, 3), dtype=np.uint8) * 255)  # few enough colours for a GIF
    converted = rule(encoded(colour, form))
    assert np.array_equal(pixels(converted), np.array(colour))
    assert converted.changes == ()
    grey = random_picture(7, 9, 1)
    rule = Conversion(9, 7, channels=1, crop=rule.crop)
    assert np.array_equal(pixels(rule(encoded(grey, form))), np.array(grey))


@pytest.mark.parametrize(("resize", "resampling"), [("lanczos", Image.LANCZOS), ("box", Image.BOX)])
@pytest.mark.parametrize("size", [(40, 61), (61, 40), (40, 40)])
def test_center_crop_of_edm(resize, resampling, size):
    picture = random_picture(*size)
    array, side = np.array(picture), min(size)
    square = array[(size[0] - side) // 2 :, (size[1] - side) // 2 :][:side, :side]
    expected = Image.fromarray(square).resize((16, 16), resampling)
    assert np.array_equal(pixels(Conversion(16, 16, resize=resize)(encoded(picture))), np.array(expected))


def test_box_by_whole_numbers_is_the_mean():
    picture = random_picture(24, 16, 1)
    rows = np.array(picture, np.int64)
    halved = (rows[:, ::2] + rows[:, 1::2] + 1) // 2  # Pillow rounds half up, first along rows, then along columns
    halved = (halved[::2] + halved[1::2] + 1) // 2
    assert np.array_equal(pixels(Conversion(8, 12, 1, resize="box")(encoded(picture))), halved)


def test_crops_of_other_aspect_ratios():
    picture = random_picture(30, 100)  # 40 x 30 from the middle
    expected = picture.crop((30, 0, 70, 30)).resize((16, 12), Image.LANCZOS)
    assert np.array_equal(pixels(Conversion(16, 12)(encoded(picture))), np.array(expected))
    tall = random_picture(100, 40)
    expected = tall.crop((0, 35, 40, 65)).resize((16, 12), Image.LANCZOS)
    assert np.array_equal(pixels(Conversion(16, 12)(encoded(tall))), np.array(expected))


def test_none_refuses_and_stretch_distorts_other_aspect_ratios():
    data = encoded(random_picture(30, 40))
    assert "aspect ratio" in reason(Conversion(16, 16, crop="none"), data)
    assert Conversion(16, 12, crop="none")(data).pixels.shape == (3, 12, 16)
    assert Conversion(8, 6, crop="none")(encoded(random_picture(76, 101))).pixels.shape == (3, 6, 8)
    stretched = opened(data).resize((16, 16), Image.LANCZOS)
    assert np.array_equal(pixels(Conversion(16, 16, crop="stretch")(data)), np.array(stretched))


@pytest.mark.parametrize("size", [(70, 100), (100, 70), (33, 47), (16, 16), (31, 90)])
def test_adm_crop(size):
    """Guided diffusion's rule, step by step: a shorter side of 70 is halved to 35, one of 33 or 31 to 16 or not."""
    picture = random_picture(*size)
    data, expected = encoded(picture), picture
    while min(expected.size) >= 32:
        expected = expected.resize((expected.width // 2, expected.height // 2), Image.BOX)
    scale = 16 / min(expected.size)
    expected = expected.resize((round(expected.width * scale), round(expected.height * scale)), Image.BICUBIC)
    array = np.array(expected)
    top, left = (array.shape[0] - 16) // 2, (array.shape[1] - 16) // 2
    assert np.array_equal(pixels(Conversion(16, 16, crop="adm")(data)), array[top : top + 16, left : left + 16])


def test_small_pictures_are_refused_or_enlarged():
    data = encoded(random_picture(15, 40))
    for crop in ("center", "stretch", "adm"):
        assert reason(Conversion(16, 16, crop=crop), data).startswith("smaller than 16x16")
        assert Conversion(16, 16, crop=crop, upscale=True)(data).pixels.shape == (3, 16, 16)
    assert Conversion(15, 15)(data).pixels.shape == (3, 15, 15)


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 77)])
def test_transparent_pixels_on_the_background(background):
    layered = random_picture(8, 8, 4)
    colour, alpha = np.array(layered, np.int64)[..., :3], np.array(layered, np.int64)[..., 3:]
    blend = np.rint((colour * alpha + np.array(background) * (255 - alpha)) / 255)  # n / 255 is never a half
    converted = Conversion(8, 8, background=background)(encoded(layered))
    assert np.array_equal(pixels(converted), blend)
    assert converted.changes == ("transparent parts put on the background",)


def test_opaque_alpha_changes_nothing():
    colour = random_picture(8, 8)
    layered = colour.copy()
    layered.putalpha(255)
    assert np.array_equal(pixels(Conversion(8, 8)(encoded(layered))), np.array(colour))
    assert Conversion(8, 8)(encoded(layered)).changes == ()


def test_every_kind_of_transparency():
    grey = random_picture(8, 8, 2)
    rule = Conversion(8, 8, channels=1, background=(50, 50, 50))
    level, alpha = np.array(grey, np.int64)[..., 0], np.array(grey, np.int64)[..., 1]
    assert np.array_equal(pixels(rule(encoded(grey))), np.rint((level * alpha + 50 * (255 - alpha)) / 255))
    keyed = random_picture(8, 8)
    keyed.putpixel((3, 2), (1, 2, 3))
    found = pixels(Conversion(8, 8, background=(0, 9, 0))(encoded(keyed, transparency=(1, 2, 3))))
    expected = np.array(keyed)
    expected[2, 3] = (0, 9, 0)
    assert np.array_equal(found, expected)
    palette = keyed.quantize(4)
    expected = np.array(palette.convert("RGB"))
    expected[np.array(palette) == 2] = 255
    assert np.array_equal(pixels(Conversion(8, 8)(encoded(palette, transparency=2))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(random_picture(20, 30), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    left, top = (upright.width - 20) // 2, (upright.height - 20) // 2
    side = upright.crop((left, top, left + 20, top + 20))
    assert np.array_equal(pixels(Conversion(20, 20)(data)), np.array(side.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight():
    values = RNG.integers(0, 2**16, (8, 8), dtype=np.uint16)
    rule = Conversion(8, 8, channels=1)
    for form in ("PNG", "TIFF", "PPM"):
        converted = rule(encoded(Image.fromarray(values), form))
        assert np.array_equal(pixels(converted), values >> 8)
        assert "16 bits a channel, of which the upper 8 are kept" in converted.changes
    wide = RNG.integers(0, 2**16, (8, 8, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    converted = Conversion(8, 8)(raw_png(8, 8, 16, 2, rows))
    assert np.array_equal(pixels(converted), wide >> 8)
    assert "16 bits a channel, of which the upper 8 are kept" in converted.changes
    dark = np.full((8, 8), 100, np.uint16)
    assert not pixels(rule(encoded(Image.fromarray(dark), "PPM"))).any()


def test_grey_and_colour_meet():
    grey, colour = random_picture(8, 8, 1), random_picture(8, 8)
    converted = Conversion(8, 8)(encoded(grey))
    assert np.array_equal(pixels(converted), np.repeat(np.array(grey)[..., None], 3, 2))
    assert converted.changes == ("grey stored as RGB",)
    converted = Conversion(8, 8, channels=1)(encoded(colour))
    luma = np.array(colour) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(converted) - luma).max() < 0.51
    assert converted.changes == ("colour turned into grey",)


def test_palettes_bits_and_other_colour_spaces():
    few = random_picture(8, 8).quantize(16)
    assert np.array_equal(pixels(Conversion(8, 8)(encoded(few))), np.array(few.convert("RGB")))
    bits = random_picture(8, 8, 1).convert("1")
    assert np.array_equal(pixels(Conversion(8, 8, 1)(encoded(bits))), np.array(bits) * 255)
    inks = random_picture(16, 16).resize((8, 8)).convert("CMYK")
    for form in ("JPEG", "TIFF"):
        data = encoded(inks, form)
        converted = Conversion(8, 8)(data)
        assert np.array_equal(pixels(converted), np.array(opened(data)))
        assert converted.changes == ("CMYK converted without a colour profile",)


def test_a_colour_profile_is_left_and_named():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colour = random_picture(8, 8)
    converted = Conversion(8, 8)(encoded(colour, icc_profile=profile))
    assert np.array_equal(pixels(converted), np.array(colour))
    assert converted.changes == ("colour profile not applied",)


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "WEBP", "AVIF", "MPO"])
def test_animations_give_their_first_frame(form):
    first, *others = (Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue"))
    data = encoded(first, form, save_all=True, append_images=others)
    converted = Conversion(16, 16)(data)
    assert np.abs(pixels(converted).astype(int) - (255, 0, 0)).max() <= 2
    assert converted.changes == ("first of several frames",)
    alone = encoded(first, "JPEG" if form == "MPO" else form)
    assert Conversion(16, 16)(alone).changes == ()


def test_every_format_of_the_list_is_read():
    assert {"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"} <= {*FORMATS}
    for form in set(FORMATS) - {"AVIF"}:
        assert Conversion(8, 8)(encoded(random_picture(8, 8), form)).pixels.shape == (3, 8, 8)


WHOLE = encoded(random_picture(32, 32))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not a picture"),
        (b"some text", "not a picture"),
        (WHOLE[: len(WHOLE) // 2], "damaged"),
        (WHOLE[:60] + bytes(30) + WHOLE[90:], "damaged"),
        (b"GIF89a", "not a picture"),
        (raw_png(8192, 8193, 8, 0, b""), "too many pixels"),
        (raw_png(10**6, 10**6, 8, 0, b""), "too many pixels"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "32 bits a channel"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "32 bits a channel"),
        (encoded(random_picture(32, 32), "JPEG")[:700], "damaged"),
    ],
)
def test_unusable_files_have_a_reason(data, expected):
    assert reason(Conversion(8, 8), data).startswith(expected)


def test_reasons_never_depend_on_the_run():
    """A message with an address of memory would make equal sources unequal reports."""
    details = set()
    for _ in range(3):
        with pytest.raises(UnusableError) as caught:
            Conversion(8, 8)(b"some text")
        details.add((caught.value.reason, caught.value.detail))
    assert len(details) == 1
    assert "0x" not in str(details)


def test_colour_is_told_by_the_header():
    white, blue = (255, 255, 255), (0, 0, 255)
    for image, colour in (
        (random_picture(4, 4), True),
        (random_picture(4, 4, 1), False),
        (random_picture(4, 4, 1).convert("1"), False),
        (random_picture(4, 4, 2), False),
        (random_picture(4, 4, 4), True),
        (random_picture(4, 4).quantize(4), True),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), False),
    ):
        assert is_colour(encoded(image), white) is colour, image.mode
    assert is_colour(encoded(random_picture(4, 4, 2)), blue)
    assert not is_colour(encoded(random_picture(4, 4, 1)), blue)
    assert not is_colour(b"some text", white)
