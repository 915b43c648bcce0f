"""
The host's side: from options to a job, and from outcomes to values and exceptions.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import sys
import types
from _thread import allocate_lock

from killercall import (
    _captures,
    _context,
    _core,
    _forkserver,
    _outlets,
    _payload,
    _reloads,
    _stack,
)
from killercall._exceptions import (
    UNKNOWN,
    DepthLimitExceeded,
    KillerError,
    MemoryLimitExceeded,
    RemoteTraceback,
    SerializationError,
    TimeoutError,  # ruff: ignore[builtin-import-shadowing]
    WorkerDied,
    WorkerStartError,
    leave_out_ours,
    set_attribute,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable, Sequence
    from typing import Any

    from killercall._options import Options

    Call = tuple[tuple[Any, ...], dict[str, Any]]
    # As `_core.Job.start_error` has it.
    StartFailure = tuple[str, int | None, int | None, int | None, bytes | None]
else:
    import _pickle as pickle

# Seconds that a worker may take to be set up, initializer included.
START_LIMIT = 60.0
# How the message ends that says that it took longer.
_SLOW = "in time"


# The first part of the kind of workers that hold an instance each.
_ACTOR = "actor"


class _Shared:
    """What all calls of this process share. A forked child of the host starts with a new one."""

    def __init__(self) -> None:
        self.roster = _core.Roster()
        self.interner = _payload.Interner()
        self.preload: tuple[str, ...] = ()
        self._keys: dict[Any, int] = {}
        self._next_key = itertools.count(1)
        self._lock = allocate_lock()
        self._launch: tuple[int, _core.Launch] | None = None

    def key(self, kind: Any) -> int:
        """The number of this kind of worker."""
        key = self._keys.get(kind)
        if key is None:
            with self._lock:
                key = self._keys.setdefault(kind, next(self._next_key))
        return key

    def discard(self, owner: Owner) -> None:
        """Ends the workers of an owner that wait; it asks for no others."""
        key = self._keys.pop(owner.kind, None)
        if key is not None:
            self.roster.discard(key)

    def retire_workers(self) -> None:
        """No call is to be made by a worker that is there; but what lives in one stays."""
        for kind in list(self._keys):
            key = None if kind[0] == _ACTOR else self._keys.pop(kind, None)
            if key is not None:
                self.roster.discard(key)

    def import_ahead(self, modules: tuple[str, ...], launch: _core.Launch) -> None:
        """Has the forkserver import these; one that was started anew is told of the others too."""
        self.start(launch)
        fresh = tuple(name for name in modules if name not in self.preload)
        self.preload += fresh
        if fresh:
            self.roster.preload(launch, ",".join(fresh))

    def start(self, launch: _core.Launch) -> None:
        """Starts the forkserver unless it runs; what takes time goes on beside its start."""
        if self.roster.has_server():
            return
        if self.preload:
            self.roster.preload(launch, ",".join(self.preload))
        else:
            self.roster.start(launch)

    def import_cloudpickle_ahead(self) -> None:
        """The host needs cloudpickle: so will workers, which should not each import it."""
        if self.roster.has_server():
            self.import_ahead((_PICKLER,), self.launch(_context.current().version))
        elif _PICKLER not in self.preload:
            self.preload += (_PICKLER,)

    def launch(self, context: int) -> _core.Launch:
        """How to start the forkserver in these surroundings."""
        known = self._launch
        if known is None or known[0] != context:
            self._launch = known = context, _launch()
        return known[1]


class Owner:
    """
    Who has workers that are nobody else's: a pool or an actor. Its calls differ in what makes no
    worker.

    Attributes:
        number: which one it is in this process.
        kind: of its workers.
        stays: whether a worker holds what cannot be had from another, and never retires.
    """

    _numbers = itertools.count(1)

    def __init__(self, *, stays: bool = False) -> None:
        self.number = next(self._numbers)
        self.kind = (_ACTOR if stays else "pool", self.number)
        self.stays = stays
        self._initializer: bytes | None = None

    def initializer(self, options: Options) -> bytes:
        """Its initializer, pickled once: all of its workers are made alike."""
        if self._initializer is None:
            self._initializer = _dump_initializer(options)
        return self._initializer


def discard(owner: Owner) -> None:
    """Ends the workers of an owner that wait; it asks for no others."""
    _shared.discard(owner)


_PICKLER = "killercall._pickler"
_shared = _Shared()


def _import_cloudpickle_ahead() -> None:
    _shared.import_cloudpickle_ahead()


_payload.before_cloudpickle = _import_cloudpickle_ahead


def _start_anew() -> None:
    global _shared  # ruff: ignore[global-statement] - one per process, like what it describes
    _shared = _Shared()


os.register_at_fork(after_in_child=_start_anew)


def shutdown() -> None:
    """
    Ends all shared workers and the forkserver, and waits until nothing is left of them.

    The next call starts new ones. Calls that are running in other threads end with `WorkerDied`;
    futures of calls that have not ended are cancelled.

    Example:
        >>> import killercall
        >>> killercall.shutdown()
    """
    driver = sys.modules.get("killercall._driver")
    if driver is not None:
        driver.stop()
    _shared.roster.shutdown()
    # Their workers are gone, so what was kept for the next call is of no use.
    _shared.interner.forget_large()
    _core.keep_nothing()


_is_exiting = False


def _shutdown_at_exit() -> None:
    global _is_exiting  # ruff: ignore[global-statement] - one per process, like what it describes
    _is_exiting = True
    shutdown()


atexit.register(_shutdown_at_exit)


def idle_workers() -> int:
    """How many workers wait for a call."""
    return _shared.roster.idle()


def idle_pids() -> list[int]:
    """The pids of those of them that are known to be there."""
    return _shared.roster.idle_pids()


def has_server() -> bool:
    """Whether there is a forkserver."""
    return _shared.roster.has_server()


def preload(*modules: str) -> None:
    """
    Imports modules once in the forkserver, so that each new worker has them at once.

    Modules that cannot be imported there are passed over: the worker that needs one tries again.
    Workers that exist already are not changed.

    Args:
        modules: names such as `"numpy"`.

    Raises:
        TypeError: a name is not a string.
        ValueError: a name is not that of a module.

    Example:
        >>> import killercall
        >>> killercall.preload("json", "decimal")
    """
    from killercall._options import CHECKS

    names = CHECKS["preload"]("preload", modules)
    _shared.import_ahead(names, _shared.launch(_context.current().version))


def _launch() -> _core.Launch:
    """How to start the forkserver."""
    program, *arguments = _forkserver.interpreter_command(
        "from killercall._forkserver import main; main()"
    )
    if not program:
        message = "cannot start a worker: sys.executable does not name a Python interpreter"
        raise WorkerStartError(message)
    environment = [
        (os.fsencode(name), os.fsencode(value))
        for name, value in _context.worker_environment().items()
    ]
    return _core.Launch((program, arguments, environment))


def name_of(function: Any) -> str:
    """The function's name, for messages."""
    while hasattr(function, "func") and not hasattr(function, "__name__"):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


