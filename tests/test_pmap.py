"""`killer_pmap`: order, deadlines, failures and counting, item by item."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import killer_call, killer_pmap
from processes import alive_with_mark, is_running, lines, recorded, took, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]


@pytest.mark.parametrize("method", START_METHODS)
def test_results_are_in_order(method: str) -> None:
    """Whatever finishes first."""
    items = [0.2, 0.0, 0.1, 0.05, 0.0]

    assert items == killer_pmap(hostile.nap, items, cpus=3, start_method=method)


@pytest.mark.parametrize("method", START_METHODS)
def test_timeouts_become_none(method: str) -> None:
    """An item that times out yields None and harms no other."""
    items = [0, 60, 0.01, 60, 0.02]
    expected = [0, None, 0.01, None, 0.02]

    assert expected == killer_pmap(hostile.nap, items, cpus=2, timeout=0.4, start_method=method)


def test_default() -> None:
    """Or what is asked for."""
    assert [0, "late"] == killer_pmap(hostile.nap, [0, 60], timeout=0.3, default="late")


def test_as_long_as_the_limit_is_too_long() -> None:
    """A nap of just the limit has missed it, in every place of the map."""
    assert [None] * 12 == killer_pmap(hostile.nap, [0.2] * 12, cpus=2, timeout=0.2)


def test_on_timeout_raise() -> None:
    """The error has item and place."""
    with took(0.3, 8), pytest.raises(killercall.TimeoutError) as caught:
        killer_pmap(hostile.nap, [0, 60, 0], cpus=2, timeout=0.3, on_timeout="raise")

    assert "function 'nap' timed out after 0.3s" == str(caught.value)
    assert (60, 1) == (caught.value.item, caught.value.index)
    assert any("item 1 of the map: 60" in note for note in caught.value.__notes__)


def test_on_timeout_return() -> None:
    """The error takes the item's place."""
    first, error, last = killer_pmap(
        hostile.nap, [0, 60, 0.1], cpus=2, timeout=0.4, on_timeout="return"
    )

    assert (0, 0.1) == (first, last)
    assert isinstance(error, killercall.TimeoutError)
    assert "function 'nap' timed out after 0.4s" == str(error)
    assert (60, 1, "nap") == (error.item, error.index, error.function)
    # On a busy machine there may be none.
    assert "in nap" in (error.stack or "in nap")
    assert " in nap" in error.stack


def end_as_told(item: Any) -> Any:
    """Ends as the item says."""
    match item:
        case "raise":
            raise ValueError(item)
        case "die":
            os._exit(5)
        case "hang":
            time.sleep(hostile.FOREVER)
    return item


def fail_odd(item: int) -> int:
    """Raises for odd items."""
    if item % 2:
        raise KeyError(item)
    return item


@pytest.mark.parametrize("method", START_METHODS)
def test_on_error_raise(method: str) -> None:
    """By default an item that raises stops the map with its own error."""
    with pytest.raises(KeyError) as caught:
        killer_pmap(fail_odd, [0, 2, 5, 4], start_method=method)

    assert KeyError is type(caught.value)
    assert (5,) == caught.value.args
    assert "in fail_odd" in str(caught.value.__cause__)
    assert any("item 2" in note for note in caught.value.__notes__)


def test_on_error_default() -> None:
    """Failures yield the default, deaths too."""
    assert [0, -1, 2, -1] == killer_pmap(fail_odd, range(4), on_error="default", default=-1)
    assert [None] == killer_pmap(hostile.exit_hard, [3], on_error="default")


def test_on_error_return() -> None:
    """The error takes the item's place."""
    zero, one, two = killer_pmap(fail_odd, range(3), on_error="return")

    assert (0, 2) == (zero, two)
    assert isinstance(one, KeyError)
    assert (1,) == one.args


def test_deaths_and_errors_together() -> None:
    """Each fails its own item."""
    items = [1, "raise", "die", 2]

    assert [1, None, None, 2] == killer_pmap(end_as_told, items, cpus=2, on_error="default")
    one, raised, died, two = killer_pmap(end_as_told, items, cpus=2, on_error="return")
    assert (1, 2) == (one, two)
    assert isinstance(raised, ValueError)
    assert isinstance(died, killercall.WorkerDied)
    assert (5, 2, "die") == (died.exitcode, died.index, died.item)


