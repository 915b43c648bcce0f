"""
The host of `test_fault_points.py`: calls, a map and a shutdown, in one of which a fault strikes.

Runs with a build that has the faults. Writes a line of JSON for each step that has ended, so that
the test knows how far a host came that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import killercall
from killercall import _host, killer_call, killer_pmap

if TYPE_CHECKING:
    from collections.abc import Callable

METHOD, MOMENT, TOKEN, RAN, REPORT = sys.argv[1:]

# Longer than a stall. Short enough for what a stopped process makes us wait for.
TIMEOUT = 3
START_LIMIT = 4
BIG = 300_000
CPUS = 2


def note(number: int) -> None:
    """Tells the file that this call ran."""
    file = os.open(RAN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number}\n".encode())
    os.close(file)


def square(number: int) -> int:
    """A call that is quick."""
    note(number)
    return number * number


def square_slowly(number: int) -> int:
    """So that one worker is not done with all items before the next one is there."""
    time.sleep(0.02)
    return square(number)


def twice(number: int, data: bytes) -> bytes:
    """A call whose arguments and result travel as files."""
    note(number)
    return data + data


def hang(number: int) -> None:
    """A call that never ends, with a child that has left its session."""
    note(number)
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    time.sleep(60)


def retire_soon() -> None:
    """This worker does not wait for a minute until it retires."""
    from killercall import _worker

    _worker.IDLE_LIMIT = 0.2


def arm(moment: str) -> None:
    """From now on the fault strikes, if this is its moment."""
    if moment == MOMENT:
        Path(TOKEN).touch()


def wait_for_fault(limit: float) -> None:
    """Returns as soon as it has struck."""
    end = time.monotonic() + limit
    while Path(TOKEN).exists() and time.monotonic() < end:
        time.sleep(0.01)


def wait_for_end(pid: int) -> None:
    """Returns as soon as there is no such process, or only what is left for others to reap."""
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in {"Z", "X"}:
            time.sleep(0.01)


def write(**entry: Any) -> None:
    """Adds a line to the report."""
    entry["fired"] = Path(TOKEN + ".fired").exists()
    with Path(REPORT).open("a", encoding="utf-8") as report:
        report.write(json.dumps(entry) + "\n")


def ending_of(result: Any, right: Any) -> str:
    """In a word."""
    if isinstance(result, BaseException):
        return type(result).__name__
    return "right" if result == right else f"wrong: {result!r:.80}"


def parent_of(pid: int) -> int:
    """The process that forked it."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[1])


def perform(name: str, run: Callable[[], Any], right: Any) -> None:
    """One call or map; a list is judged item by item."""
    start = time.monotonic()
    message = ""
    try:
        result = run()
    except Exception as error:
        result, message = error, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    if isinstance(result, list):
        endings = [ending_of(one, other) for one, other in zip(result, right, strict=True)]
    else:
        endings = [ending_of(result, right)]
    write(what=name, endings=endings, seconds=round(seconds, 3), message=message[:300])


def main() -> None:
    """The calls, numbered so that each shows whether it ran."""
    _host.START_LIMIT = START_LIMIT
    fds = len(os.listdir("/dev/fd"))
    call = killer_call(square, timeout=TIMEOUT, start_method=METHOD)
    big = killer_call(twice, timeout=TIMEOUT, start_method=METHOD)
    late = killer_call(hang, timeout=0.3, start_method=METHOD)

    arm("start")
    perform("start", lambda: call(1), 1)
    perform("warm", lambda: call(2), 4)
    arm("call")
    perform("call", lambda: call(3), 9)
    perform("big", lambda: big(4, b"x" * BIG), b"x" * BIG * 2)
    if MOMENT == "idle":
        killer_call(retire_soon, timeout=TIMEOUT, start_method=METHOD)()
        arm("idle")
        wait_for_fault(5)
        perform("idle", lambda: call(5), 25)
    if MOMENT == "guard":
        server = killer_call(os.getppid, timeout=TIMEOUT, start_method=METHOD)()
        arm("guard")
        os.kill(parent_of(server), signal.SIGKILL)
        wait_for_fault(5)
        if os.environ["KILLERCALL_FAULT"].split(":")[1] == "die":
            wait_for_end(server)
        perform("guard", lambda: call(6), 36)
    arm("late")
    perform("late", lambda: late(10), None)
    perform("after", lambda: call(11), 121)
    arm("map")
    items = list(range(20, 40))
    perform(
        "map",
        lambda: killer_pmap(
            square_slowly,
            items,
            CPUS,
            TIMEOUT,
            start_method=METHOD,
            on_timeout="return",
            on_error="return",
        ),
        [item * item for item in items],
    )
    perform("after the map", lambda: call(50), 2500)
    if MOMENT == "end":
        arm("end")
        perform("end", killercall.shutdown, None)
        perform("anew", lambda: call(51), 2601)
    perform("shutdown", killercall.shutdown, None)
    children = Path("/proc/thread-self/children").read_text(encoding="ascii").split()
    write(what="left", fds=len(os.listdir("/dev/fd")) - fds, children=children)


if __name__ == "__main__":
    main()