# In the flags of a code object: what `async def` has, without `yield` and with it.
_COROUTINE = 0x80
_ASYNC_GENERATOR = 0x200


def is_async(function: Any) -> bool:
    """Whether a call of it returns a coroutine."""
    function = _innermost(function)
    return _has_flags(function, _COROUTINE) or _has_flags(
        vars(type(function)).get("__call__"), _COROUTINE
    )


def is_async_generator(function: Any) -> bool:
    """Whether a call of it returns an asynchronous generator."""
    return _has_flags(_innermost(function), _ASYNC_GENERATOR)


def _innermost(function: Any) -> Any:
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function


def _place(function: Any) -> tuple[Any, ...]:
    """Where a function is written down, by which its versions are known."""
    inner = _innermost(function)
    if isinstance(inner, types.FunctionType):
        code = inner.__code__
        return inner.__qualname__, code.co_filename, code.co_firstlineno
    return type(inner).__qualname__, name_of(inner)


def _has_flags(part: Any, flags: int) -> bool:
    """As `inspect` has it, without importing that."""
    if flags == _COROUTINE and hasattr(part, "_is_coroutine_mark"):
        import inspect

        return inspect.iscoroutinefunction(part)
    return isinstance(part, types.FunctionType) and bool(part.__code__.co_flags & flags)


