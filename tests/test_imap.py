"""`killer_imap`: lazily, in order or not, with deadlines, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import killer_call, killer_imap
from processes import PATIENCE, is_running, run_script, took, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _threads_of_libraries() -> None:
    """They start some that stay, which no test has left."""
    __import__("numpy")


def double(x: int) -> int:
    return 2 * x


def note_and_hang(path: str) -> None:
    """Says which process runs it, and hangs."""
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def fail_at_three(x: int) -> int:
    if x == 3:
        message = "three"
        raise ValueError(message)
    return x


class Counted:
    """Counts what was read of it."""

    def __init__(self, items: Any) -> None:
        self.read = 0
        self._items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self.read += 1
            yield item


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("ordered", [True, False])
def test_all_items_in_order_or_not(method: str, ordered: bool) -> None:
    """Each once."""
    items = list(range(1000))
    values = list(killer_imap(double, items, 2, ordered=ordered, start_method=method))
    assert [2 * x for x in items] == (values if ordered else sorted(values))


def test_unordered_yields_what_ends_first() -> None:
    values = killer_imap(hostile.nap, [5, 0.0, 0.1], 2, timeout=30, ordered=False)
    assert [0.0, 0.1] == [next(values), next(values)]
    values.close()


def test_nothing_runs_before_the_first_next() -> None:
    source = Counted(range(10))
    killer_imap(double, source, 2)
    assert source.read == 0


def test_endless_input_is_read_only_so_far() -> None:
    """16 items ahead, or two a worker."""
    source = Counted(itertools.repeat(0.05))
    values = killer_imap(hostile.nap, source, 2)
    for yielded in range(1, 11):
        assert next(values) == 0.05
        assert source.read <= yielded + 16
    values.close()
    source = Counted(itertools.count())
    values = killer_imap(double, source, 2)
    for yielded in range(1, 20_001):
        next(values)
        assert source.read <= yielded + 512
    values.close()


def test_input_that_comes_by_and_by_holds_up_nothing() -> None:
    """A result is there as soon as the next item is."""

    def ticks() -> Iterator[int]:
        for tick in itertools.count():
            yield tick
            wait_until(lambda: False, 0.2)

    source = Counted(ticks())
    values = killer_imap(double, source, 2)
    assert next(values) == 0
    assert next(values) == 2
    assert source.read <= 10
    values.close()


def test_deadlines_are_kept_while_the_consumer_is_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    values = killer_imap(
        lambda x: note_and_hang(x) if x else x, [0, str(path)], 2, timeout=4, default="late"
    )
    assert next(values) == 0
    assert wait_until(lambda: pids_in(path))
    # Nobody asks for anything meanwhile.
    assert wait_until(lambda: not is_running(pids_in(path)[0]))
    assert next(values) == "late"
    assert list(values) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_failures_by_the_options(ordered: bool) -> None:
    returned = list(killer_imap(fail_at_three, range(6), 2, ordered=ordered, on_error="return"))
    failures = [value for value in returned if isinstance(value, ValueError)]
    assert ["three"] == [str(failure) for failure in failures]
    assert [0, 1, 2, 4, 5] == sorted(value for value in returned if isinstance(value, int))
    default = list(killer_imap(fail_at_three, range(6), 2, on_error="default", default=-1))
    assert [0, 1, 2, -1, 4, 5] == default


def test_an_error_ends_the_map_at_once(tmp_path: Path) -> None:
    """Whatever was before it in order; what runs is dead then."""
    path = tmp_path / "pids"

    def work(x: int) -> None:
        if x == 0:
            note_and_hang(str(path))
        wait_until(path.exists)
        message = "bad"
        raise KeyError(message)

    values = killer_imap(work, range(2), 2, timeout=60)
    with took(0, 30), pytest.raises(KeyError) as caught:
        next(values)
    assert any("item 1 of the map: 1" in note for note in caught.value.__notes__)
    assert not any(map(is_running, pids_in(path)))
    assert list(values) == []


def test_a_death_and_a_timeout_have_item_and_index() -> None:
    died = killer_imap(os._exit, [3], 2)
    with pytest.raises(killercall.WorkerDied) as caught:
        next(died)
    assert (3, 3, 0) == (caught.value.exitcode, caught.value.item, caught.value.index)
    late = killer_imap(hostile.nap, [0, 60], 2, timeout=0.3, on_timeout="raise")
    with pytest.raises(killercall.TimeoutError) as caught:
        list(late)
    assert "function 'nap' timed out after 0.3s" == str(caught.value)
    assert (60, 1) == (caught.value.item, caught.value.index)


def test_retries(tmp_path: Path) -> None:
    def fail_once(name: str) -> str:
        if not (tmp_path / name).exists():
            (tmp_path / name).touch()
            raise ValueError(name)
        return name

    assert ["a", "b", "c"] == list(killer_imap(fail_once, "abc", 2, retries=1))


def test_budget() -> None:
    """What is unfinished when it is spent counts as timed out, and so does all that is read later."""
    with took(0.4, 20):
        values = list(killer_imap(hostile.nap, [0, 60, 60, 60, 0], 2, timeout=None, budget=0.5))
    assert [0, None, None, None] == values[:4]
    values = killer_imap(hostile.nap, itertools.repeat(60), 2, budget=0.3, on_timeout="raise")
    with took(0.2, 20), pytest.raises(killercall.TimeoutError, match="within the budget of 0.3s"):
        next(values)


@pytest.mark.parametrize("how", ["close", "drop", "collect"])
def test_closing_or_dropping_kills_what_runs(how: str, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    source = itertools.chain([""], itertools.repeat(str(path)))
    values: Any = killer_imap(lambda x: x and note_and_hang(x), source, 2, timeout=60)
    assert next(values) == ""
    assert wait_until(lambda: len(pids_in(path)) == 2)
    if how == "close":
        values.close()
    elif how == "drop":
        del values
    else:
        cycle: list[Any] = [values]
        cycle.append(cycle)
        del values, cycle
        gc.collect()
    assert [] == [pid for pid in pids_in(path) if is_running(pid)]


def test_input_that_raises_ends_it_after_what_was_read() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        message = "no more"
        raise OSError(message)

    values = killer_imap(double, source(), 2)
    assert [2, 4, 6] == list(itertools.islice(values, 3))
    with pytest.raises(OSError, match="no more"):
        next(values)
    with pytest.raises(StopIteration):
        next(values)


def test_items_are_taken_as_they_were_read() -> None:
    """The input may go on with one that it has yielded."""

    def source() -> Iterator[list[int]]:
        item = [0]
        for number in range(100):
            item[0] = number
            yield item

    assert list(range(100)) == list(killer_imap(lambda item: item[0], source(), 2))


class Unpicklable:
    def __reduce__(self) -> Any:
        message = "not me"
        raise TypeError(message)


def test_what_cannot_be_pickled_is_a_failure_of_that_item() -> None:
    items = [1, Unpicklable(), 2, Unpicklable()]
    values = list(killer_imap(lambda x: x, items, 2, on_error="return"))
    assert (1, 2) == (values[0], values[2])
    for index in (1, 3):
        assert isinstance(values[index], killercall.SerializationError)
        assert values[index].index == index
    assert [-1] == list(killer_imap(abs, [Unpicklable()], 2, on_error="default", default=-1))
    with pytest.raises(killercall.SerializationError):
        killer_imap(Unpicklable().__reduce__, [1])


def test_items_of_all_kinds_and_sizes() -> None:
    items: list[Any] = [
        2**70, -(2**63), 2**63 - 1, "\udc80", "ä" * 10_000, "x" * 3_000_000, b"y" * 100_000, None,
        True, 1.5, (1, "a"), (1, (2,)), [1], {"a": 1}, frozenset({1}), tuple(range(100)),
    ] * 20  # fmt: skip
    assert items == list(killer_imap(lambda x: x, items, 2))
    assert items == list(killer_imap(copy.copy, items, 2, serializer="pickle"))


def test_large_items_and_results() -> None:
    import numpy

    source = (numpy.full(300_000, number) for number in range(30))
    for number, value in enumerate(killer_imap(lambda x: x + 1, source, 2)):
        assert (value == number + 1).all()


@pytest.mark.parametrize("ordered", [True, False])
def test_numbers_begin_anew(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many items have failed, and some are slow."""
    from killercall import _imap

    monkeypatch.setattr(_imap, "_NUMBERS", 50)
    monkeypatch.setattr(_imap, "_KEPT_MAX", 1000)

    def work(x: Any) -> Any:
        if not isinstance(x, int):
            return len(x)
        if x % 97 == 0:
            time.sleep(0.01)
        if x % 10 == 0:
            raise ValueError(x)
        return x

    items: list[Any] = [x if x % 7 else {x} for x in range(2000)]
    expected = [1 if isinstance(x, set) else x if x % 10 else None for x in items]
    values = list(killer_imap(work, items, 2, ordered=ordered, on_error="default"))
    assert sorted(map(str, expected)) == sorted(map(str, values))
    if ordered:
        assert expected == values


