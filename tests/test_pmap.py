"""Maps: order, deadlines for every item, failures, retries, and each item once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import killer_call, killer_pmap
from processes import is_running, lines, recorded, took

if TYPE_CHECKING:
    from pathlib import Path


def nap(seconds: float) -> float:
    """Sleeps and returns."""
    time.sleep(seconds)
    return seconds


def fussy(x: Any) -> Any:
    """Ends as the item says."""
    match x:
        case "raise":
            raise ValueError(x)
        case "die":
            os._exit(5)
        case "hang":
            time.sleep(60)
    return x


def test_results_are_in_order() -> None:
    """Whatever the order in which they come."""
    assert [0.3, 0, 0.2, 0.1] == killer_pmap(nap, [0.3, 0, 0.2, 0.1], cpus=4, timeout=20)


def test_timed_out_item_yields_default() -> None:
    """None, or what was asked for; the others have their results."""
    assert [0, None, 0.1] == killer_pmap(nap, [0, 60, 0.1], cpus=2, timeout=1)
    assert [-1, 0] == killer_pmap(nap, [60, 0], cpus=2, timeout=0.5, default=-1)


def test_on_timeout() -> None:
    """Raise, or the exception in the item's place; it tells which item it was."""
    with pytest.raises(killercall.TimeoutError, match="'nap' timed out after 0.3s") as caught:
        killer_pmap(nap, [0, 60], cpus=2, timeout=0.3, on_timeout="raise")
    assert (1, 60) == (caught.value.index, caught.value.item)
    first, second = killer_pmap(nap, [60, 0], cpus=2, timeout=0.3, on_timeout="return")
    assert isinstance(first, killercall.TimeoutError)
    assert (0, 0) == (first.index, second)


def test_on_error() -> None:
    """Default, or the exception in the item's place."""
    items = [1, "raise", "die", 2]
    assert [1, None, None, 2] == killer_pmap(fussy, items, cpus=2, on_error="default")
    one, raised, died, two = killer_pmap(fussy, items, cpus=2, on_error="return")
    assert (1, 2) == (one, two)
    assert isinstance(raised, ValueError)
    assert isinstance(died, killercall.WorkerDied)
    assert (5, 2, "die") == (died.exitcode, died.index, died.item)


@pytest.mark.parametrize(("item", "error"), [("raise", ValueError), ("die", killercall.WorkerDied)])
def test_error_stops_the_map_at_once(item: str, error: type[Exception]) -> None:
    """The rest is killed, and nobody waits for it."""
    with took(0, 15), pytest.raises(error):
        killer_pmap(fussy, ["hang", "hang", item], cpus=3, timeout=None)


def test_what_runs_beside_an_error_is_dead(tmp_path: Path) -> None:
    """When the error is raised, no item runs any more."""
    path = str(tmp_path / "pids")

    def item(number: int) -> None:
        if number < 2:
            hostile.note_and_nap(path)
        while len(lines(tmp_path / "pids")) < 2:
            time.sleep(0.01)
        raise ValueError(number)

    with pytest.raises(ValueError, match="2"):
        killer_pmap(item, range(3), cpus=3, timeout=60)
    assert [] == [pid for pid in recorded(tmp_path / "pids", "worker") if is_running(pid)]


def test_retries(tmp_path: Path) -> None:
    """A failed item is tried again, and then counts."""
    path = str(tmp_path / "attempts")

    def flaky(number: int) -> int:
        hostile.append(path, str(number))
        if lines(tmp_path / "attempts").count(str(number)) <= number:
            raise ValueError(number)
        return number

    assert [0, 1, 2] == killer_pmap(flaky, range(3), cpus=2, retries=2)
    assert {"0": 1, "1": 2, "2": 3} == Counter(lines(tmp_path / "attempts"))
    with pytest.raises(ValueError, match="9"):
        killer_pmap(flaky, [9], retries=2)
    assert 3 == lines(tmp_path / "attempts").count("9")


