"""`killer_actor`: objects that live in workers of their own."""

from __future__ import annotations

import functools
import os
import threading
import types
import weakref
from concurrent.futures import CancelledError

from killercall import _futures
from killercall._exceptions import WorkerDied, add_note
from killercall._host import (
    HostJob,
    Owner,
    Plan,
    check_depth,
    discard,
    is_async,
    is_inline,
    pack_call,
)
from killercall._objects import NotHereError, build, call, call_async
from killercall._options import ACTOR_OPTIONS, METHOD_OPTIONS, Options, check_timeout, update
from killercall._payload import dumps, short_repr
from killercall._waiting import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, NoReturn, Self, Unpack, overload

    from killercall import _core
    from killercall._futures import KillerFuture
    from killercall._typing import ActorOptions, MethodOptions, P, Timeout

    class _Generic(Generic[P]):
        pass

    # An actor goes wherever an instance of its class is asked for.
    _Whatever = Any
else:
    P = None
    _Whatever = object

    class _Generic:
        __class_getitem__ = classmethod(types.GenericAlias)


DEFAULT_TIMEOUT = 10.0

# How often one call has its instance built. More are needed only if the new worker is gone each
# time before it is asked for the method.
_MOST_BUILDS = 3

# Endings of a call that its worker does not survive.
_DEADLY = frozenset({"died", "over_memory", "timed_out"})


