"""`scoreline dataset`: what it writes, beside Pillow's operations and a reader of EDM's archives written out here."""

import csv
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from picture_files import encoded
from PIL import Image, ImageOps

from scoreline.commands import dataset
from scoreline.config.compose import build_object, script_config
from scoreline.config.script import match_data
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.picture_conversion import Conversion
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.errors import InputError
from scoreline.runtime import progress
from scoreline.storage import files

RNG = np.random.default_rng(5)


def picture(height: int, width: int, channels: int = 3) -> Image.Image:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def sideways(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(20, 14), exif=exif)


GOOD = {
    "cat/grey.png": encoded(picture(17, 12, 1)),
    "cat/wide.jpg": encoded(picture(12, 30), "JPEG"),
    "dog/alpha.png": encoded(picture(12, 12, 4)),
    "dog/turned.png": sideways(),
    "dog/web.webp": encoded(picture(13, 13), "WEBP", lossless=True),
}
BAD = {
    "ant/cut.png": encoded(picture(30, 30))[:500],
    "dog/again.png": GOOD["dog/alpha.png"],
    "dog/small.gif": encoded(picture(5, 5), "GIF"),
    "dog/words.txt": b"words",
    "loose.png": encoded(picture(12, 12)),
}
HIDDEN = {".DS_Store": b"x", "__MACOSX/cat/grey.png": b"x"}


