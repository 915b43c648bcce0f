"""`KillerPool`: an executor with warm workers of its own, and a deadline for every call."""

from __future__ import annotations

import collections
import functools
import itertools
import time
import types
import weakref
from _thread import RLock
from concurrent.futures import BrokenExecutor, Executor

from killercall import _driver, _futures, _host
from killercall._call import DEFAULT_TIMEOUT, KillerFunction, check_function, raise_this
from killercall._cpus import default_workers
from killercall._exceptions import SerializationError, WorkerStartError
from killercall._options import CALL_OPTIONS, Options, check_count, check_timeout, update
from killercall._payload import describe, short_repr
from killercall._waiting import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
    from typing import Any, Unpack, overload

    from killercall import _core
    from killercall._futures import Call, KillerFuture
    from killercall._host import HostJob
    from killercall._typing import P, PoolOptions, R, Timeout, ViewOptions

    # What gives an exception.
    Failure = Callable[[], BaseException]
    # What gives the value of an item, or raises.
    Entry = Callable[[], Any]
    # Of one item, or, if the second is true, of several, whose entries are its value.
    Chunk = tuple[KillerFuture[Any], bool]

# What a call may have of its own, as it makes no other kind of worker.
_VIEW_OPTIONS = frozenset({
    "default", "forward_logging", "forward_output", "grace", "on_timeout", "retries", "retry_on",
    "reuse", "timeout",
})  # fmt: skip

# Functions of which a pool remembers what was found out about them. They are kept alive by that.
_MOST_FUNCTIONS = 32


class _Lane(_futures.Lane):
    """The calls of a pool in this process. It can be closed, and can break."""

    def __init__(self, limit: int, owner: _host.Owner, like: _Lane | None = None) -> None:
        """Closed or broken from the start if the one that it is `like` is so."""
        super().__init__(limit)
        self._owner = owner
        # Reentrant: a finalizer may close another pool while this thread submits a call.
        self._lock = RLock()
        self._is_closed: bool = like is not None and like._is_closed
        # Gives what has broken it.
        self._broken_by: Failure | None = None if like is None else like._broken_by
        self._once: dict[Any, KillerFuture[Any]] = {}
        # For the driver's thread: there is nothing any more that has yet to enter.
        self._is_closing = False
        self._ended = Flag()

    def check_open(self, *, waits: bool = False) -> None:
        """Raises unless calls can be submitted."""
        if self._broken_by is not None:
            failure = self._broken_by()
            message = f"the pool is broken: {failure}"
            raise BrokenExecutor(message) from failure
        if self._is_closed:
            message = "cannot submit a call: the pool was shut down"
            raise RuntimeError(message)
        self.driver.check_open(waits=waits)

    def submit(self, call: Call, *, waits: bool = False) -> KillerFuture[Any]:
        """Adds a call. Any thread may call this."""
        with self._lock:
            self.check_open(waits=waits)
            return super().submit(call, waits=waits)

    def submit_once(self, key: Any, call: Call) -> KillerFuture[Any]:
        """The same, unless there is one with this key."""
        with self._lock:
            known = self.unfinished(key)
            if known is not None:
                return known
            future = self.submit(call)
            self._once[key] = future
        future.when_done(functools.partial(self._forget, key, future))
        return future

    def unfinished(self, key: Any) -> KillerFuture[Any] | None:
        """The future of the call with this key that has not ended."""
        with self._lock:
            future = self._once.get(key)
        return None if future is None or future.done() else future

    def _forget(self, key: Any, future: Any) -> None:
        with self._lock:
            if self._once.get(key) is future:
                del self._once[key]

    def close(self, *, cancel_futures: bool) -> None:
        """Takes no more calls; the workers end after the last one. Any thread may call this."""
        with self._lock:
            self._is_closed = True
            begin = functools.partial(self._close, cancel_futures=cancel_futures)
            is_driven = self.driver.tell_if_running(begin)
        if not is_driven:
            # It has left nothing undone, and at the end of the interpreter there is no other one.
            self._close(cancel_futures=cancel_futures)

    def wait(self) -> None:
        """Waits until the last call has ended, and callbacks have run. Does not for itself."""
        if not self.driver.is_current():
            self._ended.wait()
            self.driver.callbacks.wait()

    def break_by(self, failure: Failure) -> None:
        """No worker can be set up. For the driver's thread, as all below."""
        with self._lock:
            if self._broken_by is None:
                self._broken_by = failure
        while self._waiting:
            call, _ = self._waiting.popitem(last=False)
            self.driver.perform(functools.partial(call.refuse, self._broken_by))

    def _enter(self, call: Call) -> None:
        if self._broken_by is None:
            super()._enter(call)
        else:
            call.refuse(self._broken_by)

    def _close(self, *, cancel_futures: bool) -> None:
        self._is_closing = True
        if cancel_futures:
            self.drop(only_endless=False)
        self._end_if_over()

    def advance(self) -> None:
        """Begins what may begin."""
        super().advance()
        self._end_if_over()

    def withdraw(self, call: Call) -> bool:
        """Takes out a call that has not begun; whether it was there."""
        was_there = super().withdraw(call)
        self._end_if_over()
        return was_there

    def _end_if_over(self) -> None:
        if (self._is_closing or self._broken_by is not None) and self.is_empty():
            _host.discard(self._owner)
            if self._is_closing:
                self._ended.set()