@pytest.mark.parametrize(("item", "error"), [("raise", ValueError), ("die", killercall.WorkerDied)])
def test_failure_beside_items_without_deadline(item: str, error: type[Exception]) -> None:
    """It stops the map at once, though the others would never end."""
    with took(0, 9), pytest.raises(error):
        killer_pmap(end_as_told, ["hang", "hang", item], cpus=3, timeout=None)


def test_on_error_is_not_for_timeouts() -> None:
    """Each has its own option."""
    results = killer_pmap(hostile.nap, [60], timeout=0.2, on_error="return", default="late")

    assert ["late"] == results


def test_death_has_item_and_index() -> None:
    """By default a worker's death stops the map."""
    with pytest.raises(killercall.WorkerDied) as caught:
        killer_pmap(lambda item: os._exit(item) if item else 0, [0, 0, 7])

    assert (7, 2, 7) == (caught.value.item, caught.value.index, caught.value.exitcode)
    assert "'<lambda>'" in str(caught.value)


@pytest.mark.parametrize("method", START_METHODS)
def test_error_is_raised_at_once_and_the_rest_killed(method: str, tmp_path: Path) -> None:
    """Not in the order of the items, and nobody is waited for."""
    record = tmp_path / "pids"

    def work(item: int) -> None:
        if item < 2:
            hostile.start_children(str(record) + str(item))
        wait_until(lambda: all((tmp_path / f"pids{n}").exists() for n in range(2)))
        wait_until(lambda: all(len(recorded(tmp_path / f"pids{n}")) == 5 for n in range(2)))
        raise LookupError(item)

    with took(0, 9), pytest.raises(LookupError):
        killer_pmap(work, range(3), cpus=3, timeout=60, start_method=method)

    for number in range(2):
        path = tmp_path / f"pids{number}"
        pids = recorded(path, "worker", "child")
        assert 3 == len(pids)
        assert [] == [pid for pid in pids if is_running(pid)]


def test_own_error_of_ours_raised_in_the_function_has_the_item() -> None:
    """An error of a nested call gets the item of the outer map."""

    def work(item: int) -> Any:
        return killer_call(hostile.exit_hard)(item)

    with pytest.raises(killercall.WorkerDied) as caught:
        killer_pmap(work, [4], timeout=30)

    assert (4, 0, 4, "exit_hard") == (
        caught.value.item,
        caught.value.index,
        caught.value.exitcode,
        caught.value.function,
    )


def test_retries(tmp_path: Path) -> None:
    """A failed item is tried so many times more; each counts its own attempts."""

    def work(item: int) -> int:
        path = str(tmp_path / f"count{item}")
        if item == 3:
            return hostile.fail_first(path, 2, ValueError("again"))
        if item == 4:
            return hostile.fail_first(path, 2)
        return hostile.fail_first(path, 0)

    results = killer_pmap(work, range(6), cpus=2, timeout=0.4, retries=2)

    assert [1, 1, 1, 3, 3, 1] == results
    assert [1, 1, 1, 3, 3, 1] == [len(lines(tmp_path / f"count{item}")) for item in range(6)]


def test_retries_after_death_are_counted(tmp_path: Path) -> None:
    """An item that always kills its worker is tried 1 + retries times, its neighbours once."""
    counted = tmp_path / "counted"

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item == 5:
            os._exit(1)
        return item

    results = killer_pmap(work, range(10), cpus=2, retries=3, on_error="default", default=-1)

    assert [0, 1, 2, 3, 4, -1, 6, 7, 8, 9] == results
    expected = Counter(map(str, range(10))) + Counter({"5": 3})
    assert expected == Counter(lines(counted))


def test_retry_on(tmp_path: Path) -> None:
    """Only failures of that class."""

    def work(item: int) -> int:
        path = str(tmp_path / f"count{item}")
        return hostile.fail_first(path, 1, KeyError(item) if item else ValueError(item))

    first, second = killer_pmap(work, [0, 1], retries=1, retry_on=ValueError, on_error="return")

    assert 2 == first
    assert isinstance(second, KeyError)


@pytest.mark.parametrize(
    ("item", "retry_on", "times"),
    [
        ("raise", LookupError, 1),
        ("raise", (LookupError, ValueError), 3),
        ("die", ValueError, 1),
        ("die", killercall.WorkerDied, 3),
        ("hang", killercall.WorkerDied, 1),
        ("hang", TimeoutError, 3),
    ],
)
def test_retry_on_kinds_of_failure(item: str, retry_on: Any, times: int, tmp_path: Path) -> None:
    """Timeouts and deaths have classes too."""
    counted = tmp_path / "counted"

    def work(item: str) -> None:
        hostile.append(str(counted), item)
        end_as_told(item)

    # Only what hangs may time out, however slow the machine is.
    timeout = 2 if item == "hang" else 60
    killer_pmap(work, [item], retries=2, retry_on=retry_on, timeout=timeout, on_error="default")

    assert times == len(lines(counted))


