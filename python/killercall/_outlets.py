"""
Where in the host what workers print and log goes: to its `sys.stdout`, `sys.stderr` and `logging`.

A worker is told with its surroundings what of it to send here. The rest it writes itself to the
descriptors that it has inherited, as long as those are what the host's own streams write to.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from _contextvars import copy_context

from killercall import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable
    from typing import Any

    from killercall._options import Options

    # What workers have said: 1 for standard output, 2 for standard error, 0 for a log record; and
    # bytes.
    Said = list[tuple[int, bytes]]
    # The levels of loggers that have one, by name, what `logging.disable` was called with, and the
    # files that handlers write to. None if records are not wanted.
    Logs = tuple[tuple[tuple[str, int], ...], int, tuple[str, ...]] | None
    # Whether standard output and standard error are to be sent, and which log records.
    Told = tuple[bool, bool, Logs]
else:
    import _pickle as pickle

_STREAMS = {1: "stdout", 2: "stderr"}
# What Python opens standard streams as: with buffers, and without.
_FILES = (io.BufferedWriter, io.FileIO)

# A key in a cache of the root logger, which `logging` clears when the level of any logger changes.
_SEEN = "killercall"


class Outlets:
    """
    What the host does with output and log records, as it was when this was made.

    Attributes:
        told: what workers are told of it.
        watch: whether it is still so.
        flush: has to be called before workers write to the host's standard output, so that what is
            in its buffer comes first; None if they do not.
    """

    def __init__(self, told: Told, watch: _core.Captures, flush: Callable[[], None] | None) -> None:
        self.told = told
        self.watch = watch
        self.flush = flush


# What each descriptor led to when the forkserver was started, whose workers have inherited it.
_inherited: dict[int, tuple[int, int] | None] = {}


def note_descriptors() -> None:
    """The forkserver is about to be started."""
    for fd in _STREAMS:
        _inherited[fd] = _identity(fd)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def current(options: Options, *, forks: bool) -> Outlets:
    """For these options, of workers that have the host's descriptors of now if it `forks`."""
    output = options.forward_output
    streams = [getattr(sys, name, None) for name in _STREAMS.values()]
    direct = [
        _is_direct(stream, fd) and (forks or _inherited.get(fd) == _identity(fd))
        for stream, fd in zip(streams, _STREAMS, strict=True)
    ]
    out, err = [not found if output is None else output for found in direct]
    items: list[tuple[Any, Any]] = [(vars(sys), name) for name in _STREAMS.values()]
    lists: list[list[Any]] = []
    logs = _logs(items, lists) if options.forward_logging else None
    watch = _core.Captures(items, [], [], [], lists)
    flush = getattr(streams[0], "flush", None) if direct[0] and not out else None
    return Outlets((out, err, logs), watch, flush)


def _is_direct(stream: Any, fd: int) -> bool:
    """Whether all that is written to it comes to this descriptor, or nowhere."""
    if stream is None:
        return True
    if type(stream) is not io.TextIOWrapper:
        return False
    try:
        return type(stream.buffer) in _FILES and stream.fileno() == fd
    except (OSError, ValueError):
        # It is closed. Workers may have the descriptor all the same.
        return True


def flush_all(outlets: Outlets) -> None:
    """Before calls begin: what is in the host's buffers comes before what workers write."""
    for name, is_sent in zip(_STREAMS.values(), outlets.told[:2], strict=True):
        stream = getattr(sys, name, None)
        if is_sent or type(stream) is not io.TextIOWrapper:
            continue
        # Whoever prints is told of it.
        with contextlib.suppress(Exception):
            stream.flush()


def _logs(items: list[tuple[dict[Any, Any], Any]], lists: list[list[Any]]) -> Logs:
    """What loggers there are to say of levels and files; adds what tells that it is out of date."""
    logging = sys.modules.get("logging")
    root = getattr(logging, "root", None)
    if logging is None or root is None:
        # It is not imported, or not yet: then all is as it is from the start.
        items.append((sys.modules, "logging"))
        return (), 0, ()
    cache, handlers = getattr(root, "_cache", None), getattr(logging, "_handlerList", None)
    if type(cache) is dict:
        # Before the look, so that what changes meanwhile is seen the next time.
        cache[_SEEN] = True
        items.append((cache, _SEEN))
    if type(handlers) is list:
        lists.append(handlers)
    loggers = [("", root), *list(root.manager.loggerDict.items())]
    levels = [(name, getattr(logger, "level", 0)) for name, logger in loggers]
    files = {getattr(handler(), "baseFilename", None) for handler in list(handlers or ())}
    return (
        tuple(sorted(entry for entry in levels if entry[1])),
        root.manager.disable,
        tuple(sorted(name for name in files if isinstance(name, str))),
    )


def listener() -> Callable[[Said], None]:
    """
    Does with what workers say what the caller would do with it.

    Whichever thread hears of it: a notebook knows by the context which cell a text belongs to.
    """
    context = copy_context()
    return lambda said: context.run(listen, said)


def listen(said: Said) -> None:
    """Writes and logs what workers have said, in its order."""
    at = 0
    while at < len(said):
        stream, data = said[at]
        at += 1
        if not stream:
            _log(data)
            continue
        parts = [data]
        while at < len(said) and said[at][0] == stream:
            parts.append(said[at][1])
            at += 1
        _write(_STREAMS[stream], b"".join(parts).decode("utf-8", "backslashreplace"))


# Of which streams, and of logging, it was said that they fail.
_failing: set[str] = set()


def _write(name: str, text: str) -> None:
    stream = getattr(sys, name, None)
    if stream is None:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if getattr(stream, "line_buffering", False):
            # The worker has decided that it is to be seen, be it a whole line or not.
            stream.flush()
    except Exception as error:
        _complain(f"what workers print cannot be written to sys.{name}", name, error)
    else:
        _failing.discard(name)


def _log(data: bytes) -> None:
    import logging

    try:
        record = logging.makeLogRecord(pickle.loads(data))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except Exception as error:
        _complain("a worker's log record cannot be handled", "logging", error)
    else:
        _failing.discard("logging")


def _complain(what: str, name: str, error: Exception) -> None:
    """Once, until it works again: a call is not lost because nobody can read what it prints."""
    if name in _failing:
        return
    _failing.add(name)
    import warnings

    message = f"{what}: {type(error).__name__}: {error}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


__all__ = ["Outlets", "current", "flush_all", "listen", "listener", "note_descriptors"]
