"""
The thread that drives what has no waiting caller: futures, streams, pools and actors.

There is one at most, from the first need on until nothing has been left to do for a while. Whatever
it drives belongs to it alone: other threads leave it an action, and it wakes up to perform that. So
nothing here is locked while user code may run, and nothing is done twice. It keeps the deadlines of
all that it drives, so it runs no code of the user's; callbacks have a thread of their own.
"""

from __future__ import annotations

import abc
import collections
import functools
import os
import threading
import weakref
from _thread import RLock

from killercall import _core
from killercall._callbacks import Callbacks
from killercall._waiting import Flag, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from killercall._host import HostJob

# Seconds without anything to do after which the thread ends: a process that forks later should
# have no thread that it does not need.
_LINGER = 5.0
_LONG = 3600.0


class Run(abc.ABC):
    """
    A job that the driver waits for. All methods are for the driver's thread.

    Attributes:
        job: the job; begun before the run is added.
        has_deadline: whether the end of the interpreter waits for it.
    """

    job: HostJob
    has_deadline: bool = True

    @abc.abstractmethod
    def collect(self) -> None:
        """Something has ended that can be taken from the job."""

    @abc.abstractmethod
    def fail(self, error: BaseException) -> None:
        """The driver cannot go on with it."""

    def end(self) -> None:
        """Kills what runs."""
        self.job.cancel(gently=False)


class Queue(abc.ABC):
    """What waits to be driven. All methods are for the driver's thread."""

    @abc.abstractmethod
    def drop(self, *, only_endless: bool) -> None:
        """Cancels what has not begun: all of it, or what has no deadline."""


