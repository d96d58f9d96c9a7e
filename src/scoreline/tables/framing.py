"""Messages between a table and the process that forks its cells: JSON behind its length, one file with it at most."""

import json
import os
import socket
import struct
from typing import Any

HEAD = struct.Struct("!I")
Message = dict[str, Any]


def send(channel: socket.socket, message: Message, file: int | None = None) -> None:
    """Send a message, and a file descriptor with it.

    Raises:
        OSError: if the other side is gone.
    """
    text = json.dumps(message).encode()
    head = HEAD.pack(len(text))
    if file is None:
        channel.sendall(head)
    else:
        socket.send_fds(channel, [head], [file])
    channel.sendall(text)


def receive(channel: socket.socket) -> tuple[Message, int | None] | None:
    """The next message and the file that came with it; None when the other side is gone."""
    try:
        head, files, _, _ = socket.recv_fds(channel, HEAD.size, 1)
        file = files[0] if files else None
        text = _exactly(channel, HEAD.unpack(head + _exactly(channel, HEAD.size - len(head)))[0]) if head else b""
    except (ConnectionError, EOFError):
        return None
    return (json.loads(text), file) if text else None


def _exactly(channel: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = channel.recv(size - len(found))
        if not part:
            raise EOFError(f"{len(found)} of {size} bytes came")
        found += part
    return found


def signal_pipe() -> tuple[int, int]:
    """A pipe that never blocks: the interpreter writes to its second end when a signal comes."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends
