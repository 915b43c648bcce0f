"""
In a worker that has imported `logging`: its records go to the host, whose handlers get them.

The levels of the host's loggers are followed, so that what nobody wants is not even made. Handlers
of the worker's own are called too, but not those that would say the same twice, or write to a file
that the host writes to: of a file that is rotated only one process may do that.
"""

from __future__ import annotations

import logging
import os
import sys

from killercall import _payload

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from typing import Any

    from killercall import _core
    from killercall._outlets import Logs
else:
    import _pickle as pickle


class Sender:
    """Sends the records of this process."""

    def __init__(self, channel: _core.Channel, own: tuple[Any, ...], *, inherited: bool) -> None:
        self._channel = channel
        self._pid = os.getpid()
        # The standard streams, as they were and are.
        self._own = own
        # The host's handlers, in a copy of it.
        self._theirs = [found() for found in logging._handlerList] if inherited else []  # type: ignore[attr-defined]
        self._files: frozenset[str] = frozenset()
        self._levels: dict[str, int] = {}
        self._is_on = False
        # Only for what it does about errors, and for tracebacks.
        self._handler = logging.NullHandler()
        self._formatter = logging.Formatter()

    def apply(self, logs: Logs) -> None:
        """From now on it is as the host says."""
        self._is_on = logs is not None
        if logs is None:
            return
        levels, disabled, files = dict(logs[0]), logs[1], logs[2]
        self._files = frozenset(files)
        levels.setdefault("", logging.WARNING)
        for name in self._levels.keys() - levels.keys():
            logging.getLogger(name).setLevel(logging.NOTSET)
        for name, level in levels.items():
            logger = logging.getLogger(name) if name else logging.root
            if logger.level != level:
                logger.setLevel(level)
        self._levels = levels
        if logging.root.manager.disable != disabled:
            logging.disable(disabled)

    def is_on(self) -> bool:
        """Whether records are sent. Not by a process that the function has forked."""
        return self._is_on and os.getpid() == self._pid

    def call_handlers(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Sends a record, and calls the handlers that are the worker's own."""
        try:
            data = self._packed(record)
        except Exception:
            # As a handler that fails.
            self._handler.handleError(record)
        else:
            self._channel.log(data)
        found: logging.Logger | None = logger
        while found is not None:
            for handler in found.handlers:
                if record.levelno >= handler.level and not self._is_muted(handler):
                    handler.handle(record)
            found = found.parent if found.propagate else None

    def _packed(self, record: logging.LogRecord) -> bytes:
        fields = dict(vars(record))
        if record.exc_info and not record.exc_text:
            fields["exc_text"] = self._formatter.formatException(record.exc_info)
        fields.update(msg=record.getMessage(), args=None, exc_info=None)
        try:
            return pickle.dumps(fields, _payload.PROTOCOL)
        except Exception:
            # What the caller has added to it, by `extra`.
            told = {name: _picklable(value) for name, value in fields.items()}
            return pickle.dumps(told, _payload.PROTOCOL)

    def _is_muted(self, handler: logging.Handler) -> bool:
        if handler in self._theirs:
            return True
        if isinstance(handler, logging.FileHandler):
            return handler.baseFilename in self._files
        if isinstance(handler, logging.StreamHandler):
            standard = (*self._own, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
            return any(handler.stream is stream for stream in standard)
        return False


def _picklable(value: Any) -> Any:
    if type(value) in _payload.ATOMS:
        return value
    try:
        pickle.dumps(value, _payload.PROTOCOL)
    except Exception:
        return _payload.short_repr(value)
    return value


def attach(channel: _core.Channel, own: tuple[Any, ...], *, inherited: bool) -> Sender:
    """
    All records of this process go by here from now on, whatever handlers there are and will be.

    Not by a handler of the root logger: `basicConfig` would find it and do nothing, `dictConfig`
    would remove it, and loggers that do not propagate would not come to it.
    """
    sender = Sender(channel, own, inherited=inherited)
    call_handlers = logging.Logger.callHandlers

    def send(self: logging.Logger, record: logging.LogRecord) -> None:
        if sender.is_on():
            sender.call_handlers(self, record)
        else:
            call_handlers(self, record)

    logging.Logger.callHandlers = send  # type: ignore[method-assign]
    return sender


__all__ = ["Sender", "attach"]
