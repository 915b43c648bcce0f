"""
What the calls of a stress run do in their worker, each in one way, and how each must end.

Imported in workers, under the deadline of the call, so this module imports little. Two files in the
directory of the round tell afterwards what happened, each line written at once, so that nothing
that was written is lost with its writer:

- `journal`: `number pid forkserver guard time`, first thing in each call;
- `faults`: `kind pid time`, before somebody does something to the process `pid`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

# Longer than any round: whoever sleeps so long is killed or has escaped.
FOREVER = 600.0
# Each host has its own value of this variable, and all that it starts inherits it.
MARK_VARIABLE = "KILLERCALL_STRESS_MARK"
# The most that a descriptor's number may be here.
MAX_FD = 4096


def append(path: str, line: str) -> None:
    """Appends a line in one write, so that processes can do it at the same time."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def has_mark(pid: int, mark: str) -> bool:
    """Whether this process is of the host with this mark, so that it may be harmed."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environment:
            return f"{MARK_VARIABLE}={mark}".encode() in environment.read().split(b"\0")
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The pid of its parent, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return int(stat.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def children_of(pid: int) -> list[int]:
    """The children of its first thread, which is the only one of a forkserver."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as children:
            return [int(child) for child in children.read().split()]
    except OSError:
        return []


@dataclass(frozen=True)
class Task:
    """One call, from its own side."""

    directory: str
    number: int

    def injures(self, kind: str, pid: int | None = None) -> None:
        """Notes what is about to be done to a process, by default to this one."""
        victim = os.getpid() if pid is None else pid
        append(f"{self.directory}/faults", f"{kind} {victim} {time.monotonic()}")

    def note_descendant(self) -> None:
        """Notes this process as one that ends with the worker."""
        append(f"{self.directory}/tree-{self.number}", str(os.getpid()))


@dataclass(frozen=True)
class Behaviour:
    """What a call does."""

    run: Callable[[Task], Any]
    # How it may end when nobody interferes. One ending, or those between which a race decides.
    endings: frozenset[str]
    # How often a single call, and an item of a map, is this.
    calls: int
    items: int
    # Whether it ends by itself: then its deadline is far away, and near otherwise.
    quick: bool
    # Whether it is a fault, and not just a call.
    fault: bool
    # Whether it must not run in a copy of the host, whose memory and sockets it would harm.
    needs_own_memory: bool


BEHAVIOURS: dict[str, Behaviour] = {}


def _ends(
    *endings: str,
    calls: int = 2,
    items: int = 1,
    quick: bool = True,
    fault: bool = True,
    needs_own_memory: bool = False,
) -> Callable[[Callable[[Task], Any]], Callable[[Task], Any]]:
    def register(run: Callable[[Task], Any]) -> Callable[[Task], Any]:
        BEHAVIOURS[run.__name__] = Behaviour(
            run, frozenset(endings), calls, items, quick, fault, needs_own_memory
        )
        return run

    return register


def work(directory: str, number: int, how: str) -> Any:
    """One call."""
    server = os.getppid()
    line = f"{number} {os.getpid()} {server} {parent_of(server)} {time.monotonic()}"
    append(f"{directory}/journal", line)
    return BEHAVIOURS[how].run(Task(directory, number))


def right_value(how: str, number: int) -> Any:
    """What a call that returns must return."""
    match how:
        case "return_big":
            return number.to_bytes(8, "little") * 40_000
        case "return_huge" | "die_while_answering":
            return number.to_bytes(8, "little") * 1_000_000
        case _:
            return number


# What behaves.


@_ends("returned", calls=12, items=40, fault=False)
def return_small(task: Task) -> int:
    """A few bytes."""
    return task.number


@_ends("returned", calls=3, items=2, fault=False)
def return_big(task: Task) -> Any:
    """More than fits into a ring."""
    return right_value("return_big", task.number)


@_ends("returned", calls=1, fault=False)
def return_huge(task: Task) -> Any:
    """More than fits into any pipe."""
    return right_value("return_huge", task.number)


@_ends("ValueError", calls=4, items=2)
def raise_error(task: Task) -> NoReturn:
    """Fails as functions do."""
    raise ValueError(task.number)


