"""
What tests need to know of processes: who is alive, what a script printed, how long it took.

Everything that a test starts is found by a mark, wherever it went: programs carry it in their
environment, and forked copies of this process in their memory map.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MARK_VARIABLE = "KILLERCALL_TEST_MARK"
TESTS = Path(__file__).parent

# Far more than anything takes, so that its end means a deadlock and not a slow machine.
PATIENCE = 10.0


def _mark_this_process() -> tuple[str, mmap.mmap | None]:
    """
    The mark, made once for the test run.

    `/proc/PID/environ` shows the environment of the last exec, so what is set later is seen in
    programs that this process starts but not in its forked copies. Those inherit a mapped file
    with a name.
    """
    mark = os.environ.get(MARK_VARIABLE)
    if mark is not None:
        return mark, None
    mark = os.environ[MARK_VARIABLE] = f"killercall-test-{uuid.uuid4().hex}"
    if not hasattr(os, "memfd_create"):
        return mark, None
    fd = os.memfd_create(mark)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        return mark, mmap.mmap(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)


MARK, _mapping = _mark_this_process()


def alive_with_mark() -> dict[int, str]:
    """Every running process of this test run but this one: pid and command line."""
    found = {}
    me = psutil.Process()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == me.pid or not is_running(process.pid):
                continue
            if _has_mark(process):
                found[process.pid] = f"{process.status()} {' '.join(process.cmdline())[:120]}"
    return found


def _has_mark(process: psutil.Process) -> bool:
    if process.environ().get(MARK_VARIABLE) == MARK:
        return True
    maps = Path(f"/proc/{process.pid}/maps")
    return maps.exists() and MARK in maps.read_text(encoding="utf-8", errors="replace")


def is_running(pid: int) -> bool:
    """Whether the process may run code: it exists, is no zombie, and is not being torn down."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return status not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD} and not is_being_killed(pid)


def is_being_killed(pid: int) -> bool:
    """
    Whether the process will never run code of its own again, though the kernel still has it.

    SIGKILL is pending, or the process is on its way out: then only its memory is torn down, which
    an answer does not wait for beyond 20 ms. Or it is gone, since whoever asks has seen it.
    """
    exiting, kill = 0x4, 1 << (signal.SIGKILL - 1)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    pending = [
        line.split()[1] for line in status.splitlines() if line[:7] in {"SigPnd:", "ShdPnd:"}
    ]
    flags = int(stat.rsplit(")", 1)[1].split()[6])
    return bool(flags & exiting) or any(int(signals, 16) & kill for signals in pending)


def zombie_children() -> list[int]:
    """Children of this process that nobody has reaped."""
    children = psutil.Process().children()
    found = []
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


def open_fds() -> dict[int, str]:
    """The descriptors of this process and what they lead to."""
    found = {}
    for name in os.listdir("/dev/fd"):
        # The one of the listing itself is gone again.
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/dev/fd/{name}")
    return found


def thread_names() -> list[str]:
    """
    What the kernel calls the threads of this process, those of native code too.

    Not those that the allocator of pyarrow and polars starts when it sees fit.
    """
    if not os.path.exists("/proc/self/task"):
        return [""] * psutil.Process().num_threads()
    found = []
    for task in os.listdir("/proc/self/task"):
        path = f"/proc/self/task/{task}/comm"
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            found.append(file.read().strip())
    return [name for name in found if not name.startswith("jemalloc")]


def thread_count() -> int:
    """How many there are."""
    return len(thread_names())


def wait_until(condition: Callable[[], Any], limit: float = PATIENCE) -> Any:
    """Looks until it is true or the limit has passed; returns what it was last."""
    end = time.monotonic() + limit
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def took(at_least: float, less_than: float) -> Iterator[None]:
    """The block takes a time within this window."""
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    assert at_least <= seconds < less_than, f"took {seconds:.3f}s"


def lines(path: Path) -> list[str]:
    """What was appended to the file so far."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def recorded(path: Path, *roles: str) -> list[int]:
    """The pids that `hostile.note` has written for these roles, or for all."""
    entries = [line.split() for line in lines(path)]
    return [int(pid) for role, pid in entries if not roles or role in roles]


def waiting_workers() -> set[int]:
    """The workers that wait for a call."""
    from killercall import _host

    roster = _host._shared.roster
    wait_until(lambda: len(roster.idle_pids()) == roster.idle(), PATIENCE)
    return set(roster.idle_pids())


def still_running(path: Path) -> dict[int, str]:
    """
    The processes of a call that run any code, found both ways.

    Those it recorded itself, and whatever has the mark and is neither guard nor forkserver, nor a worker
    that was started for the calls to come.
    """
    machinery = set(recorded(path, "machinery")) | waiting_workers()
    of_call = set(recorded(path)) - machinery
    found = {pid: "recorded" for pid in of_call if is_running(pid)}
    return found | {pid: what for pid, what in alive_with_mark().items() if pid not in machinery}


def python(arguments: Sequence[str]) -> list[str]:
    """A command line of an interpreter that takes warnings as errors."""
    return [sys.executable, "-W", "error", *arguments]


def run_script(
    code: str,
    *,
    way: str = "-c",
    directory: Path | None = None,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    limit: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Runs a script as a `file` (in `directory`), with `-c` or on `stdin`, to its end."""
    if way == "file":
        assert directory is not None
        (directory / "script.py").write_text(code, encoding="utf-8")
        command = python(["script.py", *arguments])
    elif way == "-c":
        command = python(["-c", code, *arguments])
    else:
        command = python(["-", *arguments])
    return subprocess.run(
        command,
        input=code if way == "stdin" else "",
        cwd=directory,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
