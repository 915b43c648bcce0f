"""`killer_pmap`: a parallel map with a deadline for every item."""

from __future__ import annotations

import os
import time

from killercall._call import KillerFunction, check_function, finished, run_inline
from killercall._cpus import default_workers
from killercall._exceptions import SerializationError, leave_out_ours
from killercall._host import Plan, check_depth, is_inline
from killercall._limits import room_for_workers, warn_of_shortage
from killercall._options import MAP_OPTIONS, Options, check_count, check_timeout, update
from killercall._outcomes import Outcomes
from killercall._payload import short_repr
from killercall._prepare import function_for, options_for, seeded_here
from killercall._progress import progress_for
from killercall._results import NEVER_SENT, Failed, Here, Results, results_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
    from typing import Any, Literal, Unpack, overload

    from killercall import _core
    from killercall._exceptions import (
        TimeoutError,  # ruff: ignore[builtin-import-shadowing]
    )
    from killercall._host import Call
    from killercall._typing import D, MapOptions, OnFailure, OnTimeout, R, T, Timeout

DEFAULT_TIMEOUT = 4.0

# How many pickled items wait in the host at most. Enough to keep workers busy while the host
# pickles, few enough for large maps in constant memory.
_AHEAD = 4096
# Large items are not copied before they are needed: as many for each worker, and these.
_LARGE_PER_WORKER = 2
_LARGE_MORE = 2


