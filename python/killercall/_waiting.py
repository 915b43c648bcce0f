"""
Waits that a signal handler may end at any moment, and no lock is left held.

Python runs handlers between two instructions of the main thread. The `__enter__` of
`threading.Condition`, and all of `threading.Event`, are Python code: what a handler raises when the
lock has just been taken leaves it taken, for good. The thread that drives all calls would wait for
it as soon as it has something to tell, and keep no deadline any more. In a `with` of a lock that is
written in C there is no such moment.
"""

from __future__ import annotations

import collections
import threading
from _thread import RLock, allocate_lock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable


class Condition(RLock):  # type: ignore[misc]
    """
    As `threading.Condition`, as far as futures use it.

    It is its own lock, which is entered once when somebody waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: collections.deque[LockType] = collections.deque()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is notified, for so many seconds at most; whether it was."""
        bell = allocate_lock()
        bell.acquire()
        self._waiting.append(bell)
        once = 1, get_ident()
        # No handler runs between this and the first call, nor before the first one at the end.
        try:
            self._release_save()  # type: ignore[attr-defined]
            return bell.acquire(timeout=-1 if timeout is None else max(timeout, 0))
        finally:
            self._acquire_restore(once)  # type: ignore[attr-defined]
            if bell in self._waiting:
                self._waiting.remove(bell)

    def notify_all(self) -> None:
        """Ends all waits."""
        while self._waiting:
            self._waiting.popleft().release()


class Flag:
    """As `threading.Event`, to be set once. Has no lock that somebody could hold."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: collections.deque[LockType] = collections.deque()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Ends all waits, those to come too."""
        self._is_set = True
        while self._waiting:
            self._waiting.popleft().release()

    def wait(self) -> None:
        """Waits until it is set."""
        bell = allocate_lock()
        bell.acquire()
        self._waiting.append(bell)
        # Whoever sets it from now on finds the bell; whoever has before is seen here.
        if not self._is_set:
            bell.acquire()

    def _at_fork_reinit(self) -> None:
        self._waiting.clear()


class Thread(threading.Thread):
    """
    As `threading.Thread`, but one whose `start` is interrupted runs all the same.

    It would wait for the lock of an event otherwise, at which the interrupted thread was waiting.
    """

    def __init__(
        self, target: Callable[..., None], *, name: str | None = None, daemon: bool
    ) -> None:
        super().__init__(target=target, name=name, daemon=daemon)
        self._started = Flag()


__all__ = ["Condition", "Flag", "Thread"]
