"""
`killer_imap`: the lazy parallel map, a generator.

Two threads share one map. The consumer's reads the input, pickles what has to be pickled and makes
values of what comes back: all of that is user code. The driver's has the job, and runs none. They
meet in two lists, items on their way there and values on their way back, each by the number of the
task; and in a queue of news. There is no lock that one could hold while the other waits for it: a
generator may be dropped wherever the garbage collector runs, and waits for the driver then.
"""

from __future__ import annotations

import collections
import functools
import os
import time
from _thread import allocate_lock

from killercall import _core, _driver, _payload
from killercall._cpus import default_workers
from killercall._exceptions import KillerError, SerializationError, leave_out_ours
from killercall._host import Plan, is_inline
from killercall._limits import warn_of_shortage
from killercall._options import check_count
from killercall._pmap import (
    DEFAULT_TIMEOUT,
    as_many_as_fit,
    check_iterable,
    check_mapped,
    check_options,
    run_inline_items,
)
from killercall._prepare import function_for, options_for
from killercall._progress import progress_for
from killercall._results import NEVER_SENT, Failed, results_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
    from queue import SimpleQueue
    from typing import Any, Literal, Unpack, overload

    from killercall._exceptions import (
        TimeoutError,  # ruff: ignore[builtin-import-shadowing]
    )
    from killercall._options import Options
    from killercall._outcomes import Outcome
    from killercall._progress import Progress
    from killercall._typing import D, MapOptions, OnFailure, OnTimeout, R, T, Timeout

    # How many values have come to their places, and what else has ended.
    News = tuple[int, list[_core.Outcome]]
    # From a number to before another, items that go plain; or a number, and a pickled item.
    Batch = list[tuple[int, int | bytes | _core.Parcel]]
else:
    from _queue import SimpleQueue

# How many items are read ahead of what was yielded: so many for each worker, but at least these.
_AHEAD_PER_WORKER = 2
_AHEAD = 16
# And as many at most, where an item takes no longer than this, in seconds.
_AHEAD_OF_QUICK = 512
_QUICK = 100e-6
# Large items are not copied before they are needed: as many for each worker, and these.
_LARGE_PER_WORKER = 2
_LARGE_MORE = 2

# Tasks are numbered up to here. Then all of them have to end before numbers begin anew, since the
# native side keeps what came after the oldest unfinished one.
_NUMBERS = 1 << 15
# So it does with pickled arguments; in bytes.
_KEPT_MAX = 1 << 26

# What stays as it is until the driver sends it. All else is pickled when it is read, as whoever
# makes the items may go on with one that was yielded.
_FIXED = frozenset({int, float, str, bytes, bool, type(None)})
# What goes plain for sure: numbers that the native side has a word for, short texts, short tuples.
_INT_MAX = 2**63 - 1
_TEXT_MAX = 4096
_PARTS_MAX = 16

# In the place of a value that is not there yet, and instead of an item after the last one.
_PENDING = object()
_END = object()
# Only to be looked at.
_NO_NEWS: News = (0, [])


if TYPE_CHECKING:

    @overload
    def killer_imap(
        func: Callable[[T], object],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: Literal[True],
        **options: Unpack[MapOptions],
    ) -> Generator[Outcome, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["raise", "default"] = ...,
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | D, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], Coroutine[Any, Any, R]],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: bool = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[Any, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["raise", "default"] = ...,
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | D, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["raise"],
        on_error: Literal["default"],
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | D, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["default"] = ...,
        on_error: Literal["return"],
        default: D = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | D | BaseException, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["raise", "return"],
        on_error: Literal["return"],
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | BaseException, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], R],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: Literal["return"],
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        outcomes: Literal[False] = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[R | TimeoutError, None, None]: ...

    @overload
    def killer_imap(
        func: Callable[[T], object],
        iterable: Iterable[T],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        ordered: bool = ...,
        *,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        outcomes: bool = ...,
        **options: Unpack[MapOptions],
    ) -> Generator[Any, None, None]: ...


