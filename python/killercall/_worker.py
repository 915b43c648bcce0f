"""
What runs in a worker: take a request, run it, send one answer.

Everything here that is not the function's own is under the same deadline as the function.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import sys
import types
from _weakref import ref

from killercall import _context, _core, _globals, _payload
from killercall._exceptions import (
    OURS,
    UNKNOWN,
    MemoryLimitExceeded,
    SerializationError,
    TimeoutError,  # ruff: ignore[builtin-import-shadowing]
)
from killercall._forward import Forwarding

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    import signal
    import traceback
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    # The modules around these import more than all of the rest together, and every worker pays for
    # what the forkserver has in its memory.
    import _pickle as pickle
    import _signal as signal

# Seconds after which an idle worker ends.
IDLE_LIMIT = 60.0
# Of one that holds an instance, which ends when nobody can call that any more: longer than any
# process lives.
_NEVER = 3e8


class Inherited:
    """What the workers of a forked copy of the host run, without any pickling."""

    def __init__(
        self,
        function: Any,
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self.function = function
        self.calls = calls
        self.initializer = initializer
        self.initargs = initargs


# Set by the host in its copy, see `_host`.
inherited: Inherited | None = None


# What serves in this process, if it is a worker; also in the children that the function forks.
serving: _Worker | None = None


def main(segment: int, socket: int) -> NoReturn:
    """Serves requests until the host is gone, has no more use for this worker, or kills it."""
    global serving  # ruff: ignore[global-statement] - one per process, like what it describes
    status = 1
    try:
        serving = _Worker(_core.Channel(segment, socket))
        serving.serve()
        status = 0
    except _Leave as leave:
        status = leave.status
    except OSError as error:
        _speak_for_itself()
        # The function has closed our descriptors, say. The host hears of the exit code.
        print(f"killercall: a worker has lost the way to its host: {error}", file=sys.stderr)
    except BaseException:
        _speak_for_itself()
        import traceback

        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _speak_for_itself() -> None:
    forwarding = getattr(serving, "_forwarding", None)
    if forwarding is not None:
        forwarding.end()


class _Leave(BaseException):
    """Ends this process, past all handlers of `Exception`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _is_ruined() -> bool:
    """Whether a call has cleared `sys.modules`, after which nothing can be relied on."""
    return sys.modules.get("sys") is not sys


def _flush() -> None:
    streams: list[Any] = [getattr(sys, "stdout", None), getattr(sys, "stderr", None)]
    for stream in streams:
        # Closed, or its reader is gone, or it is the function's own: nobody to tell.
        with contextlib.suppress(BaseException):
            stream.flush()


class _Function:
    """A function as the host sent it."""

    def __init__(
        self,
        function: Any,
        name: str,
        timeout: float | None,
        grace: bool,  # ruff: ignore[boolean-type-hint-positional-argument] - one of many, from one caller
        retry_on: tuple[type[BaseException], ...],
        most_calls: int | None,
        is_async: bool,  # ruff: ignore[boolean-type-hint-positional-argument]
    ) -> None:
        self.function = function
        self.name = name
        self.timeout = timeout
        self.grace = grace
        self.retry_on = retry_on
        # How many calls a worker may serve that has served this function.
        self.most_calls = most_calls
        # Whether a call returns a coroutine, which has to be run.
        self.is_async = is_async