def folder(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    dataset.main(list(map(str, words)))
    return capsys.readouterr().out


def read_edm(path: Path) -> tuple[NDArray[np.uint8], list[Any] | None]:
    """Images (N, H, W, C) and labels, as EDM's training reads an archive: PNG files in order, labels by name."""
    with zipfile.ZipFile(path) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        images = np.stack([np.atleast_3d(np.array(Image.open(archive.open(name)))) for name in names])
        table = json.loads(archive.read("dataset.json"))["labels"]
    assert names == [f"{index // 1000:05d}/img{index:08d}.png" for index in range(len(names))]
    return images, table and [dict(table)[name] for name in names]


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """12 x 12 RGB on white, by the operations of Pillow alone."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    layered = upright.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), layered).convert("RGB")
    side = min(flat.size)
    left, top = (flat.width - side) // 2, (flat.height - side) // 2
    return np.array(flat.crop((left, top, left + side, top + side)).resize((12, 12), Image.LANCZOS))


def test_a_messy_folder_becomes_edms_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder(tmp_path / "pets", {**GOOD, **BAD, **HIDDEN}), tmp_path / "out" / "pets.zip"
    printed = run(capsys, source, out, "resolution=12", "labels=folders")
    images, labels = read_edm(out)
    expected = np.stack([by_pillow(GOOD[name]) for name in sorted(GOOD)])
    assert np.abs(images.astype(int) - expected).max() <= 1  # alpha_composite rounds otherwise than paste
    opaque = [index for index, name in enumerate(sorted(GOOD)) if "alpha" not in name]
    assert np.array_equal(images[opaque], expected[opaque])
    assert labels == [0, 0, 1, 1, 1]
    ours = ZipArchive(str(out))
    assert np.array_equal(ours.read(range(5))[0].permute(0, 2, 3, 1).numpy(), images)
    assert ours.labels.tolist() == labels
    assert "5 of 10 files" in printed
    assert "0 cat (2), 1 dog (3)" in printed
    assert "no picture is left of class ant" in printed
    assert sorted(os.listdir(out.parent)) == ["pets.report.csv", "pets.report.json", "pets.sheet.png", "pets.zip"]


def test_the_report_has_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder(tmp_path / "pets", {**GOOD, **BAD, **HIDDEN}), tmp_path / "pets.zip"
    printed = run(capsys, source, out, "resolution=12", "labels=folders")
    with open(tmp_path / "pets.report.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert {*rows} == {*GOOD, *BAD}
    reasons = {name: rows[name]["reason"] for name in rows}
    starts = {
        "ant/cut.png": "damaged",
        "dog/alpha.png": "equal to an earlier picture",
        "dog/small.gif": "smaller than 12x12",
        "dog/words.txt": "not a picture",
        "loose.png": "in no folder",
    }
    assert all(reasons[name].startswith(start) for name, start in starts.items())
    assert rows["dog/alpha.png"]["note"] == "dog/again.png"
    kept = [name for name in sorted(rows) if not reasons[name]]
    assert [rows[name]["image"] for name in kept] == [f"00000/img{index:08d}.png" for index in range(5)]
    assert rows["dog/turned.png"]["note"].startswith("turned upright")
    record = json.loads((tmp_path / "pets.report.json").read_text())
    assert record["dropped"] == dict(Counter(filter(None, reasons.values())))
    assert record["images"] == 5
    assert [(entry["name"], entry["images"]) for entry in record["classes"]] == [("cat", 2), ("dog", 3)]
    assert all(f"{count:8,}  {reason}" in printed for reason, count in record["dropped"].items())
    units = read_edm(out)[0] / 127.5 - 1
    assert record["std"] == pytest.approx(units.std(), rel=1e-12)


def tarred(path: Path, content: dict[str, bytes], mode: Any) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in reversed(content.items()):
            entry = tarfile.TarInfo(f"pets/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_equal_sources_make_equal_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {**GOOD, **BAD, **HIDDEN}
    sources = {
        "folder": folder(tmp_path / "pets", content),
        "zip": zipped(tmp_path / "source.zip", content),
        "tar": tarred(tmp_path / "source.tar", content, "w"),
        "packed": tarred(tmp_path / "source.tgz", content, "w:gz"),
        "threads": tmp_path / "pets",
    }
    found = set()
    for name, source in sources.items():
        words = ("resolution=12", "labels=folders", "workers=3" if name == "threads" else "workers=1")
        run(capsys, source, tmp_path / f"{name}-out.zip", *words)
        written = [(tmp_path / f"{name}-out{ending}").read_bytes() for ending in (".zip", ".report.csv", ".sheet.png")]
        found.add(tuple(written))
    assert len(found) == 1


def test_a_folder_has_the_content_of_the_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "pets", GOOD)
    for out in ("out", "out2.zip"):
        printed = run(capsys, source, tmp_path / out, "resolution=12", "labels=folders")
        assert f"dataset={'zip' if out.endswith('.zip') else 'image_folder'} dataset.path={tmp_path / out}" in printed
    archive, made = ZipArchive(str(tmp_path / "out2.zip")), ImageFolder(str(tmp_path / "out"))
    assert made.digest == archive.digest
    with zipfile.ZipFile(tmp_path / "out2.zip") as file:
        assert all((tmp_path / "out" / name).read_bytes() == file.read(name) for name in file.namelist())


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_the_right_size_keep_every_bit(
    channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest is over pixels and labels: that of the data set before equals that after."""
    content = {f"{index % 2}/{index:02d}.png": encoded(picture(8, 8, channels)) for index in range(20)}
    source = folder(tmp_path / "pictures", content)
    run(capsys, source, tmp_path / "out.zip", "resolution=8", "labels=folders")
    before, after = ImageFolder(str(source), labels="folders"), ZipArchive(str(tmp_path / "out.zip"))
    assert after.shape == (channels, 8, 8)
    assert after.digest == before.digest
    run(capsys, tmp_path / "out.zip", tmp_path / "again.zip", "resolution=8")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()


@pytest.mark.parametrize("pack", [folder, zipped, lambda path, content: tarred(path, content, "w")])
def test_exif_and_labels_of_webdataset(pack: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = dict[str, bytes]()
    for index in range(8):
        shard |= {f"{index:03d}.png": sideways(index + 1), f"{index:03d}.cls": b"%d" % (index % 3)}
    run(capsys, pack(tmp_path / "shard", shard), tmp_path / "out.zip", "resolution=12")
    images, labels = read_edm(tmp_path / "out.zip")
    expected = [by_pillow(data) for name, data in shard.items() if name.endswith(".png")]
    assert np.array_equal(images, np.stack(expected))
    assert labels == [0, 1, 2, 0, 1, 2, 0, 1]


def test_two_classes_of_one_picture_are_refused(tmp_path: Path) -> None:
    table = json.dumps({"labels": [["a.png", 0], ["./a.png", 1]]}).encode()
    content = {"a.png": encoded(picture(8, 8)), "dataset.json": table}
    for source in (folder(tmp_path / "a", content), zipped(tmp_path / "a.zip", content)):
        with pytest.raises(InputError, match=r"labels a\.png twice, with different classes"):
            dataset.main([str(source), str(tmp_path / "out.zip"), "resolution=8"])
    assert sorted(os.listdir(tmp_path)) == ["a", "a.zip"]


def test_keys_change_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, clear = encoded(picture(8, 8)), encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    content = {"a.png": first, "b.png": clear, "c.png": first, "d.png": encoded(picture(4, 4, 1))}
    source = folder(tmp_path / "x", content)

    def images(*words: str) -> NDArray[np.uint8]:
        out = tmp_path / f"{len(os.listdir(tmp_path))}.zip"
        run(capsys, source, out, "resolution=8", *words)
        return read_edm(out)[0]

    assert len(images()) == 2
    assert len(images("duplicates=keep")) == 3
    assert len(images("upscale=allow")) == 3
    assert len(images("limit=1")) == 1
    assert (images("background=10,20,30")[1] == (10, 20, 30)).all()
    assert (images("background=7")[1] == 7).all()
    assert images("channels=grey").shape == (2, 8, 8, 1)


def test_auto_is_grey_for_grey_pictures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {f"{index}.png": encoded(picture(8, 8, 1)) for index in range(3)}
    for name, more, channels in (("grey", {}, 1), ("mixed", {"z.png": encoded(picture(8, 8))}, 3)):
        run(capsys, folder(tmp_path / name, {**content, **more}), tmp_path / f"{name}.zip", "resolution=8")
        assert ZipArchive(str(tmp_path / f"{name}.zip")).shape == (channels, 8, 8)


def test_names_of_any_spelling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {'a "b", c\n.png': encoded(picture(8, 8)), "=x.png": b"junk", os.fsdecode(b"\xff.png"): b"junk"}
    run(capsys, folder(tmp_path / "x", content), tmp_path / "it's.zip", "resolution=8")
    with open(tmp_path / "it's.report.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_next_command_fits_the_data(
    size: int, labelled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    content = {f"{index % 3}/{index}.png": encoded(picture(size, size)) for index in range(6)}
    words = [f"resolution={size}", *(["labels=folders"] if labelled else [])]
    printed = run(capsys, folder(tmp_path / "x", content), tmp_path / "my pictures.zip", *words)
    program, script, *overrides = shlex.split(printed.rpartition("next: ")[2])
    assert (program, script) == ("python", "train.py")
    cfg = script_config("train", [*overrides, f"hydra.runtime.output_dir={tmp_path}"])
    data = build_object(cfg.dataset)
    assert data.shape == (3, size, size)
    match_data(cfg.model.network, data)
    assert cfg.model.network.num_classes == (3 if labelled else 0)
    units = data.read(range(6))[0].double() / 127.5 - 1
    assert cfg.model.parameterisation.sigma_data == pytest.approx(float(units.std(correction=0)), rel=0.05)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = folder(tmp_path / "x", {"a.png": encoded(picture(8, 8))})
    for name in ("out.zip", "out.report.csv", "out.report.json", "out.sheet.png"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match="overwritten"):
            dataset.main([str(source), str(tmp_path / "out.zip"), "resolution=8"])
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match="lies in"):
        dataset.main([str(source), str(source / "out.zip"), "resolution=8"])
    assert sorted(os.listdir(tmp_path)) == ["x"]


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.mark.parametrize("out", ["out.zip", "out"])
def test_an_interruption_leaves_nothing(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "x", {f"{index}.png": encoded(picture(8, 8)) for index in range(4)})
    calls, convert = [], Conversion.__call__

    def interrupted(rule: Conversion, data: bytes) -> Any:
        calls.append(data)
        if len(calls) == 3:
            raise Stop
        return convert(rule, data)

    monkeypatch.setattr(Conversion, "__call__", interrupted)
    with pytest.raises(Stop):
        dataset.main([str(source), str(tmp_path / out), "resolution=8"])
    assert os.listdir(tmp_path) == ["x"]


def test_parts_of_a_killed_run_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "x", {"a.png": encoded(picture(8, 8))})
    child = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(child, 0)
    own, table, other = (files.part_beside(tmp_path / name) for name in ("out.zip", "out.report.csv", "other.zip"))
    for part in (own, table, other):
        part.with_name(part.name.replace(f".{os.getpid()}.", f".{child}.")).write_bytes(b"half")
    run(capsys, source, tmp_path / "out.zip", "resolution=8")
    assert [name for name in os.listdir(tmp_path) if name.endswith(".part")] == [
        other.name.replace(f".{os.getpid()}.", f".{child}.")
    ]


def test_pictures_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 pictures have 3.7 MB of pixels; what grows with them is less than a kilobyte each."""
    source = folder(tmp_path / "x", {f"{index:03d}.png": encoded(picture(64, 64)) for index in range(330)})
    held, convert = [], Conversion.__call__

    def measured(rule: Conversion, data: bytes) -> Any:
        held.append(tracemalloc.get_traced_memory()[0])
        return convert(rule, data)

    monkeypatch.setattr(Conversion, "__call__", measured)
    tracemalloc.start()
    dataset.main([str(source), str(tmp_path / "out.zip"), "resolution=64"])
    tracemalloc.stop()
    assert len(held) == 330
    assert held[329] - held[29] < 300 * 2000


def test_long_work_has_a_progress_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "DELAY", 0)
    source = folder(tmp_path / "x", {f"{index}.png": encoded(picture(8, 8)) for index in range(3)})
    dataset.main([str(source), str(tmp_path / "out.zip"), "resolution=8"])
    assert "dataset: 1/3 files" in capsys.readouterr().err
