"""What happens at a deadline: how late the answer is, and how long the next call takes."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from benchmarks import peers, work
from benchmarks.warm import WARM_UP, check, timed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Turn = Callable[[int], Any]

BUSY_PER_CPU = 4
# A flag of the kernel's, in the seventh field of stat after the name.
PF_EXITING = 0x4


def is_alive(pid: int) -> bool:
    """
    Whether code of that process may still run.

    It may not once it is a zombie, is on its way out, or has SIGKILL pending, which the kernel
    looks at before it returns to the program: a busy machine may take long to tear it down.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return not (
        fields[0] in {"Z", "X"}
        or int(fields[6]) & PF_EXITING
        or pending & 1 << (signal.SIGKILL - 1)
    )


class Watched:
    """The file in which a function says who runs it, and what was found of them at the answer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen = 0
        self.alive = 0
        self.stacks: list[bool] = []

    def look(self, answer: BaseException) -> None:
        """Looks for those that the function named, right after the answer, and ends them."""
        if hasattr(answer, "stack"):
            self.stacks.append(bool(answer.stack))
        with contextlib.suppress(FileNotFoundError):
            with open(self.path, encoding="ascii") as file:
                pids = [int(pid) for pid in file.read().split()]
            os.unlink(self.path)
            self.seen += 1
            alive = [pid for pid in pids if is_alive(pid)]
            self.alive += bool(alive)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def __str__(self) -> str:
        said = f"alive at the answer: {self.alive} of {self.seen}"
        if self.stacks:
            said += f", stack attached: {sum(self.stacks)} of {len(self.stacks)}"
        return said


def missed(call: Callable[[], object], who: Watched) -> float:
    """When the answer was there that says that the deadline was missed; then looks who is left."""
    try:
        answer = call()
    except Exception as error:
        now = time.monotonic()
        # Half of the peers have a class of their own for it.
        if "Time" not in type(error).__name__:
            raise
        who.look(error)
        return now
    message = f"a function that never ends has answered {answer!r}"
    raise AssertionError(message)


@contextlib.contextmanager
def watched() -> Generator[Watched, None, None]:
    """A `Watched` with a file of its own."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        yield Watched(os.path.join(directory, "who"))


@contextlib.contextmanager
def others_busy(*, busy: bool) -> Generator[None, None, None]:
    """Beside processes that use what they can get, where asked for."""
    import subprocess
    import sys

    count = BUSY_PER_CPU * len(os.sched_getaffinity(0)) if busy else 0
    burners = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait()


@contextlib.contextmanager
def overshoot(
    peer: str, function: str = "sleep", timeout: float = 0.1, *, busy: bool = False, **options: Any
) -> Generator[Turn, None, None]:
    """Seconds between the deadline and the answer; less than zero if it came before."""
    with getattr(peers, peer)(**options) as bind, watched() as who:
        # A worker must be there, or its start would be counted: the clock of a pool's call runs
        # from the moment when a worker is handed it.
        warm = bind(work.identity)
        call = bind(getattr(work, function), timeout)

        def turn(count: int) -> tuple[list[float], str]:
            late = []
            with others_busy(busy=busy):
                for _ in range(count):
                    timed(warm, 1)
                    start = time.monotonic()
                    late.append(missed(lambda: call(who.path), who) - start - timeout)
            return late, str(who)

        timed(warm, WARM_UP)
        yield turn


@contextlib.contextmanager
def bare_kill(timeout: float = 0.1, *, busy: bool = False) -> Generator[Turn, None, None]:
    """The floor: a forked process that sleeps, poll, SIGKILL, waitpid."""
    import select

    readable, writable = os.pipe()
    poller = select.poll()
    poller.register(readable)

    def one() -> float:
        pid = os.fork()
        if pid == 0:
            time.sleep(work.STUCK)
            os._exit(0)
        start = time.monotonic()
        poller.poll(timeout * 1000)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return time.monotonic() - start - timeout

    def turn(count: int) -> list[float]:
        with others_busy(busy=busy):
            return [one() for _ in range(count)]

    try:
        yield turn
    finally:
        os.close(readable)
        os.close(writable)


@contextlib.contextmanager
def after_kill(
    peer: str, timeout: float = 0.05, *, next_but_one: bool = False, **options: Any
) -> Generator[Turn, None, None]:
    """Seconds of the first call after one that was killed, or of the call after that."""
    with getattr(peers, peer)(**options) as bind, watched() as who:
        warm = bind(work.identity)
        late = bind(work.sleep, timeout)

        def turn(count: int) -> list[float]:
            took: list[float] = []
            for number in range(count):
                missed(lambda: late(who.path), who)
                if next_but_one:
                    check(warm(number), number)
                took += timed(warm, 1)
            return took

        timed(warm, WARM_UP)
        yield turn