def check_depth() -> None:
    """Raises `DepthLimitExceeded` if another level of nesting is one too many."""
    level, limit = _context.depth() + 1, _context.max_depth()
    if level > limit:
        message = (
            f"this call would be nested {level} deep, and the limit is {limit}; "
            f"set {_context.MAX_DEPTH_VARIABLE} if that is meant"
        )
        raise DepthLimitExceeded(message)


is_inline = _context.is_inline


class HostJob:
    """
    A job as Python sees it: calls go in by number, outcomes come out.

    Attributes:
        scope: a context manager; leaving it ends the job and all of it that still runs. It is the
            native job itself, so that no signal can come between the end of the block and that.
    """

    def __init__(self, function: Any, options: Options, job: _core.Job) -> None:
        """Of a job that has been begun; `plan` makes others."""
        self.name = name_of(function)
        self._options = options
        self._forks = options.start_method == "fork"
        self.scope = self._job = job

    def submit(self, task: int, call: Call) -> None:
        """Adds a call; raises `SerializationError` if it cannot be pickled."""
        if self._forks:
            self._job.submit(task, str(task).encode())
        elif not (
            _payload.takes_plain(self._options.serializer) and self._job.submit_call(task, *call)
        ):
            self._job.submit(task, _dump_call(self._options, *call))

    def dump(self, call: Call) -> bytes | _core.Parcel:
        """Pickles a call for `submit_dumped`; the user's code may run. Any thread may call this."""
        return _dump_call(self._options, *call)

    def submit_dumped(self, task: int, dumped: bytes | _core.Parcel) -> None:
        """Adds a call that is pickled already."""
        self._job.submit(task, dumped)

    def submit_items(self, items: list[Any], start: int, most: int) -> int:
        """
        Adds calls with one item each, numbered by their places, until one cannot go plain.

        Returns the place after the last one.
        """
        if self._forks or not _payload.takes_plain(self._options.serializer):
            return start
        return self._job.submit_items(items, start, most)

    def queued(self) -> int:
        """Calls that wait for a worker."""
        return self._job.queued()

    def large(self) -> int:
        """Calls with large arguments that have not ended."""
        return self._job.large()

    def wait(self) -> list[_core.Outcome]:
        """
        Waits until a call has ended.

        On Ctrl+C, and whatever else a signal handler raises, ends the rest, with its grace period
        unless there is a second one, and raises that.
        """
        return self._unless_exiting(self._job.wait())

    def wait_into(self, values: list[Any]) -> tuple[int, list[_core.Outcome]]:
        """The same; plain values go to their places, and their number comes with the others."""
        placed, outcomes = self._job.wait_into(values)
        return placed, self._unless_exiting(outcomes)

    def take_into(self, values: list[Any]) -> tuple[int, list[_core.Outcome]]:
        """As `wait_into`, for the driver's thread, when it knows that something has ended."""
        return self._job.wait_into(values)

    @staticmethod
    def _unless_exiting(outcomes: list[_core.Outcome]) -> list[_core.Outcome]:
        if _is_exiting and _is_daemon():
            for outcome in outcomes:
                if outcome.ending == "died":
                    # By our own hand, as nobody waits for this thread: a traceback on standard
                    # error would be noise. Threads end quietly on this.
                    raise SystemExit
        return outcomes

    def take(self) -> list[_core.Outcome]:
        """What has ended since the last time, without waiting."""
        return self._job.take()

    def cancel(self, *, gently: bool) -> None:
        """Ends what is unfinished; does not wait until it is dead."""
        self._job.cancel(gently)

    def shortage(self) -> tuple[int, str] | None:
        """How many workers the system allowed and why, if those were fewer than asked for."""
        workers, found = self._job.reduced_to(), self._job.start_error()
        return None if workers is None or found is None else (workers, found[0])

    def value(self, outcome: _core.Outcome) -> Any:
        """The value of a call that returned."""
        what = f"the result of function {self.name!r}"
        return _loads(self._options, outcome.body, what, plain=outcome.plain)

    def is_partial(self, outcome: _core.Outcome) -> bool:
        """Whether what a call has published takes the place of its value."""
        return (
            self._options.on_timeout == "partial"
            and outcome.ending == "timed_out"
            and outcome.partial is not None
        )

    def partial(self, outcome: _core.Outcome) -> Any:
        """What a call has published, which can be asked for once."""
        what = f"what function {self.name!r} has published"
        return _loads(self._options, outcome.partial, what, plain=outcome.partial_plain)

    @staticmethod
    def has_raised(outcome: _core.Outcome, error: Exception) -> bool:
        """Whether a call raised one of this very type, with this text; unpickles nothing."""
        if outcome.ending != "raised":
            return False
        described = pickle.loads(_payload.in_bytes(outcome.body or b""))
        kind = type(error)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return (described["type"], described["message"]) == (name, str(error))

    def failure(self, outcome: _core.Outcome) -> BaseException:
        """The exception for a call that did not return."""
        match outcome.ending:
            case "raised":
                return self._raised(_payload.in_bytes(outcome.body or b""))
            case "timed_out":
                return self._timed_out(outcome)
            case "died":
                reason = (
                    f"could not be understood and was killed: {outcome.corrupt}"
                    if outcome.corrupt
                    else None
                )
                return WorkerDied(
                    self.name,
                    outcome.exitcode,
                    pid=outcome.pid,
                    stack=_stack.readable(outcome.stack),
                    reason=reason,
                )
            case "over_memory":
                return MemoryLimitExceeded(
                    self.name,
                    self._options.max_memory,
                    used=outcome.over_memory,
                    pid=outcome.pid,
                    stack=_stack.readable(outcome.stack),
                )
            case "not_started":
                return self._not_started(self._job.start_error())
            case other:
                return KillerError(f"the call of function {self.name!r} was {other}")

    def blames_setup(self) -> bool:
        """
        Whether no worker could be started because setting it up fails.

        That will be so for the next one too; what the system lacks it may have again.
        """
        found = self._job.start_error()
        if found is None:
            return False
        message, _, exitcode, used, body = found
        return not (body is None and exitcode is None and used is None) or message.endswith(_SLOW)

    def _timed_out(self, outcome: _core.Outcome) -> TimeoutError:
        timeout = self._options.timeout
        message = None
        if timeout is None or outcome.elapsed < timeout:
            budget = self._options.budget
            message = f"function {self.name!r} did not finish within the budget of {budget:.12g}s"
        partial, problem = None, None
        if outcome.partial is not None:
            try:
                partial = self.partial(outcome)
            except SerializationError as unpickling:
                problem = str(unpickling)
        error = TimeoutError(
            self.name,
            timeout,
            elapsed=outcome.elapsed,
            pid=outcome.pid,
            stack=_stack.readable(outcome.stack),
            partial=partial,
            message=message,
        )
        if problem is not None:
            error.add_note(problem)
        return error

    def _raised(self, body: bytes | None) -> BaseException:
        described = pickle.loads(body or b"")
        cause = RemoteTraceback(_stack.with_sources(described["traceback"]))
        problem = described["failure"]
        if described["pickled"] is not None:
            try:
                error = _loads(self._options, described["pickled"], "the exception")
            except SerializationError as unpickling:
                problem = str(unpickling)
            else:
                if isinstance(error, MemoryLimitExceeded) and error.function == UNKNOWN:
                    error = MemoryLimitExceeded(self.name, error.limit, pid=error.pid)
                if isinstance(error, BaseException):
                    set_attribute(error, "__cause__", cause)
                    return error
                problem = f"it came back as {_payload.short_repr(error)}"
        message = (
            f"function {self.name!r} raised {described['type']}: {described['message']} "
            f"(the exception itself could not be brought here: {problem})"
        )
        failure = KillerError(message)
        failure.__cause__ = cause
        return failure

    def failure_later(self, outcome: _core.Outcome) -> Callable[[], BaseException]:
        """The same, found out in any thread: the user's code may run. The job is asked now."""
        if outcome.ending == "not_started":
            found = self._job.start_error()
            return lambda: self._not_started(found)
        return lambda: self.failure(outcome)

    def _not_started(self, found: StartFailure | None) -> WorkerStartError | MemoryLimitExceeded:
        if found is None:
            return WorkerStartError("no worker could be started")
        message, errno, exitcode, used, body = found
        if used is not None:
            return MemoryLimitExceeded(self.name, self._options.max_memory, used=used)
        if exitcode is not None:
            message += f": it exited with {exitcode}"
        if message.endswith(_SLOW):
            message += f" ({START_LIMIT:g}s, initializer included)"
        if body is None:
            return WorkerStartError(message, errno, exitcode=exitcode)
        cause = self._raised(body)
        failure = WorkerStartError(f"{message}: {_payload.describe(cause)}")
        failure.__cause__ = cause
        return failure