def test_failed_item_goes_to_the_back_of_the_queue(tmp_path: Path) -> None:
    """The others come first."""
    counted = tmp_path / "counted"

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item == 0 and lines(counted).count("0") == 1:
            raise ValueError(item)
        hostile.nap(0.02)
        return item

    killer_pmap(work, range(5), cpus=1, retries=1)

    assert ["0", "1", "2", "3", "4", "0"] == lines(counted)


@pytest.mark.parametrize("timeout", [None, 30])
def test_budget(timeout: float | None) -> None:
    """When it is spent, what is unfinished counts as timed out."""
    # The start of the workers counts, on a busy machine too.
    with took(2, 8):
        results = killer_pmap(hostile.nap, [0, 60, 60, 0, 60], cpus=2, timeout=timeout, budget=2)

    assert [0, None, None] == results[:3]
    assert None is results[4]


def test_budget_error() -> None:
    """Its text tells of the budget; who had not begun has no worker."""
    running, waiting = killer_pmap(
        hostile.nap, [60, 50], cpus=1, timeout=None, budget=2.5, on_timeout="return"
    )

    for error in (running, waiting):
        assert isinstance(error, killercall.TimeoutError)
        assert "2.5s" in str(error)
        assert "nap" in str(error)
        assert error.timeout is None
    assert isinstance(running.pid, int)
    # The budget runs while the worker is started, its elapsed time does not.
    assert 0 < running.elapsed < 6
    assert waiting.pid is None
    assert 0 == waiting.elapsed


def test_budget_that_is_not_spent() -> None:
    """Changes nothing."""
    assert [0, 1, 2] == killer_pmap(hostile.same, range(3), budget=30)


def test_budget_with_retries(tmp_path: Path) -> None:
    """Bounds the attempts."""
    with took(0.8, 6):
        results = killer_pmap(
            lambda _: hostile.fail_first(str(tmp_path / "n"), 10**6),
            [1],
            timeout=0.2,
            retries=10**6,
            budget=0.8,
            default="late",
        )

    assert ["late"] == results


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_cpus(cpus: int) -> None:
    """So many workers, no more and no less."""
    pids = killer_pmap(lambda _: (time.sleep(0.1), os.getpid())[1], range(2 * cpus), cpus=cpus)

    assert cpus == len(set(pids))
    assert os.getpid() not in pids


def test_more_cpus_than_items() -> None:
    """Nobody is started for nothing."""
    with took(0, 9):
        assert [0, 1] == killer_pmap(hostile.same, range(2), cpus=10**6)