class _Worker:
    """The state of this process as a worker."""

    def __init__(self, channel: _core.Channel) -> None:
        self._channel = channel
        self._pid = os.getpid()
        # Those that could not be unpickled stay bytes: what was in the way may be gone next time.
        self._functions: dict[int, _Function] = {}
        self._serializer: _payload.Serializer = _payload.DEFAULT_SERIALIZER
        self._follow = {"cwd": True, "environment": True}
        self._inherited = False
        self._max_memory: int | None = None
        # Set when this process is not fit for another call.
        self._spent = False
        # Calls that came here; the native side may have served others.
        self._calls = 0
        # Whether it holds what the host cannot have again from another worker.
        self._stays = False
        self._ready = False
        self._running: _Function | None = None
        # Whether an exception came out of the function itself.
        self._raised = False
        self._handles_term = False
        # What each call finds; see `_keep_surroundings`.
        self._before: _context.Snapshot
        self._expected: _core.Surroundings
        self._forwarding: Forwarding
        self._globals = _payload.globals_here = _globals.Globals(channel.forget)

    def serve(self) -> None:
        _prepare_process(self._channel)
        self._channel.serve(self)

    def idle_limit(self) -> float:
        """Seconds without a request after which to end."""
        return _NEVER if self._stays else IDLE_LIMIT

    def answer(
        self,
        task: int,
        number: int,
        context: bytes | None,
        function: bytes | _core.Arrived | None,
        arguments: bytes | _core.Arrived | None,
        plain: bool,  # ruff: ignore[boolean-type-hint-positional-argument] - from the native side
    ) -> bool:
        """Does all that a request asks for; whether to go on."""
        if task == _core.SETUP:
            self._setup(arguments if isinstance(arguments, bytes) else b"")
            return True
        self._raised = False
        self._calls += 1
        try:
            if context is not None and not self._inherited:
                _context.apply(context, **self._follow)
                self._keep_surroundings()
                self._forwarding.apply(_context.told_in(context))
            if function is not None:
                self._load_function(number, function)
            known = self._functions.get(number)
            if arguments is None or known is None:
                # A function that is lost here is one that the host believes to be here.
                self._spent = True
                message = "no memory for the pickled arguments"
                raise MemoryError(message)  # ruff: ignore[raise-within-try] - the same way as all others
            if self._globals.refresh(number):
                self._know(number, known)
            self._arm(known)
            value = self._call(known, arguments, plain=plain)
        except _Leave:
            raise
        except BaseException as error:
            return self._fail(task, number, error)
        finally:
            self._running = None
        return self._finish(task, number, value)

    def dump(self, task: int, number: int, value: Any) -> bool:
        """Answers with what a function has returned to the native side; whether to go on."""
        self._raised = False
        return self._finish(task, number, value)

    def raised(self, task: int, number: int, error: BaseException) -> bool:
        """Answers with what a function has raised there; whether to go on."""
        self._raised = True
        return self._fail(task, number, error)

    def _finish(self, task: int, number: int, value: Any) -> bool:
        try:
            body = _payload.pack(self._serializer, value, "result", passing=(), given=True)
        except BaseException as error:
            return self._fail(task, number, error)
        return self._send("returned", task, number, body)

    def _fail(self, task: int, number: int, error: BaseException) -> bool:
        self.leave_if_stray()
        if issubclass(type(error), SystemExit):
            raise _Leave(_exit_status(error)) from None
        known = self._functions.get(number)
        # What fails outside of the function may fail for all that come after, if a call has
        # cleared `sys.modules`, say. But an instance must not be lost for one bad result.
        self._spent |= not (self._raised or self._stays)
        if self._max_memory is not None and _lacks_memory(error):
            error = self._over_memory(known, error)
        retryable = known is not None and _is_one_of(error, known.retry_on)
        kind = "raised retryable" if retryable else "raised"
        return self._send(kind, task, number, _describe(error, self._serializer))

    def _send(self, kind: str, task: int, number: int, body: bytes | _core.Parcel) -> bool:
        _flush()
        self._spent |= _is_ruined()
        known = self._functions.get(number)
        most = None if known is None else known.most_calls
        if self._spent or (most is not None and self._calls >= most):
            _end_children()
        return self._channel.send(kind, task, body, most) and not self._spent

    def publish(self, value: Any) -> None:
        """Tells the host what the call that runs has so far."""
        must_dump = not _payload.takes_plain(self._serializer)
        self._channel.publish(value, self._dump_published, must_dump)

    def _dump_published(self, value: Any) -> bytes | _core.Parcel:
        # The end of its time is no fault of the value.
        passing = (KeyboardInterrupt, TimeoutError)
        return _payload.pack(self._serializer, value, "published", passing=passing, given=True)

    def append(self, more: bytes) -> None:
        """Tells the host more of what the call that runs has so far."""
        self._channel.append(more)

    @staticmethod
    def flush() -> None:
        """What was printed is seen before the answer."""
        _flush()

    def _keep_surroundings(self) -> None:
        """What is now is what each call is to find."""
        self._before = _context.snapshot()
        self._expected = _core.Surroundings()
        self._channel.set_surroundings(self._expected)

    def restore(self) -> None:
        """Puts back what a call has changed; if that cannot be done, this is the end."""
        if _is_ruined():
            raise _Leave(1)
        _context.restore(self._before)
        if _context.snapshot() == self._before:
            # It may have imported multiprocessing, which brings a key.
            self._expected = _core.Surroundings()
            self._channel.set_surroundings(self._expected)

    def _setup(self, pickled: bytes) -> None:
        try:
            setup = pickle.loads(pickled)
            self._apply_setup(setup)
        except BaseException as error:
            self.leave_if_stray()
            _flush()
            self._channel.send("setup failed", _core.SETUP, _describe(error, self._serializer))
            raise _Leave(1) from None
        self.leave_if_stray()
        self._keep_surroundings()
        self._ready = True
        self._channel.send("ready", _core.SETUP, self._pid.to_bytes(4, "little"))

    def rehearse(self) -> None:
        """
        Goes the way of a call while there is none, as the first time takes longest.

        A forked process shares all memory until it writes to it, and then each page costs a fault.
        """
        theirs = _payload.DEFAULT_SERIALIZER
        if not self._ready or self._inherited or type(self._serializer) is not type(theirs):
            return
        with contextlib.suppress(MemoryError):  # The call will tell, if it comes to that.
            function = types.FunctionType(_rehearsed.__code__, vars(sys.modules["__main__"]))
            function.__module__ = "__main__"
            described = theirs.dumps((function, "rehearsed", None, False, (), None, False))
            known = _Function(*_payload.loads(self._serializer, described))
            self._arm(known)
            value = self._call(known, theirs.dumps(((0,), {})), plain=False)
            _payload.pack(self._serializer, value, "result", passing=(), given=True)
            _flush()
        names = vars(sys.modules["__main__"])
        if getattr(names.get(_rehearsed.__name__), "__code__", None) == _rehearsed.__code__:
            del names[_rehearsed.__name__]

    def _apply_setup(self, setup: dict[str, Any]) -> None:
        os.environ[_context.DEPTH_VARIABLE] = str(setup["depth"])
        self._follow = {"cwd": setup["cwd"] is None, "environment": setup["env"] is None}
        self._inherited = setup["inherited"]
        self._max_memory = setup["max_memory"]
        self._stays = setup["stays"]
        # Before anything of the user's can print.
        self._forwarding = Forwarding(self._channel, inherited=self._inherited)
        self._forwarding.apply(_context.told_in(setup["context"]))
        if self._inherited:
            _payload.become_worker(_hide_main())
            sys.stdin = open(os.devnull, encoding="utf-8")  # ruff: ignore[open-file-with-context-handler] - as long as the process
        else:
            _payload.become_worker(None)
            if setup["reloaded"]:
                from killercall import _reloads

                _reloads.forget_modules(setup["reloaded"])
            sys.modules["__main__"] = _new_main()
            _context.apply(setup["context"], **self._follow)
        if setup["env"] is not None:
            _context.replace_environment(setup["env"])
        if setup["cwd"] is not None:
            os.chdir(setup["cwd"])
        if setup["cloudpickle"]:
            __import__("killercall._pickler")
        for name in setup["preload"]:
            __import__(name)
        self._serializer = _payload.serializer_from(setup["serializer"])
        if self._inherited and inherited is not None and inherited.initializer is not None:
            inherited.initializer(*inherited.initargs)
        elif setup["initializer"] is not None:
            with self._globals:
                initializer, initargs = self._serializer.loads(setup["initializer"])
            before = dict(vars(sys.modules["__main__"]))
            initializer(*initargs)
            self._globals.keep_initialized(before)
        _reseed()

    def _over_memory(self, known: _Function | None, error: BaseException) -> BaseException:
        """The kernel has refused more memory: what is left suffices to say so, and to leave."""
        _core.ease_memory_limit()
        self._spent = True
        name = UNKNOWN if known is None else known.name
        failure = MemoryLimitExceeded(name, self._max_memory, pid=self._pid)
        failure.__cause__ = error
        return failure.with_traceback(error.__traceback__)

    def _load_function(self, number: int, pickled: bytes | _core.Arrived) -> None:
        size = None if type(pickled) is _core.Arrived else len(pickled)
        for oldest in self._channel.arrives(number, size):
            self._let_go(oldest, is_large=size is None)
        try:
            if self._inherited and inherited is not None:
                _, *rest = pickle.loads(_payload.in_bytes(pickled))
                known = _Function(inherited.function, *rest)
            else:
                with self._globals as taken:
                    known = _Function(*_payload.loads(self._serializer, pickled))
                self._globals.keep(number, taken)
        except BaseException as error:
            raise self._unloadable("function", error) from error
        self._functions[number] = known
        self._know(number, known)

    def _let_go(self, number: int, *, is_large: bool) -> None:
        """Forgets a function, and has the memory of a large one back at once."""
        known = self._functions.pop(number, None)
        self._globals.forget(number)
        self._channel.forget(number)
        if known is not None and is_large:
            try:
                left = ref(known.function)
            except TypeError:
                return
            del known
            if left() is not None:
                # It refers to itself, as a closure that calls itself does.
                gc.collect()

    def _know(self, number: int, known: _Function) -> None:
        if not known.grace and known.most_calls is None and not known.is_async:
            self._channel.know(number, known.function)

    def _call(self, known: _Function, pickled: bytes | _core.Arrived, *, plain: bool) -> Any:
        if self._inherited and inherited is not None:
            args, kwargs = inherited.calls[int(_payload.in_bytes(pickled))]
        else:
            try:
                if plain:
                    args, kwargs = _core.decode_plain(_payload.in_bytes(pickled), True)
                else:
                    with self._globals:
                        args, kwargs = _payload.loads(self._serializer, pickled)
            except BaseException as error:
                raise self._unloadable("arguments", error) from error
        self._running = known
        try:
            value = known.function(*args, **kwargs)
            if known.is_async:
                import asyncio

                value = asyncio.run(value)
        except BaseException:
            self._raised = True
            raise
        finally:
            self.leave_if_stray()
            if not self._expected.is_current():
                self.restore()
        return value

    def _unloadable(self, what: str, error: BaseException) -> SerializationError:
        """
        Whatever user code raises while it is unpickled fails this one call.

        SystemExit too: it is not the function that wants to leave.
        """
        self.leave_if_stray()
        message = f"cannot unpickle the {what} in the worker: {_payload.describe(error)}"
        return SerializationError(message, path="args" if what == "arguments" else what)

    def leave_if_stray(self) -> None:
        """A child that the function forked has come back here: it must not answer for us."""
        if os.getpid() != self._pid:
            _flush()
            os._exit(0)

    def _arm(self, known: _Function) -> None:
        """With a grace period, SIGTERM raises `TimeoutError` in the function; else it ends us."""
        if known.grace != self._handles_term:
            signal.signal(signal.SIGTERM, self._on_term if known.grace else signal.SIG_DFL)
            self._handles_term = known.grace
            self._channel.set_direct(not known.grace)

    def _on_term(self, _signal: int, _frame: types.FrameType | None) -> None:
        running = self._running
        if running is not None and os.getpid() == self._pid:
            raise TimeoutError(running.name, running.timeout, pid=self._pid)