def value_of(function: Any, options: Options, outcome: _core.Outcome) -> Any:
    """The value of a call that returned at once."""
    what = f"the result of function {name_of(function)!r}"
    return _loads(options, outcome.body, what, plain=outcome.plain)


def _loads(
    options: Options, data: bytes | _core.Arrived | None, what: str, *, plain: bool = False
) -> Any:
    if data is None:
        message = f"{what} got lost"
        raise SerializationError(message)
    try:
        if plain:
            return _core.decode_plain(_payload.in_bytes(data), False)
        return _payload.loads(options.serializer, data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Whatever user code raises while it is unpickled, SystemExit too, fails this one call.
        message = f"cannot unpickle {what}: {_payload.describe(error)}"
        leave_out_ours(error)
        raise SerializationError(message, path="result") from error


def _is_daemon() -> bool:
    import threading

    return threading.current_thread().daemon


def _is_retried(cls: type[BaseException], options: Options) -> bool:
    return issubclass(cls, options.retry_on)


class Plan:
    """
    What a function and its options come to: worker, pickled function and limits.

    Attributes:
        caller: the short way of a call; None where there is none.
        is_watched: whether `is_current` can tell anything.
    """

    def __init__(
        self, function: Any, options: Options, calls: Sequence[Call] | None = None
    ) -> None:
        """With `start_method="fork"`, `calls` must hold all calls: the copy inherits them."""
        check_depth()
        name = name_of(function)
        if sys.is_finalizing():
            # Too late to pickle anything: its modules are being taken apart.
            message = f"cannot call function {name!r}: the interpreter is shutting down"
            raise RuntimeError(message)
        self._function = function
        self._options = options
        forks = options.start_method == "fork"
        if not (forks or _shared.roster.has_server()):
            _outlets.note_descriptors()
        self._outlets = outlets = _outlets.current(options, forks=forks)
        surroundings = _context.current(outlets.told)
        self._launch = launch = None if forks else _shared.launch(surroundings.version)
        # Before the function is pickled, so that what changes meanwhile is seen the next time.
        self._reloads = _reloads.watch()
        if _reloads.look():
            _shared.retire_workers()
            self._reloads = _reloads.watch()
        captures = None
        if not forks:
            captures = _captures.captures_of(function)
        self._shared = _shared
        self._captures = captures
        # An initializer may refer to anything.
        self.is_watched = captures is not None and options.initializer is None
        self._surroundings = surroundings.seen
        keywords = {
            **_function_part(function, name, options),
            **_worker_part(options, surroundings),
            "timeout": options.timeout,
            "grace": options.grace,
            "retries": options.retries,
            "retry_timed_out": _is_retried(TimeoutError, options),
            "retry_died": _is_retried(WorkerDied, options),
            "retry_over_memory": _is_retried(MemoryLimitExceeded, options),
            "calls_per_worker": options.calls_per_worker,
            "start_limit": START_LIMIT,
            "max_memory": options.max_memory,
        }
        roster = _copy_of_host(function, calls or (), options) if forks else _shared.roster
        self._plan = _core.Plan(roster, launch, **keywords)
        self.caller: _core.Caller | None = None
        if captures is not None and options.reuse is True:
            serializer = options.serializer
            self.caller = _core.Caller(
                self._plan,
                [captures, outlets.watch, self._reloads],
                surroundings.seen,
                functools.partial(_dump_call, options),
                _payload.takes_plain(serializer),
                _outlets.listen,
                outlets.flush,
            )

    def is_current(self) -> bool:
        """Whether a new one would be the same, as far as a glance tells."""
        return (
            self.is_watched
            and self._captures is not None
            and self._shared is _shared
            and not sys.is_finalizing()
            and self._surroundings.is_current()
            and self._captures.is_current()
            and self._outlets.watch.is_current()
            and self._reloads.is_current()
        )

    def job(self, workers: int = 1, budget: float | None = None, *, bulk: bool = False) -> HostJob:
        """A job without calls. What a `bulk` of calls answers is wanted together."""
        _outlets.flush_all(self._outlets)
        job = _core.Job(self._plan, workers, budget, bulk, _outlets.listener())
        return HostJob(self._function, self._options, job)

    def import_ahead(self) -> None:
        """
        Starts the forkserver unless it runs, and has it import what `preload` names.

        To be called when nothing can be wrong with the call any more: bad input starts no process.
        """
        if self._launch is not None:
            # A fresh interpreter imports for itself.
            forked = self._options.start_method == "forkserver"
            _shared.import_ahead(self._options.preload if forked else (), self._launch)


def _function_part(function: Any, name: str, options: Options) -> dict[str, Any]:
    described = (
        name,
        options.timeout,
        options.grace > 0,
        options.retry_on,
        options.calls_per_worker,
        is_async(function),
    )
    interner = _shared.interner
    if options.start_method == "fork":
        data = _payload.dumps(_payload.DEFAULT_SERIALIZER, (None, *described), "function")
        return {"function": interner.number(data, ()), "function_bytes": data}
    parts = _payload.parts_of(options.serializer, (function, *described))
    if parts is not None and parts.is_large():
        number, parcel = interner.large(parts)
        return {"function": number, "function_bytes": parcel}
    data = (
        _dump_function(options.serializer, function, described) if parts is None else parts.in_one()
    )
    return {"function": interner.number(data, _place(function)), "function_bytes": data}


def _worker_part(options: Options, surroundings: _context.Current) -> dict[str, Any]:
    """What a worker is set up with, and which workers are alike."""
    serializer, owner = options.serializer, options.owner
    forks = options.start_method == "fork"
    initializer = None
    if options.initializer is not None and not forks:
        initializer = _dump_initializer(options) if owner is None else owner.initializer(options)
    setup = {
        "depth": _context.depth() + 1,
        "inherited": forks,
        "context": surroundings.pickled,
        "preload": options.preload,
        # What the host has needed its workers will need: then it should not have to be imported
        # under the deadline of the first call.
        "cloudpickle": _PICKLER in sys.modules,
        "serializer": _payload.describe_serializer(serializer),
        "initializer": initializer,
        "env": dict(options.env) if options.env is not None else None,
        "cwd": options.cwd,
        "max_memory": options.max_memory,
        "stays": owner is not None and owner.stays,
        "reloaded": tuple(_reloads.names),
    }
    env = tuple(sorted(options.env.items())) if options.env is not None else None
    kind = (
        options.start_method,
        setup["serializer"],
        initializer,
        options.preload,
        env,
        options.cwd,
        options.max_memory,
    )
    return {
        "key": _shared.key(kind if owner is None else owner.kind),
        "exec": options.start_method == "spawn",
        "keep": not forks,
        "setup": pickle.dumps(setup, _payload.PROTOCOL),
        "context": surroundings.version,
        "context_bytes": surroundings.pickled,
    }


def _dump_initializer(options: Options) -> bytes:
    pair = (options.initializer, options.initargs)
    return _payload.dumps(options.serializer, pair, "initializer")


def pack_call(
    options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bytes | _core.Parcel:
    """A call as it can be sent more than once."""
    return _dump_call(options, args, kwargs, is_kept=True)


def _dump_call(
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    is_kept: bool = False,
) -> bytes | _core.Parcel:
    serializer, call = options.serializer, (args, kwargs)
    parts = _payload.parts_of(serializer, call)
    if parts is not None:
        # What may have to be sent again must stay as it is.
        return parts.sent(given=not (is_kept or options.retries))
    data: Any = None
    try:
        data = serializer.dumps(call)
    except KeyboardInterrupt:
        raise
    except BaseException:  # ruff: ignore[try-except-pass] - what it is, is found out below
        pass
    if isinstance(data, bytes):
        return data
    if data is None:
        # Not while the error is handled, or the same would be told twice.
        _payload.dumps(serializer, args, "args")
        _payload.dumps(serializer, kwargs, "kwargs")
    return _payload.dumps(serializer, call, "call")


def _dump_function(
    serializer: _payload.Serializer, function: Any, described: tuple[Any, ...]
) -> bytes:
    # The function first and by itself if it fails: so the path starts at it.
    data: Any = None
    try:
        data = serializer.dumps((function, *described))
    except KeyboardInterrupt:
        raise
    except BaseException:  # ruff: ignore[try-except-pass] - what it is, is found out below
        pass
    if isinstance(data, bytes):
        return data
    if data is None:
        _payload.dumps(serializer, function, "function")
    return _payload.dumps(serializer, (function, *described), "options")


def _copy_of_host(function: Any, calls: Sequence[Call], options: Options) -> _core.Roster:
    """Forks the host; the copy becomes the forkserver of one job, and its workers inherit all."""
    import signal
    import threading

    from killercall import _worker

    _payload.track_classes(function)
    copy = _core.ServerCopy()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # What is in the buffers would be written twice. If it cannot be written, it is the
            # host that has to be told, when it prints.
            with contextlib.suppress(Exception):
                stream.flush()
    # Python runs hooks of many modules around a fork, and what a signal handler raises in one is
    # printed and lost. The mask alone does not keep it away: another thread may take the signal.
    late: list[tuple[int, types.FrameType | None]] = []
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        signal.signal(signal.SIGINT, lambda number, frame: late.append((number, frame)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        roster, control = copy.fork(os.fork)
        if roster is None:
            try:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(
                        number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL
                    )
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                _forkserver.forget_other_threads()
                _worker.inherited = _worker.Inherited(
                    function, list(calls), options.initializer, options.initargs
                )
                _forkserver.serve(control)
            finally:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
    if late and callable(handler):
        try:
            handler(*late[0])
        except BaseException:
            roster.shutdown()
            raise
    return roster