def test_default_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The available CPUs less 2, but at least 2 where there are 2."""
    from killercall import _cpus

    for available, workers in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (64, 62)):
        monkeypatch.setattr(_cpus, "available_cpus", lambda available=available: available)
        assert workers == _cpus.default_workers()


def test_available_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest quota counts, of either version of cgroups, rounded up, if it is below what there is."""
    from killercall import _cpus

    monkeypatch.setattr(_cpus, "enclosing_groups", lambda _: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert 8 == _cpus.available_cpus()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert 6 == _cpus.available_cpus()

    files = {
        "two": {"cpu.max": "150000 100000"},
        "none": {"cpu.max": "max 100000"},
        "nonsense": {"cpu.max": ""},
        "one": {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"},
        "endless": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
        "missing": {},
    }
    for name, found in files.items():
        (tmp_path / name).mkdir()
        for file, value in found.items():
            (tmp_path / name / file).write_text(value, encoding="ascii")

    for names, cpus in (
        (["two", "one", "none"], 2),
        (["one", "endless"], 3),
        (["endless"], 6),
        (["nonsense", "missing"], 6),
    ):
        groups = [(str(tmp_path / name), name in {"two", "none", "nonsense"}) for name in names]
        monkeypatch.setattr(_cpus, "enclosing_groups", lambda _, groups=groups: groups)
        assert cpus == _cpus.available_cpus()


def test_generator() -> None:
    """Any iterable is read, once."""
    assert [0, 1, 4] == killer_pmap(lambda x: x * x, (x for x in range(3)))
    assert ["a", "b"] == killer_pmap(hostile.same, {"a": 1, "b": 2})
    assert ["x", "y"] == killer_pmap(hostile.same, "xy")
    assert [1, 2] == killer_pmap(hostile.same, iter([1, 2]))


def test_failing_generator() -> None:
    """Its error is raised as it is, and no process is started."""

    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("of the input")

    with pytest.raises(RuntimeError, match="^of the input$"):
        killer_pmap(hostile.same, items())

    assert {} == alive_with_mark()


def test_empty_input() -> None:
    """An empty list, and no process."""
    assert [] == killer_pmap(hostile.same, [])
    assert [] == killer_pmap(hostile.same, iter(()), cpus=3)
    assert {} == alive_with_mark()


@pytest.mark.parametrize("method", START_METHODS)
def test_five_thousand_small_items_run_once_each(method: str, tmp_path: Path) -> None:
    """None is lost and none runs twice."""
    counted = tmp_path / "counted"

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        return -item

    results = killer_pmap(work, range(5000), cpus=2, timeout=30, start_method=method)

    assert [-item for item in range(5000)] == results
    assert list(range(5000)) == sorted(map(int, lines(counted)))


@pytest.mark.parametrize("method", START_METHODS)
def test_work_of_a_dead_worker_goes_on_elsewhere(method: str, tmp_path: Path) -> None:
    """What it had been handed but not started runs once; what it had finished is kept."""
    counted = tmp_path / "counted"
    deadly = {50, 51, 333, 400, 999}

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item in deadly:
            os._exit(3)
        return item

    results = killer_pmap(
        work, range(1000), cpus=2, timeout=30, start_method=method, on_error="return"
    )

    failed = {i: type(value) for i, value in enumerate(results) if value != i}
    assert dict.fromkeys(sorted(deadly), killercall.WorkerDied) == failed
    assert Counter(map(str, range(1000))) == Counter(lines(counted))


@pytest.mark.parametrize("method", START_METHODS)
def test_hanging_items_among_small_ones(method: str, tmp_path: Path) -> None:
    """Each is killed at its own deadline, and all others are answered, once."""
    counted = tmp_path / "counted"
    hanging = {0, 100, 101, 299}

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item in hanging:
            while True:
                pass
        return item

    with took(0.8, 9):
        results = killer_pmap(work, range(300), cpus=2, timeout=0.4, start_method=method)

    assert [None if item in hanging else item for item in range(300)] == results
    assert Counter(map(str, range(300))) == Counter(lines(counted))


def test_once_each_beside_deaths_and_timeouts(tmp_path: Path) -> None:
    """Both at the same time, among many small items."""
    counted = tmp_path / "counted"

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item % 97 == 5:
            os.kill(os.getpid(), 9)
        if item % 211 == 7:
            time.sleep(hostile.FOREVER)
        return item

    results = killer_pmap(work, range(1000), cpus=2, timeout=0.4, on_error="default")

    expected = [None if n % 97 == 5 or n % 211 == 7 else n for n in range(1000)]
    assert expected == results
    assert Counter(map(str, range(1000))) == Counter(lines(counted))


def test_hanging_item_does_not_delay_others(tmp_path: Path) -> None:
    """While one hangs, its neighbours are done by the other worker, not kept behind it."""
    done = tmp_path / "done"

    def work(item: int) -> int:
        if item == 7:
            # Ends as soon as all others are done, which is long before its deadline.
            end = time.monotonic() + 20
            while len(lines(done)) < 199 and time.monotonic() < end:
                time.sleep(0.005)
            return len(lines(done))
        hostile.append(str(done), str(item))
        return item

    with took(0, 15):
        results = killer_pmap(work, range(200), cpus=2, timeout=30)

    assert 199 == results[7]


def test_slow_after_fast_items() -> None:
    """Items get their whole time, however many were handed out ahead of them."""
    items = [0.0] * 300 + [0.3] * 6

    assert items == killer_pmap(hostile.nap, items, cpus=2, timeout=0.6)


def test_big_results() -> None:
    """Several megabytes each, more at once than any buffer holds."""
    results = killer_pmap(lambda n: bytes([n]) * 3_000_000, range(20), cpus=2, timeout=30)

    assert [bytes([n]) * 3_000_000 for n in range(20)] == results


def test_big_items() -> None:
    """The same towards the workers."""
    items = [bytes([n]) * 3_000_000 for n in range(20)]

    assert [3_000_000 * n for n in range(20)] == killer_pmap(sum, items, cpus=2, timeout=30)


def test_sizes_mixed() -> None:
    """Small and large, whatever way each takes, in order."""
    sizes = [(7919 * n) % 200_000 for n in range(200)]

    results = killer_pmap(lambda size: b"x" * size, sizes, cpus=2, timeout=30)

    assert sizes == [len(result) for result in results]


def test_fork_needs_no_pickling() -> None:
    """Function and items that nothing can pickle."""
    lock = threading.Lock()
    items = [threading.Lock(), (x for x in range(3)), open(os.devnull)]  # noqa: SIM115

    def work(item: Any) -> str:
        with lock:
            return type(item).__name__

    try:
        names = killer_pmap(work, items, start_method="fork")
    finally:
        items[2].close()  # type: ignore[union-attr]

    assert ["lock", "generator", "TextIOWrapper"] == names


def test_unpicklable_item_is_a_failure_of_that_item() -> None:
    """By `on_error`, with item and place."""
    lock = threading.Lock()

    with pytest.raises(killercall.SerializationError) as caught:
        killer_pmap(hostile.take, [1, lock, 3])
    assert (lock, 1) == (caught.value.item, caught.value.index)
    one, error, three = killer_pmap(hostile.take, [1, lock, 3], on_error="return")
    assert ("int", "int") == (one, three)
    assert isinstance(error, killercall.SerializationError)


def test_unpicklable_function_starts_nothing() -> None:
    """Known before any process starts."""
    lock = threading.Lock()

    with pytest.raises(killercall.SerializationError, match="lock"):
        killer_pmap(lambda _: lock, range(3))

    assert {} == alive_with_mark()


def test_decorated_function() -> None:
    """The map's deadline counts, and one worker an item is enough."""
    nap = killer_call(hostile.nap, timeout=0.1)

    assert [0.3, None] == killer_pmap(nap, [0.3, 60], cpus=2, timeout=1)


def test_maps_in_threads() -> None:
    """Several maps at the same time do not mix."""
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = killer_pmap(lambda x: x * number, range(50), cpus=2, timeout=30)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {n: [x * n for x in range(50)] for n in range(4)} == results


def test_reuse_false() -> None:
    """Every item has a fresh process."""
    pids = killer_pmap(lambda _: os.getpid(), range(6), cpus=2, reuse=False, timeout=30)

    assert 6 == len(set(pids))


def test_reuse_limit() -> None:
    """Every worker serves so many items at most."""
    pids = killer_pmap(lambda _: os.getpid(), range(30), cpus=2, reuse=4, timeout=30)

    assert max(Counter(pids).values()) <= 4


def test_workers_are_kept_between_maps() -> None:
    """The second map finds the workers of the first."""
    first = set(killer_pmap(lambda _: (time.sleep(0.1), os.getpid())[1], range(4), cpus=2))
    second = set(killer_pmap(lambda _: (time.sleep(0.1), os.getpid())[1], range(4), cpus=2))

    assert first == second


def test_initializer_in_a_map() -> None:
    """Each worker runs it."""
    results = killer_pmap(
        lambda _: hostile.get_setting(),
        range(4),
        cpus=2,
        initializer=hostile.set_setting,
        initargs=("set",),
    )

    assert ["set"] * 4 == results


def test_failing_initializer_fails_the_map() -> None:
    """Whatever `on_error` says: no worker, no map."""
    with took(0, 9), pytest.raises(killercall.WorkerStartError, match="ValueError: no"):
        killer_pmap(
            hostile.same,
            range(100),
            on_error="return",
            initializer=hostile.raise_error,
            initargs=(ValueError("no"),),
        )


def test_results_are_not_lost_by_sigkill(tmp_path: Path) -> None:
    """What was finished before a neighbour was killed from outside is kept."""

    def work(item: int) -> int:
        if item == 60:
            os.kill(os.getpid(), 9)
        return item

    results = killer_pmap(work, range(100), cpus=1, on_error="default")

    assert [None if item == 60 else item for item in range(100)] == results


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same options hold in the calling process, but deadlines."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")

    assert [0, -1, 2] == killer_pmap(fail_odd, range(3), on_error="default", default=-1)
    with pytest.raises(KeyError):
        killer_pmap(fail_odd, range(3))


def test_runs_go_round_the_ring_many_times() -> None:
    """Each call of a run finds its own arguments, whatever the ring holds by then."""
    items = [(number, float(number), "x" * (number % 50)) for number in range(200_000)]
    for _ in range(2):
        got = killer_pmap(
            lambda item: {"number": item[0], "text": item[2]}, items, cpus=2, timeout=60
        )
        assert got == [{"number": number, "text": text} for number, _, text in items]
