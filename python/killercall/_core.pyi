"""The compiled part of killercall. Private: meaning and defaults are in the Python modules."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias, final

__version__: str
APPEND_MAX: int
SETUP: int
LARGE_FUNCTIONS_MAX: int

_Command: TypeAlias = tuple[str, list[str], list[tuple[bytes, bytes]]]

def decode_plain(bytes: bytes, call: bool) -> Any:  # ruff: ignore[builtin-argument-shadowing]
    """What plain bytes stand for; with `call`, arguments and keyword arguments."""

@final
class Launch:
    """How to start a forkserver: program, arguments, environment."""

    def __new__(cls, command: _Command) -> Launch: ...

def boot(
    control: int | None, fork: Callable[[], int], preload: Callable[[str], None]
) -> tuple[int, int, bool] | None:
    """Turns this process into guard and forkserver; returns a worker's descriptors in each."""

def keep_open(fds: list[int]) -> None:
    """Lets the next program that this process execs inherit these descriptors."""

def read_text(path: str) -> str:
    """What a small file says."""

def end_descendants() -> None:
    """Kills and reaps all that this process has started, as far as it may."""

def ease_memory_limit() -> None:
    """In a worker with a memory limit: makes room to tell that it was met."""

def keep_at_most(bytes: int) -> None:  # ruff: ignore[builtin-argument-shadowing] - what it counts
    """Keeps at most so many bytes of used files, to use them again."""

def time_left() -> float | None:
    """Seconds to the nearest deadline of the call that this process runs."""

def keep_nothing() -> None:
    """Lets go of all used files."""

@final
class Parcel:
    """A large value to be sent: the parts of its stream, and buffers."""

    def __new__(
        cls,
        stream: list[Any],
        buffers: list[Any],
        given: bool,
    ) -> Parcel: ...
    def holds(self, stream: list[Any], buffers: list[Any]) -> bool: ...
    @property
    def len(self) -> int: ...

@final
class Arrived:
    """A parcel that has arrived. It can be opened once."""

    def open(self) -> tuple[memoryview, list[memoryview]]: ...

@final
class Memory:
    """The memory of a parcel, for as long as an object uses it."""

    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
        def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class ServerCopy:
    """A forkserver to be: a copy of the host."""

    def __new__(cls) -> ServerCopy: ...
    def fork(self, fork: Callable[[], int]) -> tuple[Roster | None, int | None]: ...

@final
class Roster:
    """A forkserver with its workers, kept between jobs."""

    def __new__(cls) -> Roster: ...
    def has_server(self) -> bool: ...
    def idle(self) -> int: ...
    def idle_pids(self) -> list[int]: ...
    def discard(self, key: int) -> None: ...
    def start(self, launch: Launch) -> None: ...
    def preload(self, launch: Launch, modules: str) -> None: ...
    def shutdown(self) -> None: ...

@final
class Outcome:
    """How a task ended."""

    @property
    def task(self) -> int: ...
    @property
    def ending(self) -> str: ...
    @property
    def body(self) -> bytes | Arrived | None: ...
    @property
    def plain(self) -> bool: ...
    @property
    def partial(self) -> bytes | Arrived | None: ...
    @property
    def partial_plain(self) -> bool: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    @property
    def over_memory(self) -> int | None: ...
    @property
    def stack(self) -> str | None: ...
    @property
    def corrupt(self) -> str | None: ...
    @property
    def elapsed(self) -> float: ...
    @property
    def started(self) -> float | None: ...
    @property
    def attempts(self) -> int: ...

@final
class Plan:
    """What a call of a function takes beside its arguments: worker, function and limits."""

    def __new__(
        cls,
        roster: Roster,
        launch: Launch | None,
        *,
        key: int,
        exec: bool,  # ruff: ignore[builtin-argument-shadowing] - what it does
        keep: bool,
        setup: bytes,
        context: int,
        context_bytes: bytes,
        function: int,
        function_bytes: bytes | Parcel,
        timeout: float | None,
        grace: float,
        retries: int,
        retry_timed_out: bool,
        retry_died: bool,
        retry_over_memory: bool,
        calls_per_worker: int | None,
        start_limit: float,
        max_memory: int | None,
    ) -> Plan: ...

@final
class Captures:
    """All that a function refers to, as it was when this was made."""

    def __new__(
        cls,
        items: list[tuple[dict[Any, Any], Any]],
        attributes: list[tuple[Any, str]],
        sizes: list[dict[Any, Any]],
        dicts: list[dict[Any, Any]],
        lists: list[list[Any]],
    ) -> Captures: ...
    def is_current(self) -> bool: ...