@_ends("returned", calls=2, items=2, fault=False)
def nap(task: Task) -> int:
    """Takes a while, so that others can hit it."""
    time.sleep(random.uniform(0.01, 0.2))
    return task.number


@_ends("returned", calls=1, items=0, fault=False)
def nest(task: Task) -> int:
    """Has a call of its own in a worker of the worker."""
    from killercall import killer_call

    inner: int = killer_call(abs, timeout=20)(-task.number)
    return inner


# What misses its deadline.


@_ends("TimeoutError", calls=4, quick=False)
def hang(_task: Task) -> None:
    """Sleeps."""
    time.sleep(FOREVER)


@_ends("TimeoutError", calls=2, quick=False)
def loop(_task: Task) -> None:
    """Keeps the interpreter busy."""
    while True:
        pass


@_ends("TimeoutError", calls=3, quick=False)
def swallow_everything(_task: Task) -> None:
    """Catches whatever is raised in it."""
    while True:
        try:
            time.sleep(FOREVER)
        except BaseException:
            pass


@_ends("TimeoutError", calls=3, quick=False)
def ignore_signals(_task: Task) -> None:
    """Blocks every signal that can be blocked."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(FOREVER)


@_ends("TimeoutError", calls=4, quick=False)
def stop_itself(_task: Task) -> None:
    """Nothing but SIGKILL and SIGCONT has an effect on it."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(FOREVER)


@_ends("TimeoutError", calls=3, items=0, quick=False)
def grandchild_in_own_session(task: Task) -> None:
    """A grandchild whose parent is gone hangs in a session of its own."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            task.note_descendant()
            time.sleep(FOREVER)
        os._exit(0)
    os.wait()
    time.sleep(FOREVER)


@_ends("TimeoutError", calls=2, items=0, quick=False)
def children_and_threads(task: Task) -> None:
    """Has some of both, and one of the children is stopped."""
    for stops in (True, False):
        if os.fork() == 0:
            task.note_descendant()
            if stops:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(FOREVER)
    for _ in range(2):
        threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True).start()
    time.sleep(FOREVER)


@_ends("TimeoutError", calls=1, items=0, quick=False)
def hang_in_worker_of_worker(task: Task) -> None:
    """The outer deadline ends the inner worker."""
    from killercall import killer_call

    killer_call(hang_inside, timeout=FOREVER)(task)


def hang_inside(task: Task) -> None:
    """The inner function of the above."""
    task.note_descendant()
    time.sleep(FOREVER)


# What ends its process.


@_ends("WorkerDied 0", calls=3, items=1)
def exit_0(_task: Task) -> NoReturn:
    """An exit code of 0 without a result is a failure too."""
    sys.exit(0)


@_ends("WorkerDied 3", calls=3, items=1)
def exit_3(_task: Task) -> NoReturn:
    """Leaves as scripts do."""
    sys.exit(3)


@_ends("WorkerDied 5", calls=4, items=1)
def exit_hard(_task: Task) -> NoReturn:
    """Leaves past everything."""
    os._exit(5)


@_ends("WorkerDied -9", calls=4, items=1)
def kill_itself(_task: Task) -> None:
    """Is gone between two instructions."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOREVER)


@_ends("WorkerDied -11", calls=4, items=1)
def segfault(_task: Task) -> None:
    """Reads address 0 in C code."""
    import ctypes

    ctypes.string_at(0)


@_ends("WorkerDied 5", calls=2, items=0)
def exit_with_grandchild(task: Task) -> NoReturn:
    """Leaves, and leaves a grandchild behind."""
    if os.fork() == 0:
        os.setsid()
        task.note_descendant()
        time.sleep(FOREVER)
    os._exit(5)


@_ends("returned", "WorkerDied -9", calls=3, items=0)
def die_while_answering(task: Task) -> Any:
    """Is killed at some moment of a big answer, or just after it."""
    task.injures("SIGKILL")
    delay = random.uniform(0, 0.01)

    def kill_later() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill_later, daemon=True).start()
    return right_value("die_while_answering", task.number)


# What harms what it shares with others.


@_ends("returned", calls=3, items=1)
def fork_and_return(task: Task) -> int:
    """Comes back twice."""
    os.fork()
    return task.number


