import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bounded import refusal

from scoreline.errors import InputError
from scoreline.generation.labels import describe_labels, plan_labels
from scoreline.values import parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [(7, [7]), ("7", [7]), ("0-3", [0, 1, 2, 3]), ("0-2,9,20-21", [0, 1, 2, 9, 20, 21]), ([4, 2], [4, 2])],
)
def test_seeds(text: object, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-3,2", "-4", "1.5", "0-99999999999999999999", [1, 1]])
def test_bad_seeds(text: object) -> None:
    with pytest.raises(InputError, match="seeds="):
        parse_seeds(text)


def test_random_labels_have_the_proportions_of_the_training_images() -> None:
    counts, seeds = [900, 0, 3000, 100], range(2000)
    labels = plan_labels("random", seeds, 4, counts)
    assert labels is not None
    assert plan_labels("random", [1234], 4, counts).tolist() == [int(labels[1234])]
    shares = np.bincount(labels.numpy(), minlength=4) / 2000
    assert shares[1] == 0
    # four standard deviations of a share of 0.75
    assert np.allclose(shares, np.array(counts) / 4000, atol=4 * (0.75 * 0.25 / 2000) ** 0.5)


def test_equal_counts_change_no_label() -> None:
    assert torch.equal(plan_labels("random", range(500), 10, [5000] * 10), plan_labels("random", range(500), 10))


def test_labels_belong_to_seeds() -> None:
    seeds = range(100, 130)
    random = plan_labels("random", seeds, 10)
    assert random is not None
    assert plan_labels("random", [seeds[7]], 10).tolist() == [int(random[7])]
    assert len(set(random.tolist())) > 5
    assert plan_labels("balanced", seeds, 10).tolist() == [s % 10 for s in seeds]
    assert plan_labels("fixed:4", seeds, 10).tolist() == [4] * 30
    assert plan_labels("none", seeds, 10) is None
    assert plan_labels("random", seeds, 0) is None


@pytest.mark.parametrize(("rule", "classes"), [("fixed:10", 10), ("fixed:0", 0), ("balanced", 0), ("any", 10)])
def test_bad_labels(rule: str, classes: int) -> None:
    with pytest.raises(InputError, match=f"labels={rule}"):
        plan_labels(rule, [0], classes)


def test_seeds_under_another_key() -> None:
    assert parse_seeds("3-4", "trajectories") == [3, 4]
    with pytest.raises(InputError, match=r"^trajectories=a: "):
        parse_seeds("a", "trajectories")


SEEDS = [5, 6, 9]
MANIFEST = "index,seed,label,sha256\n0,4,0,aa\n1,5,3,bb\n2,6,1,cc\n3,9,2,dd\n"


def file_of(folder: Path, name: str, content: object) -> str:
    path = folder / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(str(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "3\n1\n2\n"),
        ("a.txt", "3 1 2"),
        ("A.JSON", "[3, 1, 2]"),
        ("a.npy", np.array([3, 1, 2], dtype=np.uint8)),
        ("a.csv", "3\n1\n2\n"),
        ("a.csv", "label\n3\n1\n2\n"),
        ("a.csv", "name,label\nx,3\ny,1\nz,2\n"),
        ("manifest.csv", MANIFEST),
    ],
)
def test_a_file_of_classes(name: str, content: object, tmp_path: Path) -> None:
    rule = file_of(tmp_path, name, content)
    labels = plan_labels(rule, SEEDS, 4)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, 1, 2]
    mark = describe_labels(rule, labels)
    assert mark == f"{name}:{hashlib.sha256(Path(rule).read_bytes()).hexdigest()[:16]}"
    assert describe_labels("random", labels) == "random"
    assert describe_labels("random", None) == "none"


