"""`max_memory`: the call that needs more ends, its neighbours do not, and the machine does not swap."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import killercall
from killercall import MemoryLimitExceeded, killer_call, killer_pmap
from killercall._options import Options, update
from processes import lines, took, wait_until

if TYPE_CHECKING:
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]

MIB = 1 << 20
LIMIT = 150 * MIB
# How far over the limit a call may come before it is killed.
OVER = 64 * MIB

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere the kernel does not tell of memory as it does here"
)


def grow(path: str, most: int, step: int = 1) -> str:
    """Touches more and more memory, `step` MiB at a time, and notes how far it came."""
    kept = []
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for at in range(0, most, step):
        kept.append(b"x" * (step * MIB))
        os.write(file, f"{at + step}\n".encode())
    return "grown"


def grow_objects(path: str) -> None:
    """The same in many small objects."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    kept: list[Any] = []
    while True:
        # About a MiB: a list of one element takes 64 bytes, its place in the other one 8.
        kept.extend([None] for _ in range(MIB // 72))
        os.write(file, f"{len(kept) * 72 // MIB}\n".encode())


def grow_in_numpy(path: str) -> None:
    """The same in arrays."""
    import numpy as np

    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    kept = []
    while True:
        kept.append(np.ones(4 * MIB, dtype=np.uint8))
        os.write(file, f"{4 * len(kept)}\n".encode())


def grow_shared(path: str) -> None:
    """The same in shared memory, which the kernel's limit does not count."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    kept = []
    while True:
        kept.append(mmap.mmap(-1, MIB))
        kept[-1].write(b"x" * MIB)
        os.write(file, f"{len(kept)}\n".encode())
        # So that this ends by the watch and not by the speed of the machine.
        time.sleep(0.002)


GROWING = [
    lambda path: grow(path, 4000),
    lambda path: grow(path, 4000, step=20),
    grow_objects,
    grow_in_numpy,
    grow_shared,
]
NAMES = ["bytes", "big bytes", "objects", "numpy", "shared"]


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("how", GROWING, ids=NAMES)
def test_growing_call_is_ended(how: Any, method: str, tmp_path: Path) -> None:
    """It comes no further over its limit than promised, and the next call works."""
    path = tmp_path / "reached"
    call = killer_call(how, timeout=60, max_memory=LIMIT, start_method=method)

    with pytest.raises(MemoryLimitExceeded) as caught:
        call(str(path))

    error = caught.value
    reached = max(map(int, lines(path))) * MIB
    assert LIMIT // 2 < reached <= LIMIT + OVER
    assert LIMIT == error.limit
    assert error.used is None or LIMIT < error.used <= LIMIT + OVER
    assert how.__name__ == error.function
    assert isinstance(error.pid, int)
    assert isinstance(error, MemoryError)
    assert "150 MiB" in str(error)
    assert killer_call(abs, max_memory=LIMIT, start_method=method)(-1) == 1


@pytest.mark.parametrize("method", START_METHODS)
def test_one_allocation_that_is_too_large(method: str) -> None:
    """The kernel refuses it; the error says so and where, and its worker is not used again."""

    def work(size: int) -> int:
        return len(bytearray(size)) and os.getpid()

    call = killer_call(work, timeout=30, max_memory="150MiB", start_method=method)
    with pytest.raises(MemoryLimitExceeded, match="was refused more memory than") as caught:
        call(2000 * MIB)

    assert "bytearray" in str(caught.value.__cause__)
    assert caught.value.pid != call(1)


def test_call_that_handles_it_goes_on() -> None:
    """A MemoryError that the function catches is its own affair."""

    def work() -> str:
        try:
            return "x" * (4000 * MIB)
        except MemoryError:
            return "with less"

    assert killer_call(work, max_memory=LIMIT, timeout=30)() == "with less"


def test_arguments_that_do_not_fit() -> None:
    """Unpickling them counts."""
    call = killer_call(len, max_memory=80 * MIB, timeout=30)
    with pytest.raises(MemoryLimitExceeded):
        call(bytes(400 * MIB))
    assert call(b"123") == 3


@pytest.mark.parametrize("method", START_METHODS)
def test_children_count(method: str, tmp_path: Path) -> None:
    """Several processes share one limit, and all of them are gone afterwards."""
    path = tmp_path / "reached"
    code = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
kept = []
while len(kept) < 100:
    kept.append(b"x" * (1 << 20))
    os.write(file, b"1\\n")
    time.sleep(0.005)
time.sleep(60)
"""

    def work() -> None:
        children = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
        for child in children:
            child.wait()

    with pytest.raises(MemoryLimitExceeded) as caught:
        killer_call(work, timeout=60, max_memory=LIMIT, start_method=method)()

    # Each interpreter takes some MiB as well.
    reached = len(lines(path)) * MIB
    assert LIMIT // 2 < reached <= LIMIT + OVER
    assert caught.value.used is not None
    # A dump has a few ms, in which a busy machine may not let the worker run.
    assert "in wait" in (caught.value.stack or "in wait")


@pytest.mark.parametrize("method", START_METHODS)
def test_shared_pages_count_once(method: str) -> None:
    """Children that were forked share what their parent has touched, also while they come and go."""

    def work() -> int:
        kept = b"x" * (100 * MIB)
        context = multiprocessing.get_context("fork")
        for _ in range(10):
            children = [context.Process(target=time.sleep, args=(0.1,)) for _ in range(5)]
            for child in children:
                child.start()
            for child in children:
                child.join()
        return len(kept) // MIB

    assert killer_call(work, timeout=60, max_memory=LIMIT, start_method=method)() == 100


def test_starting_programs_counts_nothing_twice() -> None:
    """Between vfork and exec a child has the memory of its parent, which is one memory."""

    def work(times: int) -> int:
        kept = b"x" * (100 * MIB)
        for _ in range(times):
            subprocess.run(["true"], check=True)
        return len(kept) // MIB

    assert killer_call(work, timeout=60, max_memory=190 * MIB)(60) == 100


def test_a_forkserver_without_descriptors_sees_it_too() -> None:
    """It has set some aside for that."""

    def work() -> None:
        import resource

        server = os.getppid()
        # So that it has done what it does for a new worker.
        time.sleep(0.3)
        used = set(map(int, os.listdir(f"/proc/{server}/fd")))
        free = min(set(range(1000)) - used)
        resource.prlimit(server, resource.RLIMIT_NOFILE, (free, free))
        for _ in range(4):
            if os.fork() == 0:
                kept = b"y" * (LIMIT // 3)
                time.sleep(60)
                os._exit(len(kept) == 0)
        time.sleep(60)

    with pytest.raises(MemoryLimitExceeded):
        killer_call(work, timeout=20, max_memory=LIMIT)()


def test_a_closer_look_at_many_processes_delays_no_deadline() -> None:
    """Counting shared pages once takes long; kills do not wait for it."""

    def work() -> str:
        kept = b"x" * (400 * MIB)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=time.sleep, args=(1.5,)) for _ in range(6)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        return "whole" if kept else "gone"

    with ThreadPoolExecutor(1) as threads:
        large = threads.submit(killer_call(work, timeout=60, max_memory=800 * MIB))
        while not large.done():
            with took(0.2, 5), pytest.raises(killercall.TimeoutError):
                killer_call(time.sleep, timeout=0.2)(60)
        assert large.result() == "whole"


def test_what_the_function_makes_of_a_memory_error_is_its_own() -> None:
    """Only one that nobody handled is ours."""

    def work() -> None:
        try:
            bytearray(4000 * MIB)
        except MemoryError as error:
            raise LookupError("handled") from error

    with pytest.raises(LookupError, match="handled"):
        killer_call(work, timeout=30, max_memory=LIMIT)()


def test_memory_of_the_host_does_not_count_with_fork() -> None:
    """A copy of a large host may use as much as any other worker."""
    large = b"x" * (300 * MIB)

    def work(size: int) -> int:
        return len(b"y" * size) // MIB + len(large) // MIB

    call = killer_call(work, timeout=60, max_memory=LIMIT, start_method="fork")
    assert call(100 * MIB) == 400
    with pytest.raises(MemoryLimitExceeded):
        call(400 * MIB)


def test_neighbours_of_a_map_keep_their_results(tmp_path: Path) -> None:
    """Only the item that needs too much fails, as an error that names it."""
    path = str(tmp_path / "reached")

    def work(item: int) -> int:
        if item % 5 == 3:
            grow(path, 4000)
        return item

    results = killer_pmap(work, range(20), cpus=2, timeout=60, max_memory=LIMIT, on_error="return")

    for index, result in enumerate(results):
        if index % 5 == 3:
            assert isinstance(result, MemoryLimitExceeded)
            assert (index, index) == (result.item, result.index)
        else:
            assert index == result


def test_retries(tmp_path: Path) -> None:
    """It is a failure like any other; `retry_on` may name it, or leave it out."""
    path = tmp_path / "ran"

    def work() -> None:
        with path.open("a") as file:
            file.write("1\n")
        grow(os.devnull, 4000)

    for retry_on, times in ((MemoryLimitExceeded, 3), (MemoryError, 3), (ValueError, 1)):
        path.unlink(missing_ok=True)
        call = killer_call(work, timeout=60, max_memory=LIMIT, retries=2, retry_on=retry_on)
        with pytest.raises(MemoryLimitExceeded):
            call()
        assert times == len(lines(path))


def test_nested_limits() -> None:
    """The inner one is reported as the inner one's."""

    def inner() -> None:
        grow(os.devnull, 4000)

    def outer() -> str:
        try:
            killer_call(inner, timeout=60, max_memory=LIMIT)()
        except MemoryLimitExceeded as error:
            return f"{error.function} {error.limit}"
        return "returned"

    assert killer_call(outer, timeout=60, max_memory=4 * LIMIT)() == f"inner {LIMIT}"

    def passes_on() -> None:
        killer_call(inner, timeout=60, max_memory=LIMIT)()

    with pytest.raises(MemoryLimitExceeded) as caught:
        killer_call(passes_on, timeout=60, max_memory=4 * LIMIT)()
    assert "inner" == caught.value.function


def test_initializer_that_needs_too_much() -> None:
    """It is reported once, as what it is."""

    def load() -> None:
        grow(os.devnull, 4000)

    call = killer_call(abs, timeout=5, max_memory=LIMIT, initializer=load)
    with pytest.raises((MemoryLimitExceeded, killercall.WorkerStartError)) as caught:
        call(1)
    assert "memory" in str(caught.value).lower()


def test_limit_that_no_interpreter_keeps() -> None:
    """The call says that it needs more."""
    with pytest.raises(MemoryLimitExceeded, match="its limit of 1 MiB"):
        killer_call(abs, max_memory="1MiB", start_method="spawn")(1)


def test_idle_worker_over_its_limit_is_no_failure(tmp_path: Path) -> None:
    """What a thread left behind by a call does costs no other call."""

    def work() -> int:
        import threading

        def later() -> None:
            time.sleep(0.3)
            grow(str(tmp_path / "reached"), 4000)

        threading.Thread(target=later, daemon=True).start()
        return os.getpid()

    call = killer_call(work, timeout=30, max_memory=LIMIT)
    first = call()
    assert wait_until(lambda: not os.path.exists(f"/proc/{first}"))
    assert killer_call(abs, max_memory=LIMIT)(-1) == 1


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None),
        (1000, 1000),
        ("1000B", 1000),
        ("1kB", 1000),
        ("2GiB", 2 << 30),
        (" 1.5 mib ", 3 << 19),
        ("2 TB", 2 * 10**12),
        (10**30, 2**56),
    ],
)
def test_sizes(value: Any, size: int | None) -> None:
    """Decimal and binary units mean what they say."""
    found = update(
        Options(), {"max_memory": value}, allowed=frozenset({"max_memory"}), where="here"
    )
    assert size == found.max_memory