class _Instance:
    """The host's side of one instance: what it takes to reach it, and to build it again."""

    def __init__(self, actor_class: ActorClass[...], args: Any, kwargs: Any) -> None:
        self._owner = Owner(stays=True)
        self.name = actor_class.__wrapped__.__name__
        given = vars(actor_class._killercall_options)
        self.options = Options(**{**given, "owner": self._owner})
        self.restart = actor_class._killercall_restart
        self.lane = _futures.Lane(1)
        # Of the worker that had the instance last, and what is known of its end.
        self.pid: int | None = None
        self.why: Callable[[], str] | None = None
        self.is_lost = False
        self._process = os.getpid()
        self._is_closing = False
        self._is_closed = False
        self._closed: list[Flag] = []
        self._lock = threading.Lock()
        self._plans: dict[Any, Plan] = {}
        self._packed = self._pack_constructor(actor_class, args, kwargs)

    def _pack_constructor(
        self, actor_class: ActorClass[...], args: Any, kwargs: Any
    ) -> bytes | _core.Parcel:
        check_depth()
        try:
            return pack_call(self.options, (actor_class, *args), kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException:
            # Told of as the caller knows it: the class is none of the arguments.
            serializer = self.options.serializer
            for part, what in ((actor_class, self.name), (args, "args"), (kwargs, "kwargs")):
                dumps(serializer, part, what)
            raise

    def _plan(self, function: Any, name: str, key: Any, options: Options) -> Plan:
        plan = self._plans.get(key)
        if plan is None or not plan.is_current():
            named = functools.partial(function, self._owner.number, *key[:-2])
            vars(named)["__name__"] = name
            plan = self._plans[key] = Plan(named, options)
            plan.import_ahead()
        return plan

    def build_job(self) -> HostJob:
        """The call of the constructor."""
        options = self.options
        plan = self._plan(build, self.name, (options.timeout, options.grace), options)
        return _job(plan, self._packed)

    def method_plan(self, method: ActorMethod) -> Plan:
        """How to call a method."""
        options = method._options
        key = (method._name, options.timeout, options.grace)
        return self._plan(
            call_async if method._is_async else call, self.name_of(method._name), key, options
        )

    def name_of(self, method: str) -> str:
        """The name of a method, for messages."""
        return f"{self.name}.{method}"

    def check(self, name: str) -> None:
        """Raises unless a call may begin."""
        if os.getpid() != self._process:
            message = (
                f"cannot call {name!r}: its worker belongs to process {self._process}, of which "
                "this one is a forked copy; build an actor here"
            )
            raise RuntimeError(message)
        if self._is_closing:
            message = f"cannot call {name!r}: the actor is closed"
            raise RuntimeError(message)

    def refusal(self, name: str) -> WorkerDied:
        """What a call gets when the instance is lost for good."""
        why = "it died while it was idle" if self.why is None else self.why()
        reason = f"is gone ({why}), and restart=False says not to build {self.name!r} again"
        return WorkerDied(name, None, pid=self.pid, reason=reason)

    def tidy(self) -> None:
        """After a call: ends what nobody will ask for any more. For the driver's thread."""
        if not (self.is_lost or (self._is_closed and self.lane.is_empty())):
            return
        self.end()
        for closed in self._closed:
            closed.set()
        self._closed.clear()

    def end(self) -> None:
        """Ends the worker, which waits."""
        _end(self._process, self._owner)

    def finalize(self, actor: Actor) -> None:
        """Ends the worker when the last reference to the actor is gone."""
        finalizer = weakref.finalize(actor, _end, self._process, self._owner)
        # All workers end then, without a word to each.
        finalizer.atexit = False

    # What methods are called with.

    def call(self, method: ActorMethod, args: Any, kwargs: Any) -> Any:
        """Calls a method and waits for it."""
        __tracebackhide__ = True
        self.check(self.name_of(method._name))
        return self.wait(_ActorCall(self, method, *self._prepare(method, args, kwargs))).result()

    def submit(self, method: ActorMethod, args: Any, kwargs: Any) -> KillerFuture[Any]:
        """Calls a method in the background."""
        self.check(self.name_of(method._name))
        try:
            prepared = self._prepare(method, args, kwargs)
        except (KeyboardInterrupt, RuntimeError):
            raise
        except BaseException as error:
            failure = error
            return _futures.completed(lambda: _raise(failure))
        return self.lane.submit(_ActorCall(self, method, *prepared))

    def _prepare(
        self, method: ActorMethod, args: Any, kwargs: Any
    ) -> tuple[Plan, bytes | _core.Parcel]:
        packed = pack_call(self.options, args, kwargs)
        return self.method_plan(method), packed

    def wait(self, queued: _ActorCall) -> KillerFuture[Any]:
        """Waits for a call that is to be submitted; whatever ends the wait ends the call."""
        __tracebackhide__ = True
        driver = self.lane.driver
        driver.check_open(waits=True)
        if driver.is_current():
            # This thread would wait for itself.
            message = f"cannot wait for {queued.name!r} in the thread that drives it: use submit"
            raise RuntimeError(message)
        # The end of the interpreter waits for this thread, and so for its call, or for neither.
        queued.has_deadline = not threading.current_thread().daemon
        future = queued.future
        try:
            self.lane.submit(queued, waits=True)
            # What it has raised is raised by its caller, which is nearer to the user.
            future.exception()
            return future  # ruff: ignore[try-consider-else] - it may be interrupted until here
        except BaseException as error:
            if isinstance(error, CancelledError) and future.cancelled():
                if driver._is_exiting:
                    # A daemon thread: its traceback would be noise.
                    raise SystemExit from None
                reason = "was ended by close() or shutdown()"
                raise WorkerDied(queued.name, None, pid=self.pid, reason=reason) from None
            if not future.done():
                queued.kill()
            raise
        finally:
            # Or the traceback holds this frame, which holds the exception.
            del queued, future

    def close(self, last: ActorMethod | None) -> None:
        """Ends it, with all calls that have not ended, after a last one."""
        with self._lock:
            is_done = self._is_closing or os.getpid() != self._process
            self._is_closing = True
        if is_done:
            return
        try:
            if last is not None and not self.is_lost:
                prepared = self._prepare(last, (), {})
                self.wait(_ActorCall(self, last, *prepared, is_last=True)).result()
        finally:
            self._close()

    def _close(self) -> None:
        self._is_closed = True
        driver = self.lane.driver
        if driver._thread is None:
            # So there is nothing that runs or waits.
            self.end()
            return
        closed = Flag()
        driver.tell(lambda: self._cancel_all(closed))
        if not driver.is_current():
            closed.wait()

    def _cancel_all(self, closed: Flag) -> None:
        self._closed.append(closed)
        self.lane.drop(only_endless=False)
        for running in list(self.lane._running):
            running.end()
        self.tidy()


def _end(process: int, owner: Owner) -> None:
    """Ends the worker of an actor. Any thread may call this, at any time; it waits for nothing."""
    if os.getpid() == process:
        discard(owner)


def _job(plan: Plan, packed: bytes | _core.Parcel) -> HostJob:
    job = plan.job()
    job.submit_dumped(0, packed)
    return job


class _ActorCall(_futures.Call):
    """
    One call of an actor's lane: of a method, or of the constructor alone.

    A method takes one job or more: if its worker does not have the instance, that is built there,
    and then the method is called again, of which nothing has happened by then.
    """

    def __init__(
        self,
        instance: _Instance,
        method: ActorMethod | None,
        plan: Plan | None,
        packed: bytes | _core.Parcel | None,
        *,
        is_last: bool = False,
    ) -> None:
        options = instance.options if method is None else method._options
        super().__init__(
            self._first,
            self._no_finish,
            has_deadline=options.timeout is not None,
            gently=options.grace > 0,
        )
        self.lane = instance.lane
        self.name = instance.name if method is None else instance.name_of(method._name)
        self._instance = instance
        self._options = options
        self._plan = plan
        self._packed = packed
        self._is_constructor = method is None
        self._is_last = is_last
        self._is_building = self._is_constructor
        self._builds = 0
        # The method has the actor, whose worker must not end before this call.
        self._method = method
        self._gone = Flag()

    @staticmethod
    def _no_finish(*_parts: Any) -> None:
        raise AssertionError  # `on_done` is our own

    def _first(self) -> HostJob:
        if self._instance.is_lost:
            raise self._instance.refusal(self.name)
        return self._instance.build_job() if self._is_constructor else self._method_job()

    def _method_job(self) -> HostJob:
        if self._plan is None or self._packed is None:
            raise AssertionError  # they are let go of at the end
        return _job(self._plan, self._packed)

    def begin(self) -> bool:
        """Begins it, unless it is cancelled or too late."""
        if self._instance._is_closed:
            self.future.cancel()
        begun = super().begin()
        if not begun:
            self._release()
        return begun

    def kill(self) -> None:
        """Cancels it and waits until that is done; interrupted once more, without grace."""
        self.future.cancel()
        try:
            self._gone.wait()
        except BaseException:
            self.lane.tell(self._kill_now)
            self._gone.wait()
            raise

    def _kill_now(self) -> None:
        if self._has_begun and not self._gone.is_set():
            self.job.cancel(gently=False)

    def _stop(self) -> None:
        super()._stop()
        if not self._has_begun:
            self._release()

    def _release(self) -> None:
        """Lets go of what it was for: a future may be kept for long."""
        self._gone.set()
        self._method = self._plan = self._packed = None

    def on_done(self, outcomes: list[_core.Outcome]) -> None:
        """A job of it has ended."""
        driver = self.lane.driver
        driver.remove(self)
        try:
            with self.job.scope:
                following = self._take(outcomes[0])
            if following is not None and not self.future.cancelled():
                self.job = following()
                driver.add(self)
                return
        except BaseException as error:
            self.future.settle_error(error)
        self.leave()

    def leave(self) -> None:
        """All of it has ended; the next one may begin."""
        instance = self._instance
        if self._is_constructor and self._is_building:
            # Nobody has an actor to call; but who keeps the traceback keeps one.
            instance.is_lost = True
        self._release()
        super().leave()
        instance.tidy()

    def _take(self, outcome: _core.Outcome) -> Callable[[], HostJob] | None:
        """Settles the future, unless there is more to do first."""
        instance, job = self._instance, self.job
        if self.future.cancelled():
            instance.why = lambda: f"the call of function {self.name!r} was cancelled"
            return None
        if outcome.ending == "returned" and self._is_building:
            self._is_building = False
            instance.pid, instance.why = outcome.pid, None
            if not self._is_constructor:
                return self._method_job
            self.future.settle(lambda: None)
            return None
        if outcome.ending == "returned":
            self.future.settle(lambda: job.value(outcome))
            return None
        if job.is_partial(outcome) and not self._is_building:
            instance.why = lambda: f"function {self.name!r} timed out"
            instance.is_lost = not instance.restart
            self.future.settle(lambda: job.partial(outcome))
            return None
        if job.has_raised(outcome, NotHereError(instance._owner.number)):
            return self._build_again()
        failure = self._failure(job, outcome)
        if outcome.ending in _DEADLY:
            instance.why = lambda: str(failure())
            instance.is_lost = not instance.restart
        on_timeout = self._options.on_timeout
        is_settled = outcome.ending == "timed_out" and not self._is_building
        if is_settled and on_timeout == "return":
            self.future.settle(failure)
        elif is_settled and on_timeout == "default":
            self.future.settle(lambda: self._options.default)
        else:
            self.future.settle_raised(failure)
        return None

    def _failure(self, job: HostJob, outcome: _core.Outcome) -> Callable[[], BaseException]:
        """What it raises, for whoever asks first: user code may run."""
        instance, is_built_again = self._instance, self._is_building and not self._is_constructor
        found = job.failure_later(outcome)

        def find() -> BaseException:
            failure = found()
            if is_built_again:
                add_note(failure, f"while {instance.name!r} was built again for {self.name!r}")
            return failure

        return _futures.later(find)

    def _build_again(self) -> Callable[[], HostJob] | None:
        instance = self._instance
        if self._is_last:
            # There is nothing to be closed.
            self.future.settle(lambda: None)
            return None
        if not instance.restart:
            instance.is_lost = True
            self.future.settle_error(instance.refusal(self.name))
            return None
        if self._builds == _MOST_BUILDS:
            reason = f"was gone {_MOST_BUILDS} times between constructor and method"
            self.future.settle_error(WorkerDied(self.name, None, pid=instance.pid, reason=reason))
            return None
        self._builds += 1
        self._is_building = True
        return instance.build_job


class _Here:
    """An instance in this process, for `KILLERCALL_INLINE`: without deadlines."""

    def __init__(self, cls: type, args: Any, kwargs: Any) -> None:
        self._name = cls.__name__
        self._lock = threading.RLock()
        self._is_closed = False
        self._object = cls(*args, **kwargs)

    def call(self, method: ActorMethod, args: Any, kwargs: Any) -> Any:
        """Calls a method."""
        if self._is_closed:
            message = f"cannot call '{self._name}.{method._name}': the actor is closed"
            raise RuntimeError(message)
        with self._lock:
            value = getattr(self._object, method._name)(*args, **kwargs)
            if method._is_async:
                import asyncio

                return asyncio.run(value)
            return value

    def submit(self, method: ActorMethod, args: Any, kwargs: Any) -> KillerFuture[Any]:
        """Calls a method, and says later how that went."""
        return _futures.completed(lambda: self.call(method, args, kwargs))

    def close(self, last: ActorMethod | None) -> None:
        """Lets go of the instance, after a last call."""
        if self._is_closed:
            return
        try:
            if last is not None:
                self.call(last, (), {})
        finally:
            self._is_closed = True
            self._object = None


class ActorMethod:
    """
    A method of an actor. Its calls run in the actor's worker, one at a time.

    Example:
        >>> from killercall import killer_actor
        >>> @killer_actor(timeout=5)
        ... class Account:
        ...     def __init__(self, balance):
        ...         self.balance = balance
        ...
        ...     def deposit(self, amount):
        ...         self.balance += amount
        ...         return self.balance
        >>> with Account(10) as account:
        ...     future = account.deposit.submit(1)
        ...     account.deposit.options(timeout=1)(2), future.result()
        (13, 11)
    """

    __slots__ = ("_actor", "_is_async", "_name", "_options")

    def __init__(self, actor: Actor, name: str, options: Options, *, is_async: bool) -> None:
        """Made by the actor; `options` are those of its calls."""
        self._actor = actor
        self._name = name
        self._options = options
        self._is_async = is_async

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """
        Calls the method and waits for it; as a decorated function, see `killer_call`.

        Raises:
            RuntimeError: the actor is closed, or this is a forked copy of the process that has made
                it.
        """
        __tracebackhide__ = True
        if self._is_async:
            return self.aio(*args, **kwargs)
        return self._actor._killercall_instance.call(self, args, kwargs)

    def submit(self, /, *args: Any, **kwargs: Any) -> KillerFuture[Any]:
        """Calls the method in the background, in its turn; see `KillerFunction.submit`."""
        return self._actor._killercall_instance.submit(self, args, kwargs)

    async def aio(self, /, *args: Any, **kwargs: Any) -> Any:
        """
        Calls the method and lets the event loop go on meanwhile.

        Where the awaiting task is cancelled, a call that waits for its turn is withdrawn. One that
        runs is killed, and the instance with it.
        """
        __tracebackhide__ = True
        instance = self._actor._killercall_instance
        if self._is_async and isinstance(instance, _Here):
            return await getattr(instance._object, self._name)(*args, **kwargs)
        future = self.submit(*args, **kwargs)
        await _futures.wait_in_loop(future)
        try:
            return future.result()
        finally:
            # Or the traceback of a failure holds this frame, which holds the future.
            del future

    def options(self, **options: Unpack[MethodOptions]) -> ActorMethod:
        """
        The same method with other options: `timeout`, `grace`, `on_timeout`, `default`.

        Raises:
            TypeError: a wrong type, or an option that concerns the worker, which is there already.
            ValueError: a wrong value.
        """
        checked = update(
            self._options, options, allowed=METHOD_OPTIONS, where="a method of an actor"
        )
        return ActorMethod(self._actor, self._name, checked, is_async=self._is_async)

    def __reduce__(self) -> NoReturn:
        """Cannot be pickled."""
        self._actor._refuse_pickling()

    def __repr__(self) -> str:
        """Names the method and its limit."""
        name = self._actor._killercall_class.__wrapped__.__name__
        return f"<method '{name}.{self._name}' of an actor, timeout={self._options.timeout}>"


class Actor(_Whatever):  # type: ignore[misc]
    """
    An object in a worker of its own. Made by a call of a class that `killer_actor` has decorated.

    Its methods are those of the class; see `ActorMethod` for what they can do. Nothing else of it
    can be reached. For type checkers it may have any method, and is an instance of any class.
    """

    __slots__ = ("__weakref__", "_killercall_class", "_killercall_instance")

    _killercall_class: ActorClass[...]
    _killercall_instance: _Instance | _Here

    def __init__(self, actor_class: ActorClass[...], instance: _Instance | _Here) -> None:
        """Made by the class."""
        object.__setattr__(self, "_killercall_class", actor_class)
        object.__setattr__(self, "_killercall_instance", instance)

    def __getattr__(self, name: str) -> ActorMethod:
        """A method of the class."""
        if name in Actor.__slots__:
            # Nothing has been made yet.
            raise AttributeError(name)
        method = self._method(name)
        if method is None:
            cls = self._killercall_class.__wrapped__.__name__
            message = f"{cls!r} has no method {name!r}; only methods of an actor can be reached"
            raise AttributeError(message, name=name, obj=self)
        return method

    def _method(self, name: str) -> ActorMethod | None:
        found = _method_of(self._killercall_class.__wrapped__, name)
        if found is None:
            return None
        instance = self._killercall_instance
        options = (
            instance.options
            if isinstance(instance, _Instance)
            else self._killercall_class._killercall_options
        )
        return ActorMethod(self, name, options, is_async=is_async(found))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        """Refused: it would be set here, and not in the worker."""
        message = f"cannot set {name!r}: only methods of an actor can be reached"
        raise AttributeError(message, name=name, obj=self)

    def close(self) -> None:
        """
        Ends the worker, and all that it has started. Calls that have not ended are killed.

        If the class has a method `close` of its own, that is called first, in its turn and under
        the deadline; what it raises is raised when the worker has ended. Calls after this are a
        `RuntimeError`; to close again does nothing.
        """
        self._killercall_instance.close(self._method("close"))

    def __enter__(self) -> Self:
        """The actor itself, which is closed at the end of the block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Closes it."""
        self.close()

    def _refuse_pickling(self) -> NoReturn:
        message = (
            f"cannot pickle an actor of {self._killercall_class.__wrapped__.__name__!r}: only the "
            f"process that has made it can call it; pass what its methods return"
        )
        raise TypeError(message)

    def __reduce__(self) -> NoReturn:
        """Cannot be pickled."""
        self._refuse_pickling()

    def __dir__(self) -> list[str]:
        """What can be called."""
        cls = self._killercall_class.__wrapped__
        return [*object.__dir__(self), *(name for name in dir(cls) if _method_of(cls, name))]

    def __repr__(self) -> str:
        """Names the class and the limit of a call."""
        made_by = self._killercall_class
        timeout = made_by._killercall_options.timeout
        return f"<actor of {made_by.__wrapped__.__name__!r}, timeout={timeout}>"


def _method_of(cls: type, name: str) -> Any:
    """What a class has as this method, without asking descriptors; None if it is none."""
    found = _in_class(cls, name)
    if isinstance(found, (staticmethod, classmethod)):
        return found.__func__
    if isinstance(found, (functools.partialmethod, functools.singledispatchmethod)):
        return found.func
    return found if callable(found) and not isinstance(found, type) else None


class ActorClass(_Generic[P]):
    """
    A class whose instances live in workers of their own. Made by `killer_actor`.

    Attributes of the class itself are found on it; a class method that makes an instance makes an
    actor. Classes that derive from it derive from the plain class.

    Attributes:
        __wrapped__: the class itself.
    """

    __wrapped__: type

    def __init__(self, cls: type, options: Options, restart: bool) -> None:  # ruff: ignore[boolean-type-hint-positional-argument] - as pickle calls it
        """Use `killer_actor`, which checks its arguments."""
        functools.update_wrapper(self, cls, updated=())
        self.__wrapped__ = cls
        self._killercall_options = options
        self._killercall_restart = restart

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Actor:
        """Builds an instance in a worker, and raises what the constructor raises."""
        __tracebackhide__ = True
        if is_inline():
            return Actor(self, _Here(self.__wrapped__, args, kwargs))
        instance = _Instance(self, args, kwargs)
        actor = Actor(self, instance)
        instance.finalize(actor)
        instance.wait(_ActorCall(instance, None, None, None)).result()
        return actor

    def __getattr__(self, name: str) -> Any:
        """Of the class itself."""
        if name.startswith("__"):
            raise AttributeError(name)
        found = _class_method_of(self.__wrapped__, name)
        if found is not None:
            return types.MethodType(found, self)
        return getattr(self.__wrapped__, name)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type]:
        """As a base it is the class itself."""
        return (self.__wrapped__,)

    def __instancecheck__(self, instance: Any) -> bool:
        """Its actors, those of derived classes, and plain instances."""
        if isinstance(instance, Actor):
            return issubclass(instance._killercall_class.__wrapped__, self.__wrapped__)
        return isinstance(instance, self.__wrapped__)

    def __subclasscheck__(self, cls: Any) -> bool:
        """As the class itself."""
        return issubclass(cls.__wrapped__ if isinstance(cls, ActorClass) else cls, self.__wrapped__)

    def __reduce__(self) -> Any:
        """By its name where that leads here, so that its module's state is not copied."""
        import sys

        module = sys.modules.get(self.__module__)
        found: Any = module if module is not sys.modules.get("__main__") else None
        for name in self.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is self:
            return self.__qualname__
        return ActorClass, (self.__wrapped__, self._killercall_options, self._killercall_restart)

    def __repr__(self) -> str:
        """Names the class and its limit."""
        timeout = self._killercall_options.timeout
        return f"<killer_actor of {self.__wrapped__!r}, timeout={timeout}>"


