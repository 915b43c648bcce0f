"""`killer_pipeline`: a reader, workers and a writer, each in processes of their own."""

from __future__ import annotations

import collections
import contextlib
import hmac
import os
import queue
import secrets
import socket
import sys
import time
from typing import NamedTuple

from killercall import _core, _payload
from killercall._call import KillerFunction, check_function, run_inline
from killercall._cpus import default_workers
from killercall._exceptions import (
    KillerError,
    SerializationError,
    add_note,
    leave_out_ours,
    set_attribute,
)
from killercall._host import HostJob, Plan, check_depth, is_inline
from killercall._limits import room_for_workers, warn_of_shortage
from killercall._options import PIPELINE_OPTIONS, Options, check_count, check_timeout, update
from killercall._payload import short_repr
from killercall._progress import progress_for
from killercall._results import NEVER_SENT, Failed, Results
from killercall._stages import Reader, Stage, Writer, frames, send_end, send_frame
from killercall._waiting import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Literal, Unpack, overload

    from killercall._progress import Progress
    from killercall._typing import OnFailure, OnTimeout, PipelineOptions, R, S, T, Timeout

DEFAULT_TIMEOUT = 4.0

# Items, or batches of them, between reader and writer: so many for each worker, and at least these.
_WINDOW_PER_WORKER = 4
_WINDOW_LEAST = 16
# Seconds between two looks for signals.
_SLICE = 0.05
# Seconds for a stage to end after its connection has.
_LOSS_LIMIT = 2.0
_SECRET = 32


if TYPE_CHECKING:

    @overload
    def killer_pipeline(
        read: Callable[[], Iterable[T]],
        work: Callable[[T], R],
        write: Callable[[Iterator[R]], S],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        ordered: bool = ...,
        batch: None = ...,
        on_timeout: Literal["raise"] = ...,
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[PipelineOptions],
    ) -> S: ...

    @overload
    def killer_pipeline(
        read: Callable[[], Iterable[T]],
        work: Callable[[T], object],
        write: Callable[[Iterator[Any]], S],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        ordered: bool = ...,
        batch: None = ...,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        **options: Unpack[PipelineOptions],
    ) -> S: ...

    @overload
    def killer_pipeline(
        read: Callable[[], Iterable[T]],
        work: Callable[[list[T]], R],
        write: Callable[[Iterator[R]], S],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        ordered: bool = ...,
        batch: int,
        on_timeout: Literal["raise"] = ...,
        on_error: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[PipelineOptions],
    ) -> S: ...

    @overload
    def killer_pipeline(
        read: Callable[[], Iterable[T]],
        work: Callable[[list[T]], object],
        write: Callable[[Iterator[Any]], S],
        cpus: int | None = ...,
        timeout: Timeout = ...,
        *,
        ordered: bool = ...,
        batch: int,
        on_timeout: OnTimeout = ...,
        on_error: OnFailure = ...,
        default: Any = ...,
        **options: Unpack[PipelineOptions],
    ) -> S: ...


def killer_pipeline(
    read: Callable[[], Iterable[Any]],
    work: Callable[[Any], Any],
    write: Callable[[Iterator[Any]], Any],
    cpus: int | None = None,
    timeout: Any = DEFAULT_TIMEOUT,
    *,
    ordered: bool = True,
    batch: int | None = None,
    **options: Any,
) -> Any:
    """
    Reads in one process, works in several, writes in one, with bounded buffers between them.

    The first stage that fails, whichever it is, ends the others at once, and its error is raised
    here. So a writer whose loop over the results has come to its end has had all of them: what it
    does after the loop, such as to rename a temporary file, is never done for a part.

    Args:
        read: called without arguments in the reader's process; the items of what it returns, a
            generator say, are what is worked on. It is read only as far as the buffers go.
        work: called with one item, or with a list of items if there is a `batch`, in a worker.
        write: called with an iterator of the results in the writer's process.
        cpus: how many workers, beside reader and writer. Default as in `killer_pmap`.
        timeout: seconds for an item, or for a batch (int or float), a `datetime.timedelta`, or
            None. Default 4. Reading and writing have no deadline but the `budget`.
        ordered: whether the results come in the order of the items, or as they are done.
        batch: how many items go to `work` together, the last batch may have fewer; None for one
            by one and not in a list.
        **options: as for `killer_pmap`, except `outcomes`, `seed` and `start_method="fork"`. An
            item that times out ends all (`on_timeout="raise"`) unless `on_timeout` says otherwise.
            `budget` is for the whole pipeline: when it is spent before the writer has returned,
            all ends with `TimeoutError`. `initializer` is for the workers. `progress` counts items,
            also those of a `batch` one by one, as `work` is done with them; how many there are is
            not known, so that is None.

    Between reader and writer there are at most 4 items or batches for each worker, and 16 at least.

    Returns:
        What `write` returns.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as `cpus=0`.
        KillerError: a stage has failed, as in `killer_pmap`. Each exception has a note that names
            the stage, and those of ours have it as `.stage`: "read", "work" or "write".

    Example:
        >>> from killercall import killer_pipeline
        >>> def total(results):
        ...     return sum(results)
        >>> killer_pipeline(lambda: range(5), lambda x: x * x, total, cpus=1, timeout=5)
        30
    """
    __tracebackhide__ = True
    for name, function in (("read", read), ("work", work), ("write", write)):
        if not callable(function):
            kind = type(function).__qualname__
            message = f"{name} must be callable, not {short_repr(function)} of type {kind}"
            raise TypeError(message)
        check_function(function)
    functions = _Functions(*map(_bare, (read, work, write)))
    workers = default_workers() if cpus is None else check_count("cpus", cpus, 1)
    base = Options(timeout=check_timeout("timeout", timeout))
    checked = update(base, options, allowed=PIPELINE_OPTIONS, where="killer_pipeline")
    if batch is not None:
        check_count("batch", batch, 1)
    if checked.start_method == "fork":
        message = (
            'start_method must be "forkserver" or "spawn" for a pipeline, not \'fork\': '
            "a forked worker inherits its items, and these are not read yet"
        )
        raise ValueError(message)
    try:
        return _run(functions, workers, checked, ordered=ordered, batch=batch)
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


