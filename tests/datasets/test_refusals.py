"""Every refusal of a picture names `scoreline dataset`, which makes a usable data set of the same files."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded, raw_png
from PIL import Image

from scoreline.commands import dataset
from scoreline.commands.evaluate import main as evaluate
from scoreline.commands.reference import main as reference
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.errors import InputError

RNG = np.random.default_rng(7)


def colour(height: int = 8, width: int = 8) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(colour(8, 12), exif=exif)


GOOD = encoded(colour())
REFUSED = {
    "another size": ("b.png", encoded(colour(9, 9))),
    "turned to another size": ("b.png", turned()),
    "grey among colour": ("b.png", encoded(colour().convert("L"))),
    "alpha": ("b.png", encoded(Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8)))),
    "a transparent colour": ("b.png", encoded(colour(), transparency=(1, 2, 3))),
    "16 bits of grey": ("b.png", encoded(Image.fromarray(RNG.integers(0, 2**16, (8, 8), dtype=np.uint16)))),
    "16 bits of colour": ("b.png", raw_png(8, 8, 16, 2, (b"\0" + bytes(range(48))) * 8)),
    "CMYK": ("b.jpg", encoded(colour().convert("CMYK"), "JPEG")),
    "WebP": ("b.webp", encoded(colour(), "WEBP")),
    "GIF": ("b.gif", encoded(colour(), "GIF")),
    "JPEG named PNG": ("b.png", encoded(colour(), "JPEG")),
    "cut": ("b.png", GOOD[:100]),
    "no pixels": ("b.png", b""),
    "a bomb": ("b.png", raw_png(10**5, 10**5, 8, 0, b"")),
}


def folder(root: Path, name: str, data: bytes) -> str:
    for file, content in (("a.png", GOOD), (name, data)):
        (root / "x").mkdir(exist_ok=True)
        (root / "x" / file).write_bytes(content)
    return str(root / "x")


def zipped(root: Path, name: str, data: bytes) -> str:
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        archive.writestr("a.png", GOOD)
        archive.writestr(name, data)
    return str(root / "x.zip")


@pytest.mark.filterwarnings("ignore:.*are JPEG:UserWarning")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(("pack", "kind"), [(folder, ImageFolder), (zipped, ZipArchive)], ids=["folder", "zip"])
def test_a_refusal_names_the_command_that_helps(
    case: str, pack: Callable[[Path, str, bytes], str], kind: Callable[[str], ImageFolder | ZipArchive], tmp_path: Path
) -> None:
    path = pack(tmp_path, *REFUSED[case])
    with pytest.raises(InputError) as refusal:
        kind(path).read([0, 1])
    assert "scoreline dataset SRC DEST" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    dataset.main([path, str(tmp_path / "out.zip"), "resolution=8"])
    images = ZipArchive(str(tmp_path / "out.zip")).read([0])[0]
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), np.array(Image.open(io.BytesIO(GOOD))))


def test_commands_name_it_too(tmp_path: Path) -> None:
    mixed = folder(tmp_path, *REFUSED["another size"])
    small = str(tmp_path / "y.zip")
    dataset.main([mixed, small, "resolution=4"])
    for name in "acdef":
        Image.open(io.BytesIO(GOOD)).convert("L").save(tmp_path / "x" / f"{name}.png")
    for command, words in (
        (reference, [mixed, str(tmp_path / "out.npz")]),
        (evaluate, [mixed, small, "metrics=inception"]),
        (evaluate, [str(tmp_path / "y.sheet.png"), small]),
    ):
        with pytest.raises(InputError) as refusal:
            command(words)
        assert "scoreline dataset SRC DEST" in str(refusal.value), words