if TYPE_CHECKING:

    @overload
    def killer_pmap(
        func: Callable[[T], object],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: Literal[True],
        **options: Unpack[MapOptions],
    ) -> Outcomes: ...

    @overload
    def killer_pmap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["raise", "default"] = ...,
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | D]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: bool = ...,
        **options: Unpack[MapOptions],
    ) -> list[Any]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["raise", "default"] = ...,
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | D]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["default"],
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | D]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["return"],
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | D | BaseException]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise", "return"],
        on_error: Literal["return"],
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | BaseException]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["return"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> list[R | TimeoutError]: ...

    @overload
    def killer_pmap(
        func: Callable[[T], object],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: bool = ...,
        **options: Unpack[MapOptions],
    ) -> list[Any]: ...


def killer_pmap(
    func: Any,
    iterable: Iterable[Any],
    cpus: int | None = None,
    timeout: Any = DEFAULT_TIMEOUT,
    **options: Any,
) -> list[Any]:
    """
    Maps a function over items in parallel, with a deadline for every item.

    Returns the results in the order of the items. By default an item that times out yields
    `default`, and an item that raises or whose worker dies stops the map: what still runs is
    killed, and the error is raised at once.

    Args:
        func: called with one item, in a worker process.
        iterable: the items; read to its end before the first call.
        cpus: how many workers. Default: the available CPUs (affinity mask and cgroup quota) less
            2, but at least 2 where there are 2.
        timeout: seconds an item (int or float), a `datetime.timedelta`, or None. Default 4.
        **options: as for `killer_call`, and `on_timeout` (here "default" unless given) and
            `on_error` ("raise" unless given): "default", "raise", or "return", where the
            exception object takes the item's place; `on_timeout="partial"`, where what the item
            has `publish`ed does, and `default` if that is nothing; `retries`: a failed item goes
            to the back of the queue; `budget`: seconds for the whole map, after which what is
            unfinished counts as timed out; `outcomes=True`: a record of each item, failures
            included, instead of its value; nothing is raised for an item then; `seed`: an int; by
            it and the item's index `random` and `numpy.random` are seeded before each item,
            whatever the number of workers (numpy if it is imported in the host before the map, or
            in the worker before the item); `progress`: True or a description for a bar of tqdm, or
            a callable that gets how many items have ended, timed out and failed otherwise, and how
            many there are (None where unknown); what it raises ends the map.

    Returns:
        A list with one entry an item; with `outcomes=True`, `Outcomes`.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as `cpus=0`.
        TimeoutError: an item timed out, with `on_timeout="raise"`.
        WorkerDied: the worker of an item died.
        MemoryLimitExceeded: an item used more than `max_memory`, or was refused more.
        SerializationError: the function, an item or a result could not be pickled.
        WorkerStartError: no worker could be started.

    Exceptions of ours carry `.item` and `.index`.

    Example:
        >>> import time
        >>> from killercall import killer_pmap
        >>> def nap(seconds):
        ...     time.sleep(seconds)
        ...     return seconds
        >>> killer_pmap(nap, [0, 0.1, 30], cpus=2, timeout=1)
        [0, 0.1, None]
    """
    __tracebackhide__ = True
    func = check_mapped(func)
    workers = default_workers() if cpus is None else check_count("cpus", cpus, 1)
    checked = check_options(timeout, options, where="killer_pmap")
    items = list(check_iterable(iterable))
    try:
        return _in_list(checked, _values(func, items, workers, checked))
    except (KeyboardInterrupt, SerializationError) as error:
        leave_out_ours(error, but_first=True)
        raise
    except Failed as failed:
        failure = failed.failure
    try:
        raise failure
    finally:
        # Or the traceback holds this frame, which holds the exception.
        del failure


def _values(func: Any, items: list[Any], workers: int, options: Options) -> list[Any]:
    if not items:
        return []
    if is_inline():
        return list(run_inline_items(func, items, len(items), options))
    check_depth()
    workers = as_many_as_fit(min(workers, len(items)), "killer_pmap")
    return _Map(func, items, workers, options).run()


def _in_list(options: Options, values: list[Any]) -> list[Any]:
    return Outcomes(values, default=options.default) if options.outcomes else values


def check_mapped(func: Any) -> Any:
    """The function that a map is to call."""
    check_function(func)
    # The map has deadlines of its own; one worker an item is enough.
    return func.__wrapped__ if isinstance(func, KillerFunction) else func


def check_options(timeout: Any, options: dict[str, Any], where: str) -> Options:
    """The options of a map."""
    base = Options(timeout=check_timeout("timeout", timeout), on_timeout="default")
    return update(base, options, allowed=MAP_OPTIONS, where=where)


def as_many_as_fit(workers: int, where: str) -> int:
    """As many workers as the system has room for; warns if that is fewer."""
    found = room_for_workers(workers)
    if found is None:
        return workers
    warn_of_shortage(workers, *found, where=where)
    return found[0]


def check_iterable(iterable: Any) -> Iterator[Any]:
    """An iterator of it."""
    try:
        iterator: Iterator[Any] = iter(iterable)
    except TypeError:
        kind = type(iterable).__qualname__
        message = f"iterable must be iterable, not {short_repr(iterable)} of type {kind}"
        raise TypeError(message) from None
    return iterator


class _Map:
    """One map with its job."""

    def __init__(self, func: Any, items: list[Any], workers: int, options: Options) -> None:
        self.items = items
        self.values: list[Any] = [None] * len(items)
        self._results = results_for(options)
        self._options = options
        self._workers = workers
        forks = options.start_method == "fork"
        # As they travel: where items are seeded, with their indexes.
        self._arguments = items if options.seed is None else list(enumerate(items))
        calls: list[Call] | None = None
        if forks:
            calls = [((argument,), {}) for argument in self._arguments]
        self._plan: Plan | None = Plan(function_for(func, options), options_for(options), calls)
        # Of what comes in bulk there is the value, and nothing else.
        self._bulk = not options.outcomes
        self._job = self._plan.job(workers, options.budget, bulk=self._bulk)
        self._next = 0
        self._unfinished = len(items)

    def run(self) -> list[Any]:
        progress = progress_for(self._options, len(self.items))
        try:
            with self._job.scope:
                self._feed()
                while self._unfinished:
                    outcomes = self._wait()
                    for outcome in outcomes:
                        self._take(outcome)
                    self._feed()
                    progress.report(len(self.items) - self._unfinished, self._results)
                # All of them may have failed before they were sent.
                progress.report(len(self.items), self._results)
        finally:
            progress.close()
        shortage = self._job.shortage()
        if shortage is not None:
            warn_of_shortage(self._workers, *shortage)
        return self.values

    def _wait(self) -> list[_core.Outcome]:
        """Waits until something has ended, and returns what is not in its place yet."""
        if not self._bulk:
            return self._job.wait()
        placed, outcomes = self._job.wait_into(self.values)
        self._unfinished -= placed
        return outcomes

    def _feed(self) -> None:
        """Keeps the queue full, so that no worker waits for the host to pickle."""
        end = len(self.items)
        if self._next == end or self._job.queued() >= _AHEAD // 2:
            return
        most = self._next + _AHEAD - self._job.queued()
        large = _LARGE_PER_WORKER * self._workers + _LARGE_MORE
        while self._next < min(end, most) and self._job.large() < large:
            self._next = self._job.submit_items(self._arguments, self._next, most - self._next)
            if self._next < min(end, most):
                self._submit(self._next)
                self._next += 1
        if self._plan is not None:
            self._plan.import_ahead()
            self._plan = None

    def _submit(self, index: int) -> None:
        try:
            self._job.submit(index, ((self._arguments[index],), {}))
        except SerializationError as error:
            self._unfinished -= 1
            self.values[index] = self._results.of_failure(
                error, index, self.items[index], NEVER_SENT
            )

    def _take(self, outcome: _core.Outcome) -> None:
        self._unfinished -= 1
        index = outcome.task
        self.values[index] = self._results.of(self._job, outcome, index, self.items[index])


def run_inline_items(
    func: Any, items: Iterable[Any], total: int | None, options: Options
) -> Generator[Any, None, None]:
    """What takes the places of items that are run in this process, without deadlines."""
    results, progress = results_for(options), progress_for(options, total)
    map_began = time.monotonic()
    try:
        for index, item in enumerate(items):
            value = _run_item(func, options, results, map_began, (index, item))
            progress.report(index + 1, results)
            yield value
    finally:
        progress.close()


def _run_item(
    func: Any, options: Options, results: Results, map_began: float, entry: tuple[int, Any]
) -> Any:
    index, item = entry
    attempts, began = 0, time.monotonic()

    def attempt() -> Any:
        nonlocal attempts, began
        attempts, began = attempts + 1, time.monotonic()
        with seeded_here(options, index):
            return finished(func(item))

    def ended(ending: str) -> Here:
        return Here(
            ending,
            pid=os.getpid(),
            started=began - map_began,
            elapsed=time.monotonic() - began,
            attempts=attempts,
        )

    try:
        value = run_inline(attempt, (), {}, options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return results.of_failure(error, index, item, ended("raised"))
    return results.of_value(value, index, item, ended("returned"))
