"""
Futures of calls, and lanes: calls of which at most so many run at a time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from concurrent.futures import Future, InvalidStateError

from killercall import _driver
from killercall._exceptions import leave_out_ours
from killercall._waiting import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from killercall import _core
    from killercall._host import HostJob
    from killercall._typing import R


class _Value:
    """A value that has to be unpickled, by whoever asks for it first: that is the user's code."""

    def __init__(self, unpickle: Callable[[], Any]) -> None:
        self._unpickle: Callable[[], Any] | None = unpickle
        self._lock = threading.RLock()
        self._value: Any = None
        self._error: BaseException | None = None

    def get(self) -> Any:
        with self._lock:
            if self._unpickle is not None:
                try:
                    self._value = self._unpickle()
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    self._error = error
                self._unpickle = None
        if self._error is not None:
            raise self._error
        return self._value


class _Unread(Exception):
    """Stands for an exception that has to be unpickled, by whoever asks for it first."""

    def __init__(self, unpickle: Callable[[], BaseException]) -> None:
        super().__init__()
        self._error = _Value(unpickle)

    def read(self) -> BaseException:
        error: BaseException = self._error.get()
        return error


def later(find: Callable[[], Any]) -> Callable[[], Any]:
    """What finds something out once, for whoever asks first: that may take the user's code."""
    return _Value(find).get


