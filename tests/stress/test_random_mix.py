"""
Calls and maps in random order, from several threads, with everything that can go wrong in them.

Seeded and timed: `KILLERCALL_STRESS_SEED=<n>` replays the order of one run, and
`KILLERCALL_STRESS_SECONDS=<s>` sets the length (1 by default, more in CI).
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import killercall
from killercall import killer_call, killer_pmap
from processes import alive_with_mark, lines, open_fds, thread_count, wait_until, zombie_children

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("KILLERCALL_STRESS_SECONDS", "1"))
SEED = int(os.environ.get("KILLERCALL_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(32)
THREADS = 4
TIMEOUT = 0.25

# What a call does, and how it must end.
ENDINGS = {
    "return": "returned",
    "big": "returned",
    "raise": "ValueError",
    "hang": "TimeoutError",
    "swallow": "TimeoutError",
    "stop": "TimeoutError",
    "grandchild": "TimeoutError",
    "exit": "WorkerDied 3",
    "kill": "WorkerDied -9",
    "segfault": "WorkerDied -11",
    "fork": "returned",
}


def work(path: str, number: int, how: str) -> Any:  # noqa: C901
    """One call; it tells the file that it ran."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{number}\n".encode())
    os.close(file)
    match how:
        case "big":
            return b"x" * 300_000
        case "raise":
            raise ValueError(number)
        case "hang":
            time.sleep(60)
        case "swallow":
            while True:
                try:
                    time.sleep(60)
                except BaseException:  # noqa: BLE001, S110
                    pass
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "grandchild":
            if os.fork() == 0:
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(60)
                os._exit(0)
            os.wait()
            time.sleep(60)
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "fork":
            os.fork()
    return number


def ending_of(run: Any) -> str:
    """How a call ended, in the words of `ENDINGS`."""
    try:
        run()
    except killercall.WorkerDied as error:
        return f"WorkerDied {error.exitcode}"
    except Exception as error:  # noqa: BLE001
        return type(error).__name__
    return "returned"


class Mix:
    """What several threads do at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.numbers = iter(range(10**9))
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.started: set[int] = set()

    def run(self, seed: int, end: float) -> None:
        """Calls and maps until the end."""
        chance = random.Random(seed)
        while time.monotonic() < end:
            if chance.random() < 0.7:
                self.call(chance)
            else:
                self.map(chance)

    def call(self, chance: random.Random) -> None:
        """One call of any kind."""
        how, number = chance.choice(list(ENDINGS)), next(self.numbers)
        self.started.add(number)
        call = killer_call(work, timeout=TIMEOUT, reuse=chance.choice([True, True, False, 3]))
        if how in {"return", "big", "raise", "exit", "kill", "segfault", "fork"}:
            # These are quick, but the machine may be slow.
            call = call.options(timeout=30)
        ended = ending_of(lambda: call(self.path, number, how))
        self.note("call", how, ended)

    def map(self, chance: random.Random) -> None:
        """One map whose items end in any way."""
        count = chance.randrange(1, 30)
        hows = [
            chance.choice(["return"] * 12 + ["raise", "hang", "exit", "kill"]) for _ in range(count)
        ]
        items = [(next(self.numbers), how) for how in hows]
        self.started.update(number for number, _ in items)
        path = self.path
        results = killer_pmap(
            lambda item: work(path, *item),
            items,
            cpus=chance.randrange(1, 5),
            timeout=2,
            on_timeout="return",
            on_error="return",
        )
        for (_, how), result in zip(items, results, strict=True):
            if isinstance(result, killercall.WorkerDied):
                ended = f"WorkerDied {result.exitcode}"
            elif isinstance(result, Exception):
                ended = type(result).__name__
            else:
                ended = "returned"
            self.note("item", how, ended)

    def note(self, what: str, how: str, ended: str) -> None:
        """Counts, and remembers what ended as it must not."""
        self.done[f"{what}: {how}"] += 1
        if ended != ENDINGS[how]:
            self.wrong.append(f"{what} to {how} ended with {ended}")


def test_random_mix(tmp_path: Path) -> None:
    """Each ends as it must, none runs twice, and nothing is left."""
    assert killer_call(abs)(-1) == 1
    killercall.shutdown()
    fds, threads = len(open_fds()), thread_count()
    mix = Mix(tmp_path / "ran")
    end = time.monotonic() + SECONDS
    runners = [threading.Thread(target=mix.run, args=(SEED + at, end)) for at in range(THREADS)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    killercall.shutdown()

    ran = Counter(map(int, lines(tmp_path / "ran")))
    twice = {number: times for number, times in ran.items() if times > 1}
    never = mix.started - ran.keys()
    print(
        f"\nseed {SEED}: {sum(mix.done.values())} calls and items in {SECONDS:g}s, "
        f"{len(mix.wrong)} wrong, {len(twice)} run twice, {len(never)} never run"
    )
    for what, times in sorted(mix.done.items()):
        print(f"{times:>8}  {what}")
    assert [] == mix.wrong
    assert {} == twice
    assert set() == never
    assert wait_until(lambda: not alive_with_mark(), 5)
    assert [] == zombie_children()
    assert fds >= len(open_fds())
    assert threads >= thread_count()
