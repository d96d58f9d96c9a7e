"""A pickle machine that executes nothing.

A pickle is a program for a small stack machine. `pickletools.genops` of the standard library splits it into opcodes,
and the machine below evaluates them on plain values. A name in the pickle (`posix.system`) is never imported: it is
looked up in a table, and refused if it is not there. A call in the pickle calls one of our functions, or becomes a
`Record`, which is never called.

Trusted: `pickletools` (opcodes and their arguments) and `struct` through it. `pickle` itself is not used.
"""

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, cast

from scoreline.safe_pickle.limits import CALL, Budget, FileError, excerpt
from scoreline.safe_pickle.window import Window

KEY_PARTS = 16
"""Length of the longest tuple that may be a key; a hostile key could take forever to hash."""

LARGEST_KEY = 2**60
"""Limit of integer keys; larger ones share hash values, so that a dict of them is slow."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a pickle. A call of it calls our function `call`, or makes a `Record` if there is none."""

    name: str
    call: Callable[..., Any] | None = field(default=None, repr=False, compare=False)


@dataclass(eq=False, slots=True)
class Record:
    """An object that a pickle describes and that is never created.

    When to use it: to read facts off an object of an unknown class, such as the arguments of EDM's networks.

    Attributes:
        name: full name of the class or function that pickle would call.
        arguments: arguments of that call.
        state: the argument of BUILD, usually a dict of attributes; None without one.
        items: items that pickle would append.
        pairs: keys and values that pickle would set, in order.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


def _without_parent(name: str, state: Any) -> Any:
    """Drop the parent in the state of an omegaconf node, since a tree must not hold itself."""
    if name.startswith("omegaconf.") and type(state) is dict:
        return {key: value for key, value in state.items() if key != "_parent"}
    return state


class Unfinished:
    """The result of one of our functions before BUILD, whose state `finish` turns into the value."""

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.value: Any = self


def unknown(name: str) -> FileError:
    """Return the refusal of a name."""
    name = excerpt(name)
    return FileError(
        f"its pickle names {name}, which no checkpoint needs and which was not run; ask for a safetensors file "
        f"or, if you trust where it comes from, keep it as an inert record by allow=[{name}]"
    )


def no_persistent(_: Any) -> Any:
    """Refuse a persistent id in a pickle outside of torch's formats.

    Raises:
        FileError: always.
    """
    raise FileError("its pickle points to objects outside of itself, which only torch's own formats may do")


def check_key(key: Any, budget: Budget) -> Any:
    """Return the key of a dict or item of a set if it is safe to hash.

    Raises:
        FileError: if it is neither a plain value nor a short tuple of them, or if there are too many that are no text.
    """
    budget.key(key)
    parts = key if type(key) is tuple else (key,)
    if len(parts) > KEY_PARTS or not all(_plain(part) for part in parts):
        raise FileError(f"its pickle uses a {type(key).__name__} as a key that is no plain value; get the file anew")
    return key


def _plain(part: Any) -> bool:
    if type(part) is int:
        return abs(part) < LARGEST_KEY
    return part is None or type(part) in (str, bytes, bool, float)


class Machine:
    """An evaluator of pickles.

    When to use it: `torch_files.read` is the front for checkpoints; use the machine for other pickles, with a
    table of the names that they need, as `datasets.cifar_pickle` does.

    Args:
        resolve: name -> value; raises `unknown` for a name that is not admitted.
        persistent: persistent id -> value.
        budget: steps and copies that are left.
    """

    def __init__(self, resolve: Callable[[str], Any], persistent: Callable[[Any], Any], budget: Budget) -> None:
        self.resolve, self.persistent, self.budget = resolve, persistent, budget

    def run(self, window: Window) -> Any:
        """Return the value of the pickle at the window's place, and move the window behind it.

        Raises:
            FileError: for a damaged pickle, or one that needs more than plain values, our functions and records.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], window)):
            self.budget.step()
            operation = OPERATIONS.get(opcode.name)
            if operation is None:
                raise FileError(f"its pickle uses {opcode.name}, which no checkpoint needs; ask for a safetensors file")
            operation(self, argument)
        value = self.pop()
        if self.stack or self.marks:
            raise FileError("its pickle is damaged (values are left over); get the file anew")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise FileError("its pickle is damaged (a value is missing); get the file anew")
        return self.stack.pop()

    def top(self) -> Any:
        self.push(value := self.pop())
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise FileError("its pickle is damaged (a mark is missing); get the file anew")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise FileError("its pickle is damaged (a name is no text); get the file anew")
        self.push(self.resolve(f"{module}.{name}"))

    def called(self, function: Any, arguments: Any) -> Any:
        """Return the value of REDUCE and NEWOBJ."""
        if type(function) is not Name:
            what = function.name if type(function) is Record else type(function).__name__
            raise FileError(
                f"its pickle calls the result of {excerpt(what)}, which no checkpoint needs; nothing was run"
            )
        if type(arguments) is not tuple:
            raise FileError(f"its pickle calls {excerpt(function.name)} with no tuple of arguments; get the file anew")
        self.budget.step(CALL)
        if function.call is None:
            return Record(function.name, arguments)
        try:
            return function.call(*arguments)
        except FileError:
            raise
        except Exception as error:  # a hostile pickle can make our functions raise anything; none of it may pass
            reason = f"its pickle calls {excerpt(function.name)} with arguments that do not fit"
            raise FileError(f"{reason} ({excerpt(str(error))}); get the file anew") from error

    def new_object(self, function: Any, arguments: Any) -> Any:
        """Return the value of NEWOBJ, which only names without a function of ours allow."""
        if type(function) is Name and function.call is not None:
            raise FileError(f"its pickle makes a {excerpt(function.name)} in a way that no checkpoint needs")
        return self.called(function, arguments)

    def build(self, state: Any) -> None:
        """Set the state of the value on top."""
        target = self.top()
        if type(target) is Unfinished:
            target.value = self.stack[-1] = target.finish(state)
        elif type(target) is Record and target.state is None:
            target.state = _without_parent(target.name, state)
        # a state dict may carry torch's `_metadata`, which is dropped; any other state of a plain value is refused
        elif not (type(target) is dict and type(state) is dict and state.keys() <= {"_metadata"}):
            keys = f" ({', '.join(excerpt(key) for key in list(state)[:3])})" if type(state) is dict else ""
            raise FileError(f"its pickle sets attributes of a {type(target).__name__}{keys}, which no checkpoint needs")

    def set_items(self, target: Any, values: list[Any]) -> None:
        if len(values) % 2:
            raise FileError("its pickle is damaged (a key without a value); get the file anew")
        pairs = zip(values[::2], values[1::2], strict=True)
        if type(target) is Record:
            target.pairs.extend(pairs)
        elif type(target) is dict:
            target.update((check_key(key, self.budget), value) for key, value in pairs)
        else:
            raise FileError(f"its pickle sets items of a {type(target).__name__}; get the file anew")

    def append(self, target: Any, values: list[Any]) -> None:
        if type(target) is Record:
            target.items.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise FileError(f"its pickle appends to a {type(target).__name__}; get the file anew")

    def add(self, target: Any, values: Iterable[Any]) -> None:
        if type(target) is not set:
            raise FileError(f"its pickle adds to a {type(target).__name__}; get the file anew")
        target.update(check_key(value, self.budget) for value in values)

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise FileError("its pickle is damaged (it recalls a value that it never kept); get the file anew")
        value = self.memo[place]
        self.push(value.value if type(value) is Unfinished else value)

    def put(self, place: int) -> None:
        self.memo[place] = self.top()