def killer_imap(
    func: Any,
    iterable: Iterable[Any],
    cpus: int | None = None,
    timeout: Any = DEFAULT_TIMEOUT,
    ordered: bool = True,
    **options: Any,
) -> Generator[Any, None, None]:
    """
    Maps a function over items in parallel, lazily, with a deadline for every item.

    As `killer_pmap`, but a generator: results come as soon as they are there, and the input, which
    may be endless, is read only as far ahead of what was yielded as twice the workers, or 16 items
    if that is more; up to 512 where items take microseconds. It is read by the consumer's thread,
    inside of `next()`. Deadlines are kept while the consumer does something else.

    Closing or dropping the generator kills what runs, and waits until it is dead. Where the input
    raises, what was read before is yielded first.

    Args:
        func: called with one item, in a worker process.
        iterable: the items.
        cpus: how many workers. Default as for `killer_pmap`.
        timeout: seconds an item (int or float), a `datetime.timedelta`, or None. Default 4.
        ordered: whether results come in the order of the items (the default), or as they end.
        **options: as for `killer_pmap`; `start_method="fork"` excepted, as its workers inherit all
            items when they start. After the `budget` is spent, all further items count as timed
            out. With `outcomes=True` it yields `Outcome` records.

    Returns:
        A generator. Nothing runs before its first `next()`.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as `cpus=0`.

    Iterating raises what `killer_pmap` raises, at once, whatever the order of the items.

    Example:
        >>> import itertools
        >>> from killercall import killer_imap
        >>> squares = killer_imap(lambda x: x * x, itertools.count(), cpus=2)
        >>> [next(squares) for _ in range(4)]
        [0, 1, 4, 9]
        >>> squares.close()
    """
    __tracebackhide__ = True
    func = check_mapped(func)
    workers = default_workers() if cpus is None else check_count("cpus", cpus, 1)
    if not isinstance(ordered, bool):
        message = f"ordered must be True or False, not {ordered!r}"
        raise TypeError(message)
    checked = check_options(timeout, options, where="killer_imap")
    if checked.start_method == "fork":
        message = (
            "start_method must be 'forkserver' or 'spawn' for killer_imap, not 'fork': forked "
            "workers inherit the items, and these are not known when the workers start"
        )
        raise ValueError(message)
    iterator = check_iterable(iterable)
    if is_inline():
        return _run_inline(func, iterator, _total(iterable), checked)
    try:
        plan = Plan(function_for(func, checked), options_for(checked))
    except SerializationError as error:
        leave_out_ours(error, but_first=True)
        raise
    return _run(
        plan,
        iterator,
        workers,
        checked,
        ordered=ordered,
        total=_total(iterable),
    )


def _total(iterable: Any) -> int | None:
    """How many items there are, if that is known."""
    try:
        return len(iterable)
    except TypeError:
        return None


def _run_inline(
    func: Any, iterator: Iterator[Any], total: int | None, options: Options
) -> Generator[Any, None, None]:
    __tracebackhide__ = True
    try:
        yield from run_inline_items(func, iterator, total, options)
    except Failed as failed:
        failure = failed.failure
    else:
        return
    try:
        raise failure
    finally:
        del failure


def _run(
    plan: Plan,
    iterator: Iterator[Any],
    workers: int,
    options: Options,
    *,
    ordered: bool,
    total: int | None,
) -> Generator[Any, None, None]:
    __tracebackhide__ = True
    workers = as_many_as_fit(workers, "killer_imap")
    progress = progress_for(options, total)
    consumer = _Consumer(plan, iterator, workers, options, progress, ordered=ordered)
    del plan
    failure: BaseException | None = None
    try:
        yield from consumer.results()
    except KeyboardInterrupt as interrupt:
        if options.grace:
            consumer.wind_down()
        leave_out_ours(interrupt, but_first=True)
        raise
    except Failed as failed:
        failure = failed.failure
    finally:
        consumer.close()
        progress.close()
    if failure is None:
        consumer.warn(workers)
        return
    try:
        raise failure
    finally:
        # Or the traceback holds this frame, which holds the exception.
        del failure


