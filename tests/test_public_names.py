"""The public names of `import scoreline`."""

import inspect

import pytest

import scoreline


@pytest.mark.parametrize("name", sorted(set(scoreline.__all__) - {"__version__"}))
def test_a_public_name_resolves_and_explains_itself(name: str) -> None:
    found = getattr(scoreline, name)
    assert found.__name__.rpartition(".")[2] == name
    assert (found.__name__ if inspect.ismodule(found) else found.__module__).startswith("scoreline.")
    text = inspect.getdoc(found) or ""
    assert len(text) > 20
    assert not text.startswith(f"{name}("), "a dataclass without a docstring"


def test_a_module_is_imported_as_a_name_or_used_as_an_attribute() -> None:
    from scoreline import calibrate

    assert calibrate is scoreline.calibrate
    assert {"score_norm", "score_optimal", "search", "learn", "load"} < set(calibrate.__all__)


def test_dir_lists_the_public_names_only() -> None:
    assert dir(scoreline) == sorted(scoreline.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        scoreline.no_such_name  # noqa: B018