def _end_children() -> None:
    """
    Before the last answer: what calls have left running would end with us, a moment after it.

    All that this process has started, by whatever way, is its child or below one.
    """
    # macOS has it from Python 3.13 on; without it the look takes longer, and that is all.
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
    _core.end_descendants()


# What runs the coroutine of an asynchronous function is there.
_ASYNCIO = os.path.join(os.path.dirname(os.__file__), "asyncio", "")


def _rehearsed(value: object) -> object:
    return value


def _lacks_memory(error: BaseException) -> bool:
    """Whether this process was refused memory; what a call inside of this one met is its own."""
    if _is_one_of(error, (MemoryLimitExceeded,)):
        return False
    # Our own, of what could not be pickled for lack of memory; what the function made of a
    # MemoryError is its own affair.
    cause = error.__cause__ if type(error) is SerializationError else None
    return issubclass(type(error), MemoryError) or isinstance(cause, MemoryError)


def _exit_status(error: BaseException) -> int:
    """As the interpreter does it: a number as it is, nothing is 0, anything else is printed."""
    code = getattr(error, "code", None)
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _prepare_process(channel: _core.Channel) -> None:
    dump_signal, fd = channel.prepare_dump()
    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.register(dump_signal, file=fd, all_threads=True, chain=True)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # What was printed before a kill has been seen. The host may have closed it.
            with contextlib.suppress(Exception):
                reconfigure(line_buffering=True)


