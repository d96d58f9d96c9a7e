import pytest

from scoreline.errors import InputError
from scoreline.labels import plan_labels
from scoreline.seeds import parse_seeds


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
