"""
What `benchmarks.compare` counts: so many warm calls, or a map of so many items, in one worker.

Uses nothing of this package and only what every version has had, because the same file runs at both
commits. Ends its worker by an exit, since the counts of a process that is killed are lost.

Usage: python compare_driver.py call|map COUNT; prints the pids of host and worker.
"""

from __future__ import annotations

import os
import sys

from killercall import WorkerDied, killer_call, killer_pmap

WARM_UP = 20
# Under valgrind all takes fifty times as long.
LIMIT = 600


def identity(value: int) -> int:
    """The work: none."""
    return value


def pid(_: int) -> int:
    """The worker's."""
    return os.getpid()


def main(what: str, count: int) -> None:
    """Does it, and checks what comes back."""
    if what == "call":
        call = killer_call(identity, timeout=LIMIT)
        for number in range(count + WARM_UP):
            if call(number) != number:
                raise AssertionError(number)
        worker = killer_call(pid, timeout=LIMIT)(0)
        try:
            killer_call(os._exit, timeout=LIMIT)(0)
        except WorkerDied as died:
            if died.pid != worker:
                raise
    else:
        items = list(range(count + WARM_UP))
        if killer_pmap(identity, items, cpus=1, timeout=LIMIT) != items:
            raise AssertionError(what)
        (worker,) = killer_pmap(pid, [0], cpus=1, timeout=LIMIT)
        (died,) = killer_pmap(os._exit, [0], cpus=1, timeout=LIMIT, on_error="return")
        if died.pid != worker:
            raise AssertionError(died)
    print(os.getpid(), worker)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
