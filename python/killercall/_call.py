"""`killer_call`: one call in a worker process, killed at its deadline."""

from __future__ import annotations

import functools
import types

from killercall import _core
from killercall._exceptions import SerializationError, leave_out_ours
from killercall._host import (
    HostJob,
    Plan,
    is_async,
    is_async_generator,
    is_inline,
    value_of,
)
from killercall._options import FUNCTION_OPTIONS, Options, check_timeout, update
from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, Concatenate, Generic, Literal, NoReturn, Unpack, overload

    from killercall._exceptions import (
        TimeoutError,  # ruff: ignore[builtin-import-shadowing]
    )
    from killercall._futures import Call, KillerFuture, Lane
    from killercall._host import Call as HostCall
    from killercall._typing import D, Decorator, FunctionOptions, KillerMethod, P, Q, R, S, Timeout

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

    Example:
        >>> from killercall import killer_call
        >>> double = killer_call(lambda x: 2 * x, timeout=60)
        >>> double(4), double.submit(5).result(), double.options(timeout=1)(6)
        (8, 10, 12)
    """

    __wrapped__: Callable[P, R]
    # What tells that calls of such an object are ours; see `_captures`.
    _killercall_calls = True

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        """Use `killer_call`, which checks its arguments."""
        functools.update_wrapper(self, function)
        # What update_wrapper copied must not hide what is ours: a class has methods, and the
        # function may be another one of these.
        for name in [name for name in vars(self) if name[:2] != "__" and hasattr(type(self), name)]:
            del vars(self)[name]
        self.__wrapped__ = function
        self._killercall_options = options
        self._killercall_caller: _core.Caller | None = None
        self._killercall_plan: Plan | None = None
        self._killercall_is_async = is_async(function)
        # Where submitted calls queue; methods of all instances share one.
        self._killercall_lane: dict[str, Lane] = {}

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function in a worker and returns its value, or raises; see `killer_call`."""
        __tracebackhide__ = True
        if self._killercall_is_async:
            return self.aio(*args, **kwargs)  # type: ignore[return-value]
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
            try:
                job = self._submit(args, kwargs)
            except SerializationError as error:
                leave_out_ours(error, but_first=True)
                raise
        with job.scope:
            (outcome,) = job.wait()
            if outcome.ending == "returned":
                return job.value(outcome)  # type: ignore[no-any-return]
            if job.is_partial(outcome):
                return job.partial(outcome)  # type: ignore[no-any-return]
            failure = job.failure(outcome)
        on_timeout = self._killercall_options.on_timeout
        if outcome.ending == "timed_out" and on_timeout in {"return", "default"}:
            instead: Any = failure if on_timeout == "return" else self._killercall_options.default
            return instead  # type: ignore[no-any-return]
        try:
            raise failure
        finally:
            # Or the traceback holds this frame, which holds the exception.
            del failure

    def _submit(self, args: Any, kwargs: Any) -> HostJob:
        """The long way, which finds out whether the short one is open for the next call."""
        plan = self._plan_for([(args, kwargs)])
        job = plan.job()
        job.submit(0, (args, kwargs))
        self._keep(plan)
        return job

    def _plan_for(self, calls: list[HostCall]) -> Plan:
        plan = self._killercall_plan
        if plan is None or not plan.is_current():
            self._killercall_caller = self._killercall_plan = None
            plan = Plan(self.__wrapped__, self._killercall_options, calls)
        return plan

    def _keep(self, plan: Plan) -> None:
        """Nothing was wrong with a call of this plan."""
        plan.import_ahead()
        self._killercall_caller = plan.caller
        # One that cannot tell whether it is current may hold a copy of this process.
        self._killercall_plan = plan if plan.is_watched else None

    if TYPE_CHECKING:

        @overload
        def submit(
            self: KillerFunction[P, Coroutine[Any, Any, S]], /, *args: P.args, **kwargs: P.kwargs
        ) -> KillerFuture[S]: ...

        @overload
        def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> KillerFuture[R]: ...

    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """
        Calls the function in the background.

        At most `cpus` of the calls that are submitted run at a time; the others wait in their
        order, which does not count for their deadlines. Arguments are pickled before this returns.

        Returns:
            A `concurrent.futures.Future`. Its `cancel()` kills the call, also if it runs.

        Raises:
            RuntimeError: the interpreter is shutting down.

        All else that a call may raise, the future raises.

        Example:
            >>> from killercall import killer_call
            >>> square = killer_call(lambda x: x * x, timeout=5)
            >>> futures = [square.submit(number) for number in range(3)]
            >>> [future.result() for future in futures]
            [0, 1, 4]
        """
        from killercall import _futures

        call = self._queued(args, kwargs)
        return self._lane().submit(call) if isinstance(call, _futures.Call) else call

    def _queued(self, args: Any, kwargs: Any) -> Call | KillerFuture[Any]:
        """A call that is to be queued, or the future of one that has ended already."""
        from killercall import _futures

        if is_inline():
            return _futures.completed(
                lambda: run_inline(self.__wrapped__, args, kwargs, self._killercall_options)
            )
        options = self._killercall_options
        if options.start_method == "fork":
            # Its worker inherits the arguments as they are when it begins.
            def prepare() -> HostJob:
                return self._submit(args, kwargs)
        else:
            try:
                job = self._submit(args, kwargs)
            except (KeyboardInterrupt, RuntimeError):
                raise
            except BaseException as error:
                failure = error
                return _futures.completed(lambda: raise_this(failure))

            def prepare() -> HostJob:
                return job

        return _futures.Call(
            prepare,
            self._settle,
            has_deadline=options.timeout is not None,
            gently=options.grace > 0,
        )

    if TYPE_CHECKING:

        @overload
        async def aio(
            self: KillerFunction[P, Coroutine[Any, Any, S]], /, *args: P.args, **kwargs: P.kwargs
        ) -> S: ...

        @overload
        async def aio(self, /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    async def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """
        Calls the function and lets the event loop go on meanwhile.

        As `submit`; where the awaiting task is cancelled, the call's worker is killed at once.

        Example:
            >>> import asyncio
            >>> from killercall import killer_call
            >>> square = killer_call(lambda x: x * x, timeout=5)
            >>> asyncio.run(square.aio(3))
            9
        """
        __tracebackhide__ = True
        if is_inline() and self._killercall_is_async:
            return await self.__wrapped__(*args, **kwargs)  # type: ignore[misc]
        from killercall import _futures

        future = self.submit(*args, **kwargs)
        await _futures.wait_in_loop(future)
        try:
            return future.result()
        finally:
            # Or the traceback of a failure holds this frame, which holds the future.
            del future

    def _lane(self) -> Lane:
        from killercall import _driver, _futures

        lane = self._killercall_lane.get("lane")
        if lane is None or lane.driver is not _driver.current():
            # The first one, or one of the process that has forked this one.
            from killercall._cpus import default_workers

            limit = self._killercall_options.cpus or default_workers()
            lane = self._killercall_lane["lane"] = _futures.Lane(limit)
        return lane

    def _settle(
        self, job: HostJob, outcomes: list[_core.Outcome], future: KillerFuture[Any]
    ) -> None:
        (outcome,) = outcomes
        if outcome.ending == "returned":
            future.settle(lambda: job.value(outcome))
            return
        if job.is_partial(outcome):
            future.settle(lambda: job.partial(outcome))
            return
        failure = self._failure(job, outcome)
        on_timeout = self._killercall_options.on_timeout
        if outcome.ending != "timed_out" or on_timeout not in {"return", "default"}:
            future.settle_raised(failure)
        elif on_timeout == "return":
            future.settle(failure)
        else:
            future.settle(lambda: self._killercall_options.default)

    def _failure(self, job: HostJob, outcome: _core.Outcome) -> Callable[[], BaseException]:
        """What it raises, for whoever asks first: user code may run."""
        from killercall import _futures

        return _futures.later(job.failure_later(outcome))

    if TYPE_CHECKING:

        @overload
        def options(
            self,
            *,
            timeout: Timeout = ...,
            on_timeout: Literal["raise"] = ...,
            default: Any = ...,
            **options: Unpack[FunctionOptions],
        ) -> KillerFunction[P, R]: ...

        @overload
        def options(
            self,
            *,
            timeout: Timeout = ...,
            on_timeout: Literal["return"],
            default: Any = ...,
            **options: Unpack[FunctionOptions],
        ) -> KillerFunction[P, R | TimeoutError]: ...

        @overload
        def options(
            self,
            *,
            timeout: Timeout = ...,
            on_timeout: Literal["default"],
            default: D = ...,
            **options: Unpack[FunctionOptions],
        ) -> KillerFunction[P, R | D]: ...

        @overload
        def options(
            self,
            *,
            timeout: Timeout = ...,
            on_timeout: Literal["partial"],
            default: Any = ...,
            **options: Unpack[FunctionOptions],
        ) -> KillerFunction[P, R | Any]: ...

    def options(self, **options: Any) -> Any:
        """
        A copy with other options; those not named stay.

        Example:
            >>> from killercall import killer_call
            >>> square = killer_call(lambda x: x * x, timeout=5)
            >>> square.options(timeout=1)(3)
            9
        """
        checked = update(
            self._killercall_options, options, allowed=FUNCTION_OPTIONS, where="killer_call"
        )
        return KillerFunction(self.__wrapped__, checked)

    if TYPE_CHECKING:
        # Through the class it may be a class method as well: what mypy sees is the same.
        @overload
        def __get__(self, instance: None, owner: type | None = None) -> KillerFunction[..., R]: ...

        @overload
        def __get__(
            self: KillerFunction[Concatenate[Any, Q], R],
            instance: object,
            owner: type | None = None,
        ) -> KillerFunction[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: `self` goes along as the first argument."""
        if instance is None:
            return self
        bind = getattr(self.__wrapped__, "__get__", None)
        if bind is None:
            return self
        bound = KillerFunction(bind(instance, owner), self._killercall_options)
        bound._killercall_lane = self._killercall_lane
        return bound

    def __reduce__(self) -> Any:
        """By its name where that leads here, so that its module's state is not copied."""
        import sys

        module = sys.modules.get(getattr(self, "__module__", None) or "")
        found: Any = module if module is not sys.modules.get("__main__") else None
        for name in getattr(self, "__qualname__", "<none>").split("."):
            found = getattr(found, name, None)
        if found is self:
            return vars(self)["__qualname__"]
        return KillerFunction, (self.__wrapped__, self._killercall_options)

    def __repr__(self) -> str:
        """Names the function and its limit."""
        return f"<killer_call of {self.__wrapped__!r}, timeout={self._killercall_options.timeout}>"


if TYPE_CHECKING:

    @overload
    def killer_call(  # type: ignore[overload-overlap]  # nobody calls the object itself
        func: staticmethod[P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerMethod[P, R]: ...

    @overload
    def killer_call(
        func: classmethod[Any, P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerMethod[P, R]: ...

    @overload
    def killer_call(
        func: Callable[P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerFunction[P, R]: ...

    @overload
    def killer_call(
        func: Callable[P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["return"],
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerFunction[P, R | TimeoutError]: ...

    @overload
    def killer_call(
        func: Callable[P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["default"],
        default: D = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerFunction[P, R | D]: ...

    @overload
    def killer_call(
        func: Callable[P, R],
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["partial"],
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> KillerFunction[P, R | Any]: ...

    @overload
    def killer_call(
        func: None = None,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["raise"] = ...,
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> Decorator: ...

    @overload
    def killer_call(
        func: None = None,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["return"],
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> Decorator[TimeoutError]: ...

    @overload
    def killer_call(
        func: None = None,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["default"],
        default: D = ...,
        **options: Unpack[FunctionOptions],
    ) -> Decorator[D]: ...

    @overload
    def killer_call(
        func: None = None,
        timeout: Timeout = ...,
        *,
        on_timeout: Literal["partial"],
        default: Any = ...,
        **options: Unpack[FunctionOptions],
    ) -> Decorator[Any]: ...


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
            `retry_on` (exception classes), `on_timeout` ("raise", "default", "return", or
            "partial": what it has `publish`ed, and if that is nothing, "raise"), `default`,
            `cpus` (how many submitted calls run at a time; as in `killer_pmap`), `forward_output`
            (True: what the function prints is written to the host's `sys.stdout` and `sys.stderr`
            while it runs; False: to the descriptors that its worker has inherited; default "auto":
            to these where they are what the host's streams write to), `forward_logging` (default
            True: its log records go through the host's loggers and handlers; False: its worker has
            a `logging` of its own).

    Returns:
        The decorated function, with its name, signature and docstring. `.submit(...)` returns a
        future, `.aio(...)` is awaitable, `.options(...)` returns a copy with other options,
        `.__wrapped__` is the function itself. Calls of an `async def` function are awaitable, and
        the coroutine runs in the worker.

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
        killercall.TimeoutError: function 'bar' timed out after 0.5s
        The worker's Python stack (pid ...) when it was killed:
        ...
    """
    if isinstance(func, (int, float)) and not callable(func):
        message = f"killer_call takes a function first, not {func!r}: was timeout={func!r} meant?"
        raise TypeError(message)
    seconds = check_timeout("timeout", timeout)
    checked = update(
        Options(timeout=seconds), options, allowed=FUNCTION_OPTIONS, where="killer_call"
    )
    if func is None:
        return functools.partial(_decorate, options=checked)
    return _decorate(func, checked)


def run_inline(function: Any, args: Any, kwargs: Any, options: Options) -> Any:
    """One call in this process, for `KILLERCALL_INLINE`: with retries, without a deadline."""
    for attempts_left in range(options.retries, -1, -1):
        try:
            return finished(function(*args, **kwargs))
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
    if is_async_generator(inner):
        message = f"func must not be an async generator function: {short_repr(function)}"
        raise TypeError(message)


def finished(value: Any) -> Any:
    """The value; of a coroutine what it returns."""
    if not isinstance(value, types.CoroutineType):
        return value
    import asyncio

    return asyncio.run(value)


def raise_this(error: BaseException) -> NoReturn:
    """A statement where an expression is wanted."""
    raise error


__all__ = ["KillerFunction", "check_function", "killer_call", "raise_this"]
