"""The clip art of a small package of the same layout."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from debian_files import write_package
from PIL import Image

from scoreline.datasets import openclipart
from scoreline.datasets.openclipart import FOLDER, Openclipart, base
from scoreline.datasets.thumbnails import thumbnail
from scoreline.errors import InputError

RED, BLUE, CLEAR = (200, 0, 0, 255), (0, 0, 200, 255), (0, 0, 0, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def png(*colours: tuple[int, ...], mode: str = "RGBA") -> bytes:
    """Stripes, 8 pixels wide and 4 high each."""
    rows = np.repeat(np.array(colours, np.uint8), 4, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(rows[:, None], 8, 1)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {
    "food/apple_02.png": png(RED),
    "food/fruit/Apple_11.png": png(RED, BLUE),
    "animals/horse.png": png(BLUE, CLEAR),
    "animals/steed.png": png(BLUE, RED),
    "tools/horse_copy.png": png(BLUE, CLEAR),
    "tools/saw.png": png((10, 20, 30), (10, 20, 30), mode="P"),
}
OTHERS = {"cover.png": png(RED), "food/readme.txt": b"food"}


def package(path: Path, pictures: dict[str, bytes] = PICTURES) -> Path:
    files = {f"{FOLDER}/{name}": content for name, content in (pictures | OTHERS).items()}
    return write_package(path, files, {f"{FOLDER}/tools/link.png": "../food/apple_02.png"})


def folder(root: Path) -> Path:
    for name, content in (PICTURES | OTHERS).items():
        (root / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (root / FOLDER / name).write_bytes(content)
    (root / FOLDER / "tools/link.png").symlink_to("../food/apple_02.png")
    return root


def test_package_and_folders_hold_the_same_pictures(tmp_path: Path) -> None:
    places = [package(tmp_path / "a.deb"), folder(tmp_path / "root"), tmp_path / "root" / FOLDER]
    sets = [Openclipart(str(place), "all", resolution=8) for place in places]
    assert len({data.digest for data in sets}) == 1
    data = sets[0]
    assert (data.name, data.shape, data.num_classes) == ("openclipart-all", (3, 8, 8), 3)
    assert data.folders == ["animals", "food", "tools"]
    assert data.labels.tolist() == [0, 0, 1, 1, 2], "sorted by name; the copy of the horse is left out"
    assert data.bases == ["horse", "steed", "apple", "apple", "saw"]


def test_flattened_on_the_background(tmp_path: Path) -> None:
    image = Openclipart(str(package(tmp_path / "a.deb")), "all", resolution=8, background=240).images
    horse, _, apple, *_ = image.permute(0, 2, 3, 1).numpy()
    assert (horse[:4] == BLUE[:3]).all()
    assert (horse[4:] == 240).all()
    assert (apple[2:6] == RED[:3]).all(), "8 x 4 pixels in the middle"
    assert (apple[[0, 1, 6, 7]] == 240).all()


def test_huge_pictures_are_left_out(tmp_path: Path) -> None:
    long = bytearray(png(RED))
    long[16:20] = (8193).to_bytes(4)
    data = Openclipart(str(package(tmp_path / "a.deb", PICTURES | {"food/long.png": bytes(long)})), "all")
    assert len(data) == 5
    with pytest.raises(InputError, match="x is wider or higher than 8192 pixels"):
        thumbnail(bytes(long), 255, 32, "x")


def test_without_labels(tmp_path: Path) -> None:
    place = str(package(tmp_path / "a.deb"))
    plain, labelled = Openclipart(place, "all", labels="none"), Openclipart(place, "all")
    assert (plain.num_classes, plain.labels.tolist()) == (0, [-1] * 5)
    assert plain.images.equal(labelled.images)


def test_split_parts_the_pictures_by_base(tmp_path: Path) -> None:
    pictures = {f"f{i % 3}/{chr(97 + i)}_{n}.png": png((i, n, 0, 255)) for i in range(26) for n in range(3)}
    place = str(package(tmp_path / "a.deb", pictures))
    sets = {split: Openclipart(place, split, resolution=2) for split in ("train", "test", "all")}
    assert len(sets["train"]) + len(sets["test"]) == len(sets["all"]) == 78
    assert not set(sets["train"].bases) & set(sets["test"].bases)
    assert set(sets["test"].bases) == {"d", "e", "l", "t", "y"}  # by coreutils: printf c | sha256sum, modulo 10 in bc
    assert {data.num_classes for data in sets.values()} == {3}


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (["a/pig_01.png", "a/b/Pig_12.png", "c/pig.png", "c/1pig-.png"], "pig"),
        (["stars/star_95pt06step.png", "stars/star_05pt47step.png"], "star_ptstep"),
        (["cards/10.png"], "10"),
    ],
)
def test_base(names: list[str], same: str) -> None:
    assert {base(name) for name in names} == {same}


def test_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    convert = openclipart.thumbnail
    monkeypatch.setattr(openclipart, "thumbnail", lambda *given: calls.append(given[-1]) or convert(*given))
    place = package(tmp_path / "a.deb")
    first = Openclipart(str(place), "all")
    shutil.copy(place, tmp_path / "copy.deb")
    again = Openclipart(str(tmp_path / "copy.deb"), "all", labels="folders")
    assert len(calls) == 6
    assert (again.digest, again.bases, again.folders) == (first.digest, first.bases, first.folders)
    assert len(Openclipart(str(place), "all", resolution=16)) == 5
    assert len(calls) == 12
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("place", [-1, 30, 2])
def test_damaged_file_in_the_cache_is_written_anew(tmp_path: Path, cache: Path, place: int) -> None:
    source = str(package(tmp_path / "a.deb"))
    digest = Openclipart(source, "all").digest
    (file,) = cache.iterdir()
    whole = bytearray(file.read_bytes())
    whole[place] ^= 1
    file.write_bytes(bytes(whole))
    assert Openclipart(source, "all").digest == digest
    whole[place] ^= 1
    assert file.read_bytes() == bytes(whole)


def test_unusable_arguments(tmp_path: Path) -> None:
    place = str(package(tmp_path / "a.deb"))
    for given, message in (
        (
            {"path": str(tmp_path / "none")},
            r"dataset\.path=.*none: no such file; `apt-get install openclipart-png`, or ",
        ),
        ({"split": "valid"}, r"dataset\.split=valid"),
        ({"labels": "groups"}, r"dataset\.labels=groups"),
        ({"resolution": 0}, r"dataset\.resolution=0"),
        ({"background": -1}, r"dataset\.background=-1"),
    ):
        with pytest.raises(InputError, match=message):
            Openclipart(**{"path": place} | given)
    (tmp_path / "text.deb").write_text("no package")
    with pytest.raises(InputError, match=r"text\.deb is not a whole Debian package \(it is no Debian package\)"):
        Openclipart(str(tmp_path / "text.deb"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.png file in a folder inside"):
        Openclipart(str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"food/bad\.png cannot be read as PNG"):
        Openclipart(str(package(tmp_path / "b.deb", {"food/bad.png": b"no picture"})))
    with pytest.raises(InputError, match=r"holds no picture for dataset\.split=test"):
        Openclipart(str(package(tmp_path / "c.deb", {"food/apple.png": png(RED)})), "test")
