"""`killer_call`: one call in a worker process, killed at its deadline."""

from __future__ import annotations

import functools
import types

from killercall import _core
from killercall._host import HostJob, Plan, is_inline, value_of
from killercall._options import CALL_OPTIONS, Options, check_timeout, update
from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, ParamSpec, TypeVar, overload

    P = ParamSpec("P")
    R = TypeVar("R")

    class _Generic(Generic[P, R]):
        pass
else:
    P = R = None

    class _Generic:
        __class_getitem__ = classmethod(types.GenericAlias)


DEFAULT_TIMEOUT = 10.0


class KillerFunction(_Generic[P, R]):
    """
    A function whose calls run in a supervised worker process. Made by `killer_call`.

    Attributes:
        __wrapped__: the function itself.
    """

    __wrapped__: Callable[P, R]
    # What tells that calls of such an object are ours; see `_captures`.
    _killercall_calls = True

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        """Use `killer_call`, which checks its arguments."""
        functools.update_wrapper(self, function)
        # What update_wrapper copied of another one must not stay.
        self.__wrapped__ = function
        self._killercall_options = options
        self._killercall_caller: _core.Caller | None = None
        self._killercall_plan: Plan | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function in a worker and returns its value, or raises; see `killer_call`."""
        caller = self._killercall_caller
        answer: Any = NotImplemented if caller is None else caller.call(args, kwargs)
        kind = type(answer)
        if kind is _core.Job:
            # It goes on.
            job = HostJob(self.__wrapped__, self._killercall_options, answer)
        elif kind is _core.Outcome:
            value: R = value_of(self.__wrapped__, self._killercall_options, answer)
            return value
        elif answer is not NotImplemented:
            return answer  # type: ignore[no-any-return]
        elif is_inline():
            here: R = run_inline(self.__wrapped__, args, kwargs, self._killercall_options)
            return here
        else:
            job = self._submit(args, kwargs)
        with job.scope:
            (outcome,) = job.wait()
            if outcome.ending == "returned":
                return job.value(outcome)  # type: ignore[no-any-return]
            failure = job.failure(outcome)
        on_timeout = self._killercall_options.on_timeout
        if outcome.ending == "timed_out" and on_timeout != "raise":
            instead: Any = failure if on_timeout == "return" else self._killercall_options.default
            return instead  # type: ignore[no-any-return]
        try:
            raise failure
        finally:
            # Or the traceback holds this frame, which holds the exception.
            del failure

    def _submit(self, args: Any, kwargs: Any) -> HostJob:
        """The long way, which finds out whether the short one is open for the next call."""
        plan = self._killercall_plan
        if plan is None or not plan.is_current():
            self._killercall_caller = self._killercall_plan = None
            plan = Plan(self.__wrapped__, self._killercall_options, [(args, kwargs)])
        job = plan.job()
        job.submit(0, (args, kwargs))
        plan.import_ahead()
        self._killercall_caller = plan.caller
        # One that cannot tell whether it is current may hold a copy of this process.
        self._killercall_plan = plan if plan.is_watched else None
        return job

    def options(self, **options: Any) -> KillerFunction[P, R]:
        """
        A copy with other options; those not named stay.

        Example:
            >>> from killercall import killer_call
            >>> square = killer_call(lambda x: x * x, timeout=5)
            >>> square.options(timeout=1)(3)
            9
        """
        checked = update(
            self._killercall_options, options, allowed=CALL_OPTIONS, where="killer_call"
        )
        return KillerFunction(self.__wrapped__, checked)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: `self` goes along as the first argument."""
        if instance is None:
            return self
        bind = getattr(self.__wrapped__, "__get__", None)
        if bind is None:
            return self
        return KillerFunction(bind(instance, owner), self._killercall_options)

    def __reduce__(self) -> Any:
        """By its name where that leads here, so that its module's state is not copied."""
        import sys

        module = sys.modules.get(getattr(self, "__module__", None) or "")
        found: Any = module if module is not sys.modules.get("__main__") else None
        for name in getattr(self, "__qualname__", "<none>").split("."):
            found = getattr(found, name, None)
        if found is self:
            return self.__qualname__
        return KillerFunction, (self.__wrapped__, self._killercall_options)

    def __getattr__(self, name: str) -> Any:
        """Says of what is to come that it is not there yet, instead of nothing."""
        if name in {"submit", "aio"}:
            raise AttributeError(f"a killer_call does not have .{name}() yet")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        """Names the function and its limit."""
        return f"<killer_call of {self.__wrapped__!r}, timeout={self._killercall_options.timeout}>"


