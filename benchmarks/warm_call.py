"""
A warm call, side by side: killercall, its peers, and the floor.

Rounds of all contestants are interleaved in one run, so that what the machine does meanwhile hits
them alike; medians and 99th percentiles in microseconds, and the ratio to the floor: a pickled
round trip between two Python processes over a socketpair.

Usage: python benchmarks/warm_call.py [--rounds 30] [--calls 50]
"""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import platform
import socket
import statistics
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pebble
from pebble import concurrent as pebble_concurrent

from killercall import killer_call, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 60.0


def identity(value: int) -> int:
    """The work: none."""
    return value


def read_exactly(connection: socket.socket, length: int) -> bytes:
    """Reads so many bytes, or fewer at the end of the stream."""
    parts = []
    while length and (part := connection.recv(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def send(connection: socket.socket, value: object) -> None:
    """Sends a pickled value, its length in front."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> object:
    """Receives what `send` sent; EOFError at the end."""
    head = read_exactly(connection, 4)
    if not head:
        raise EOFError
    return pickle.loads(read_exactly(connection, *struct.unpack("!I", head)))


def socketpair_worker() -> Callable[[int], object]:
    """A forked process that calls `identity` for whoever asks: no deadline, no supervision."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        try:
            while True:
                send(theirs, identity(receive(theirs)))  # type: ignore[arg-type]
        except EOFError:
            os._exit(0)
    theirs.close()

    def call(value: int) -> object:
        send(ours, value)
        return receive(ours)

    return call


def measure(call: Callable[[int], object], calls: int) -> list[float]:
    """Seconds of each of so many calls."""
    took = []
    for number in range(calls):
        start = time.perf_counter()
        answer = call(number)
        took.append(time.perf_counter() - start)
        if answer != number:
            message = f"{call} answered {answer!r} to {number}"
            raise AssertionError(message)
    return took


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=50)
    arguments = parser.parse_args()

    floor = "raw socketpair round trip"
    # First, while this process has one thread: it forks.
    contestants: dict[str, Callable[[int], object]] = {floor: socketpair_worker()}
    killer = killer_call(identity, timeout=LIMIT)
    executor = ProcessPoolExecutor(1)
    pool = pebble.ProcessPool(max_workers=1)
    once = pebble_concurrent.process(timeout=LIMIT)(identity)
    contestants |= {
        "killercall killer_call": killer,
        "ProcessPoolExecutor.submit": lambda value: executor.submit(identity, value).result(),
        "pebble ProcessPool.schedule": lambda value: pool.schedule(
            identity, args=[value], timeout=LIMIT
        ).result(),
        "pebble concurrent.process": lambda value: once(value).result(),
        "killercall, reuse=False": killer.options(reuse=False),
    }
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for name, call in contestants.items():
        measure(call, 3)
        print(f"warmed up: {name}", flush=True)
    for _ in range(arguments.rounds):
        for name, call in contestants.items():
            # A process a call takes milliseconds: fewer of those.
            fresh = name in {"pebble concurrent.process", "killercall, reuse=False"}
            took[name] += measure(call, max(1, arguments.calls // 10) if fresh else arguments.calls)
    executor.shutdown()
    pool.close()
    pool.join()
    shutdown()

    base = statistics.median(took[floor])
    print(
        f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cpus, "
        f"Python {platform.python_version()}; {arguments.rounds} interleaved rounds\n"
    )
    print("| one call, int in and out | median us | p99 us | x floor |")
    print("|---|---|---|---|")
    for name, times in took.items():
        median = statistics.median(times)
        p99 = statistics.quantiles(times, n=100)[98]
        print(f"| {name} | {median * 1e6:,.0f} | {p99 * 1e6:,.0f} | {median / base:.1f} |")


if __name__ == "__main__":
    main()
