"""A mapped file as the file object that `pickletools` and `zipfile` read."""

import os

from scoreline.safe_pickle.limits import INTEGER, OBJECT, TEXT, FileError

LONGEST = {
    b"L": INTEGER, b"I": INTEGER, b"\x8b": INTEGER,  # LONG, INT, LONG4
    b"V": TEXT, b"S": TEXT, b"T": TEXT, b"X": TEXT, b"\x8d": TEXT,  # UNICODE, STRING, BINSTRING, BINUNICODE(8)
    b"\x96": TEXT,  # BYTEARRAY8
}  # fmt: skip
"""Opcode -> bytes that its argument may have; OTHERS for any other opcode."""

OTHERS = 4096
BYTES = {b"B", b"\x8e"}
"""BINBYTES and BINBYTES8: of any length, since they hold the numbers of tensors."""


class Window:
    """A forward reader that returns long `bytes` arguments as views of the file, which cost no memory.

    `pickletools` fetches each opcode by `read(1)` before its argument, so that the last single byte is the opcode.
    """

    def __init__(self, view: memoryview) -> None:
        self.view, self.place, self.code = view, 0, b""

    def tell(self) -> int:
        return self.place

    def left(self) -> int:
        return len(self.view) - self.place

    def slice(self, count: int) -> memoryview:
        """Return the next `count` bytes.

        Raises:
            FileError: if there are fewer.
        """
        if not 0 <= count <= self.left():
            raise FileError("it ends in the middle, as a broken download does; get the file anew")
        self.place += count
        return self.view[self.place - count : self.place]

    def read(self, count: int) -> bytes | memoryview:
        if count == 1:
            self.code = self.slice(1).tobytes()
            return self.code
        if self.code not in BYTES and count > LONGEST.get(self.code, OTHERS):
            raise FileError(f"its pickle holds a single value of {count:,} bytes, which no checkpoint needs")
        part = self.slice(count)
        return part.tobytes() if count <= OBJECT or self.code not in BYTES else part

    def readline(self) -> bytes:
        """Return one line with its end.

        Escapes are refused except in UNICODE: `pickletools` decodes them in names too, where pickle does not.
        """
        longest = LONGEST.get(self.code, OTHERS)
        size, end = 512, 0
        while not end:
            size = min(4 * size, longest)
            chunk = self.view[self.place : self.place + size].tobytes()
            end = chunk.find(b"\n") + 1
            if not end and size == longest < self.left():
                raise FileError(f"its pickle holds a line of more than {longest:,} bytes, which no checkpoint needs")
            if not end and size >= self.left():
                raise FileError("it ends in the middle of a line; get the file anew")
        line = chunk[:end]
        if b"\\" in line and self.code != b"V":
            raise FileError("its pickle holds a text with escapes, which no checkpoint needs; get the file anew")
        self.place += end
        return line


class Seekable:
    """The whole view for `zipfile`, which reads only directories, so that long reads are refused."""

    LONGEST = 2**23

    def __init__(self, view: memoryview) -> None:
        self.view, self.place = view, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: len(self.view)}[whence]
        if start + place < 0:
            raise OSError("before the start of the file")
        self.place = start + place
        return self.place

    def read(self, count: int = -1) -> bytes:
        end = len(self.view) if count < 0 else min(self.place + count, len(self.view))
        if end - self.place > self.LONGEST:
            raise FileError(f"the directory of its zip archive has more than {self.LONGEST:,} bytes")
        part = self.view[self.place : end].tobytes()
        self.place += len(part)
        return part