def _protocol(_: Machine, version: int) -> None:
    if version > 5:
        raise FileError(f"its pickle is of protocol {version}, which does not exist; get the file anew")


def _tuple(machine: Machine, count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(values[::-1]))


def _dict(machine: Machine, _: Any) -> None:
    pairs: dict[Any, Any] = {}
    machine.set_items(pairs, machine.pop_mark())
    machine.push(pairs)


def _global(machine: Machine, argument: str) -> None:
    module, _, name = argument.rpartition(" ")
    machine.named(module, name)


def _inst(machine: Machine, argument: str) -> None:
    _global(machine, argument)
    raise FileError("its pickle uses INST, which no checkpoint needs; ask for a safetensors file")


def _stack_global(machine: Machine, _: Any) -> None:
    name = machine.pop()
    machine.named(machine.pop(), name)


def _reduce(machine: Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.push(machine.called(machine.pop(), arguments))


def _newobj(machine: Machine, _: Any) -> None:
    arguments = machine.pop()
    machine.push(machine.new_object(machine.pop(), arguments))


def _setitem(machine: Machine, _: Any) -> None:
    value = machine.pop()
    key = machine.pop()
    machine.set_items(machine.top(), [key, value])


def _append(machine: Machine, _: Any) -> None:
    value = machine.pop()
    machine.append(machine.top(), [value])


def _of_mark(method: Callable[[Machine, Any, list[Any]], None]) -> Callable[[Machine, Any], None]:
    """Return the operation that puts the values above the mark into the container below it."""

    def operation(machine: Machine, _: Any) -> None:
        values = machine.pop_mark()
        method(machine, machine.top(), values)

    return operation


def _frozenset(machine: Machine, _: Any) -> None:
    machine.push(frozenset([check_key(value, machine.budget) for value in machine.pop_mark()]))


OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: _tuple(machine, 1),
    "TUPLE2": lambda machine, _: _tuple(machine, 2),
    "TUPLE3": lambda machine, _: _tuple(machine, 3),
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "APPEND": _append,
    "APPENDS": _of_mark(Machine.append),
    "SETITEM": _setitem,
    "SETITEMS": _of_mark(Machine.set_items),
    "ADDITEMS": _of_mark(Machine.add),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark().clear(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "GET": Machine.get,
    "BINGET": Machine.get,
    "LONG_BINGET": Machine.get,
    "PUT": Machine.put,
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "REDUCE": _reduce,
    "NEWOBJ": _newobj,
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.pop())),
}
"""The operation of each opcode. OBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, PERSID and out-of-band buffers are refused."""

VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""Opcodes whose argument is their value."""

OPERATIONS |= dict.fromkeys(VALUES, Machine.push)