@final
class Surroundings:
    """Working directory, environment, `sys.path` and the key of `multiprocessing` as they were."""

    def __new__(cls) -> Surroundings: ...
    def is_current(self) -> bool: ...
    @property
    def directory(self) -> bytes | None: ...
    @property
    def environment(self) -> dict[bytes, bytes]: ...
    @property
    def path(self) -> list[str]: ...
    @property
    def key(self) -> bytes | None: ...

@final
class Caller:
    """The short way of a call: in a worker that is there, with an answer at once."""

    def __new__(
        cls,
        plan: Plan,
        captures: list[Captures],
        surroundings: Surroundings,
        dumps: Callable[[tuple[Any, ...], dict[str, Any]], bytes | Parcel],
        is_plain: bool,
        listener: Callable[[list[tuple[int, bytes]]], None],
        flush: Callable[[], None] | None,
    ) -> Caller: ...
    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

@final
class Job:
    """The tasks of one call or one map, and the workers that run them."""

    def __new__(
        cls,
        plan: Plan,
        workers: int,
        budget: float | None,
        bulk: bool,
        listener: Callable[[list[tuple[int, bytes]]], None],
    ) -> Job: ...
    def submit(self, task: int, arguments: bytes | Parcel) -> None: ...
    def submit_call(self, task: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool: ...
    def submit_items(self, items: list[Any], start: int, most: int) -> int: ...
    def __enter__(self) -> Job: ...
    def __exit__(self, *_exception: object) -> None: ...
    def wait(self) -> list[Outcome]: ...
    def wait_into(self, values: list[Any]) -> tuple[int, list[Outcome]]: ...
    def take(self) -> list[Outcome]: ...
    def cancel(self, gently: bool) -> None: ...
    def queued(self) -> int: ...
    def large(self) -> int: ...
    def reduced_to(self) -> int | None: ...
    def close(self) -> None: ...
    def start_error(
        self,
    ) -> tuple[str, int | None, int | None, int | None, bytes | None] | None: ...

@final
class Waker:
    """Ends a wait from another thread."""

    def __new__(cls) -> Waker: ...
    def wake(self) -> None: ...

def wait_any(jobs: list[Job], waker: Waker, limit: float) -> list[int]:
    """Waits for the end of something in one of these jobs, the waker, or `limit` seconds."""

class _Handler(Protocol):
    """What `Channel.serve` has done for it."""

    def idle_limit(self) -> float: ...
    def answer(
        self,
        task: int,
        number: int,
        context: bytes | None,
        function: bytes | Arrived | None,
        arguments: bytes | Arrived | None,
        plain: bool,
    ) -> bool: ...
    def dump(self, task: int, number: int, value: Any) -> bool: ...
    def raised(self, task: int, number: int, error: BaseException) -> bool: ...
    def leave_if_stray(self) -> None: ...
    def flush(self) -> None: ...
    def rehearse(self) -> None: ...
    def restore(self) -> None: ...

@final
class Channel:
    """The worker's end of the channel to its host."""

    def __new__(cls, segment: int, socket: int) -> Channel: ...
    def prepare_dump(self) -> tuple[int, int]: ...
    def know(self, number: int, function: Callable[..., Any]) -> None: ...
    def forget(self, number: int) -> None: ...
    def arrives(
        self,
        number: int,
        bytes: int | None,  # ruff: ignore[builtin-argument-shadowing] - what it counts
    ) -> list[int]: ...
    def set_direct(self, is_direct: bool) -> None: ...
    def set_surroundings(self, surroundings: Surroundings) -> None: ...
    def serve(self, handler: _Handler) -> None: ...
    def send(self, kind: str, task: int, body: bytes | Parcel, most: int | None = None) -> bool: ...
    def publish(
        self, value: Any, dumps: Callable[[Any], bytes | Parcel], must_dump: bool
    ) -> None: ...
    def append(self, more: bytes) -> None: ...
    def printer(self, fd: int) -> Printer: ...
    def log(self, record: bytes) -> None: ...

@final
class Printer:
    """A stream of bytes that leads from a worker to its host."""

    def write(self, bytes: Any) -> int: ...  # ruff: ignore[builtin-argument-shadowing]
    def writelines(self, lines: Iterable[Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def isatty(self) -> bool: ...
    def readable(self) -> bool: ...
    def writable(self) -> bool: ...
    def seekable(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def mode(self) -> str: ...
