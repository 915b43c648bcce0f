"""
What type checkers are told of the options. Nothing imports this at run time.

The options of a call are those of `_options`, group by group, so that a misspelt name or a wrong
kind of value is found before the program runs; a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypedDict, overload

if TYPE_CHECKING:
    from typing import Never

    # The library's own have no defaults before Python 3.13. Type checkers bring this one along.
    from typing_extensions import TypeVar

    from killercall._call import KillerFunction
    from killercall._payload import Serializer
else:
    from typing import TypeVar

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
if TYPE_CHECKING:
    # What takes the place of a result: `default` is None unless given, and nothing does at all
    # unless asked for.
    D = TypeVar("D", default=None)
    E = TypeVar("E", default=Never)
else:
    D = TypeVar("D")
    E = TypeVar("E")

Timeout = float | timedelta | None
OnFailure = Literal["default", "raise", "return"]
OnTimeout = Literal["default", "partial", "raise", "return"]
# What `progress` reports to: how many have ended, timed out and failed, and how many there are.
Report = Callable[[int, int, int, int | None], object]


class ForwardOptions(TypedDict, total=False):
    """Where what workers say goes."""

    forward_logging: bool
    forward_output: bool | Literal["auto"] | None


class WorkerOptions(ForwardOptions, total=False):
    """What makes a kind of worker, and how it ends."""

    cwd: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None
    env: Mapping[str, str] | None
    grace: float | timedelta
    max_memory: int | str | None
    preload: str | Collection[str]
    serializer: Literal["cloudpickle", "dill", "pickle"] | Serializer
    start_method: Literal["forkserver", "spawn", "fork"]


class RepeatOptions(TypedDict, total=False):
    """How often a worker is used, and a call is tried."""

    retries: int
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    reuse: bool | int


class SetUpOptions(TypedDict, total=False):
    """What a new worker runs."""

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...] | list[Any]


class CallOptions(WorkerOptions, RepeatOptions, SetUpOptions, total=False):
    """What calls of all kinds have, except `timeout` and what becomes of a failure."""


class FunctionOptions(CallOptions, total=False):
    """Those of `killer_call`."""

    cpus: int | None


class PipelineOptions(CallOptions, total=False):
    """Those of `killer_pipeline`."""

    budget: Timeout
    progress: bool | str | Report | None


class MapOptions(PipelineOptions, total=False):
    """Those of maps."""

    seed: int | None


class ActorOptions(WorkerOptions, SetUpOptions, total=False):
    """Those of `killer_actor`."""

    default: Any
    on_timeout: OnTimeout


class MethodOptions(TypedDict, total=False):
    """Those of a method of an actor."""

    default: Any
    grace: float | timedelta
    on_timeout: OnTimeout
    timeout: Timeout


class PoolOptions(WorkerOptions, RepeatOptions, total=False):
    """Those of a pool that are not arguments of its constructor."""

    default: Any
    on_timeout: OnTimeout


class ViewOptions(MethodOptions, RepeatOptions, ForwardOptions, total=False):
    """Those of a view of a pool."""


class KillerMethod(Generic[P, R]):
    """A decorated static method or class method: the same through the class and an instance."""

    def __get__(self, instance: Any, owner: type | None = None) -> KillerFunction[P, R]:
        """The function."""
        raise NotImplementedError  # For type checkers only, which want a body to return or raise.


class Decorator(Generic[E]):
    """What `killer_call` returns without a function; calls may also give an `E`."""

    @overload
    def __call__(self, func: staticmethod[P, R], /) -> KillerMethod[P, R | E]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, func: classmethod[Any, P, R], /) -> KillerMethod[P, R | E]: ...

    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> KillerFunction[P, Coroutine[Any, Any, R | E]]: ...

    @overload
    def __call__(self, func: Callable[P, R], /) -> KillerFunction[P, R | E]: ...

    def __call__(self, func: Any, /) -> Any:
        """The decorated function."""
        raise NotImplementedError  # For type checkers only: this module is never imported.