class _Functions(NamedTuple):
    read: Any
    work: Any
    write: Any


def _bare(function: Any) -> Any:
    return function.__wrapped__ if isinstance(function, KillerFunction) else function


def _as_many_as_fit(workers: int) -> int:
    """As many workers as the system has room for beside reader and writer; warns if it is fewer."""
    found = room_for_workers(workers + 2)
    if found is None:
        return workers
    fewer = max(found[0] - 2, 1)
    warn_of_shortage(workers, fewer, found[1], where="killer_pipeline")
    return fewer


def _results(options: Options, batch: int | None) -> Results:
    return Results(options, of="pipeline", has_batches=batch is not None)


def _run(
    functions: _Functions, workers: int, options: Options, *, ordered: bool, batch: int | None
) -> Any:
    progress = progress_for(options, None)
    with contextlib.closing(progress):
        if is_inline():
            return _run_inline(functions, options, progress, batch=batch)
        check_depth()
        workers = _as_many_as_fit(workers)
        pipeline = _Pipeline(functions, workers, options, progress, ordered=ordered, batch=batch)
        with _Ending(pipeline):
            return pipeline.run()


def _run_inline(
    functions: _Functions, options: Options, progress: Progress, *, batch: int | None
) -> Any:
    stage = Reader(functions.read, "", b"", None)
    stage.batch = batch
    results = _results(options, batch)

    def work() -> Iterator[Any]:
        done = 0
        for number, item in enumerate(stage.grouped(functions.read())):
            value: Any = None
            failure: BaseException | None = None
            try:
                value = run_inline(functions.work, (item,), {}, options)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = error
            if failure is not None:
                is_replaced = False
                with contextlib.suppress(Failed):
                    value = results.of_failure(failure, number, item, NEVER_SENT)
                    is_replaced = True
                if not is_replaced:
                    # The writer, which asks for it, is the user's code: it gets the error itself.
                    raise failure
            done += results.size(item)
            progress.report(done, results)
            yield value

    return functions.write(work())


