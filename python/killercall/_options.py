"""
The options, checked before any process starts.

Each check names the value and what was expected.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping

from killercall import _payload
from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from killercall._host import Owner

START_METHODS = ("forkserver", "spawn", "fork")

# What the contract names and this version does not have yet. Never silently ignored.
_NOT_YET = frozenset({"engine"})

# More than any machine has; what it takes to keep arithmetic with sizes from overflowing.
_MOST_MEMORY = 2**56

# Longer than any process lives; what it takes to keep arithmetic with times from overflowing.
_FOREVER = 3e8


class Options:
    """
    The options of calls and maps. They are arguments of `killer_call`, `killer_pmap` and the
    others.

    Each of them is checked before any process starts. A value of a type that it does not take is a
    TypeError, one that it cannot be is a ValueError; both name the value and what was expected.
    Times are in seconds, memory is in bytes.

    Attributes:
        timeout: seconds (int or float), a `datetime.timedelta`, or None for no limit. A call that
            has not answered by then is killed with all that it has started, and is a
            `TimeoutError`. Default 10 of calls, pools and actors, 4 of an item.
        start_method: how a worker starts. "forkserver" (default): forked from a clean server;
            "spawn": a new interpreter; "fork": a copy of the host with all that it has, and
            nothing is pickled but results.
        reuse: True (default): workers are kept for other calls, and end after 60 idle seconds;
            False: a fresh process for every call; an int: so many calls a worker.
        grace: seconds between SIGTERM, which raises a `TimeoutError` in the function, and SIGKILL.
            Default 0: SIGKILL at once.
        max_memory: bytes, or a text such as "500MB" or "2GiB", that a worker and all that it
            starts may use; who uses more is killed, and that is a `MemoryLimitExceeded`. None
            (default) is no limit.
        serializer: "cloudpickle" (default), "dill" (needs the package dill), "pickle", or an
            object with `dumps(value) -> bytes` and `loads(bytes)`.
        initializer: called once in each new worker, with `initargs`. If it fails, that is a
            `WorkerStartError`.
        initargs: a tuple of arguments of that, () by default.
        preload: names of modules that a new worker has imported; with "forkserver" once for all
            workers.
        env: the environment of the workers, str to str; None (default) follows the host's.
        cwd: the directory that they work in; None (default) follows the host's.
        forward_output: whether what workers print goes the host's way: to its `sys.stdout` and
            `sys.stderr`, such as a notebook's cell. None or "auto" (default): where these are not
            what the workers inherit anyway; True: always; False: never.
        forward_logging: whether log records of workers go through the host's loggers and handlers.
            True by default.
        retries: how many more times a call that failed is begun, 0 by default.
        retry_on: an exception class or a tuple of them: the failures that are retried, all by
            default.
        default: what stands for the result of what timed out or failed where `on_timeout` or
            `on_error` is "default". None by default.
        on_timeout: "raise", "default", "return" (the exception is the result), or "partial": the
            result is what the function has `publish`ed last; if that is nothing, of a call
            "raise", of an item "default". By default "raise" of a call, "default" of an item.
        on_error: of maps and pipelines: "raise" (default), "default" or "return", where an item
            raises or its worker dies.
        budget: of maps and pipelines: seconds for all of it; what has not ended by then counts as
            timed out. None (default) is no limit.
        cpus: how many run at a time, 1 or more. By default the available CPUs less 2, but at least
            2 where there are 2.
        outcomes: of maps: True returns records of all items (`Outcomes`) and raises nothing for
            them.
        progress: of maps and pipelines: True or a description shows a bar; a callable gets
            `(done, timed_out, failed, total)`.
        seed: of maps: an int from which each item has its own `random` and `numpy.random`. None by
            default.

    Example:
        >>> import os, random, sys, time
        >>> from killercall import TimeoutError, killer_call, killer_pmap, publish
        >>> killer_call(time.sleep, timeout=0.2)(30)
        Traceback (most recent call last):
        ...
        killercall.TimeoutError: function 'sleep' timed out after 0.2s
        ...
        >>> here = {"depth": 1}
        >>> killer_call(lambda: here["depth"], start_method="fork")()
        1
        >>> killer_call(os.getpid, reuse=False)() == os.getpid()
        False
        >>> def tidy():
        ...     try:
        ...         time.sleep(30)
        ...     except TimeoutError:
        ...         return "tidied up"
        >>> killer_call(tidy, timeout=0.2, grace=5)()
        Traceback (most recent call last):
        ...
        killercall.TimeoutError: function 'tidy' timed out after 0.2s
        ...
        >>> killer_call(bytes, max_memory="300MB")(10**9)
        Traceback (most recent call last):
        ...
        killercall.MemoryLimitExceeded: function 'bytes' was refused more ...
        >>> killer_call(sorted, serializer="pickle")("ba")
        ['a', 'b']
        >>> killer_call(
        ...     sys.getrecursionlimit, initializer=sys.setrecursionlimit, initargs=(2000,)
        ... )()
        2000
        >>> killer_call(lambda: "decimal" in __import__("sys").modules, preload="decimal")()
        True
        >>> killer_call(os.getenv, env={"RATE": "3"})("RATE")
        '3'
        >>> killer_call(os.getcwd, cwd="/")()
        '/'
        >>> killer_call(print, forward_output=True)("from a worker")
        from a worker
        >>> def warn():
        ...     import logging
        ...
        ...     logging.error("not shown here")
        >>> killer_call(warn, forward_logging=False)()
        >>> killer_call(int, retries=2, retry_on=OSError)("7")
        7
        >>> killer_call(time.sleep, timeout=0.2, on_timeout="default", default=-1)(30)
        -1
        >>> def search():
        ...     publish("the best so far")
        ...     time.sleep(30)
        >>> killer_call(search, timeout=0.5, on_timeout="partial")()
        'the best so far'
        >>> killer_pmap(lambda x: 1 / x, [0, 4], cpus=1, on_error="return")
        [ZeroDivisionError('division by zero'), 0.25]
        >>> killer_pmap(time.sleep, [0, 30, 30], cpus=1, timeout=None, budget=0.5, default="late")
        [None, 'late', 'late']
        >>> killer_pmap(abs, [-1, -2], cpus=1, outcomes=True).counts()["returned"]
        2
        >>> ends = []
        >>> killer_pmap(abs, [-1, -2], cpus=1, progress=lambda *counts: ends.append(counts))
        [1, 2]
        >>> ends[-1]
        (2, 0, 0, 2)
        >>> draw = lambda _: random.random()
        >>> killer_pmap(draw, range(3), seed=1) == killer_pmap(draw, range(3), seed=1, cpus=1)
        True
    """

    # Written by hand: the import of `dataclasses` takes longer than all of ours together.
    timeout: float | None = None
    start_method: str = "forkserver"
    reuse: bool | int = True
    grace: float = 0.0
    serializer: _payload.Serializer = _payload.DEFAULT_SERIALIZER
    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    preload: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    default: Any = None
    on_timeout: str = "raise"
    on_error: str = "raise"
    budget: float | None = None
    max_memory: int | None = None
    # None is "auto".
    forward_output: bool | None = None
    forward_logging: bool = True
    cpus: int | None = None
    outcomes: bool = False
    progress: bool | str | Callable[..., object] | None = None
    seed: int | None = None
    # Not for users: who alone has the workers.
    owner: Owner | None = None

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        message = f"cannot assign to {name!r}"
        raise AttributeError(message)

    @property
    def calls_per_worker(self) -> int | None:
        """How many calls a worker may serve; None for no limit."""
        if self.reuse is True:
            return None
        return 1 if self.reuse is False else self.reuse


CALL_OPTIONS = frozenset({
    "default", "cwd", "env", "forward_logging", "forward_output", "grace", "initargs",
    "initializer", "max_memory", "on_timeout", "preload", "retries", "retry_on", "reuse",
    "serializer", "start_method", "timeout",
})  # fmt: skip
FUNCTION_OPTIONS = CALL_OPTIONS | {"cpus"}
# An instance stays in its worker, and a method that has failed halfway is not called again unasked.
ACTOR_OPTIONS = CALL_OPTIONS - {"retries", "retry_on", "reuse"}
# What a call can have for itself, in a worker that is there.
METHOD_OPTIONS = frozenset({"default", "grace", "on_timeout", "timeout"})
MAP_OPTIONS = CALL_OPTIONS | {"budget", "on_error", "outcomes", "progress", "seed"}
PIPELINE_OPTIONS = CALL_OPTIONS | {"budget", "on_error", "progress"}


def update(
    options: Options, values: Mapping[str, Any], *, allowed: frozenset[str], where: str
) -> Options:
    """A copy of `options` with checked `values`."""
    for name in values:
        if name not in allowed:
            raise TypeError(_unknown(name, allowed, where))
    checked = {name: CHECKS[name](name, value) for name, value in values.items()}
    return Options(**{**vars(options), **checked})


def _unknown(name: str, allowed: Iterable[str], where: str) -> str:
    if name in _NOT_YET:
        return f"{where} does not have the option {name!r} yet"
    import difflib

    close = difflib.get_close_matches(name, sorted(allowed), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(allowed))}"
    return f"{where} has no option {name!r}{hint}"


def check_timeout(name: str, value: Any) -> float | None:
    """Seconds from an int, a float or a timedelta; None is no limit."""
    if value is None:
        return None
    # Nobody has one without its module.
    timedelta = getattr(sys.modules.get("datetime"), "timedelta", None)
    if timedelta is not None and isinstance(value, timedelta):
        seconds: float = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        message = (
            f"{name} must be a number of seconds, a datetime.timedelta or None, "
            f"not {short_repr(value)} of type {type(value).__qualname__}"
        )
        raise TypeError(message)
    else:
        # An int may be larger than any float.
        seconds = min(value, _FOREVER) if isinstance(value, int) else value
    if math.isnan(seconds) or seconds <= 0:
        message = (
            f"{name} must be greater than 0 seconds, or None for no limit, not {short_repr(value)}"
        )
        raise ValueError(message)
    if math.isinf(seconds):
        message = f"{name} must be finite, or None for no limit, not {short_repr(value)}"
        raise ValueError(message)
    return float(min(seconds, _FOREVER))


def _check_grace(name: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, (int, float)) and value == 0:
        return 0.0
    if value is None:
        message = f"{name} must be a number of seconds or a datetime.timedelta, not None"
        raise TypeError(message)
    if isinstance(value, float) and math.isinf(value) and value > 0:
        message = f"{name} must be finite, not {value!r}"
        raise ValueError(message)
    return check_timeout(name, value) or 0.0


def _check_start_method(name: str, value: Any) -> str:
    return _check_choice(name, value, START_METHODS)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    expected = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        message = f"{name} must be {expected}, not {short_repr(value)}"
        raise TypeError(message)
    if value not in choices:
        message = f"{name} must be {expected}, not {value!r}"
        raise ValueError(message)
    return value


def _check_on_failure(name: str, value: Any) -> str:
    published = ("partial",) if name == "on_timeout" else ()
    return _check_choice(name, value, ("default", *published, "raise", "return"))


def check_count(name: str, value: Any, lowest: int) -> int:
    """A whole number of at least `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__qualname__
        message = f"{name} must be a whole number, not {short_repr(value)} of type {kind}"
        raise TypeError(message)
    if value < lowest:
        message = f"{name} must be at least {lowest}, not {value}"
        raise ValueError(message)
    return value


_UNITS = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*"


def _check_max_memory(name: str, value: Any) -> int | None:
    """Bytes from an int or a text with a unit; None is no limit."""
    if value is None:
        return None
    if isinstance(value, str):
        import re

        found = re.fullmatch(_SIZE, value, re.IGNORECASE | re.ASCII)
        if not found or found[2].upper() not in _UNITS:
            message = (
                f"{name} must be a number with a unit such as '500MB' or '2GiB', not {value!r}"
            )
            raise ValueError(message)
        size = int(float(found[1]) * _UNITS[found[2].upper()])
    elif isinstance(value, bool) or not isinstance(value, int):
        message = (
            f"{name} must be a number of bytes, a text such as '2GiB' or None, "
            f"not {short_repr(value)} of type {type(value).__qualname__}"
        )
        raise TypeError(message)
    else:
        size = value
    if size <= 0:
        message = f"{name} must be greater than 0 bytes, or None for no limit, not {value!r}"
        raise ValueError(message)
    return min(size, _MOST_MEMORY)


def _check_retries(name: str, value: Any) -> int:
    return min(check_count(name, value, 0), 2**31)


def _check_reuse(name: str, value: Any) -> bool | int:
    return value if isinstance(value, bool) else min(check_count(name, value, 1), 2**31)


def _check_retry_on(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, tuple) else (value,)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            message = (
                f"{name} must be an exception class or a tuple of them, not {short_repr(value)}"
            )
            raise TypeError(message)
    return classes


def _check_serializer(name: str, value: Any) -> _payload.Serializer:
    if isinstance(value, str):
        _check_choice(name, value, _payload.SERIALIZER_NAMES)
        if value == "dill":
            _need_dill()
        return _payload.serializer_named(value)
    if not (callable(getattr(value, "dumps", None)) and callable(getattr(value, "loads", None))):
        names = ", ".join(map(repr, _payload.SERIALIZER_NAMES))
        message = (
            f"{name} must be {names} or an object with dumps and loads, not {short_repr(value)}"
        )
        raise TypeError(message)
    serializer: _payload.Serializer = value
    return serializer


def _need_dill() -> None:
    import importlib.util

    if importlib.util.find_spec("dill") is None:
        message = "serializer='dill' needs the package dill: pip install killercall[dill]"
        raise ValueError(message)


def _check_initializer(name: str, value: Any) -> Callable[..., object] | None:
    if value is not None and not callable(value):
        message = f"{name} must be callable or None, not {short_repr(value)}"
        raise TypeError(message)
    initializer: Callable[..., object] | None = value
    return initializer


def _check_initargs(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        message = f"{name} must be a tuple of arguments, not {short_repr(value)}"
        raise TypeError(message)
    return tuple(value)


def _check_preload(name: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list, set, frozenset)) or not all(
        isinstance(entry, str) for entry in names
    ):
        message = f"{name} must be module names, not {short_repr(value)}"
        raise TypeError(message)
    for entry in names:
        if not all(part.isidentifier() for part in entry.split(".")):
            message = f"{name} must be module names such as 'numpy', not {entry!r}"
            raise ValueError(message)
    return tuple(names)


def _check_env(name: str, value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        message = f"{name} must be a mapping of strings or None, not {short_repr(value)}"
        raise TypeError(message)
    for key, entry in value.items():
        if not isinstance(key, str) or not isinstance(entry, str):
            message = (
                f"{name} must map strings to strings, not {short_repr(key)} to {short_repr(entry)}"
            )
            raise TypeError(message)
        if not key or "=" in key or "\0" in key + entry:
            message = f"{name} has a variable that no environment can hold: {short_repr(key)}"
            raise ValueError(message)
    return dict(value)


def _check_cwd(name: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        path = os.path.abspath(os.fsdecode(value))
    except TypeError:
        message = f"{name} must be a path or None, not {short_repr(value)}"
        raise TypeError(message) from None
    if not os.path.isdir(path):
        message = f"{name} must be an existing directory, not {short_repr(value)}"
        raise ValueError(message)
    return path


def _check_default(_name: str, value: Any) -> Any:
    return value


def _check_cpus(name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value, 1)


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        message = f"{name} must be True or False, not {short_repr(value)}"
        raise TypeError(message)
    return value


def _check_forward_output(name: str, value: Any) -> bool | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    if not isinstance(value, bool):
        message = f"{name} must be True, False or 'auto', not {short_repr(value)}"
        raise (ValueError if isinstance(value, str) else TypeError)(message)
    return value


def _check_seed(name: str, value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    message = (
        f"{name} must be a whole number or None, "
        f"not {short_repr(value)} of type {type(value).__qualname__}"
    )
    raise TypeError(message)


def _check_progress(name: str, value: Any) -> Any:
    if value is None or value is False:
        return None
    if value is True or isinstance(value, str) or callable(value):
        return value
    message = (
        f"{name} must be True, a description or a callable, "
        f"not {short_repr(value)} of type {type(value).__qualname__}"
    )
    raise TypeError(message)


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "budget": check_timeout,
    "cpus": _check_cpus,
    "cwd": _check_cwd,
    "default": _check_default,
    "env": _check_env,
    "forward_logging": _check_flag,
    "forward_output": _check_forward_output,
    "grace": _check_grace,
    "initargs": _check_initargs,
    "initializer": _check_initializer,
    "max_memory": _check_max_memory,
    "on_error": _check_on_failure,
    "on_timeout": _check_on_failure,
    "outcomes": _check_flag,
    "preload": _check_preload,
    "retries": _check_retries,
    "retry_on": _check_retry_on,
    "progress": _check_progress,
    "reuse": _check_reuse,
    "seed": _check_seed,
    "serializer": _check_serializer,
    "start_method": _check_start_method,
    "timeout": check_timeout,
}
