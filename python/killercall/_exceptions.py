"""
The exceptions.

All derive from `KillerError`, and each also from the builtin that people already catch. All
pickle, so that they travel from a worker of a worker to the host.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    import signal
    from typing import Any, TypeVar

    E = TypeVar("E", bound=BaseException)
else:
    import _pickle as pickle

    # The module around it makes enumerations of its constants, for which there is no use here.
    import _signal as signal

__all__ = [
    "DepthLimitExceeded",
    "KillerError",
    "MemoryLimitExceeded",
    "SerializationError",
    "TimeoutError",
    "WorkerDied",
    "WorkerStartError",
]


class KillerError(Exception):
    """
    The base of all that killercall raises.

    Raised itself when the function's own exception could not be brought to the host: the message
    then describes that exception, with its type and traceback.

    Attributes:
        item: the item of a map that this is about, else None.
        index: the place of that item, else None.

    Example:
        >>> from killercall import KillerError, killer_pmap
        >>> try:
        ...     killer_pmap(exit, [3], cpus=1)
        ... except KillerError as error:
        ...     print(error.item, error.index)
        3 0
    """

    __module__ = "killercall"

    item: Any = None
    index: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuilds without calling `__init__`, whose arguments differ from class to class."""
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(cls: type[KillerError], args: tuple[Any, ...]) -> KillerError:
    error = new_exception(cls, args)
    error.args = args
    return error


def new_exception(cls: type[E], args: tuple[Any, ...]) -> E:
    """A new exception, without a call of `__init__`."""
    try:
        return cls.__new__(cls, *args)
    except TypeError:
        # Of (Base, MemoryError) Python inherits Base's allocator but finds MemoryError's `__new__`,
        # and refuses to mix the two.
        return BaseException.__new__(cls, *args)


def set_attribute(error: BaseException, name: str, value: Any) -> None:
    """
    Sets an attribute of somebody else's exception, whatever its `__setattr__` does.

    A frozen dataclass refuses even `__cause__` and, with `add_note`, `__notes__`.
    """
    if name in {"args", "__cause__", "__traceback__"}:
        # A property of the class may hide them.
        vars(BaseException)[name].__set__(error, value)
    else:
        object.__setattr__(error, name, value)


def add_note(error: BaseException, note: str) -> None:
    """As the method, for any exception."""
    notes = vars(error).get("__notes__")
    set_attribute(error, "__notes__", [*notes, note] if isinstance(notes, list) else [note])


# How the paths of our own files begin.
OURS = __file__[: -len("_exceptions.py")]


def leave_out_ours(error: BaseException, *, but_first: bool = False) -> None:
    """
    Has its traceback begin where our code has called other code.

    With `but_first` it keeps the frame that has caught it and that raises it again. To be used only
    where the error is no fault of ours, or nobody could find that.
    """
    trace = vars(BaseException)["__traceback__"].__get__(error)
    rest = trace.tb_next if trace is not None and but_first else trace
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(OURS):
        rest = rest.tb_next
    if but_first and trace is not None:
        trace.tb_next = rest
    else:
        set_attribute(error, "__traceback__", rest)


def _seconds(value: float) -> str:
    """`4` and `4.0` both read `4s`; `0.25` reads `0.25s`."""
    return f"{value:.12g}s"


class TimeoutError(KillerError, builtins.TimeoutError):  # ruff: ignore[builtin-variable-shadowing] - it is one
    """
    The call did not answer by its deadline; its worker and all it had started were killed.

    Its text is exactly `function 'bar' timed out after 4s`. To allow more time, pass a larger
    `timeout`; `stack` tells where the function was.

    Attributes:
        function: the function's name.
        timeout: the limit in seconds (None if only a map's budget was spent).
        elapsed: seconds that the call had run when it was ended.
        pid: the worker's pid, None if no worker had begun.
        stack: the worker's Python stack at the deadline, most recent call first; None if the
            worker could not tell.
        partial: what the function published last; None if it published nothing.
        cmd: the command of `killer_exec`, else None.
        stdout: what that had written by then, if it was captured, else None.
        stderr: the same of standard error.

    Example:
        >>> import time
        >>> from killercall import killer_call
        >>> try:
        ...     killer_call(time.sleep, timeout=0.2)(30)
        ... except TimeoutError as error:
        ...     print(error, error.timeout, 0.2 <= error.elapsed < 30)
        function 'sleep' timed out after 0.2s 0.2 True
    """

    __module__ = "killercall"

    cmd: Any = None
    stdout: Any = None
    stderr: Any = None

    def __init__(
        self,
        function: str,
        timeout: float | None,
        *,
        elapsed: float = 0.0,
        pid: int | None = None,
        stack: str | None = None,
        partial: Any = None,
        message: str | None = None,
    ) -> None:
        """Described by the attributes of the class."""
        if message is None:
            limit = _seconds(timeout) if timeout is not None else "its budget"
            message = f"function {function!r} timed out after {limit}"
        super().__init__(message)
        self.function = function
        self.timeout = timeout
        self.elapsed = elapsed
        self.pid = pid
        self.stack = stack
        self.partial = partial
        if stack:
            self.add_note(_stack_note("when it was killed", pid, stack))