@_ends("returned", calls=3, items=1)
def leave_grandchild_running(task: Task) -> int:
    """Returns while a grandchild runs on."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            time.sleep(FOREVER)
        os._exit(0)
    return task.number


@_ends("returned", "WorkerDied *", calls=2, items=0)
def close_fds_and_return(task: Task) -> int:
    """Has no channel to answer on."""
    task.injures("close")
    os.closerange(3, MAX_FD)
    return task.number


@_ends("TimeoutError", "WorkerDied *", calls=2, items=0, quick=False)
def close_fds_and_hang(task: Task) -> None:
    """The deadline holds without any channel."""
    task.injures("close")
    os.closerange(3, MAX_FD)
    time.sleep(FOREVER)


@_ends("returned", calls=3, items=1)
def kill_sibling(task: Task) -> int:
    """Kills another worker of the same forkserver."""
    siblings = [pid for pid in children_of(os.getppid()) if pid != os.getpid()]
    random.shuffle(siblings)
    for pid in siblings[:1]:
        if has_mark(pid, os.environ[MARK_VARIABLE]):
            task.injures("SIGKILL", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return task.number


def _scribble_memory() -> None:
    import ctypes

    with open("/proc/self/maps", encoding="utf-8") as maps:
        regions = [line.split()[0] for line in maps if "memfd:killercall" in line]
    for region in regions:
        start, end = (int(address, 16) for address in region.split("-"))
        for _ in range(random.choice([1, 8, 64])):
            # Most of what matters is at the start.
            length = end - start if random.random() < 0.3 else min(4096, end - start)
            garbage = random.randbytes(random.choice([1, 4, 64]))
            at = random.randrange(length - len(garbage))
            ctypes.memmove(start + at, garbage, len(garbage))


def _scribble_socket() -> None:
    import socket
    import stat

    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                duplicate = socket.socket(fileno=os.dup(int(name)))
                duplicate.setblocking(False)
                fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(random.randrange(4))]
                socket.send_fds(duplicate, [random.randbytes(random.choice([1, 100]))], fds)
                duplicate.close()
                for fd in fds:
                    os.close(fd)


# Whatever the worker wrote may be taken for an answer, or for nonsense, or for nothing.
SCRIBBLED = ("TimeoutError", "WorkerDied *", "SerializationError", "KillerError", "returned")


@_ends(*SCRIBBLED, calls=2, items=0, quick=False, needs_own_memory=True)
def scribble_and_hang(task: Task) -> None:
    """Writes garbage over all that it shares with the host."""
    task.injures("scribble")
    _scribble_memory()
    _scribble_socket()
    time.sleep(FOREVER)


@_ends(*SCRIBBLED, calls=2, items=0, quick=False, needs_own_memory=True)
def scribble_and_return(task: Task) -> int:
    """The same, and answers."""
    task.injures("scribble")
    _scribble_memory()
    _scribble_socket()
    return task.number


@_ends("returned", calls=1, items=0)
def allocate(task: Task) -> int:
    """Touches a lot of memory."""
    return task.number if len(b"x" * 100_000_000) else 0


# What the calls that exceed it are given, and what they take.
MAX_MEMORY = 60_000_000
TOO_MUCH = 400_000_000


@_ends("MemoryLimitExceeded", items=0)
def exceed_memory_bit_by_bit(task: Task) -> int:
    """Touches more memory than it may, in small steps."""
    task.injures("memory")
    kept = [b"x" * 1_000_000 for _ in range(TOO_MUCH // 1_000_000)]
    return len(kept)


@_ends("MemoryLimitExceeded", items=0)
def exceed_memory_at_once(task: Task) -> int:
    """Asks for more than it may in one piece."""
    task.injures("memory")
    return len(b"x" * TOO_MUCH)


@_ends("MemoryLimitExceeded", calls=1, items=0)
def exceed_memory_in_children(task: Task) -> int:
    """Children that have too much only together."""
    task.injures("memory")
    for _ in range(4):
        if os.fork() == 0:
            task.note_descendant()
            kept = b"y" * (MAX_MEMORY // 2)
            time.sleep(FOREVER)
            os._exit(len(kept) == 0)
    time.sleep(FOREVER)
    return task.number