class KillerFuture(Future["R"]):
    """
    The future of a call in a worker process. Made by `submit`.

    As `concurrent.futures.Future`, but a call that runs can be cancelled: its worker is killed,
    with all that it has started. Callbacks run one after the other in a thread of their own, or in
    that which cancels it; deadlines do not wait for them.

    Example:
        >>> import time
        >>> from killercall import killer_call
        >>> future = killer_call(time.sleep, timeout=60).submit(30)
        >>> future.cancel()
        True
        >>> future.cancelled()
        True
    """

    _call: Call | None = None

    def __init__(self) -> None:
        """Made by `submit`."""
        super().__init__()
        self._condition = Condition()  # type: ignore[assignment]
        self._listeners: list[Callable[[], None]] = []
        self._process = os.getpid()

    def when_done(self, listener: Callable[[], None]) -> None:
        """As `add_done_callback`, for what is ours and quick: it runs where the call ends."""
        with self._condition:
            if not self.done():
                self._listeners.append(listener)
                return
        listener()

    def _invoke_callbacks(self) -> None:
        """It has ended: the base class comes here for all ways to do so."""
        for listener in self._listeners:
            listener()
        self._listeners.clear()
        driver = _driver.in_its_thread()
        if driver is None:
            super()._invoke_callbacks()  # type: ignore[misc]
        elif self._done_callbacks:  # type: ignore[attr-defined]
            driver.callbacks.run(super()._invoke_callbacks)  # type: ignore[misc]

    def __repr__(self) -> str:
        """Says how far it is; not what it has, which may have to be unpickled."""
        return f"<{type(self).__name__} at {id(self):#x} state={self._state.lower()}>"

    def cancel(self) -> bool:
        """
        Cancels the call, also one that runs; False if it has ended.

        Does not wait until the worker is dead, which takes milliseconds.
        """
        call = self._call
        with self._condition:
            was_running = self._state == "RUNNING"
            if was_running:
                self._state = "CANCELLED"
                self._condition.notify_all()
        try:
            if was_running:
                # Before the callbacks: these are the user's.
                if call is not None:
                    call.stop()
                self._invoke_callbacks()
                return True
            return super().cancel()
        finally:
            if not was_running and call is not None and self.cancelled():
                call.stop()

    def result(self, timeout: float | None = None) -> R:
        """The value of the call, or what it raised; waits for at most `timeout` seconds."""
        __tracebackhide__ = True
        # Not by the method of the base, which would be in the traceback.
        error = self.exception(timeout)
        if error is None:
            value: Any = self._result
            read: R = value.get() if isinstance(value, _Value) else value
            return read
        try:
            raise error
        finally:
            # Or the traceback holds this frame, which holds the exception.
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, None if it returned; waits for at most `timeout` seconds."""
        __tracebackhide__ = True
        self._check_process()
        error = super().exception(timeout)
        if isinstance(error, _Unread):
            return error.read()
        if error is None and isinstance(self._result, _Value):
            try:
                self._result.get()
            except KeyboardInterrupt:
                raise
            except BaseException as unpickling:
                return unpickling
        return error

    def _check_process(self) -> None:
        if not self.done() and os.getpid() != self._process:
            message = (
                f"the call is made by process {self._process}, of which this one is a forked copy: "
                "it will never end here"
            )
            raise RuntimeError(message)

    def settle(self, value: Callable[[], Any]) -> None:
        """It has a value, which is found out when it is asked for."""
        with contextlib.suppress(InvalidStateError):  # Cancelled meanwhile.
            self.set_result(_Value(value))  # type: ignore[arg-type]  # `result` reads it

    def settle_raised(self, error: Callable[[], BaseException]) -> None:
        """It has raised something, which is found out when it is asked for."""
        self.settle_error(_Unread(error))

    def settle_error(self, error: BaseException) -> None:
        """It has failed."""
        with contextlib.suppress(InvalidStateError):  # Cancelled meanwhile.
            self.set_exception(error)


class Lane(_driver.Queue):
    """Calls of which at most so many run at a time, in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self.driver = _driver.current()
        self._limit = limit
        # By itself; so one of many is taken out as quickly as one of few.
        self._waiting: collections.OrderedDict[Call, None] = collections.OrderedDict()
        self._running: set[Call] = set()

    def submit(self, call: Call, *, waits: bool = False) -> KillerFuture[Any]:
        """Adds a call, for which the calling thread `waits`, or not. Any thread may call this."""
        self.driver.check_open(waits=waits)
        call.lane = self
        self.driver.tell(lambda: self._enter(call))
        return call.future

    def tell(self, action: Callable[[], None]) -> None:
        """Has the driver perform an action."""
        self.driver.tell(action)

    def _enter(self, call: Call) -> None:
        self.driver.know(self)
        self._waiting[call] = None
        if self.driver.is_stopping or self.driver.is_exiting:
            # It was on its way when all others were ended.
            self.drop(only_endless=not self.driver.is_stopping)
        self.advance()

    def advance(self) -> None:
        """Begins what may begin. For the driver's thread, as all below."""
        while self._waiting and len(self._running) < self._limit:
            call, _ = self._waiting.popitem(last=False)
            self._running.add(call)
            if not call.begin():
                self._running.discard(call)

    def leave(self, call: Call) -> None:
        """A call has ended."""
        self._running.discard(call)
        self.advance()

    def withdraw(self, call: Call) -> bool:
        """Takes out a call that has not begun; whether it was there."""
        if call not in self._waiting:
            return False
        del self._waiting[call]
        return True

    def drop(self, *, only_endless: bool) -> None:
        """Cancels what has not begun."""
        for call in list(self._waiting):
            if not (only_endless and call.has_deadline):
                call.future.cancel()
                self.withdraw(call)
                call.future.set_running_or_notify_cancel()

    def is_empty(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._waiting and not self._running


class Call(_driver.Run):
    """
    One call of a lane, or several that one worker makes one after the other.

    Attributes:
        future: its future.
        lane: where it waits and runs.
    """

    lane: Lane

    def __init__(
        self,
        prepare: Callable[[], HostJob],
        finish: Callable[[HostJob, list[_core.Outcome], KillerFuture[Any]], None],
        *,
        has_deadline: bool,
        gently: bool,
        tasks: int = 1,
    ) -> None:
        """`prepare` makes the job with its tasks, `finish` settles the future by the outcomes."""
        self.future: KillerFuture[Any] = KillerFuture()
        self.future._call = self
        self.has_deadline = has_deadline
        self._prepare = prepare
        self._finish = finish
        self._gently = gently
        self._tasks = tasks
        self._outcomes: list[_core.Outcome] = []
        self._has_begun = False

    def begin(self) -> bool:
        """Begins it, unless it is cancelled."""
        if self.future.cancelled() or not self.future.set_running_or_notify_cancel():
            return False
        try:
            self.job = self._prepare()
        except BaseException as error:
            self.future.settle_error(error)
            self.let_go()
            return False
        self._has_begun = True
        self.lane.driver.add(self)
        return True

    def stop(self) -> None:
        """Its future was cancelled. Any thread may call this."""
        self.lane.tell(self._stop)

    def _stop(self) -> None:
        if self._has_begun:
            self.job.cancel(gently=self._gently)
        else:
            self.lane.withdraw(self)
            self.let_go()
        self._tell_of_cancel()

    def _tell_of_cancel(self) -> None:
        if self.future._state == "CANCELLED":
            # Those who wait for several futures are told only by this.
            self.future.set_running_or_notify_cancel()

    def end(self) -> None:
        """Kills it; its future is cancelled."""
        self.future.cancel()

    def collect(self) -> None:
        """Something of it has ended."""
        self.on_done(self.job.take())

    def on_done(self, outcomes: list[_core.Outcome]) -> None:
        """All of it has ended, or some."""
        self._outcomes += outcomes
        if len(self._outcomes) < self._tasks:
            return
        self.lane.driver.remove(self)
        try:
            with self.job.scope:
                if not self.future.cancelled():
                    self._finish(self.job, self._outcomes, self.future)
        except BaseException as error:
            self.future.settle_error(error)
        self.leave()

    def fail(self, error: BaseException) -> None:
        """The driver cannot go on with it."""
        self.lane.driver.remove(self)
        try:
            with self.job.scope:
                self.future.settle_error(error)
        finally:
            self.leave()

    def leave(self) -> None:
        """All of it has ended; the next one may begin."""
        self.let_go()
        self.lane.leave(self)

    def refuse(self, error: Callable[[], BaseException]) -> None:
        """It will not begin."""
        self.future.settle_raised(error)
        self.let_go()

    def let_go(self) -> None:
        """It has ended: a future that is kept holds neither function nor arguments."""
        self.future._call = None
        # After this `cancel` finds nobody to tell.
        self._tell_of_cancel()
        self._has_begun = False
        self._outcomes = []
        for name in ("job", "_prepare", "_finish"):
            vars(self).pop(name, None)


async def wait_in_loop(future: KillerFuture[Any]) -> None:
    """
    Waits for its end, while the event loop goes on; it is cancelled with the task that waits.

    Not by `asyncio.wrap_future`, which waits for ever if a call raises `StopIteration`.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        if not done.done():
            done.set_result(None)

    def tell_loop() -> None:
        with contextlib.suppress(RuntimeError):  # It is closed: nobody waits any more.
            loop.call_soon_threadsafe(tell)

    future.when_done(tell_loop)
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    if future.cancelled():
        raise asyncio.CancelledError


def completed(run: Callable[[], Any]) -> KillerFuture[Any]:
    """The future of a call that is made right here."""
    future: KillerFuture[Any] = KillerFuture()
    future.set_running_or_notify_cancel()
    try:
        future.set_result(run())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        leave_out_ours(error)
        future.set_exception(error)
    return future


__all__ = ["Call", "KillerFuture", "Lane", "completed", "later", "wait_in_loop"]
