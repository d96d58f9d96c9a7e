"""Limits on a foreign file, and the exception of the modules that read one."""

from dataclasses import dataclass

STEPS = 2_000_000
"""Opcodes of one file; ten thousand tensors take 0.6 million in a file of torch.save, 1.2 million in a plain pickle."""

CALL = 10
"""Steps for the call of one of our functions, so that a small file cannot ask for millions of tensors."""

COPIES = 2**26
"""Bytes that may be copied beyond one copy of the whole file."""

TEXT = 2**26
"""Bytes of one string."""

OBJECT = 2**20
"""Bytes of one `bytes` object; longer ones are views of the file that only a tensor may use."""

INTEGER = 1024
"""Bytes or digits of one integer."""

DEPTH = 200
"""Containers inside one another."""

NODES = 5_000_000
"""Values of the tree; a shared one counts once for each place that holds it."""

CONTAINERS = 500_000
"""Containers of the tree; ten thousand tensors with their averages and optimiser take a tenth of it."""

KEYS = 2**15
"""Keys of dicts and sets that are no text; an attacker can make them all collide, which takes quadratic time."""

TUPLE = 8
"""Number of such keys for which a tuple counts, since it takes longer to compare."""


class FileError(ValueError):
    """The reason why a file is refused, as a message behind `PATH: `; it leaves this package as an `InputError`."""


@dataclass(slots=True)
class Budget:
    """The steps and bytes to copy that are left, shared by all parts of one file."""

    steps: int
    copies: int
    keys: int = KEYS

    @classmethod
    def of(cls, size: int) -> "Budget":
        """Return the budget of a file of `size` bytes."""
        return cls(STEPS, size + COPIES)

    def step(self, count: int = 1) -> None:
        """Take steps.

        Raises:
            FileError: if none are left.
        """
        self.steps -= count
        if self.steps < 0:
            raise FileError("its pickle takes more steps than any checkpoint needs; get the file anew")

    def key(self, key: object) -> None:
        """Count a key that is no text; hash values of texts are unpredictable, so that those need no limit.

        Raises:
            FileError: for more than `KEYS` of them.
        """
        if type(key) in (int, float, tuple):
            self.keys -= TUPLE if type(key) is tuple else 1
        if self.keys < 0:
            raise FileError(f"its pickle uses more than {KEYS:,} numbers as keys, which no checkpoint needs")

    def copy(self, count: int) -> None:
        """Count copied bytes.

        Raises:
            FileError: if they are more than the file and `COPIES`.
        """
        self.copies -= count
        if self.copies < 0:
            raise FileError("its pickle copies the same bytes many times, which no checkpoint needs; get the file anew")


def excerpt(value: object, longest: int = 120) -> str:
    """Show a value of a file in a message: one line of ASCII, shortened; of a container only its type.

    The text of a container may be exponentially long in the size of the file.
    """
    parts = value if type(value) is tuple and len(value) <= 8 else (value,)
    if not all(part is None or type(part) in (str, bytes, int, float, bool) for part in parts):
        return f"a {type(value).__name__}"
    text = (value if type(value) is str else repr(value))[: longest + 1]
    plain = text.encode("ascii", "backslashreplace").decode()
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
    return plain if len(plain) <= longest else f"{plain[:longest]}.."
