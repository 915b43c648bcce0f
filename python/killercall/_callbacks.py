"""
The thread in which callbacks of futures run.

They are the user's and may take their time, so the thread that drives all calls leaves them to this
one. There is one at most, from the first callback on until there was none for a while.
"""

from __future__ import annotations

import threading
from _thread import RLock
from queue import Empty

from killercall._waiting import Flag, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue
else:
    from _queue import SimpleQueue

# Seconds without a callback after which the thread ends, as the driver's does.
_LINGER = 5.0


class Callbacks:
    """Callbacks, which run one after the other."""

    def __init__(self) -> None:
        """Starts no thread yet."""
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Reentrant: a finalizer may come here while this thread is here.
        self._lock = RLock()
        self._thread: threading.Thread | None = None

    def run(self, callback: Callable[[], None]) -> None:
        """Has one run after those before it. For the driver's thread."""
        with self._lock:
            self._queue.put(callback)
            if self._thread is not None:
                return
            # Not a daemon: what its callbacks wait for is waited for at the end, as for any thread.
            thread = Thread(self._loop, name="killercall-callbacks", daemon=False)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:
                # There cannot be another thread. Late is better than never.
                self._thread = None
        while self._thread is None and not self._queue.empty():
            _perform(self._queue.get())

    def is_current(self) -> bool:
        """Whether the calling thread is that of the callbacks."""
        return threading.current_thread() is self._thread

    def wait(self) -> None:
        """Waits until those before this have run. Does nothing in the thread where they run."""
        with self._lock:
            if self._thread is None or self.is_current():
                return
            passed = Flag()
            self._queue.put(passed.set)
        passed.wait()

    def finish(self) -> None:
        """Waits until all have run and the thread has ended. Does nothing in that thread."""
        with self._lock:
            thread = self._thread
            if thread is None or self.is_current():
                return
            # It need not wait for more.
            self._queue.put(None)
        thread.join()

    def _loop(self) -> None:
        linger = _LINGER
        while True:
            try:
                callback = self._queue.get(timeout=linger)
            except Empty:
                with self._lock:
                    if self._queue.empty():
                        self._thread = None
                        return
                continue
            if callback is None:
                linger = 0.0
            _perform(callback)
            # Or it would be kept until the next one.
            del callback


def _perform(callback: Callable[[], None] | None) -> None:
    """Runs one; what it raises is logged, and stops no other one."""
    try:
        if callback is not None:
            callback()
    except BaseException:
        import logging

        logging.getLogger("killercall").exception("a callback of a future has failed")


__all__ = ["Callbacks"]