def test_memory_is_flat_over_a_million_items() -> None:
    total = 0
    for number, value in enumerate(killer_imap(double, range(1_000_000), 2)):
        total += value
        if number == 100_000:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert total == 999_999 * 1_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 8 << 20


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="start_method must be 'forkserver' or 'spawn'.*'fork'"):
        killer_imap(double, [1], start_method="fork")
    with pytest.raises(TypeError, match="ordered must be True or False, not 'no'"):
        killer_imap(double, [1], ordered="no")
    with pytest.raises(TypeError, match="iterable must be iterable, not 3"):
        killer_imap(double, 3)
    with pytest.raises(ValueError, match="cpus must be at least 1, not 0"):
        killer_imap(double, [1], 0)
    with pytest.raises(TypeError, match="killer_imap has no option 'time_out'"):
        killer_imap(double, [1], time_out=3)


def test_empty_input_starts_nothing() -> None:
    from killercall import _host

    assert [] == list(killer_imap(double, []))
    assert not _host._shared.roster.has_server()


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    values = killer_imap(lambda x: (os.getpid(), x), itertools.count())
    assert [(os.getpid(), x) for x in range(3)] == list(itertools.islice(values, 3))
    assert [0, 1, 2, None] == list(killer_imap(fail_at_three, range(4), on_error="default"))