class Driver:
    """
    The thread, and what it drives.

    Attributes:
        callbacks: where callbacks of futures run.
    """

    def __init__(self) -> None:
        self.callbacks = Callbacks()
        # As long as there is a thread that it might wake.
        self._waker: _core.Waker | None = None
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._runs: list[Run] = []
        # Reentrant: a finalizer may leave an action while this thread leaves one.
        self._lock = RLock()
        self._thread: threading.Thread | None = None
        self._is_exiting = False
        self._pid = os.getpid()
        self._queues: weakref.WeakSet[Queue] = weakref.WeakSet()
        # Those who wait until nothing is driven any more, after which the thread ends.
        self._stopping: list[Flag] = []
        # Those who wait for the callbacks as well.
        self._stops: list[Flag] = []

    def tell(self, action: Callable[[], None]) -> None:
        """
        Has the thread perform an action. Any thread may call this.

        In a forked copy of the process nothing is done: it has neither the thread nor its workers.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._thread is None or self._waker is None:
                waker = _core.Waker()
                loop = functools.partial(self._loop, waker)
                thread = Thread(loop, name="killercall", daemon=True)
                # Known before it runs, as a finalizer may come here meanwhile.
                self._thread, self._waker = thread, waker
                try:
                    thread.start()
                except Exception:
                    # There cannot be another thread: then what is refused is not done later.
                    self._thread = self._waker = None
                    raise
            self._inbox.append(action)
            self._waker.wake()

    def tell_if_running(self, action: Callable[[], None]) -> bool:
        """The same, but starts no thread; whether there was one."""
        with self._lock:
            if self._thread is None:
                return False
            self.tell(action)
            return True

    def may_wait(self) -> bool:
        """
        Whether the calling thread may wait for an action of its own.

        Not if it is the driver's; nor if a finalizer interrupts `tell`, whose lock the driver's
        thread may be waiting for.
        """
        return not (self.is_current() or self._lock._is_owned())  # type: ignore[attr-defined]

    @property
    def is_exiting(self) -> bool:
        """Whether the interpreter is about to end."""
        return self._is_exiting

    @property
    def is_stopping(self) -> bool:
        """Whether somebody waits for the end of all that is driven."""
        return bool(self._stopping)

    @property
    def has_ended(self) -> bool:
        """Whether the thread has ended for good."""
        return self._is_exiting and self._thread is None

    def check_open(self, *, waits: bool = False) -> None:
        """
        Raises `RuntimeError` when it is too late for anything new.

        That is never so for a thread that `waits` for what it asks for, if Python waits for it.
        """
        if self._is_exiting and not (waits and not threading.current_thread().daemon):
            message = "cannot submit a call: the interpreter is shutting down"
            raise RuntimeError(message)
        if self._stops and (self.callbacks.is_current() or self.is_current()):
            # A callback of what is cancelled would have us go on for ever.
            message = "cannot submit a call from a callback while shutdown() ends all calls"
            raise RuntimeError(message)

    def is_current(self) -> bool:
        """Whether the calling thread is the driver's own."""
        return threading.current_thread() is self._thread

    def add(self, run: Run) -> None:
        """Begins to wait for a run. For the driver's thread."""
        self._runs.append(run)

    def remove(self, run: Run) -> None:
        """Waits for a run no more, if it did. For the driver's thread."""
        if run in self._runs:
            self._runs.remove(run)

    def know(self, queue: Queue) -> None:
        """Takes note of what waits elsewhere to be driven. For the driver's thread."""
        self._queues.add(queue)

    def _loop(self, waker: _core.Waker) -> None:
        while True:
            while self._inbox:
                self.perform(self._inbox.popleft())
            if self._runs:
                self._wait(waker)
            elif (self._is_exiting or self._stopping or not self._linger(waker)) and self._leave():
                return

    def _leave(self) -> bool:
        """Lets the thread end, unless somebody has left an action."""
        with self._lock:
            if self._inbox:
                return False
            self._thread = self._waker = None
            for stopped in self._stopping:
                stopped.set()
            self._stopping.clear()
            return True

    def _wait(self, waker: _core.Waker) -> None:
        runs = list(self._runs)
        try:
            places = _core.wait_any([run.job.scope for run in runs], waker, _LONG)
        except BaseException as error:
            self._runs.clear()
            for run in runs:
                self.perform(functools.partial(run.fail, error))
            return
        for run in (runs[place] for place in places):
            if run in self._runs:
                self.perform(run.collect)

    def _linger(self, waker: _core.Waker) -> bool:
        """Whether there is something to do, after a wait for it."""
        _core.wait_any([], waker, _LINGER)
        return bool(self._inbox)

    @staticmethod
    def perform(action: Callable[[], None]) -> None:
        """Runs an action; what it raises is logged, and stops nothing else."""
        try:
            action()
        except BaseException:
            # Not the end of all that is driven here.
            import logging

            logging.getLogger("killercall").exception("an action of the driver failed")

    def finish(self) -> None:
        """At the end of the interpreter: waits for what has a deadline, kills the rest."""
        if os.getpid() != self._pid:
            # A forked copy has no such thread.
            return
        thread = self._thread
        if thread is None or self._is_exiting:
            self._is_exiting = True
            self.callbacks.finish()
            return
        self.tell(self._begin_exit)
        try:
            thread.join()
        except KeyboardInterrupt:
            self.tell(self._kill_all)
            thread.join()
        self.callbacks.finish()

    def _begin_exit(self) -> None:
        self._is_exiting = True
        self._end(only_endless=True)

    def _kill_all(self) -> None:
        self._end(only_endless=False)

    def _end(self, *, only_endless: bool) -> None:
        for queue in list(self._queues):
            queue.drop(only_endless=only_endless)
        for run in list(self._runs):
            if not (only_endless and run.has_deadline):
                run.end()

    def stop(self) -> None:
        """
        Ends all that is driven, and both threads. Does nothing in the driver's own thread.

        Callbacks are waited for, except by one of them.
        """
        if self.is_current() or os.getpid() != self._pid:
            return
        stopped = Flag()

        def begin() -> None:
            self._stopping.append(stopped)
            self._kill_all()

        self._stops.append(stopped)
        try:
            if self.tell_if_running(begin):
                stopped.wait()
            if not self._is_exiting:
                # Those were waited for then.
                self.callbacks.finish()
        finally:
            self._stops.remove(stopped)


_current: Driver | None = None
_lock = RLock()


def current() -> Driver:
    """The driver of this process."""
    global _current  # ruff: ignore[global-statement] - one per process, like what it describes
    with _lock:
        if _current is None:
            driver = Driver()
            # Before the interpreter waits for its threads; `concurrent.futures` does the same.
            threading._register_atexit(driver.finish)  # type: ignore[attr-defined]
            _current = driver
        return _current


def in_its_thread() -> Driver | None:
    """The driver of this process if the calling thread is its own."""
    driver = _current
    return driver if driver is not None and driver.is_current() else None


def stop() -> None:
    """Ends all that is driven in this process."""
    if _current is not None:
        _current.stop()


def _start_anew() -> None:
    global _current, _lock  # ruff: ignore[global-statement] - one per process, like what it describes
    _current = None
    _lock = RLock()


os.register_at_fork(after_in_child=_start_anew)

__all__ = ["Driver", "Run", "current", "in_its_thread", "stop"]