def _stack_note(when: str, pid: int | None, stack: str) -> str:
    return f"The worker's Python stack (pid {pid}) {when}:\n{stack.rstrip()}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; real-time signals have only numbers."""
    known = vars(signal)
    # Where there are several, the first one is the usual one.
    names = (name for name in sorted(known) if name.startswith("SIG") and name[3] != "_")
    return next((name for name in names if known[name] == number), f"signal {number}")


class WorkerDied(KillerError):
    """
    The worker ended before the call had answered.

    A crash (a segmentation fault, the kernel's out-of-memory killer), `os._exit` or `sys.exit` in
    the function, or a kill from outside. An exit code of 0 without a result is a failure too.

    Attributes:
        function: the function's name.
        exitcode: the exit code, or the negative signal number as in `subprocess`; None if it is
            not known because the forkserver ended as well.
        signal: the signal's name such as `"SIGSEGV"`, or None.
        pid: the worker's pid.
        stack: the Python stack at a fatal signal, most recent call first, or None.

    Example:
        >>> import os
        >>> from killercall import WorkerDied, killer_call
        >>> try:
        ...     killer_call(os.abort)()
        ... except WorkerDied as error:
        ...     print(error.exitcode, error.signal)
        -6 SIGABRT
    """

    __module__ = "killercall"

    def __init__(
        self,
        function: str,
        exitcode: int | None,
        *,
        pid: int | None = None,
        stack: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Described by the attributes of the class."""
        self.function = function
        self.exitcode = exitcode
        self.signal = signal_name(-exitcode) if exitcode is not None and exitcode < 0 else None
        self.pid = pid
        self.stack = stack
        if reason is not None:
            how = reason
        elif self.signal is not None:
            how = f"was killed by {self.signal}{_likely_cause(self.signal)}"
        elif exitcode is None:
            how = "was lost together with its forkserver"
        else:
            how = f"exited with code {exitcode} without a result"
        super().__init__(f"the worker of function {function!r} (pid {pid}) {how}")
        if stack:
            self.add_note(_stack_note("when it died", pid, stack))


def _likely_cause(name: str) -> str:
    return {
        "SIGKILL": " (by the kernel's out-of-memory killer, or by somebody)",
        "SIGSEGV": " (a crash in C code, or recursion without end)",
        "SIGABRT": " (an assertion or abort in C code)",
        "SIGBUS": " (a file shrank under a memory map, or /dev/shm is full)",
    }.get(name, "")


# The name of a function that a worker had no memory to load: the host knows it.
UNKNOWN = "?"


class MemoryLimitExceeded(KillerError, MemoryError):
    """
    The call used more memory than its `max_memory`, or was refused more by the kernel.

    Attributes:
        limit: the most that it may use, in bytes.
        used: what it used when it was killed, with all that it had started, in bytes; None if it
            got a MemoryError instead, which is the `__cause__`.
        pid: the worker's process id, or None.
        stack: the worker's Python stack when it was killed, or None; also a note of the exception.

    Example:
        >>> from killercall import killer_call
        >>> try:
        ...     killer_call(bytes, max_memory="300MB")(10**9)
        ... except MemoryError as error:
        ...     print(error.limit)
        300000000
    """

    __module__ = "killercall"

    function: str | None = None
    limit: int | None = None
    used: int | None = None
    pid: int | None = None
    stack: str | None = None

    def __init__(
        self,
        function: str,
        limit: int | None = None,
        *,
        used: int | None = None,
        pid: int | None = None,
        stack: str | None = None,
    ) -> None:
        """Described by the attributes of the class."""
        most = "its limit" if limit is None else f"its limit of {_mebibytes(limit)}"
        how = (
            "was refused more memory than"
            if used is None
            else f"used {_mebibytes(used)} of memory, more than"
        )
        super().__init__(f"function {function!r} {how} {most}")
        self.function = function
        self.limit = limit
        self.used = used
        self.pid = pid
        self.stack = stack
        if stack:
            self.add_note(f"The worker's Python stack (pid {pid}) when it was killed:\n{stack}")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


class SerializationError(KillerError, pickle.PicklingError):
    """
    The function, an argument or a result could not be pickled or unpickled.

    Attributes:
        path: where in the object the culprit is, such as `args[0].lock`, or None.

    Example:
        >>> import threading
        >>> from killercall import SerializationError, killer_call
        >>> try:
        ...     killer_call(len)([threading.Lock()])
        ... except SerializationError as error:
        ...     print(error.path)
        args[0][0]
    """

    __module__ = "killercall"

    def __init__(self, message: str, *, path: str | None = None) -> None:
        """Described by the attributes of the class."""
        super().__init__(message)
        self.path = path


class WorkerStartError(KillerError, OSError):
    """
    No worker could be started: a limit of the system, a failing initializer, or none in time.

    Attributes:
        errno: the system's error number, or None.
        exitcode: how the worker ended that did not get ready, or None.

    Example:
        >>> from killercall import killer_call
        >>> killer_call(abs, initializer=exit, initargs=(4,))(-1)
        Traceback (most recent call last):
        ...
        killercall.WorkerStartError: ...
    """

    __module__ = "killercall"

    exitcode: int | None = None

    def __init__(
        self, message: str, errno: int | None = None, *, exitcode: int | None = None
    ) -> None:
        """Described by the attributes of the class."""
        text = message + _advice(errno)
        super().__init__(text)
        self.args = (text,)
        self.errno = errno
        self.exitcode = exitcode

    def __reduce__(self) -> tuple[Any, ...]:
        """As the others; the error number is not among the attributes that Python copies."""
        return _rebuild, (type(self), self.args), {**self.__dict__, "errno": self.errno}

    def __str__(self) -> str:
        """The message alone; `OSError` would put the number in front."""
        return str(self.args[0])


def _advice(errno: int | None) -> str:
    """Which limit was hit, its value, and what to do."""
    import errno as errno_names
    import resource

    if errno == errno_names.EAGAIN:
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        return (
            f"; the limit of processes (ulimit -u) is {soft} (hard limit {hard}): "
            "raise it, use fewer workers, or end other processes"
        )
    if errno in {errno_names.EMFILE, errno_names.ENFILE}:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"; the limit of open files (ulimit -n) is {soft} (hard limit {hard}): "
            "raise it, close files, or use fewer workers"
        )
    if errno == errno_names.ENOMEM:
        return "; the system has no memory left: use fewer workers or smaller ones"
    return ""


class RemoteTraceback(KillerError):
    """
    The traceback of an exception in its worker, as the `__cause__` of the one that arrived here.

    Its text is the formatted traceback.

    Example:
        >>> from killercall import killer_call
        >>> try:
        ...     killer_call(int)("seven")
        ... except ValueError as error:
        ...     print(str(error.__cause__).splitlines()[-1])
        ValueError: invalid literal for int() with base 10: 'seven'
    """

    def __str__(self) -> str:
        """Starts on a line of its own, below the name of this class."""
        return "\n" + str(self.args[0]).rstrip()


class DepthLimitExceeded(KillerError, RecursionError):
    """
    Calls are nested deeper than `KILLERCALL_MAX_DEPTH` (10 unless set).

    A function that calls itself through killercall would otherwise be a fork bomb.

    Example:
        >>> from killercall import killer_call
        >>> def dig(depth):
        ...     return killer_call(dig)(depth + 1)
        >>> killer_call(dig)(1)
        Traceback (most recent call last):
        ...
        killercall.DepthLimitExceeded: ...
    """

    __module__ = "killercall"
