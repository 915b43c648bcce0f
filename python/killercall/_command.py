"""
A command line in a worker: what `killer_exec` runs there.

The worker hands on what the command writes as it comes, so that the host has it whatever happens
to the worker. It travels in pieces, each with the number of its stream and its length in front.
"""

from __future__ import annotations

import functools
import os
import selectors
import struct
import subprocess
import threading

from killercall import _core
from killercall._inside import append

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STDOUT, STDERR = 1, 2

_HEAD = struct.Struct("<BI")
_PIECE = _core.APPEND_MAX - _HEAD.size


def run(cmd: Any, given: bytes | None, keywords: dict[str, Any]) -> int:
    """Runs it to its end, with all that it has started; returns its exit code."""
    process = subprocess.Popen[bytes](cmd, bufsize=0, **keywords)
    pump = _Pump(process, given)
    pump.run()
    # Where it waits for what it has left behind, that has a hold of its pipes.
    _core.end_descendants()
    pump.drain()
    return process.returncode


def split(appended: bytes) -> dict[int, bytes]:
    """In the host: the streams that are in there."""
    found: dict[int, list[memoryview]] = {STDOUT: [], STDERR: []}
    view, at = memoryview(appended), 0
    while at < len(view):
        stream, length = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        found[stream].append(view[at : at + length])
        at += length
    return {stream: b"".join(pieces) for stream, pieces in found.items()}


class _Pump:
    """Writes what a process is given, and hands on what it writes."""

    def __init__(self, process: subprocess.Popen[bytes], given: bytes | None) -> None:
        self._process = process
        self._given = memoryview(given or b"")
        self._selector = selectors.DefaultSelector()
        for stream, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, (stream, pipe.close))
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(
                process.stdin, selectors.EVENT_WRITE, (None, process.stdin.close)
            )

    def run(self) -> None:
        """Until the process has ended."""
        bell, ringer = os.pipe()
        close = functools.partial(os.close, bell)
        self._selector.register(bell, selectors.EVENT_READ, (None, close))
        waiter = threading.Thread(target=self._wait, args=(ringer,))
        waiter.start()
        while bell in self._selector.get_map():
            self._turn(None)
        waiter.join()

    def _wait(self, ringer: int) -> None:
        self._process.wait()
        os.close(ringer)

    def drain(self) -> None:
        """What is left in its pipes; some program that may not be killed may hold them open."""
        while self._turn(0):
            pass

    def _turn(self, limit: float | None) -> bool:
        events = self._selector.select(limit) if self._selector.get_map() else []
        for key, _ in events:
            if key.data[0] is not None:
                self._read(key)
            elif key.events & selectors.EVENT_WRITE:
                self._write(key)
            else:
                self._close(key)
        return bool(events)

    def _read(self, key: selectors.SelectorKey) -> None:
        piece = os.read(key.fd, _PIECE)
        if piece:
            append(_HEAD.pack(key.data[0], len(piece)) + piece)
        else:
            self._close(key)

    def _write(self, key: selectors.SelectorKey) -> None:
        try:
            written = os.write(key.fd, self._given) if self._given else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            # It reads no more.
            written = len(self._given)
        self._given = self._given[written:]
        if not self._given:
            self._close(key)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        key.data[1]()


__all__ = ["STDERR", "STDOUT", "run", "split"]
