"""
How late the answer comes after a deadline, on an idle machine and on one that is busy.

Four functions that miss a deadline, each in its own way, and pebble's two ways for the plainest of
them. All take turns, and every turn is taken once with and once without busy processes, four a cpu,
so that what else the machine does hits all cells of the table alike.

Usage: python benchmarks/deadline_overshoot.py [--rounds 25] [--calls 4] [--timeout 0.1]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pebble
from pebble import concurrent as pebble_concurrent

from killercall import killer_call, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY_PER_CPU = 4
# Whoever is that late is not late but stuck.
STUCK = 60.0


def sleep() -> None:
    """Waits in the kernel."""
    time.sleep(STUCK)


def busy_in_c() -> int:
    """Stays in C code that holds the GIL: one call, no bytecode, no look at signals."""
    return sum(range(10**12))


def regex() -> object:
    """The same in a regular expression that backtracks for years."""
    return re.match(r"(a+)+$", "a" * 60 + "b")


def ignore_sigterm() -> None:
    """Ignores the polite signal, and sleeps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(STUCK)


def overshoot(call: Callable[[], object], timeout: float) -> float:
    """Seconds between the deadline and the answer; less than zero if it came before."""
    start = time.monotonic()
    try:
        answer = call()
    except TimeoutError:
        return time.monotonic() - start - timeout
    message = f"{call} answered {answer!r}"
    raise AssertionError(message)


def keep_busy() -> list[subprocess.Popen[bytes]]:
    """Processes that use what they can get."""
    count = BUSY_PER_CPU * len(os.sched_getaffinity(0))
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]


def cell(seconds: list[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    p99 = statistics.quantiles(seconds, n=100)[98]
    return f"{statistics.median(seconds) * 1e3:,.1f} | {p99 * 1e3:,.1f}"


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=0.1)
    arguments = parser.parse_args()
    timeout = arguments.timeout

    pool = pebble.ProcessPool(max_workers=1)
    once = pebble_concurrent.process(timeout=timeout)(sleep)
    contestants: dict[str, Callable[[], object]] = {
        f"killercall: {function.__name__}": killer_call(function, timeout=timeout)
        for function in (sleep, busy_in_c, regex, ignore_sigterm)
    }
    contestants |= {
        "pebble ProcessPool: sleep": lambda: pool.schedule(sleep, timeout=timeout).result(),
        "pebble concurrent.process: sleep": lambda: once().result(),
    }
    # A worker must be there, or its start would be counted: our clock runs from the moment when it
    # is handed the call, and so does that of pebble's pool.
    warm = killer_call(os.getpid)
    idle: dict[str, list[float]] = {name: [] for name in contestants}
    busy: dict[str, list[float]] = {name: [] for name in contestants}
    load = []
    for number in range(arguments.rounds):
        load.append(os.getloadavg()[0])
        for late in (idle, busy):
            burners = keep_busy() if late is busy else []
            try:
                for name, call in contestants.items():
                    for _ in range(arguments.calls):
                        warm()
                        pool.schedule(os.getpid).result()
                        late[name].append(overshoot(call, timeout))
            finally:
                for burner in burners:
                    burner.kill()
                for burner in burners:
                    burner.wait()
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    pool.stop()
    pool.join()
    shutdown()

    print(
        f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cpus, "
        f"Python {platform.python_version()}; {arguments.rounds * arguments.calls} calls a cell, "
        f"timeout {timeout * 1e3:g} ms, busy: {BUSY_PER_CPU} processes a cpu; "
        f"others' load before the rounds: {min(load):.1f} to {max(load):.1f}\n"
    )
    print("| ms after the deadline | idle median | idle p99 | busy median | busy p99 |")
    print("|---|---|---|---|---|")
    for name in contestants:
        print(f"| {name} | {cell(idle[name])} | {cell(busy[name])} |")


if __name__ == "__main__":
    main()