def _new_main() -> types.ModuleType:
    """A `__main__` without a path: multiprocessing has no script to run again."""
    module = types.ModuleType("__main__")
    vars(module)["__builtins__"] = __builtins__
    return module


def _hide_main() -> types.ModuleType:
    """The same for a copy of the host; returns the host's `__main__`."""
    main = sys.modules["__main__"]
    hidden = _new_main()
    own = {"__file__", "__spec__", "__loader__", "__cached__"}
    vars(hidden).update({name: value for name, value in vars(main).items() if name not in own})
    sys.modules["__main__"] = hidden
    return main


def _reseed() -> None:
    """Forked workers must not draw the same numbers. Python does so for `random` by itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _is_one_of(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """By its type alone: `isinstance` asks the exception too, which may raise."""
    return any(issubclass(type(error), cls) for cls in classes)


def _describe(error: BaseException, serializer: _payload.Serializer) -> bytes:
    """
    An exception for the host: itself if it can be pickled, and in any case a description.

    Nothing in here may raise: an exception's own methods are user code.
    """
    text = _format(error)
    pickled: bytes | None
    try:
        pickled = _payload.dumps(serializer, error, "exception", passing=())
        failure = None
    except BaseException as problem:
        pickled, failure = None, _payload.text_of(problem)
    description = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": _payload.text_of(error),
        "traceback": text,
        "pickled": pickled,
        "failure": failure,
    }
    return pickle.dumps(description, _payload.PROTOCOL)


def _format(error: BaseException) -> str:
    """The traceback without our own frames around the function, and those of what has led to it."""
    import traceback

    trace = vars(BaseException)["__traceback__"].__get__(error)
    try:
        described = traceback.TracebackException(type(error), error, trace)
        _leave_out_ours(described)
        return "".join(described.format())
    except BaseException:
        frames = "".join(traceback.format_tb(trace))
        last = f"{type(error).__qualname__}: {_payload.text_of(error)}"
        return f"Traceback (most recent call last):\n{frames}{last}"


def _leave_out_ours(first: traceback.TracebackException) -> None:
    """Has each of a chain begin where we have called the function, or whatever else it was."""
    seen: set[int] = set()
    waiting = [first]
    while waiting:
        described = waiting.pop()
        if id(described) in seen:
            continue
        seen.add(id(described))
        stack = described.stack
        length = len(stack)
        while stack and stack[0].filename.startswith(OURS):
            del stack[0]
        while len(stack) < length and stack and stack[0].filename.startswith(_ASYNCIO):
            del stack[0]
        more = (described.__cause__, described.__context__, *(described.exceptions or ()))
        waiting += [found for found in more if found is not None]