class _End:
    """The host's end of the connection to a reader or a writer, and the thread that serves it."""

    def __init__(
        self, serve: Callable[[socket.socket], None], fail: Callable[[BaseException], None]
    ) -> None:
        self._fail = fail
        self.secret = secrets.token_bytes(_SECRET)
        self._serve = serve
        self._is_closed = False
        self._directory: str | None = None
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.address: str | bytes
        if sys.platform == "linux":
            # Without a name in the file system, which somebody would have to remove.
            self.address = b"\0killercall-" + secrets.token_hex(16).encode()
        else:
            import tempfile

            self._directory = tempfile.mkdtemp(prefix="killercall-")
            self.address = os.path.join(self._directory, "end")
        self._listener.bind(self.address)
        self._listener.listen(1)
        self._listener.settimeout(0.1)
        self._thread = Thread(self._run, daemon=True)

    def start(self) -> None:
        """Begins to wait for the stage."""
        self._thread.start()

    def _run(self) -> None:
        try:
            connection = self._accept()
            if connection is not None:
                self._serve(connection)
        except BaseException as error:
            if not self._is_closed:
                self._fail(error)

    def _accept(self) -> socket.socket | None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._connection = connection
            if self._is_closed:
                # Who closes this may have looked for it before.
                connection.close()
                return None
            connection.settimeout(10)
            with contextlib.suppress(OSError):
                said = connection.recv(_SECRET, socket.MSG_WAITALL)
                if hmac.compare_digest(said, self.secret):
                    connection.settimeout(None)
                    return connection
            connection.close()
        return None

    def close(self) -> None:
        """Ends connection and thread. May be called again, if it was interrupted."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            # A thread that waits for the stage wakes up.
            self._listener.shutdown(socket.SHUT_RDWR)
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        for name in ("_serve", "_fail"):
            # They hold the pipeline, which holds this.
            vars(self).pop(name, None)
        if self._connection is not None:
            self._connection.close()
        if self._directory is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.address)
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)


class _Ending:
    """Closes a pipeline, whatever signal handlers raise meanwhile."""

    def __init__(self, pipeline: _Pipeline) -> None:
        self._pipeline = pipeline

    def __enter__(self) -> None:
        """Nothing is to be done."""

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def __del__(self) -> None:
        """If a signal came just before the end of the block."""
        self._end()

    def _end(self) -> None:
        raised: BaseException | None = None
        while not self._pipeline.has_ended:
            try:
                self._pipeline.close()
            except KeyboardInterrupt as error:
                # It takes milliseconds.
                raised = error
        if raised is not None:
            raise raised


class _Pipeline:
    """
    One pipeline while it runs.

    Items go round by way of the host: a thread receives from the reader, the caller's thread hands
    out and collects, and a thread sends to the writer. All of that is between a place that an item
    takes when it is received and gives back when its result has been sent.

    Attributes:
        has_ended: whether it is closed to its end.
    """

    def __init__(
        self,
        functions: _Functions,
        workers: int,
        options: Options,
        progress: Progress,
        *,
        ordered: bool,
        batch: int | None,
    ) -> None:
        self._options = options
        self._ordered = ordered
        self._waker = _core.Waker()
        self._is_closed = self.has_ended = False
        # The free places. Not a semaphore, whose lock an interrupt may leave held.
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(max(_WINDOW_PER_WORKER * workers, _WINDOW_LEAST)):
            self._places.put(None)
        self._incoming: collections.deque[bytes] = collections.deque()
        self._has_read_all = False
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_writing = True
        # Those that are worked on, by number.
        self._items: dict[int, Any] = {}
        self._read = 0
        # Results that wait for those before them.
        self._waiting: dict[int, bytes] = {}
        self._written = 0
        # How many items have ended, and how.
        self._done = 0
        self._results = _results(options, batch)
        self._progress = progress
        # How many results were sent to the writer.
        self._sent = 0
        # What the stages that were over the budget have raised; which of them held up the others.
        self._over: dict[str, BaseException] = {}
        self._laggard: tuple[str, float] | None = None
        self._ends = (_End(self._receive, self._note_loss), _End(self._send, self._note_loss))
        # What has ended one of their threads, and when.
        self._loss: tuple[BaseException, float] | None = None
        reader = self._stage(Reader, functions.read, self._ends[0])
        reader.batch = batch
        writer = self._stage(Writer, functions.write, self._ends[1])
        one = Options(
            **{
                name: value
                for name, value in vars(options).items()
                if name
                in {
                    "start_method",
                    "preload",
                    "env",
                    "cwd",
                    "max_memory",
                    "serializer",
                    "grace",
                    "budget",
                }
            }
        )
        plans = [
            (Plan(reader, one), 1),
            (Plan(functions.work, options), workers),
            (Plan(writer, one), 1),
        ]
        self._jobs: dict[str, HostJob] = {}
        for name, (plan, count) in zip(("read", "work", "write"), plans, strict=True):
            self._jobs[name] = plan.job(count, options.budget)
        for name in ("read", "write"):
            self._jobs[name].submit(0, ((), {}))
        plans[1][0].import_ahead()

    def _stage(self, kind: type[Any], function: Any, end: _End) -> Any:
        described = _payload.describe_serializer(self._options.serializer)
        stage: Stage = kind(function, end.address, end.secret, described)
        return stage

    def close(self) -> None:
        """Ends all that runs. May be called again, if it was interrupted."""
        self._is_closed = True
        # A thread that waits for a place, and one that waits for a result.
        self._places.put(None)
        self._outgoing.put(None)
        for job in self._jobs.values():
            job.scope.close()
        for end in self._ends:
            end.close()
        self.has_ended = True

    def run(self) -> Any:
        """What the writer returns."""
        for end in self._ends:
            end.start()
        jobs = list(self._jobs.items())
        scopes = [job.scope for _, job in jobs]
        while True:
            for place in _core.wait_any(scopes, self._waker, _SLICE):
                name, job = jobs[place]
                for outcome in job.take():
                    if self._is_over_budget(name, outcome):
                        self._over.setdefault(name, job.failure(outcome))
                    elif name == "work":
                        self._take(job, outcome)
                    elif outcome.ending != "returned":
                        raise self._failed(job.failure(outcome), name)
                    elif name == "write":
                        self._progress.report(self._done, self._results)
                        return job.value(outcome)
            self._progress.report(self._done, self._results)
            self._check_budget()
            self._feed()
            self._check_loss()

    def _is_over_budget(self, stage: str, outcome: _core.Outcome) -> bool:
        """Whether it has ended because the budget is spent, and not an item's own time."""
        timeout = self._options.timeout
        return outcome.ending == "timed_out" and (
            stage != "work" or timeout is None or outcome.elapsed < timeout
        )

    def _check_budget(self) -> None:
        """
        All stages that have not ended are over it at the same moment: the one that holds up the
        others is told of.
        """
        if not self._over:
            return
        if self._laggard is None:
            self._laggard = self._find_laggard(), time.monotonic()
        stage, since = self._laggard
        if stage in self._over or time.monotonic() > since + _LOSS_LIMIT:
            failure = self._over.get(stage) or next(iter(self._over.values()))
            state = (
                f"{self._read} were read, {len(self._items)} are worked on, {self._sent} written"
            )
            add_note(failure, f"of the items of the pipeline {state}")
            raise self._failed(failure, stage)

    def _find_laggard(self) -> str:
        if self._sent < self._read - len(self._items) - len(self._waiting):
            return "write"
        if self._items or self._over.keys() == {"work"}:
            return "work"
        return "write" if self._has_read_all else "read"

    def _check_loss(self) -> None:
        """When a connection is lost, how the stage has ended tells more; if it has."""
        if self._loss is not None and time.monotonic() > self._loss[1] + _LOSS_LIMIT:
            error = self._loss[0]
            message = f"the pipeline has lost a stage: {_payload.describe(error)}"
            raise KillerError(message) from error

    # In threads of their own

    def _note_loss(self, error: BaseException) -> None:
        self._loss = error, time.monotonic()
        self._waker.wake()

    def _receive(self, connection: socket.socket) -> None:
        for frame in frames(connection):
            self._places.get()
            if self._is_closed:
                return
            self._incoming.append(frame)
            self._waker.wake()
        self._has_read_all = True
        self._waker.wake()

    def _send(self, connection: socket.socket) -> None:
        while True:
            frame = self._outgoing.get()
            if self._is_closed:
                return
            if frame is None:
                send_end(connection)
                return
            send_frame(connection, frame)
            self._sent += 1
            self._places.put(None)

    # In the caller's

    def _feed(self) -> None:
        """Hands out what has been read; tells the writer when there is nothing more."""
        has_read_all = self._has_read_all
        job = self._jobs["work"]
        while self._incoming:
            frame = self._incoming.popleft()
            try:
                item = self._options.serializer.loads(frame)
                number, self._read = self._read, self._read + 1
                self._items[number] = item
                job.submit(number, ((item,), {}))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                what = (
                    f"cannot bring an item from the reader to a worker: {_payload.describe(error)}"
                )
                failure = SerializationError(what)
                failure.__cause__ = error
                raise self._failed(failure, "read") from error
        if has_read_all and not self._items and self._is_writing:
            self._is_writing = False
            self._outgoing.put(None)

    def _take(self, job: HostJob, outcome: _core.Outcome) -> None:
        number = outcome.task
        item = self._items.pop(number)
        self._done += self._results.size(item)
        try:
            value = self._results.of(job, outcome, number, item)
        except Failed as failed:
            raise self._failed(failed.failure, "work") from None
        try:
            frame = _payload.dumps(self._options.serializer, value, "result")
        except SerializationError as error:
            raise self._failed(error, "work") from error
        if not self._ordered:
            self._outgoing.put(frame)
            return
        self._waiting[number] = frame
        while self._written in self._waiting:
            self._outgoing.put(self._waiting.pop(self._written))
            self._written += 1

    @staticmethod
    def _failed(failure: BaseException, stage: str) -> Failed:
        """What ends the pipeline, with the name of the stage that has failed."""
        add_note(failure, f"stage {stage!r} of the pipeline")
        if isinstance(failure, KillerError):
            set_attribute(failure, "stage", stage)
        return Failed(failure)


__all__ = ["killer_pipeline"]
