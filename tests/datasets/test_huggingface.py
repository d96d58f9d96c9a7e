import builtins
import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.huggingface import HuggingFace
from scoreline.datasets.picture_sources import open_source
from scoreline.errors import InputError

datasets = pytest.importorskip("datasets", reason="an optional extra")
pyarrow = pytest.importorskip("pyarrow", reason="comes with datasets")
pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(4).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
LABELS = [1, 0, 2, 2, 1]


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """No hub, no cache of the user, no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()


def table(pixels=PIXELS, labels=LABELS, **columns):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)}
    content = {"image": [Image.fromarray(image) for image in pixels], "label": labels}
    for name, (feature, values) in columns.items():
        features[name], content[name] = feature, values
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def saved(tmp_path, content, name="tiny"):
    content.save_to_disk(str(tmp_path / name))
    return str(tmp_path / name)


def test_the_same_rows_are_a_source_of_pictures(tmp_path):
    path = saved(tmp_path, table(labels=[1, -1, 2, 2, 1]))
    with open_source(path, None, tmp_path) as source:
        assert source.classes == {"00000000": 1, "00000002": 2, "00000003": 2, "00000004": 1}
        found = [np.array(Image.open(io.BytesIO(source.load(name)))) for name in source.names]
    assert np.array_equal(found, PIXELS)
    table().to_parquet(str(tmp_path / "x.parquet"))
    with open_source(str(tmp_path / "x.parquet"), "train", tmp_path) as source:
        assert len(source.names) == 5


def expected(classes=4, labels=LABELS):
    return ArrayDataset("x", torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), torch.tensor(labels), classes)


def test_saved_to_disk(tmp_path):
    data = HuggingFace(saved(tmp_path, table()))
    assert (data.name, data.shape, data.num_classes, len(data)) == ("tiny-train", (3, 6, 6), 4, 5)
    assert data.digest == expected().digest
    images, labels = data.read([4, 0])
    assert torch.equal(images, expected().images[[4, 0]])
    assert labels.tolist() == [1, 1]


def test_saved_dictionary_of_splits(tmp_path):
    both = datasets.DatasetDict({"train": table(), "test": table(PIXELS[:2], LABELS[:2])})
    path = saved(tmp_path, both)
    assert len(HuggingFace(path)) == 5
    assert len(HuggingFace(path, split="test")) == 2
    with pytest.raises(InputError, match=r"dataset\.split=tset: .*did you mean 'test'"):
        HuggingFace(path, split="tset")


def test_a_saved_split_is_not_taken_for_another(tmp_path):
    path = saved(tmp_path, datasets.Dataset.from_dict({"image": [1]}, split="train"))
    with pytest.raises(InputError, match=r"dataset\.split=test: not in"):
        HuggingFace(path, split="test")


@pytest.mark.parametrize("whole_folder", [False, True])
def test_parquet(tmp_path, whole_folder):
    path = tmp_path / "pq" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    table().to_parquet(str(path))
    data = HuggingFace(str(path.parent if whole_folder else path))
    assert data.digest == expected().digest
    assert len(HuggingFace(str(path), split="train[1:3]")) == 2


def test_folder_of_images(tmp_path):
    for index, image in enumerate(PIXELS):
        folder = tmp_path / "pictures" / "train" / f"class{LABELS[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    data = HuggingFace(str(tmp_path / "pictures"))
    assert data.num_classes == 3
    found = {(image.numpy().tobytes(), int(label)) for image, label in zip(*data.read(range(5)), strict=True)}
    assert found == {(p.transpose(2, 0, 1).tobytes(), label) for p, label in zip(PIXELS, LABELS, strict=True)}


def test_columns_by_name(tmp_path):
    other = [Image.fromarray(255 - image) for image in PIXELS]
    content = table(
        other=(datasets.Image(), other),
        coarse=(datasets.ClassLabel(num_classes=2), [0, 1, 0, 1, -1]),
        number=(datasets.Value("int32"), [6, 0, 3, 3, 3]),
        words=(datasets.Value("string"), list("abcde")),
    )
    path = saved(tmp_path, content)
    with pytest.raises(InputError, match=r"dataset\.image_key: .* has 2 columns of images \['image', 'other'\]"):
        HuggingFace(path)
    assert torch.equal(HuggingFace(path, image_key="other").read([0])[0], 255 - expected().images[[0]])
    assert HuggingFace(path, image_key="image").num_classes == 0  # two ClassLabel columns: none is guessed
    coarse = HuggingFace(path, image_key="image", label_key="coarse")
    assert (coarse.num_classes, coarse.read([3, 4])[1].tolist()) == (2, [1, -1])
    number = HuggingFace(path, image_key="image", label_key="number")
    assert (number.num_classes, number.read([0])[1].tolist()) == (7, [6])
    with pytest.raises(InputError, match=r"image_key=imag: .*did you mean 'image'"):
        HuggingFace(path, image_key="imag")
    with pytest.raises(InputError, match=r"image_key=label: no column of images"):
        HuggingFace(path, image_key="label")
    with pytest.raises(InputError, match=r"label_key=coarze: .*did you mean 'coarse'"):
        HuggingFace(path, image_key="image", label_key="coarze")
    with pytest.raises(InputError, match=r"label_key=words: .* not one integer class per image"):
        HuggingFace(path, image_key="image", label_key="words")


def test_labels_can_be_left_out(tmp_path):
    assert HuggingFace(saved(tmp_path, table()), label_key="none").read([0])[1].tolist() == [-1]


def test_another_shape_is_named(tmp_path):
    odd = [*(Image.fromarray(image) for image in PIXELS[:4]), Image.new("RGB", (7, 6))]
    content = datasets.Dataset.from_dict({"image": odd}, features=datasets.Features({"image": datasets.Image()}))
    data = HuggingFace(saved(tmp_path, content))
    with pytest.raises(InputError, match=r"dataset\.path=.*tiny: row 4 is 6x7 RGB, but row 0 is 6x6 RGB"):
        data.read([4])


def test_alpha_and_missing_images_are_named(tmp_path):
    images = [Image.new("RGB", (2, 2)), Image.new("RGBA", (2, 2)), None]
    content = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    data = HuggingFace(saved(tmp_path, content))
    with pytest.raises(InputError, match="row 1 has an alpha channel"):
        data.read([1])
    with pytest.raises(InputError, match="row 2 holds no image"):
        data.read([2])


def test_an_image_file_that_vanishes_is_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "pictures" / "a.png")
    data = HuggingFace(str(tmp_path / "pictures"), cache_mib=0)
    assert np.array_equal(data.read([0])[0][0].permute(1, 2, 0).numpy(), PIXELS[0])
    (tmp_path / "pictures" / "a.png").unlink()
    with pytest.raises(InputError, match=r"row 0: the image file .*a\.png is missing"):
        data.read([0])


def test_jpeg_warns(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.jpg")
    content = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg")]}).cast_column("image", datasets.Image())
    with pytest.warns(UserWarning, match="not lossless, which changes FID"):
        assert HuggingFace(saved(tmp_path, content)).shape == (3, 6, 6)


def test_survives_pickling(tmp_path):
    data = HuggingFace(saved(tmp_path, table()))
    assert pickle.loads(pickle.dumps(data)).digest == data.digest


def test_empty_split(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.path=.*tiny dataset\.split=train: cannot be loaded"):
        HuggingFace(saved(tmp_path, table(PIXELS[:0], [])))


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^dataset\.path=no/such-set dataset\.split=train: cannot be loaded .*hub$"):
        HuggingFace("no/such-set")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not parquet")
    with pytest.raises(InputError, match=r"broken\.parquet dataset\.split=train: cannot be loaded"):
        HuggingFace(str(tmp_path / "broken.parquet"))


def test_loading_scripts_are_not_run(tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        HuggingFace(str(tmp_path / "evil"))
    with pytest.raises(InputError, match="cannot be loaded"):
        HuggingFace(str(tmp_path / "evil" / "evil.py"))
    assert not (tmp_path / "mark").exists()


def test_versions_that_could_run_scripts_are_refused(monkeypatch):
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(InputError, match=r"datasets 3\.6\.0 can run code"):
        HuggingFace("x")


def test_missing_library_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "datasets")
    with pytest.raises(InputError, match=r"pip install 'scoreline\[huggingface\]'"):
        HuggingFace("x")


@pytest.mark.parametrize(
    ("kind", "largest", "message"),
    [
        ("int64", 10**9, r"class 1000000000 makes 1000000001 classes of 5 images"),
        ("int64", -2, "not one integer class per image"),
    ],
)
def test_classes_that_cannot_be(tmp_path, kind, largest, message):
    path = saved(tmp_path, table(number=(datasets.Value(kind), np.array([0, 1, 2, 3, largest], kind))))
    with pytest.raises(InputError, match=message):
        HuggingFace(path, label_key="number")


def test_a_class_without_a_name_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    table().cast_column("label", datasets.Value("int64")).to_parquet(path)
    content = pyarrow.parquet.read_table(path)
    named = json.dumps({"info": {"features": datasets.Features(table().features).to_dict()}})
    labels = pyarrow.array([0, 1, 2, 3, 4])
    content = content.set_column(content.column_names.index("label"), "label", labels)
    pyarrow.parquet.write_table(content.replace_schema_metadata({"huggingface": named}), path)
    with pytest.raises(InputError, match=r"holds class 4, but names only 0 to 3|cannot be loaded"):
        HuggingFace(str(path))