def test_retry_on(tmp_path: Path) -> None:
    """Only the classes named are tried again; timeouts and deaths have classes too."""
    path = str(tmp_path / "attempts")

    def fail(item: str) -> None:
        hostile.append(path, item)
        fussy(item)

    for item, retry_on, times in [
        ("raise", LookupError, 1),
        ("raise", (LookupError, ValueError), 3),
        ("die", ValueError, 1),
        ("die", killercall.WorkerDied, 3),
        ("hang", killercall.WorkerDied, 1),
        ("hang", TimeoutError, 3),
    ]:
        before = lines(tmp_path / "attempts").count(item)
        killer_pmap(fail, [item], retries=2, retry_on=retry_on, timeout=0.5, on_error="default")
        assert times == lines(tmp_path / "attempts").count(item) - before, (item, retry_on)


def test_budget() -> None:
    """What is unfinished when it is spent counts as timed out."""
    with took(0.9, 10):
        results = killer_pmap(nap, [0, 60, 60, 60, 60], cpus=2, timeout=30, budget=1)
    assert [0, None, None, None, None] == results


def test_every_item_runs_once(tmp_path: Path) -> None:
    """Thousands of small ones, handed out many at a time."""
    path = str(tmp_path / "ran")

    def item(number: int) -> int:
        hostile.append(path, str(number))
        return -number

    assert [-n for n in range(5000)] == killer_pmap(item, range(5000), cpus=3)
    assert {str(n): 1 for n in range(5000)} == Counter(lines(tmp_path / "ran"))


def test_every_item_runs_once_beside_deaths_and_timeouts(tmp_path: Path) -> None:
    """What a dead worker had been handed but not started goes to another."""
    path = str(tmp_path / "ran")

    def item(number: int) -> int:
        hostile.append(path, str(number))
        if number % 97 == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % 211 == 7:
            time.sleep(60)
        return number

    results = killer_pmap(item, range(1000), cpus=2, timeout=0.5, on_error="default")
    expected = [None if n % 97 == 5 or n % 211 == 7 else n for n in range(1000)]
    assert expected == results
    assert {str(n): 1 for n in range(1000)} == Counter(lines(tmp_path / "ran"))


def test_hanging_item_does_not_hold_up_others() -> None:
    """Nothing waits behind it while another worker is free."""
    with took(0, 8):
        results = killer_pmap(nap, [0] * 200 + [3] + [0] * 200, cpus=2, timeout=20)
    assert [0] * 200 + [3] + [0] * 200 == results


def test_generator_and_empty() -> None:
    """Anything that can be iterated."""
    assert [0, 2, 4] == killer_pmap(lambda x: 2 * x, (n for n in range(3)))
    assert [] == killer_pmap(nap, [])
    assert ["a", "b"] == killer_pmap(lambda x: x, {"a": 1, "b": 2})


def test_big_items_and_results() -> None:
    """Those that do not fit the ring."""
    items = [bytes([n]) * 1_000_000 for n in range(60)]
    assert items == killer_pmap(lambda x: x, items, cpus=2, timeout=60)


def test_fork_inherits_what_cannot_be_pickled() -> None:
    """Function and items are there by inheritance."""
    locks = [threading.Lock(), threading.Lock()]
    held = locks[1]
    held.acquire()

    assert [False, True] == killer_pmap(lambda lock: lock.locked(), locks, start_method="fork")


def test_unpicklable_item_is_one_failure() -> None:
    """The others have their results if errors are returned."""
    one, failure, two = killer_pmap(lambda x: x, [1, threading.Lock(), 2], on_error="return")
    assert (1, 2) == (one, two)
    assert isinstance(failure, killercall.SerializationError)
    assert 1 == failure.index
    with pytest.raises(killercall.SerializationError):
        killer_pmap(lambda x: x, [1, threading.Lock(), 2])


def test_decorated_function() -> None:
    """A map of a killer_call uses its own deadlines."""
    assert [0, None] == killer_pmap(killer_call(nap, timeout=50), [0, 60], timeout=0.5)


def test_many_workers() -> None:
    """As many at a time as were asked for."""
    pids = killer_pmap(lambda _: (nap(0.4), os.getpid())[1], range(8), cpus=8, timeout=30)
    assert 8 == len(set(pids))


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for debuggers."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    assert [os.getpid()] * 2 == killer_pmap(lambda _: os.getpid(), range(2))
    assert ["raise", None] != killer_pmap(fussy, ["raise", 1], on_error="default")
    with pytest.raises(ValueError, match="raise"):
        killer_pmap(fussy, ["raise"])
