"""
What runs in the reader and in the writer of a pipeline, and how they talk to the host.

A frame is the length of what follows (8 bytes) and one pickled item, which may be empty, as the
user's own serializer decides that. The end is a length that nothing has. Both ends are ours, which
the stage shows by a secret.
"""

from __future__ import annotations

import os
import socket

from killercall import _payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

LENGTH = 8
# Longer ones are no frames of ours.
_LENGTH_MAX = 2**40
_END = b"\xff" * LENGTH


def send_frame(connection: socket.socket, body: bytes) -> None:
    """Sends one frame; waits for room."""
    length = len(body).to_bytes(LENGTH, "little")
    if len(body) < 1 << 16:
        connection.sendall(length + body)
    else:
        connection.sendall(length)
        connection.sendall(body)


def send_end(connection: socket.socket) -> None:
    """After this there are no more frames."""
    connection.sendall(_END)


def frames(connection: socket.socket) -> Iterator[bytes]:
    """The frames up to the end; `EOFError` if the other side is gone before that."""
    with connection.makefile("rb", 1 << 16) as stream:
        while True:
            head = _exactly(stream, LENGTH)
            if head == _END:
                return
            length = int.from_bytes(head, "little")
            if length > _LENGTH_MAX:
                message = f"a frame of {length} bytes"
                raise EOFError(message)
            yield _exactly(stream, length)


def _exactly(stream: Any, length: int) -> bytes:
    body: bytes = stream.read(length)
    if len(body) < length:
        message = "the other side is gone"
        raise EOFError(message)
    return body


def _leave_unless(process: int) -> None:
    """A child that the reader forked has come back here: it must not speak for us."""
    if os.getpid() != process:
        os._exit(0)


class Stage:
    """A function of the user's that runs in a worker and is connected to the host."""

    def __init__(
        self, function: Callable[..., Any], address: str | bytes, secret: bytes, serializer: Any
    ) -> None:
        self.function = function
        self.address = address
        self.secret = secret
        self.serializer = serializer
        # For messages.
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def connect(self) -> socket.socket:
        """The connection to the host."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.address)
        connection.sendall(self.secret)
        return connection


class Reader(Stage):
    """Sends the items of an iterable to the host, or lists of them."""

    batch: int | None = None

    def __call__(self) -> None:
        serializer = _payload.serializer_from(self.serializer)
        process = os.getpid()
        with self.connect() as connection:
            for item in self.grouped(self.function()):
                frame = _payload.dumps(serializer, item, "item")
                _leave_unless(process)
                send_frame(connection, frame)
            _leave_unless(process)
            send_end(connection)

    def grouped(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, or lists of them."""
        if self.batch is None:
            yield from items
            return
        group: list[Any] = []
        for item in items:
            group.append(item)
            if len(group) == self.batch:
                yield group
                group = []
        if group:
            yield group


class Writer(Stage):
    """Calls the function with an iterator of the results."""

    def __call__(self) -> Any:
        serializer = _payload.serializer_from(self.serializer)
        with self.connect() as connection:
            received = _of_process(os.getpid(), frames(connection))
            return self.function(serializer.loads(frame) for frame in received)


def _of_process(process: int, received: Iterator[bytes]) -> Iterator[bytes]:
    """What a child that the writer forked took from the connection, the writer would wait for."""
    while True:
        if os.getpid() != process:
            message = f"the results go to process {process}, of which this one is a forked copy"
            raise RuntimeError(message)
        try:
            frame = next(received)
        except StopIteration:
            return
        yield frame