if TYPE_CHECKING:

    @overload
    def killer_call(
        func: Callable[P, R], timeout: Any = ..., **options: Any
    ) -> KillerFunction[P, R]: ...

    @overload
    def killer_call(
        func: None = None, timeout: Any = ..., **options: Any
    ) -> Callable[[Callable[P, R]], KillerFunction[P, R]]: ...


def killer_call(func: Any = None, timeout: Any = DEFAULT_TIMEOUT, **options: Any) -> Any:
    """
    Makes a function run in a supervised worker process that is killed at its deadline.

    Works as a decorator, bare or with arguments, and as a plain wrapper, on functions, lambdas,
    other callables and methods. The call returns what the function returns and raises what it
    raises; the function needs no `if __name__ == "__main__"` guard, and its script is not
    imported again. At the deadline the worker and all that it has started are dead before the
    exception is raised. Usable from any thread, many at once.

    Args:
        func: the function.
        timeout: seconds (int or float), a `datetime.timedelta`, or None for no limit. Default 10.
            The clock is monotonic and runs from the moment a ready worker is handed the call to
            the moment the complete result is in; starting a worker does not count.
        **options: `start_method` ("forkserver", "spawn", "fork"), `reuse` (True, False, or calls a
            worker), `grace` (seconds between SIGTERM and SIGKILL, default 0), `serializer`
            ("cloudpickle", "dill", "pickle", or an object with dumps and loads), `initializer`,
            `initargs`, `preload` (module names), `env`, `cwd`, `max_memory` (bytes, or a text
            such as "2GiB", for the worker and all that it starts), `retries` (default 0),
            `retry_on` (exception classes), `on_timeout` ("raise", "default", "return"), `default`.

    Returns:
        The decorated function, with its name, signature and docstring. `.options(...)` returns a
        copy with other options, `.__wrapped__` is the function itself.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as a timeout that is not positive.

    The call raises:
        TimeoutError: the deadline was missed.
        WorkerDied: the worker ended without an answer.
        MemoryLimitExceeded: it used more than `max_memory`, or was refused more.
        SerializationError: the function, an argument or the result could not be pickled.
        WorkerStartError: no worker could be started.
        DepthLimitExceeded: calls are nested too deep.

    Example:
        >>> import time
        >>> from killercall import killer_call
        >>> @killer_call(timeout=0.5)
        ... def bar(seconds):
        ...     time.sleep(seconds)
        ...     return seconds
        >>> bar(0.1)
        0.1
        >>> bar(10)
        Traceback (most recent call last):
        ...
        killercall._exceptions.TimeoutError: function 'bar' timed out after 0.5s
        The worker's Python stack (pid ...) when it was killed:
        ...
    """
    if isinstance(func, (int, float)) and not callable(func):
        message = f"killer_call takes a function first, not {func!r}: was timeout={func!r} meant?"
        raise TypeError(message)
    seconds = check_timeout("timeout", timeout)
    checked = update(Options(timeout=seconds), options, allowed=CALL_OPTIONS, where="killer_call")
    if func is None:
        return functools.partial(_decorate, options=checked)
    return _decorate(func, checked)


def run_inline(function: Any, args: Any, kwargs: Any, options: Options) -> Any:
    """One call in this process, for `KILLERCALL_INLINE`: with retries, without a deadline."""
    for attempts_left in range(options.retries, -1, -1):
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not attempts_left or not isinstance(error, options.retry_on):
                raise
    raise AssertionError  # the last attempt has returned or raised


def _decorate(function: Any, options: Options) -> Any:
    if isinstance(function, (staticmethod, classmethod)):
        # The descriptor outside, the worker inside.
        return type(function)(_decorate(function.__func__, options))
    check_function(function)
    return KillerFunction(function, options)


def check_function(function: Any) -> None:
    """Raises unless it can be called in a worker."""
    if not callable(function):
        kind = type(function).__qualname__
        message = f"func must be callable, not {short_repr(function)} of type {kind}"
        raise TypeError(message)
    inner = function.__wrapped__ if isinstance(function, KillerFunction) else function
    if any(map(_is_async, (inner, vars(type(inner)).get("__call__")))):
        message = f"func must not be async yet: {short_repr(function)}"
        raise TypeError(message)


# In the flags of a code object: what `async def` has, with `yield` or without.
_ASYNC = 0x80 | 0x200


def _is_async(part: Any) -> bool:
    """As `inspect` has it, without importing that."""
    while isinstance(part, (functools.partial, types.MethodType)):
        part = part.func if isinstance(part, functools.partial) else part.__func__
    if hasattr(part, "_is_coroutine_mark"):
        import inspect

        return inspect.iscoroutinefunction(part)
    return isinstance(part, types.FunctionType) and bool(part.__code__.co_flags & _ASYNC)


__all__ = ["KillerFunction", "check_function", "killer_call"]