class _Stream(_driver.Run):
    """
    The driver's side. All methods are for the driver's thread, or for whoever drives instead.

    Attributes:
        items: the items, by the numbers of their tasks.
        values: the values of those that have ended, and `_PENDING`.
        news: how many values have come to their places, and what else has ended.
        error: why the map cannot go on, if it cannot.
        is_driven: whether the driver waits for it, or will when there is something to wait for.
            Otherwise its consumer does.
        unfinished: how many tasks have not ended.
    """

    # Nobody knows when the consumer goes on, so the end of the interpreter does not wait for it.
    has_deadline = False

    def __init__(self, plan: Plan, workers: int, options: Options) -> None:
        # Of what comes in bulk there is the value, and nothing else.
        self._bulk = not options.outcomes
        self.job = plan.job(workers, options.budget, bulk=self._bulk)
        self.driver = _driver.current()
        self.items: list[Any] = [None] * _NUMBERS
        self.values: list[Any] = [_PENDING] * _NUMBERS
        self.news: SimpleQueue[News] = SimpleQueue()
        self.error: BaseException | None = None
        self.is_driven = not (self.driver.is_exiting or self.driver.is_current())
        self.unfinished = 0

    def send(self, batch: Batch) -> None:
        """Hands tasks to the job."""
        if self.error is not None:
            return
        if not self.unfinished and self.is_driven:
            self.driver.add(self)
        try:
            for start, rest in batch:
                if isinstance(rest, int):
                    sent = self.job.submit_items(self.items, start, rest - start)
                    if sent != rest:
                        message = f"item {self.items[sent]!r} cannot go plain"
                        raise AssertionError(message)  # ruff: ignore[raise-within-try] - it was chosen for that
                    self.unfinished += rest - start
                else:
                    self.job.submit_dumped(start, rest)
                    self.unfinished += 1
        except BaseException as error:
            self.fail(error)

    def collect(self) -> None:
        """Takes what has ended."""
        try:
            if self._bulk:
                self._report(*self.job.take_into(self.values))
            else:
                self._report(0, self.job.take())
        except BaseException as error:
            self.fail(error)

    def wait(self) -> None:
        """The same, after a wait for it; for the consumer, if nobody else drives."""
        if self._bulk:
            self._report(*self.job.wait_into(self.values))
        else:
            self._report(0, self.job.wait())

    def _report(self, placed: int, outcomes: list[_core.Outcome]) -> None:
        self.unfinished -= placed + len(outcomes)
        if not self.unfinished or any(found.ending == "not_started" for found in outcomes):
            # The reason for the latter has to be asked of the job, by the consumer.
            self.driver.remove(self)
        self.news.put((placed, outcomes))

    def end(self) -> None:
        """Kills what runs; but the end of the interpreter leaves it to its consumer, if any."""
        if self.driver.is_exiting:
            self.hand_over()
        else:
            self.fail(KillerError(f"shutdown() has ended the map of function {self.job.name!r}"))

    def hand_over(self) -> None:
        """From now on its consumer drives."""
        self.driver.remove(self)
        self.is_driven = False
        self.news.put(_NO_NEWS)

    def fail(self, error: BaseException) -> None:
        """It cannot go on."""
        self.error = error
        self.close()
        self.news.put(_NO_NEWS)

    def close(self) -> None:
        """Kills what runs, and waits until it is dead."""
        self.driver.remove(self)
        self.error = self.error or RuntimeError("the map is closed")
        self.job.scope.close()