def _class_method_of(cls: type, name: str) -> Any:
    found = _in_class(cls, name)
    return found.__func__ if isinstance(found, classmethod) else None


def _in_class(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


if TYPE_CHECKING:

    @overload
    def killer_actor(
        cls: Callable[P, object],
        *,
        timeout: Timeout = ...,
        restart: bool = ...,
        **options: Unpack[ActorOptions],
    ) -> ActorClass[P]: ...

    @overload
    def killer_actor(
        cls: None = None,
        *,
        timeout: Timeout = ...,
        restart: bool = ...,
        **options: Unpack[ActorOptions],
    ) -> Callable[[Callable[P, object]], ActorClass[P]]: ...


def killer_actor(
    cls: Any = None, *, timeout: Any = DEFAULT_TIMEOUT, restart: Any = True, **options: Any
) -> Any:
    """
    Makes each instance of a class live in a worker process of its own.

    Works as a decorator, bare or with arguments, and as a plain wrapper. A call of the class builds
    the instance in its worker, at once and under the deadline. Methods run there, each call under
    its deadline; those of one instance run one at a time, in the order in which they came, from
    whatever thread. Arguments and results are pickled; what a method raises is raised here, and
    the instance keeps its state.

    When a call is killed (at its deadline, by a cancelled future, over `max_memory`) or the worker
    dies, the instance is gone. The next call builds it again first, with the same arguments as they
    were then; what had changed since is lost.

    The worker ends with `close()`, at the end of a `with` block, when the last reference to the
    actor is gone (a call that has not ended is one), and with this process.

    Args:
        cls: the class.
        timeout: seconds for the constructor and for each call of a method (int or float), a
            `datetime.timedelta`, or None for no limit. Default 10. Waiting for one's turn does not
            count.
        restart: whether to build the instance again; else each call after its end raises
            `WorkerDied`. Default True.
        **options: as for `killer_call`, without `reuse`, `retries`, `retry_on` and `cpus`, and
            without `start_method="fork"`.

    Returns:
        The class as one calls it; `__wrapped__` is the class itself. Of an instance only methods
        can be reached. `obj.method.submit(...)` returns a future and runs beside the caller,
        `obj.method.aio(...)` is awaitable, `obj.method.options(timeout=1)(...)` has other options.

        Type checkers know the arguments of the constructor, and let any method of an actor pass.
        Calls are checked where the actor is taken for an instance of the plain class, as by
        `counter: Counter = ...` or a parameter. mypy does not look at decorators of classes: there
        a decorated class stays the plain one, without `submit` and `close`. For both, decorate by
        hand: `CounterActor = killer_actor(Counter, timeout=5)`.

    Raises:
        TypeError: a wrong type of argument, or an unknown option.
        ValueError: a wrong value, such as a timeout that is not positive.

    Calls raise what calls of a `killer_call` function raise; see there.

    Example:
        >>> import time
        >>> from killercall import killer_actor
        >>> @killer_actor(timeout=0.5)
        ... class Counter:
        ...     def __init__(self, start):
        ...         self.count = start
        ...
        ...     def add(self, number, seconds=0):
        ...         time.sleep(seconds)
        ...         self.count += number
        ...         return self.count
        >>> counter = Counter(10)
        >>> counter.add(1), counter.add(1)
        (11, 12)
        >>> counter.add(1, seconds=30)
        Traceback (most recent call last):
        ...
        killercall.TimeoutError: function 'Counter.add' timed out after 0.5s
        The worker's Python stack (pid ...) when it was killed:
        ...
        >>> counter.add(1)
        11
        >>> counter.close()
    """
    if isinstance(cls, (int, float)):
        message = f"killer_actor takes a class first, not {cls!r}: was timeout={cls!r} meant?"
        raise TypeError(message)
    if not isinstance(restart, bool):
        message = f"restart must be True or False, not {short_repr(restart)}"
        raise TypeError(message)
    base = Options(timeout=check_timeout("timeout", timeout))
    checked = update(base, options, allowed=ACTOR_OPTIONS, where="killer_actor")
    if checked.start_method == "fork":
        message = (
            "start_method must be 'forkserver' or 'spawn', not 'fork': "
            "a copy of the host serves one call, and an actor has many"
        )
        raise ValueError(message)
    if cls is None:
        return functools.partial(_decorate, options=checked, restart=restart)
    return _decorate(cls, checked, restart=restart)


def _decorate(cls: Any, options: Options, *, restart: bool) -> Any:
    if isinstance(cls, ActorClass):
        cls = cls.__wrapped__
    if not isinstance(cls, type):
        kind = type(cls).__qualname__
        message = f"cls must be a class, not {short_repr(cls)} of type {kind}"
        raise TypeError(message)
    return ActorClass(cls, options, restart)


def _raise(error: BaseException) -> NoReturn:
    raise error


__all__ = ["Actor", "ActorClass", "ActorMethod", "killer_actor"]