def test_decorated_and_coroutine_functions() -> None:
    assert [2] == list(killer_imap(killer_call(double), [1], 2))

    async def later(x: int) -> int:
        return x

    assert [1, 2] == list(killer_imap(later, [1, 2], 2))


def test_failing_initializer_fails_the_map() -> None:
    def fail() -> None:
        message = "no start"
        raise RuntimeError(message)

    with pytest.raises(killercall.WorkerStartError, match="no start"):
        list(killer_imap(double, itertools.count(), 2, initializer=fail))


def test_maps_beside_each_other_in_threads_and_in_one() -> None:
    zipped = list(zip(killer_imap(double, range(500), 2), killer_imap(abs, range(500), 2)))
    assert [(2 * x, x) for x in range(500)] == zipped
    found: list[int] = []

    def run() -> None:
        found.append(sum(killer_imap(double, range(2000), 1)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [1999 * 2000] * 4 == found


def test_a_worker_of_a_map_may_map() -> None:
    nested = killer_imap(lambda n: sum(killer_imap(double, range(n), 1)), [3, 4], 2, timeout=60)
    assert [6, 12] == list(nested)


def test_in_a_callback_of_a_future() -> None:
    """Which may go on with one that was begun elsewhere."""
    found: list[Any] = []
    begun = killer_imap(double, range(50), 1)
    assert next(begun) == 0

    def take(_future: Any) -> None:
        found.append(list(killer_imap(double, range(100), 1)))
        found.append(list(begun))

    future = killer_call(abs, timeout=30).submit(-1)
    future.add_done_callback(take)
    assert future.result(PATIENCE) == 1
    assert wait_until(lambda: len(found) == 2)
    assert found[0] == [2 * x for x in range(100)]
    assert found[1] == [2 * x for x in range(1, 50)]


def test_shutdown_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    values = killer_imap(note_and_hang, [str(path)] * 20, 2, timeout=60)
    killer = threading.Thread(
        target=lambda: (wait_until(lambda: pids_in(path)), killercall.shutdown())
    )
    killer.start()
    with took(0, 30), pytest.raises(killercall.KillerError, match="has ended the map"):
        next(values)
    killer.join()
    assert [] == [pid for pid in pids_in(path) if is_running(pid)]


def test_shutdown_does_no_harm_while_nothing_runs() -> None:
    values = killer_imap(double, itertools.count(), 2)
    first = [next(values) for _ in range(3)]
    wait_until(lambda: False, 0.2)
    killercall.shutdown()
    assert [2 * x for x in range(1000)] == first + list(itertools.islice(values, 997))
    values.close()


@pytest.mark.parametrize("grace", [0, 5])
def test_interrupt(grace: float, tmp_path: Path) -> None:
    """One KeyboardInterrupt, all workers dead; with a grace period they have cleaned up."""
    pids, cleaned = tmp_path / "pids", tmp_path / "cleaned"

    def work(path: str) -> None:
        try:
            note_and_hang(path)
        finally:
            cleaned.touch()

    def interrupt() -> None:
        wait_until(lambda: len(pids_in(pids)) == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with took(0, 30), pytest.raises(KeyboardInterrupt):
        next(killer_imap(work, itertools.repeat(str(pids)), 2, timeout=60, grace=grace))
    thread.join()
    assert [] == [pid for pid in pids_in(pids) if is_running(pid)]
    assert cleaned.exists() == bool(grace)


EXIT = """
import itertools, os, threading, time
from pathlib import Path
from killercall import killer_imap
def work(x):
    if x == "hang":
        Path({path!r}).write_text(str(os.getpid()))
        time.sleep(60)
    return x
held = killer_imap(work, itertools.chain([1], itertools.repeat("hang")), 2, timeout={timeout})
print(next(held), flush=True)
while not Path({path!r}).exists() or not Path({path!r}).read_text():
    time.sleep(0.01)
def consume():
    for x in killer_imap(lambda x: time.sleep(0.02) or x, range(40), 2):
        last = x
    print(last, flush=True)
thread = threading.Thread(target=consume)
thread.start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("timeout", [None, 60])
def test_the_end_of_the_interpreter(timeout: float | None, tmp_path: Path) -> None:
    """A map that is held ends with it, one that a thread consumes goes on."""
    path = tmp_path / "pid"
    with took(0, 40):
        done = run_script(EXIT.format(path=str(path), timeout=timeout))
    assert ("1\n39\n", "", 0) == (done.stdout, done.stderr, done.returncode)
    assert wait_until(lambda: not is_running(int(path.read_text())))


def test_a_forked_copy_cannot_go_on_with_it() -> None:
    code = """
import os
from killercall import killer_imap
values = killer_imap(abs, range(2000), 1)
next(values)
pid = os.fork()
if pid == 0:
    try:
        list(values)
    except RuntimeError as error:
        print(error, flush=True)
    del values
    print(list(killer_imap(abs, [-1], 1)), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(len(list(values)))
"""
    done = run_script(code)
    assert "" == done.stderr
    expected = ["this map belongs to the process that forked this one", "[1]", "1999"]
    assert expected == done.stdout.splitlines()
