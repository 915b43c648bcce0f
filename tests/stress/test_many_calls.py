"""
Many calls in a row from one host, some of which time out or crash: it does not grow.

`KILLERCALL_STRESS_CALLS=<n>` sets how many.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tally import TALLY

import hostile
import killercall
from killercall import killer_call
from processes import alive_with_mark, open_fds, thread_count, zombie_children

CALLS = int(os.environ.get("KILLERCALL_STRESS_CALLS", "300"))
# Measured after the first tenth, in which caches and the allocator's arenas fill.
MOST_GROWTH = 2 * 2**20

# What is called, how it must end, and how often.
KINDS: list[tuple[Any, tuple[Any, ...], str, int]] = [
    (hostile.same, (b"small",), "returned", 60),
    (hostile.same, (b"big" * 50_000,), "returned", 10),
    (hostile.raise_error, (ValueError("as it should"),), "ValueError", 10),
    (hostile.nap, (hostile.FOREVER,), "TimeoutError", 8),
    (hostile.exit_hard, (3,), "WorkerDied 3", 4),
    (hostile.crash, (), "WorkerDied -11", 4),
    (hostile.signal_itself, (signal.SIGKILL,), "WorkerDied -9", 4),
]


def resident() -> int:
    """Bytes of memory that this process has in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


def ending_of(function: Any, arguments: tuple[Any, ...], timeout: float) -> str:
    """How a call ended."""
    try:
        value = killer_call(function, timeout=timeout)(*arguments)
    except killercall.WorkerDied as error:
        return f"WorkerDied {error.exitcode}"
    except Exception as error:
        return type(error).__name__
    return "returned" if value == arguments[0] else f"returned {value!r:.100}"


@pytest.mark.timeout(120 + CALLS / 10)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_many_calls() -> None:
    """Descriptors, threads, processes and memory are the same at the end as after the warm-up."""
    chance = random.Random(0)
    weights = [weight for *_, weight in KINDS]
    warm_up = max(CALLS // 10, 1)
    wrong: Counter[str] = Counter()
    before: tuple[int, int, int] = (0, 0, 0)
    memory = 0

    for number in range(CALLS + warm_up):
        if number == warm_up:
            before, memory = counts(), resident()
        function, arguments, ending, _ = chance.choices(KINDS, weights)[0]
        timeout = 0.03 if ending == "TimeoutError" else 30
        ended = ending_of(function, arguments, timeout)
        if ended != ending:
            wrong[f"{function.__name__} ended with {ended}"] += 1
    growth = resident() - memory
    after = counts()
    TALLY.many_calls, TALLY.many_growth = CALLS, growth

    assert {} == wrong
    # One handle of the machinery becomes two when the host first has to nudge a late forkserver.
    assert after[0] - before[0] in {0, 1}
    assert before[1:] == after[1:]
    assert [] == zombie_children()
    assert growth < MOST_GROWTH


def counts() -> tuple[int, int, int]:
    """How many descriptors, threads and processes there are, with one idle worker."""
    assert killer_call(hostile.same)(1) == 1
    return len(open_fds()), thread_count(), len(alive_with_mark())