class _Crew:
    """
    What a pool, its views and its functions share. Lives as long as one of its calls.

    Attributes:
        options: those of the pool.
    """

    def __init__(self, workers: int, options: Options, owner: _host.Owner) -> None:
        self.workers = workers
        self.options = options
        self._owner = owner
        # One a process: a forked copy of this one has workers of its own.
        self._lanes = {_driver.current(): _Lane(workers, owner)}
        self._functions: collections.OrderedDict[Any, _PoolFunction] = collections.OrderedDict()
        self._here_lock = RLock()
        self._is_set_up_here = options.initializer is None

    def lane(self) -> _Lane:
        """The lane of this process."""
        driver = _driver.current()
        lane = self._lanes.get(driver)
        if lane is None:
            *_, like = self._lanes.values()
            lane = self._lanes.setdefault(driver, _Lane(self.workers, self._owner, like))
        return lane

    def function(self, function: Any, options: Options) -> _PoolFunction:
        """What makes calls of this function."""
        if isinstance(function, KillerFunction):
            # The pool has deadlines of its own; one worker a call is enough.
            function = function.__wrapped__
        if not isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)):
            check_function(function)
            # A method would keep its instance alive here, for as long as the pool is used.
            return _PoolFunction(function, options, self)
        # By identity: what compares equal need not do the same.
        key = (
            id(function), options.timeout, options.grace, options.retries,
            tuple(map(id, options.retry_on)), options.on_timeout, id(options.default),
            options.calls_per_worker, options.forward_output, options.forward_logging,
        )  # fmt: skip
        known = self._functions.get(key)
        if known is None:
            check_function(function)
            known = self._functions[key] = _PoolFunction(function, options, self)
            if len(self._functions) > _MOST_FUNCTIONS:
                self._functions.popitem(last=False)
        return known

    def set_up_here(self) -> BaseException | None:
        """For `KILLERCALL_INLINE`: runs the initializer unless it has run; how it failed."""
        initializer, arguments = self.options.initializer, self.options.initargs
        with self._here_lock:
            if self._is_set_up_here or initializer is None:
                return None
            try:
                initializer(*arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = WorkerStartError(f"failed to set up a worker: {describe(error)}")
                failure.__cause__ = error
                self.lane().break_by(lambda: failure)
                return failure
            self._is_set_up_here = True
            return None

    def close(self, *, cancel_futures: bool = False) -> _Lane | None:
        """Takes no more calls; the lane where the others go on, None if this is a forked copy."""
        # They know us.
        self._functions.clear()
        driver = _driver._current
        lane = None if driver is None else self._lanes.get(driver)
        if lane is not None:
            lane.close(cancel_futures=cancel_futures)
        return lane


class _PoolFunction(KillerFunction[..., "Any"]):
    """A function whose calls are those of a pool."""

    def __init__(self, function: Any, options: Options, crew: _Crew) -> None:
        super().__init__(function, options)
        self._killercall_crew = crew

    def _lane(self) -> _Lane:
        return self._killercall_crew.lane()

    def _queued(self, args: Any, kwargs: Any) -> Call | KillerFuture[Any]:
        if _host.is_inline():
            failure = self._killercall_crew.set_up_here()
            if failure is not None:
                return _futures.completed(functools.partial(raise_this, failure))
        return super()._queued(args, kwargs)

    def _failure(self, job: HostJob, outcome: _core.Outcome) -> Failure:
        failure = super()._failure(job, outcome)
        if (
            outcome.ending == "not_started"
            and self._killercall_options.initializer is not None
            and job.blames_setup()
        ):
            # Before anybody is told.
            self._lane().break_by(failure)
        return failure

    def submit_chunk(self, calls: list[_host.Call]) -> KillerFuture[Any]:
        """Submits calls that one worker makes one after the other; the value is their entries."""
        if _host.is_inline():
            made = [self.submit(*args, **kwargs).result for args, kwargs in calls]
            return _futures.completed(lambda: made)
        options = self._killercall_options
        entries: list[Any] = [None] * len(calls)

        def begin() -> tuple[HostJob, int]:
            plan = self._plan_for(calls)
            job, count = plan.job(), 0
            for place, call in enumerate(calls):
                try:
                    job.submit(place, call)
                except SerializationError as error:
                    entries[place] = functools.partial(raise_this, error)
                else:
                    count += 1
            if count:
                self._keep(plan)
            return job, count

        if options.start_method == "fork":
            # Its worker inherits the arguments as they are when it begins.
            count = len(calls)

            def prepare() -> HostJob:
                return begin()[0]
        else:
            try:
                job, count = begin()
            except (KeyboardInterrupt, RuntimeError):
                raise
            except BaseException as error:
                return _futures.completed(functools.partial(raise_this, error))
            if not count:
                return _futures.completed(lambda: entries)

            def prepare() -> HostJob:
                return job

        call = _futures.Call(
            prepare,
            functools.partial(self._settle_chunk, entries),
            has_deadline=options.timeout is not None,
            gently=options.grace > 0,
            tasks=count,
        )
        return self._lane().submit(call)

    def _settle_chunk(
        self,
        entries: list[Any],
        job: HostJob,
        outcomes: list[_core.Outcome],
        future: KillerFuture[Any],
    ) -> None:
        for outcome in outcomes:
            entries[outcome.task] = self._entry(job, outcome)
        future.settle(lambda: entries)

    def _entry(self, job: HostJob, outcome: _core.Outcome) -> Entry:
        if outcome.ending == "returned":
            return functools.partial(job.value, outcome)
        if job.is_partial(outcome):
            return functools.partial(job.partial, outcome)
        failure = self._failure(job, outcome)
        on_timeout = self._killercall_options.on_timeout
        if outcome.ending != "timed_out" or on_timeout not in {"return", "default"}:
            return lambda: raise_this(failure())
        return failure if on_timeout == "return" else lambda: self._killercall_options.default


class _Submits:
    """What a pool and its views can do."""

    _crew: _Crew
    _options: Options

    if TYPE_CHECKING:

        @overload
        def submit(
            self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
        ) -> KillerFuture[R]: ...

        @overload
        def submit(
            self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
        ) -> KillerFuture[R]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> KillerFuture[Any]:
        """
        Calls a function in a worker, in the background.

        At most `workers` calls run at a time; the others wait in their order, which does not count
        for their deadlines. Arguments are pickled before this returns.

        Returns:
            A future. Its `cancel()` kills the call, also if it runs.

        Raises:
            TypeError: `fn` cannot be called.
            RuntimeError: the pool was shut down, or the interpreter is shutting down.
            BrokenExecutor: the initializer has failed.

        All else that a call may raise, the future raises; see `killer_call`.

        Example:
            >>> from killercall import KillerPool
            >>> with KillerPool(2) as pool:
            ...     pool.submit(pow, 2, 5).result()
            32
        """
        function = self._function(fn)
        return function.submit(*args, **kwargs)

    if TYPE_CHECKING:

        @overload
        def submit_once(
            self,
            key: Hashable,
            fn: Callable[P, Coroutine[Any, Any, R]],
            /,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> KillerFuture[R]: ...

        @overload
        def submit_once(
            self, key: Hashable, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
        ) -> KillerFuture[R]: ...

    def submit_once(
        self, key: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> KillerFuture[Any]:
        """
        As `submit`, unless a call with an equal key waits or runs: then its future is returned.

        Once that call has ended, the next one with this key is made.

        Args:
            key: anything hashable. All views of a pool share their keys.
            fn: the function.
            *args: its arguments.
            **kwargs: its keyword arguments.

        Raises:
            TypeError: the key is not hashable.

        And it raises what `submit` raises.

        Example:
            >>> import time
            >>> from killercall import KillerPool
            >>> with KillerPool(1) as pool:
            ...     first = pool.submit_once("refresh", time.sleep, 0.5)
            ...     pool.submit_once("refresh", time.sleep, 0.5) is first
            True
        """
        try:
            hash(key)
        except TypeError as error:
            message = f"key must be hashable, not {short_repr(key)}: {error}"
            raise TypeError(message) from None
        function, lane = self._function(fn), self._crew.lane()
        known = lane.unfinished(key)
        if known is not None:
            return known
        call = function._queued(args, kwargs)
        return lane.submit_once(key, call) if isinstance(call, _futures.Call) else call

    if TYPE_CHECKING:

        @overload
        def map(
            self,
            fn: Callable[..., Coroutine[Any, Any, R]],
            *iterables: Iterable[Any],
            timeout: Timeout = ...,
            chunksize: int = ...,
            buffersize: int | None = ...,
        ) -> Iterator[R]: ...

        @overload
        def map(
            self,
            fn: Callable[..., R],
            *iterables: Iterable[Any],
            timeout: Timeout = ...,
            chunksize: int = ...,
            buffersize: int | None = ...,
        ) -> Iterator[R]: ...

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: Any = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """
        Calls a function with the items of the iterables, and yields the results in their order.

        Every item has its own deadline, which is the pool's. The first failure is raised in its
        place; then, and when the iterator is closed, what has not ended is cancelled.

        Args:
            fn: the function.
            *iterables: as for `map`. Read to their end before this returns, unless there is a
                `buffersize`.
            timeout: seconds from now on (int or float), or a `datetime.timedelta`, within which
                a result has to be there when it is asked for; None for no limit.
            chunksize: how many items go to a worker together. They save time if they are many
                and small; deadlines and failures stay per item.
            buffersize: how many chunks may be submitted whose results were not yielded yet; the
                iterables are read as far as that takes. None for no limit.

        Raises:
            TypeError: a wrong type of argument.
            ValueError: `chunksize` or `buffersize` is less than 1.

        And it raises what `submit` raises. The iterator raises what `result` of a future does, and
        the builtin `TimeoutError` when `timeout` has passed.

        Example:
            >>> from killercall import KillerPool
            >>> with KillerPool(2) as pool:
            ...     list(pool.map(pow, range(4), [2] * 4, chunksize=2))
            [0, 1, 4, 9]
        """
        check_count("chunksize", chunksize, 1)
        if buffersize is not None:
            check_count("buffersize", buffersize, 1)
        end = None if timeout is None else time.monotonic() + _seconds("timeout", timeout)
        function = self._function(fn)
        items = zip(*iterables, strict=False)
        # They hold the pool as long as they are read.
        more: Iterator[Chunk] = (
            self._submit_chunk(function, chunk)
            for chunk in iter(lambda: list(itertools.islice(items, chunksize)), [])
        )
        chunks: collections.deque[Chunk] = collections.deque()
        try:
            chunks.extend(itertools.islice(more, buffersize))
        except BaseException:
            _cancel(chunks)
            raise
        return _results(chunks, more if buffersize is not None else iter(()), end)

    @staticmethod
    def _submit_chunk(function: _PoolFunction, chunk: list[tuple[Any, ...]]) -> Chunk:
        if len(chunk) > 1:
            return function.submit_chunk([(args, {}) for args in chunk]), True
        return function.submit(*chunk[0]), False

    def options(self, **options: Unpack[ViewOptions]) -> PoolView:
        """
        A view of the pool with other deadlines, whose calls have the same workers and turns.

        Args:
            **options: `timeout`, `grace`, `retries`, `retry_on`, `on_timeout`, `default`, `reuse`,
                `forward_output`, `forward_logging`; those not named stay.

        Raises:
            TypeError: an option that makes another kind of worker, or one that there is not.
            ValueError: a wrong value.

        Example:
            >>> import time
            >>> from killercall import KillerPool
            >>> with KillerPool(1, timeout=60) as pool:
            ...     soon = pool.options(timeout=0.2, on_timeout="default", default="late")
            ...     soon.submit(time.sleep, 30).result()
            'late'
        """
        for name in options:
            if name in _POOL_OPTIONS and name not in _VIEW_OPTIONS:
                message = (
                    f"options() cannot change {name!r}, which the workers of the pool have in "
                    f"common: make another KillerPool with it"
                )
                raise TypeError(message)
        where = "KillerPool.options"
        checked = update(self._options, options, allowed=_VIEW_OPTIONS, where=where)
        return PoolView(self, checked)

    def _function(self, fn: Any) -> _PoolFunction:
        self._crew.lane().check_open()
        return self._crew.function(fn, self._options)


class KillerPool(_Submits, Executor):
    """
    A `concurrent.futures.Executor` whose calls have deadlines, and whose workers are its own.

    Workers are started when they are needed and stay warm. A call that misses its deadline is
    killed with all that it has started, and fails alone: the pool goes on. The script needs no
    `if __name__ == "__main__"` guard.

    A pool that is no longer used anywhere makes the calls that were submitted, then its workers
    end. At the end of the interpreter calls with a deadline are waited for, others are killed.

    Args:
        workers: how many calls run at a time. Default: the available CPUs (affinity mask and cgroup
            quota) less 2, but at least 2 where there are 2.
        timeout: seconds a call (int or float), a `datetime.timedelta`, or None for no limit.
            Default 10.
        initializer: called in every new worker. If it fails, the calls that wait for a worker
            raise `WorkerStartError` from what it raised, and the pool takes no others.
        initargs: its arguments.
        **options: as for `killer_call`.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as `workers=0`.

    Example:
        >>> from killercall import KillerPool
        >>> with KillerPool(2, timeout=5) as pool:
        ...     future = pool.submit(divmod, 17, 5)
        ...     squares = list(pool.map(lambda x: x * x, range(4)))
        >>> future.result(), squares
        ((3, 2), [0, 1, 4, 9])
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        timeout: Timeout = DEFAULT_TIMEOUT,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **options: Unpack[PoolOptions],
    ) -> None:
        """Starts no worker yet."""
        count = default_workers() if workers is None else check_count("workers", workers, 1)
        owner = _host.Owner()
        base = Options(timeout=check_timeout("timeout", timeout), owner=owner)
        values = {"initializer": initializer, "initargs": initargs, **options}
        self._options = update(base, values, allowed=_POOL_OPTIONS, where="KillerPool")
        self._crew = _Crew(count, self._options, owner)
        weakref.finalize(self, self._crew.close).atexit = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # ruff: ignore[boolean-type-hint-positional-argument, boolean-default-value-positional-argument] - as in the base
        """
        Takes no more calls, and ends the workers once the last one has ended.

        Args:
            wait: whether to wait for that.
            cancel_futures: whether to cancel what has not begun.

        Example:
            >>> from killercall import KillerPool
            >>> pool = KillerPool(1)
            >>> future = pool.submit(abs, -1)
            >>> pool.shutdown()
            >>> future.done()
            True
        """
        self._crew.lane()
        lane = self._crew.close(cancel_futures=cancel_futures)
        if wait and lane is not None:
            lane.wait()

    def __reduce__(self) -> Any:
        """Refuses: its workers are children of this process."""
        message = "a KillerPool cannot be pickled: make one where it is needed"
        raise TypeError(message)

    def __repr__(self) -> str:
        """Says how many workers it has, and the limit of its calls."""
        return f"<KillerPool of {self._crew.workers} workers, timeout={self._options.timeout}>"


class PoolView(_Submits):
    """A pool with other deadlines. Made by `KillerPool.options`."""

    def __init__(self, of: _Submits, options: Options) -> None:
        """Use `KillerPool.options`, which checks its arguments."""
        # It is in use as long as this is.
        self._pool = of
        self._crew = of._crew
        self._options = options

    def __reduce__(self) -> Any:
        """Refuses, as the pool does."""
        return self._pool.__reduce__()

    def __repr__(self) -> str:
        """Says of which pool it is, and the limit of its calls."""
        return f"<view of {self._pool!r}, timeout={self._options.timeout}>"


_POOL_OPTIONS = CALL_OPTIONS | {"workers"}


def _seconds(name: str, value: Any) -> float:
    """Seconds to wait; those that are not positive have passed."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
        return 0.0
    return check_timeout(name, value) or 0.0


def _results(
    chunks: collections.deque[Chunk], more: Iterator[Chunk], end: float | None
) -> Iterator[Any]:
    """Yields the values of chunks in their order; each makes room for another one."""
    __tracebackhide__ = True
    try:
        while chunks:
            # Nothing here may hold what was yielded.
            entries = _entries(*chunks.popleft(), end)
            chunks.extend(itertools.islice(more, 1))
            while entries:
                yield entries.pop()()
    finally:
        _cancel(chunks)


def _entries(future: KillerFuture[Any], is_chunk: bool, end: float | None) -> list[Entry]:  # ruff: ignore[boolean-type-hint-positional-argument] - a part of a pair
    """Waits for a chunk; its entries, the last one first."""
    __tracebackhide__ = True
    try:
        value = future.result(None if end is None else end - time.monotonic())
        return value[::-1] if is_chunk else [lambda: value]
    finally:
        future.cancel()
        # Or the traceback of a failure holds this frame, which holds the future.
        del future


def _cancel(chunks: Iterable[Chunk]) -> None:
    for future, _ in chunks:
        future.cancel()


__all__ = ["KillerPool", "PoolView"]
