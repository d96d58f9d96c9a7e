"""The names in a pickle, without a value of any of them."""

from contextlib import suppress
from typing import Any

from scoreline.safe_pickle.limits import CALL, Budget
from scoreline.safe_pickle.machine import Machine, Name, Record
from scoreline.safe_pickle.window import Window

BYTES = "_codecs.encode"
"""How protocols up to 2 spell bytes."""

NESTED = "torch.storage._load_from_bytes"

FILE = 5
"""Number of pickles in a legacy torch file."""


class Survey(Machine):
    """A machine that notes names: it keeps texts, of which names consist, and takes every call for a record."""

    def __init__(self, budget: Budget, names: set[str], nested: bool) -> None:
        super().__init__(self.note, lambda _: None, budget)
        self.found, self.nested = names, nested

    def all(self, window: Window, pickles: int) -> None:
        for _ in range(pickles):
            self.run(window)

    def note(self, name: str) -> Name:
        self.found.add(name)
        return Name(name)

    def called(self, function: Any, arguments: Any) -> Any:
        self.budget.step(CALL)
        first = arguments[0] if type(arguments) is tuple and arguments else None
        name = function.name if type(function) is Name else ""
        if name == BYTES and type(first) is str:
            self.budget.copy(len(first))
            return first.encode("latin1", "replace")
        if name == NESTED:
            self.inside(first)
        return Record("", ())

    def inside(self, content: Any) -> None:
        """Note the names in the bytes of a torch file inside the pickle, as far as they can be read."""
        if not self.nested and type(content) in (bytes, memoryview):
            with suppress(ValueError):
                Survey(self.budget, self.found, True).all(Window(memoryview(content)), FILE)

    def build(self, state: Any) -> None:
        self.top()

    def set_items(self, target: Any, values: list[Any]) -> None:
        pass

    def append(self, target: Any, values: list[Any]) -> None:
        pass

    def add(self, target: Any, values: Any) -> None:
        pass


def names(view: memoryview, budget: Budget, pickles: int) -> set[str]:
    """Return the names in the first pickles of the view."""
    names: set[str] = set()
    Survey(budget, names, False).all(Window(view), pickles)
    return names