class _Consumer:
    """The consumer's side: reads items, and yields what takes their places."""

    def __init__(
        self,
        plan: Plan,
        iterator: Iterator[Any],
        workers: int,
        options: Options,
        progress: Progress,
        *,
        ordered: bool,
    ) -> None:
        self._owner = os.getpid()
        self._is_closed = False
        # Until something is sent.
        self._plan: Plan | None = plan
        self._stream = _Stream(plan, workers, options)
        self._driver = self._stream.driver
        # Whether this drives the job itself.
        self._drives = not self._stream.is_driven
        # Until it has ended, or failed.
        self._iterator: Iterator[Any] | None = iterator
        self._failure: Exception | None = None
        self._results = results_for(options)
        self._progress = progress
        # How many items have ended.
        self._done = 0
        self._ordered = ordered
        # Whether items travel with their indexes.
        self._is_seeded = options.seed is not None
        self._takes_plain = _payload.takes_plain(options.serializer)
        # The task with number 0 has the item with this index.
        self._base = 0
        self._next = 0
        # The numbers of what has been read and is not ready to be yielded, in their order.
        self._pending: collections.deque[int] = collections.deque()
        self._ready: collections.deque[Any] = collections.deque()
        self._unfinished = 0
        # Those with large arguments.
        self._large: set[int] = set()
        self._large_max = _LARGE_PER_WORKER * workers + _LARGE_MORE
        # How many bytes of pickled arguments the native side may have kept.
        self._kept = 0
        self._window = self._least = max(_AHEAD_PER_WORKER * workers, _AHEAD)
        # When the pace was looked at, and how many items have ended since.
        self._since = time.monotonic()
        self._ended = 0

    def results(self) -> Generator[Any, None, None]:
        """What takes the places of the items."""
        ready = self._ready
        while True:
            if self._iterator is not None:
                self._fill()
            while not ready:
                if self._unfinished:
                    self._wait()
                elif self._iterator is not None or self._pending:
                    # They have failed before they were sent.
                    self._gather()
                    self._fill()
                elif self._failure is not None:
                    raise Failed(self._failure)
                else:
                    return
            yield ready.popleft()

    def _fill(self) -> None:
        """
        Reads ahead; step by step as long as there is nothing to yield.

        So an input that has its items by and by does not hold up results that are there.
        """
        while self._iterator is not None and (room := self._room()):
            self._meet_driver()
            self._read(room)
            self._look_at_pace()
            self._take_all()
            if self._ready:
                return

    def _room(self) -> int:
        """How many items are to be read now: of quick ones many at a time."""
        ahead = len(self._pending) + len(self._ready)
        if self._window == self._least:
            room = int(ahead < self._window)
        else:
            room = self._window - ahead if ahead <= self._window // 2 else 0
        if not room:
            return 0
        if self._next == _NUMBERS or (self._kept > _KEPT_MAX and not self._ordered):
            if self._pending or self._unfinished:
                return 0
            self._base += self._next
            self._next = self._kept = 0
            self._large.clear()
        if len(self._large) >= self._large_max:
            self._large.intersection_update(self._pending)
            if len(self._large) >= self._large_max:
                return 0
        return min(room, _NUMBERS - self._next)

    def _read(self, most: int) -> None:
        """Reads so many items at most, and sends them."""
        items, iterator = self._stream.items, self._iterator
        batch: Batch = []
        first = number = self._next
        # Those from the start on go plain, and are not in the batch yet.
        start = first
        while iterator is not None and number < first + most:
            try:
                item = next(iterator, _END)
            except Exception as error:
                self._failure, item = error, _END
            if item is _END:
                self._iterator = None
                break
            if self._is_seeded:
                item = (self._base + number, item)
            items[number] = item
            number += 1
            if not (self._takes_plain and _is_plain(item)):
                if start < number - 1:
                    batch.append((start, number - 1))
                start = number
                self._dump(number - 1, batch)
                if len(self._large) >= self._large_max:
                    break
        if start < number:
            batch.append((start, number))
        self._pending.extend(range(first, number))
        self._next = number
        if batch:
            self._send(batch)

    def _dump(self, number: int, batch: Batch) -> None:
        """Pickles an item for the driver; or has what takes its place."""
        item = self._stream.items[number]
        try:
            dumped = self._stream.job.dump(((item,), {}))
        except SerializationError as error:
            self._stream.values[number] = self._results.of_failure(
                error, *self._entry(number), NEVER_SENT
            )
            self._done += 1
            return
        batch.append((number, dumped))
        if isinstance(dumped, _core.Parcel):
            self._large.add(number)
        else:
            self._kept += len(dumped)

    def _send(self, batch: Batch) -> None:
        if self._plan is not None:
            self._plan.import_ahead()
            self._plan = None
        if self._drives:
            self._stream.send(batch)
        else:
            self._driver.tell(functools.partial(self._stream.send, batch))
        for start, rest in batch:
            self._unfinished += rest - start if isinstance(rest, int) else 1

    def _look_at_pace(self) -> None:
        """Reads farther ahead as long as items are quick."""
        if self._ended < self._window:
            return
        now = time.monotonic()
        each = (now - self._since) / self._ended
        if each < _QUICK:
            self._window = max(min(2 * self._window, _AHEAD_OF_QUICK), self._least)
        elif each > 10 * _QUICK:
            self._window = self._least
        self._since, self._ended = now, 0

    def _meet_driver(self) -> None:
        """Finds out who drives, before anything is left to the driver or expected of it."""
        if os.getpid() != self._owner:
            message = "this map belongs to the process that forked this one"
            raise RuntimeError(message)
        if self._drives:
            return
        if self._driver.is_current():
            message = "the thread that drives a map cannot go on with it"
            raise RuntimeError(message)
        if self._driver.has_ended:
            self._drives = True
        elif not self._stream.is_driven:
            # What was left to the driver before is done when it has done this.
            self._leave_and_wait(lambda: None)
            self._drives = True

    def _leave_and_wait(self, action: Callable[[], None]) -> None:
        """Has the driver do something, and waits until it is done."""
        done = allocate_lock()
        done.acquire()

        def act() -> None:
            try:
                action()
            finally:
                done.release()

        self._driver.tell(act)
        if self._driver.may_wait():
            done.acquire()

    def _wait(self) -> None:
        """Waits until something has ended."""
        self._meet_driver()
        news = self._stream.news
        if self._drives and news.empty():
            self._stream.wait()
        self._take(news.get())
        self._take_all()

    def _take_all(self) -> None:
        """Takes what news there are, all at once."""
        news = self._stream.news
        while not news.empty():
            self._take(news.get())
        self._gather()

    def _take(self, news: News) -> None:
        if self._stream.error is not None:
            raise self._stream.error
        placed, outcomes = news
        self._unfinished -= placed + len(outcomes)
        self._done += placed + len(outcomes)
        for outcome in outcomes:
            self._stream.values[outcome.task] = self._results.of(
                self._stream.job, outcome, *self._entry(outcome.task)
            )

    def _entry(self, number: int) -> tuple[int, Any]:
        """Index and item of a task."""
        item = self._stream.items[number]
        return self._base + number, item[1] if self._is_seeded else item

    def _gather(self) -> None:
        """Whatever can be yielded by now is ready."""
        items, values = self._stream.items, self._stream.values
        pending, ready = self._pending, self._ready
        before = len(ready)
        for _ in range(len(pending)):
            number = pending.popleft()
            value = values[number]
            if value is not _PENDING:
                ready.append(value)
                items[number] = None
                values[number] = _PENDING
            elif self._ordered:
                pending.appendleft(number)
                break
            else:
                pending.append(number)
        self._ended += len(ready) - before
        self._progress.report(self._done, self._results)

    def wind_down(self) -> None:
        """Ends what is unfinished, with its grace period."""
        stream = self._stream
        if self._drives or stream.error is not None:
            return
        self._leave_and_wait(lambda: stream.job.cancel(gently=True))
        while stream.unfinished and stream.error is None and stream.is_driven:
            stream.news.get()

    def close(self) -> None:
        """Kills what runs, and waits until it is dead, whatever signal handlers raise meanwhile."""
        raised: BaseException | None = None
        while not self._is_closed:
            try:
                self._close()
            except BaseException as error:
                if raised is not None:
                    raise
                raised = error
        if raised is not None:
            raise raised

    def _close(self) -> None:
        if os.getpid() == self._owner:
            if self._drives or self._driver.has_ended:
                self._stream.close()
            else:
                self._leave_and_wait(self._stream.close)
        self._is_closed = True

    def __del__(self) -> None:
        """If a signal came just before the end of the generator closed this."""
        if not self._is_closed:
            self.close()

    def warn(self, workers: int) -> None:
        """After the end: says so if the system allowed fewer workers than these."""
        shortage = self._stream.job.shortage()
        if shortage is not None:
            warn_of_shortage(workers, *shortage, where="killer_imap")


def _is_plain(item: Any) -> bool:
    """Whether it goes plain, and stays as it is until the driver sends it."""
    kind = type(item)
    if kind is tuple:
        return len(item) <= _PARTS_MAX and all(map(_is_plain_atom, item))
    return _is_plain_atom(item)


def _is_plain_atom(item: Any) -> bool:
    kind = type(item)
    if kind is int:
        return bool(-_INT_MAX <= item <= _INT_MAX)
    if kind is str:
        # Others may not be text.
        return bool(len(item) <= _TEXT_MAX and item.isascii())
    if kind is bytes:
        return len(item) <= _TEXT_MAX
    return kind in _FIXED


__all__ = ["killer_imap"]
