"""The compiled part of killercall. Private: meaning and defaults are in the Python modules."""

from collections.abc import Callable
from typing import TypeAlias, final

__version__: str
SETUP: int

_Launch: TypeAlias = tuple[str, list[str], list[tuple[bytes, bytes]]]

def boot(
    control: int | None, fork: Callable[[], int], preload: Callable[[str], None]
) -> tuple[int, int, bool] | None:
    """Turns this process into guard and forkserver; returns a worker's descriptors in each."""

def keep_open(fds: list[int]) -> None:
    """Lets the next program that this process execs inherit these descriptors."""

def ease_memory_limit() -> None:
    """In a worker with a memory limit: makes room to tell that it was met."""

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
    def preload(self, start: _Launch, modules: str) -> None: ...
    def shutdown(self) -> None: ...

@final
class Outcome:
    """How a task ended."""

    @property
    def task(self) -> int: ...
    @property
    def ending(self) -> str: ...
    @property
    def body(self) -> bytes | None: ...
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
    def attempts(self) -> int: ...

@final
class Job:
    """The tasks of one call or one map, and the workers that run them."""

    def __new__(
        cls,
        roster: Roster,
        start: _Launch | None,
        *,
        key: int,
        exec: bool,  # ruff: ignore[builtin-argument-shadowing] - what it does
        keep: bool,
        setup: bytes,
        context: int,
        context_bytes: bytes,
        function: int,
        function_bytes: bytes,
        timeout: float | None,
        grace: float,
        workers: int,
        retries: int,
        retry_timed_out: bool,
        retry_died: bool,
        retry_over_memory: bool,
        budget: float | None,
        calls_per_worker: int | None,
        start_limit: float,
        max_memory: int | None,
    ) -> Job: ...
    def submit(self, task: int, arguments: bytes) -> None: ...
    def __enter__(self) -> Job: ...
    def __exit__(self, *_exception: object) -> None: ...
    def wait(self) -> list[Outcome]: ...
    def queued(self) -> int: ...
    def reduced_to(self) -> int | None: ...
    def close(self) -> None: ...
    def start_error(
        self,
    ) -> tuple[str, int | None, int | None, int | None, bytes | None] | None: ...

@final
class Channel:
    """The worker's end of the channel to its host."""

    def __new__(cls, segment: int, socket: int) -> Channel: ...
    def prepare_dump(self) -> tuple[int, int]: ...
    def receive(
        self, idle: float
    ) -> tuple[int, int, bytes | None, bytes | None, bytes | None] | None: ...
    def send(self, kind: str, task: int, body: bytes) -> bool: ...
