"""The pickle machine against the standard library on plain values, and what it makes of records."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from assembled_pickles import Code, apply, built, call, name, program, stack_name, value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoreline.errors import InputError
from scoreline.safe_pickle import limits, trees
from scoreline.safe_pickle.limits import Budget, FileError
from scoreline.safe_pickle.machine import Machine, Name, Record, no_persistent, unknown
from scoreline.safe_pickle.torch_files import read
from scoreline.safe_pickle.window import Window

keys = st.one_of(
    st.text(), st.binary(), st.booleans(), st.none(), st.integers(-(2**59), 2**59), st.floats(allow_nan=False)
)
leaves = st.one_of(keys, st.integers(-(2**600), 2**600), st.builds(bytearray, st.binary()), st.complex_numbers())
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(keys, st.tuples(keys, keys)), inner),
        st.sets(keys),
        st.frozensets(keys),
    ),
)


def evaluated(data: bytes, inert: tuple[str, ...] = ()) -> Any:
    """By the bare machine, which knows no name but the inert ones."""

    def resolve(found: str) -> Name:
        if found not in inert:
            raise unknown(found)
        return Name(found)

    return Machine(resolve, no_persistent, Budget.of(len(data))).run(Window(memoryview(bytearray(data))))


def written(folder: Path, data: bytes) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(data)
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values, st.integers(0, 5))
def test_plain_values_are_those_of_the_standard_library(tmp_path: Path, x: Any, protocol: int) -> None:
    data = pickle.dumps([x], protocol)
    if protocol == 0 and b"\\" in data:
        return  # escapes of protocol 0 are refused, see the corpus
    found = read(written(tmp_path, data))
    assert repr(found) == repr(pickle.loads(data))


def test_shared_values_stay_shared(tmp_path: Path) -> None:
    part = [1]
    first, second = read(written(tmp_path, pickle.dumps((part, {"a": part}))))
    assert first is second["a"]


def test_calls_of_inert_names_become_complete_records() -> None:
    made = Code(
        value(apply(name("a.b", "C"), 1, "x"))
        + b"("
        + value(2)
        + value(3)
        + b"e"
        + b"("
        + value("k")
        + value([4])
        + b"u"
    )
    record = evaluated(program(built(made, {"s": None})), ("a.b.C",))
    assert isinstance(record, Record)
    assert (record.name, record.arguments, record.state) == ("a.b.C", (1, "x"), {"s": None})
    assert record.items == [2, 3]
    assert record.pairs == [("k", [4])]


def test_newobj_and_a_bare_name_of_inert_names() -> None:
    made, bare = evaluated(program((Code(name("a", "C").code + b")\x81"), stack_name("a", "C"))), ("a.C",))
    assert isinstance(made, Record)
    assert made.arguments == ()
    assert bare == Name("a.C")


def test_the_keys_of_a_record_need_no_hash() -> None:
    record = evaluated(program(Code(call("a.C").code + b"(]" + value(1) + b"u")), ("a.C",))
    assert record.pairs == [([], 1)]


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (apply(call("a.C"), 1), "calls the result of a.C"),
        (built(built(call("a.C"), {}), {"more": 1}), "sets attributes of a Record"),
        (Code(call("a.C").code + value([1]) + b"(" + value(2) + b"\x90"), "adds to a list"),
        (Code(b"}" + call("a.C").code + value(1) + b"s"), "uses a Record as a key"),
        (Code(name("a", "C").code + value([1]) + b"R"), "no tuple of arguments"),
        (call("a.D"), r"names a\.D"),
    ],
)
def test_records_are_never_carried_out(attack: Code, reason: str) -> None:
    with pytest.raises(FileError, match=reason):
        evaluated(program(attack), ("a.C",))


def test_a_refused_name_comes_with_both_remedies(tmp_path: Path) -> None:
    path = written(tmp_path, program(call("posix.system", "true")))
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: its pickle names posix.system, which no checkpoint needs and which was not run")
    assert message.endswith("allow=[posix.system]")
    assert "safetensors" in message
    record = read(path, inert=["posix.system"])
    assert (record.name, record.arguments) == ("posix.system", ("true",))


def test_names_are_shown_in_ascii_on_one_line() -> None:
    assert str(unknown("оs.sys\ntem\x1b[2J" + "x" * 500)).startswith(r"its pickle names \u043es.sys\ntem\x1b[2Jxxx")
    assert len(str(unknown("x" * 10**6))) < 500


def test_containers_are_never_spelled_out_in_messages() -> None:
    laugh: Any = ()
    for _ in range(100):
        laugh = (laugh, laugh)
    assert limits.excerpt(laugh) == "a tuple"
    assert limits.excerpt((1, "a")) == "(1, 'a')"


def test_a_budget_ends() -> None:
    budget = Budget(3, 10)
    budget.step(3)
    budget.copy(10)
    with pytest.raises(FileError, match="steps"):
        budget.step()
    with pytest.raises(FileError, match="copies"):
        budget.copy(1)


def nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth - 1):
        made = [made]
    return made


def test_the_deepest_tree_and_one_deeper() -> None:
    tree = nested(limits.DEPTH)
    assert trees.check(tree) is tree
    with pytest.raises(FileError, match="deep"):
        trees.check(nested(limits.DEPTH + 1))


def test_depth_counts_through_shared_containers() -> None:
    low = nested(limits.DEPTH - 1)
    high = [low, [low]]
    with pytest.raises(FileError, match="deep"):
        trees.check(high)


def test_size_counts_shared_containers_once_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "NODES", 9)
    part = [1, 2, 3]
    trees.check([part, part])
    with pytest.raises(FileError, match="unfolds"):
        trees.check([part, part, 0])


def test_a_record_that_holds_itself_is_refused() -> None:
    record = Record("a", ())
    record.state = {"self": record}
    with pytest.raises(FileError, match="inside itself"):
        trees.check(record)
