"""In a worker: sends what it prints and logs to the host, as far as that wants it."""

from __future__ import annotations

import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from killercall import _core
    from killercall._outlets import Logs, Told
    from killercall._records import Sender

_DESCRIPTORS = {"stdout": 1, "stderr": 2}


class Forwarding:
    """What this worker sends."""

    def __init__(self, channel: _core.Channel, *, inherited: bool) -> None:
        """Of a worker that has `inherited` the host's modules, or not."""
        self._channel = channel
        self._inherited = inherited
        # What was there before.
        self._own = {name: getattr(sys, name, None) for name in _DESCRIPTORS}
        self._streams: dict[str, Any] = {}
        self._finder: _Finder | None = None
        self._sender: Sender | None = None

    def apply(self, told: Told) -> None:
        """From now on it is as the host says."""
        *wanted, logs = told
        for (name, fd), is_sent in zip(_DESCRIPTORS.items(), wanted, strict=True):
            self._direct(name, fd, is_sent=is_sent)
        self._apply_logs(logs)

    def end(self) -> None:
        """There is no way to the host any more: what there is to say goes to the descriptors."""
        for name in _DESCRIPTORS:
            if getattr(sys, name, None) is self._streams.get(name):
                setattr(sys, name, self._own[name])

    def _direct(self, name: str, fd: int, *, is_sent: bool) -> None:
        """Replaces the stream, unless it is the function's own."""
        now, own, ours = getattr(sys, name, None), self._own[name], self._streams.get(name)
        if is_sent and now is own:
            if ours is None:
                ours = self._streams[name] = _stream(self._channel, fd)
            setattr(sys, name, ours)
        elif not is_sent and ours is not None and now is ours:
            setattr(sys, name, own)

    def _apply_logs(self, logs: Logs) -> None:
        if self._sender is not None:
            self._sender.apply(logs)
        elif logs is None:
            if self._finder is not None:
                self._finder.logs = None
        elif "logging" in sys.modules:
            self.attach(logs)
        elif self._finder is None:
            self._finder = _Finder(self, logs)
            sys.meta_path.insert(0, self._finder)
        else:
            self._finder.logs = logs

    def attach(self, logs: Logs) -> None:
        """`logging` is there."""
        from killercall import _records

        own = tuple(self._own.values())
        self._sender = _records.attach(self._channel, own, inherited=self._inherited)
        self._sender.apply(logs)


def _stream(channel: _core.Channel, fd: int) -> Any:
    """
    What is printed there is in the host's hands at once, and shown at the end of each line.

    Native to the bottom: no other thread comes between the parts of a line.
    """
    printer: Any = channel.printer(fd)
    stream: Any = io.TextIOWrapper(
        printer,
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
        write_through=True,
    )
    stream.mode = "w"
    return stream


class _Finder:
    """
    Finds `logging` as all others would, and has it forward records as soon as it is there.

    To import it ahead would cost each worker more memory than all of ours.
    """

    def __init__(self, forwarding: Forwarding, logs: Logs) -> None:
        self._forwarding = forwarding
        self.logs = logs

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """For the import system."""
        if name != "logging":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((found for found in specs if found is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            exec_module = loader.exec_module

            def exec_and_attach(module: Any) -> None:
                exec_module(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._forwarding.attach(self.logs)

            loader.exec_module = exec_and_attach
        return spec


__all__ = ["Forwarding"]