BAD_FILES = [
    ("a.txt", "3 1", "holds 2 classes for 3 seeds"),
    ("a.txt", "3 1 2 0", "holds 4 classes for 3 seeds"),
    ("a.txt", "3 1 4", "class 4 of seed 9 is out of range; this checkpoint has the classes 0 to 3"),
    ("a.txt", "3 -1 2", "class -1 of seed 6 is out of range"),
    ("a.txt", "3 one 2", "not a list of whole numbers"),
    ("a.json", '{"labels": [3, 1, 2]}', "it must be a list of integers"),
    ("a.json", "[3, 1, 2.0]", "it must be a list of integers"),
    ("a.json", "[3, true, 2]", "it must be a list of integers"),
    ("a.json", "[3, 1", "not a list of whole numbers"),
    ("a.npy", np.array([3.0, 1.0, 2.0]), "a one-dimensional array of integers"),
    ("a.npy", np.array([[3, 1, 2]]), "a one-dimensional array of integers"),
    ("a.npy", "junk", "not a list of whole numbers"),
    ("a.csv", "3,1,2\n", "several columns need a header with seed and label"),
    ("a.csv", "seed,label\n5,3\n6\n", "not a list of whole numbers"),
    ("a.csv", "seed,label\n5,3\n9,2\n", "gives no class for seed 6"),
    ("manifest.csv", MANIFEST.replace("2,6,1", "2,6,"), "gives no class for seed 6"),
    ("a.csv", "", "holds 0 classes for 3 seeds"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD_FILES, ids=lambda value: str(value)[:24])
def test_a_bad_file_of_classes(name: str, content: object, sentence: str, tmp_path: Path) -> None:
    rule = file_of(tmp_path, name, content)
    with pytest.raises(InputError) as error:
        plan_labels(rule, SEEDS, 4)
    assert str(error.value).startswith(f"labels={rule}: ")
    assert sentence in str(error.value)


def test_a_pickle_of_classes_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([3, 1, None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a list of whole numbers"):
        plan_labels(str(tmp_path / "a.npy"), SEEDS, 4)


def test_missing_or_unwanted_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels=nowhere\.txt: no such file"):
        plan_labels("nowhere.txt", SEEDS, 4)
    with pytest.raises(InputError, match="this checkpoint is unconditional"):
        plan_labels(file_of(tmp_path, "a.txt", "3 1 2"), SEEDS, 0)


def table_of(*rows: str) -> str:
    return "seed,label\n5,3\n6,1\n9,2\n" + "".join(f"{row}\n" for row in rows)


HOSTILE_FILES = [
    ("a.txt", "3 ١ 2", "is no whole number"),  # a digit of another script
    ("a.txt", "3 1_0 2", "'1_0' is no whole number"),
    ("a.txt", "3 1.0 2", "'1.0' is no whole number"),
    ("a.txt", "3 1e0 2", "'1e0' is no whole number"),
    ("a.txt", f"3 {10**18} 2", "is no whole number"),
    ("a.txt", "9" * 5000, "is no whole number"),
    ("a.json", "[" * 100_000, "nested too deeply"),
    ("a.json", f"[{'9' * 5000}]", "not a list of whole numbers"),
    ("a.json", "[3, NaN, 2]", "it must be a list of integers"),
    ("a.json", "[3, 1e999, 2]", "it must be a list of integers"),
    ("a.npy", np.array([2**64 - 1, 1, 2], np.uint64), "class 18446744073709551615 of seed 5 is out of range"),
    ("a.npy", np.zeros(10**7, np.uint8), "holds 10000000 classes for 3 seeds"),
    ("a.csv", "label\n" + "1" * 200_000, "a line that is too long|one that is too long"),
    ("a.csv", 'label\n"1\n2"\n', "not a list of whole numbers"),
    ("a.csv", "seed,seed,label\n5,5,1\n", "its header names a column twice"),
    ("a.csv", "seed,label\n5,3,1\n", "a line has 3 columns, its header 2"),
    ("a.csv", "seed,label\n٥,3\n", "is no whole number"),
    ("a.csv", table_of("6,2"), "gives seed 6 the classes 1 and 2; keep the right one"),
    ("a.csv", table_of().replace("6,1", "6,1.0"), "'1.0' is no whole number"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), HOSTILE_FILES, ids=lambda value: str(value)[:24])
def test_a_hostile_file_of_classes(name: str, content: object, sentence: str, tmp_path: Path) -> None:
    rule = file_of(tmp_path, name, content)
    said = refusal(lambda: plan_labels(rule, SEEDS, 4))
    assert said.startswith(f"labels={rule}: ")
    assert re.search(sentence, said)
    assert "\n" not in said


def test_what_others_write_is_read(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", "\ufeff3 1 2"),
        ("b.csv", "\ufeff" + table_of("7,", "8,0")),
        ("c.csv", table_of("6,1").replace("\n", "\r\n")),
        (
            "d.csv",
            "seed,name,label\n" + "".join(f'{seed},"a, b",{label}\n' for seed, label in ((9, 2), (6, 1), (5, 3))),
        ),
        ("e.json", "[3, 1, 2]\n"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        labels = plan_labels(str(tmp_path / name), SEEDS, 4)
        assert labels is not None
        assert labels.tolist() == [3, 1, 2], name


def test_no_file_or_one_without_end(tmp_path: Path) -> None:
    (tmp_path / "dir.txt").mkdir()
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("dir.txt", "loop.txt", "zero.txt", "x" * 5000 + ".txt"):
        rule = str(tmp_path / name)
        said = refusal(lambda rule=rule: plan_labels(rule, SEEDS, 4), seconds=5)
        assert said.startswith("labels=")
        assert re.search("no such file|no file has such a name", said)


def test_a_fixed_class_in_plain_digits() -> None:
    for rule in ("fixed:٣", "fixed:1_0"):
        with pytest.raises(InputError, match="choose random, balanced"):
            plan_labels(rule, SEEDS, 4)
    for rule in ("fixed:" + "9" * 5000, "fixed:" + "9" * 19):
        with pytest.raises(InputError, match="no model has so many classes"):
            plan_labels(rule, SEEDS, 4)
