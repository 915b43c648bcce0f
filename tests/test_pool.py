"""`KillerPool`: what any executor does, and what only one with deadlines and own workers can do."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import datetime
import functools
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
)
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import KillerPool, _host, killer_call
from processes import PATIENCE, is_running, recorded, run_script, took, wait_until, waiting_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

METHODS = ["forkserver", "spawn", "fork"]


@pytest.fixture
def pool() -> Iterator[KillerPool]:
    """Two workers, and time for everything."""
    with KillerPool(2, timeout=30) as pool:
        yield pool


@pytest.fixture
def single() -> Iterator[KillerPool]:
    """One worker, so that calls wait for each other."""
    with KillerPool(1, timeout=30) as pool:
        yield pool


def capture(*args: Any, **kwargs: Any) -> Any:
    """What it was called with."""
    return args, kwargs


def workers_in(path: Path) -> list[int]:
    """The workers that have noted themselves there."""
    return recorded(path, "worker")


def busy(pool: Any, path: Path) -> Any:
    """The future of a call that runs, and does not end by itself."""
    before = len(workers_in(path))
    future = pool.submit(hostile.note_and_nap, str(path))
    assert wait_until(lambda: len(workers_in(path)) > before)
    return future


def ends(future: Any) -> BaseException | None:
    """How it has failed."""
    error: BaseException | None = future.exception(PATIENCE)
    return error


# Calls


def test_a_call_returns() -> None:
    with KillerPool(1) as pool:
        assert pool.submit(pow, 2, 8).result(PATIENCE) == 256


@pytest.mark.parametrize("method", METHODS)
def test_every_start_method(method: str) -> None:
    with KillerPool(2, timeout=30, start_method=method) as pool:
        assert pool.submit(lambda x: x + 1, 1).result(PATIENCE) == 2
        assert list(pool.map(pow, range(5), [2] * 5, chunksize=2)) == [0, 1, 4, 9, 16]


def test_keywords_arrive(pool: KillerPool) -> None:
    assert pool.submit(pow, 2, exp=5).result(PATIENCE) == 32


def test_arguments_have_any_names(pool: KillerPool) -> None:
    expected = ((1,), {"self": 2, "fn": 3, "key": 4, "timeout": 5})
    future = pool.submit(capture, 1, self=2, fn=3, key=4, timeout=5)
    assert future.result(PATIENCE) == expected
    assert pool.submit_once("key", capture, 1, self=2, fn=3, key=4, timeout=5).result() == expected


def test_the_function_comes_first(pool: KillerPool) -> None:
    with pytest.raises(TypeError):
        pool.submit(fn=pow)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]


def test_what_cannot_be_called_is_refused(pool: KillerPool) -> None:
    with pytest.raises(TypeError, match="func must be callable, not 3"):
        pool.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="func must be callable, not 3"):
        pool.map(3, [1])  # type: ignore[arg-type]


def test_an_exception_arrives_as_itself(pool: KillerPool) -> None:
    future = pool.submit(lambda: {}["key"])
    assert isinstance(ends(future), KeyError)
    with pytest.raises(KeyError) as raised:
        future.result()
    assert "Traceback" in str(raised.value.__cause__)


def test_an_exception_that_is_returned_is_a_value(pool: KillerPool) -> None:
    value = pool.submit(lambda: ValueError("fine")).result(PATIENCE)
    assert isinstance(value, ValueError)


def test_an_exception_concerns_one_call(single: KillerPool) -> None:
    futures = [single.submit(divmod, 1, number) for number in (0, 1)]
    assert isinstance(ends(futures[0]), ZeroDivisionError)
    assert futures[1].result(PATIENCE) == (1, 0)


def test_methods_lambdas_partials_and_classes(pool: KillerPool) -> None:
    calls: list[Callable[[], Any]] = [
        "abc".upper,
        lambda: 5,
        functools.partial(pow, 2, 3),
        collections.Counter,
    ]
    assert [pool.submit(call).result(PATIENCE) for call in calls] == ["ABC", 5, 8, {}]


def test_attributes_of_what_is_called_are_not_ours(pool: KillerPool) -> None:
    class Thing:
        def submit(self) -> None:
            raise AssertionError

        _lane = _queued = _settle = submit

    def function() -> int:
        return 1

    function.submit = function.options = None  # type: ignore[attr-defined]
    assert type(pool.submit(Thing).result(PATIENCE)) is Thing
    assert pool.submit(function).result(PATIENCE) == 1
    assert killer_call(function).options(timeout=5).submit().result(PATIENCE) == 1


def test_a_decorated_function_has_the_deadline_of_the_pool(pool: KillerPool) -> None:
    nap = killer_call(hostile.nap, timeout=0.1)
    assert pool.submit(nap, 0.3).result(PATIENCE) == 0.3


def test_a_coroutine_function_runs_in_the_worker(pool: KillerPool) -> None:
    async def pid() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    assert pool.submit(pid).result(PATIENCE) not in {os.getpid(), None}


def test_globals_are_those_of_the_call(pool: KillerPool) -> None:
    code = """
from killercall import KillerPool
x = 1
def get(): return x
with KillerPool(1) as pool:
    print(pool.submit(get).result())
    x = 2
    print(pool.submit(get).result())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("1\n2\n", "")


def test_arguments_are_taken_when_they_are_submitted(single: KillerPool) -> None:
    items = [1, 2]
    futures = [single.submit(list, items) for _ in range(3)]
    items.append(3)
    assert [future.result(PATIENCE) for future in futures] == [[1, 2]] * 3


def test_calls_begin_in_their_order(single: KillerPool, tmp_path: Path) -> None:
    path = str(tmp_path / "order")
    for future in [single.submit(hostile.append, path, str(number)) for number in range(20)]:
        future.result(PATIENCE)
    assert (tmp_path / "order").read_text().split() == [str(number) for number in range(20)]


def test_many_short_calls(pool: KillerPool) -> None:
    futures = [pool.submit(abs, -number) for number in range(1000)]
    assert [future.result(PATIENCE) for future in futures] == list(range(1000))


def test_large_data_goes_and_comes(pool: KillerPool) -> None:
    data = os.urandom(1 << 16) * 256
    assert pool.submit(hostile.same, data).result(PATIENCE) == data
    assert list(pool.map(len, [data] * 4, chunksize=2)) == [len(data)] * 4


def test_many_threads_submit_at_once(pool: KillerPool) -> None:
    got: list[int] = []

    def work(first: int) -> None:
        futures = [pool.submit(abs, -number) for number in range(first, first + 20)]
        got.extend(future.result(PATIENCE) for future in futures)

    threads = [threading.Thread(target=work, args=(20 * first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(160))


def test_so_many_run_at_a_time(tmp_path: Path) -> None:
    with KillerPool(3, timeout=30) as pool:
        assert 1 < max(pool.map(hostile.count_beside, [str(tmp_path)] * 20)) <= 3


# Workers


def test_workers_stay_warm(single: KillerPool) -> None:
    assert len({single.submit(os.getpid).result(PATIENCE) for _ in range(5)}) == 1


def test_functions_share_the_workers(single: KillerPool) -> None:
    first = single.submit(os.getpid).result(PATIENCE)
    assert single.submit(lambda: os.getpid()).result(PATIENCE) == first
    assert list(single.map(lambda _: os.getpid(), range(2))) == [first, first]


def test_pools_do_not_share_workers(single: KillerPool) -> None:
    first = single.submit(os.getpid).result(PATIENCE)
    with KillerPool(1, timeout=30) as other:
        second = other.submit(os.getpid).result(PATIENCE)
        assert first != second
        assert killer_call(os.getpid)() not in {first, second}
        assert single.submit(os.getpid).result(PATIENCE) == first
    assert single.submit(os.getpid).result(PATIENCE) == first, "the end of another is not its own"


def test_reuse_false_makes_every_call_in_a_fresh_process() -> None:
    with KillerPool(1, timeout=30, reuse=False) as pool:
        assert len({pool.submit(os.getpid).result(PATIENCE) for _ in range(3)}) == 3


def test_reuse_counts_calls() -> None:
    with KillerPool(1, timeout=30, reuse=2) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_env_and_cwd_are_those_of_the_pool(tmp_path: Path) -> None:
    with KillerPool(1, timeout=30, env={"ONLY": "this"}, cwd=tmp_path) as pool:
        assert pool.submit(os.getcwd).result(PATIENCE) == str(tmp_path)
        assert pool.submit(os.getenv, "ONLY").result(PATIENCE) == "this"


def test_a_pool_in_a_call_of_a_pool(single: KillerPool) -> None:
    def inside(xs: list[int]) -> list[int]:
        with KillerPool(2, timeout=20) as pool:
            return list(pool.map(lambda x: 2 * x, xs))

    assert single.submit(inside, [1, 2, 3]).result(PATIENCE) == [2, 4, 6]


def test_multiprocessing_in_a_call_of_a_pool(single: KillerPool) -> None:
    def inside() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.map(abs, [-1, -2])

    assert single.submit(inside).result(PATIENCE) == [1, 2]


# Deadlines and deaths


def test_a_deadline_is_kept() -> None:
    with KillerPool(1, timeout=0.3) as pool:
        future = pool.submit(hostile.nap, 60)
        error = ends(future)
    assert isinstance(error, killercall.TimeoutError)
    assert isinstance(error, TimeoutError)
    assert str(error) == "function 'nap' timed out after 0.3s"
    assert not is_running(error.pid)


def test_waiting_for_a_turn_does_not_count() -> None:
    with KillerPool(1, timeout=1) as pool:
        futures = [pool.submit(hostile.nap, 0.3) for _ in range(5)]
        assert [future.result(PATIENCE) for future in futures] == [0.3] * 5


def test_a_call_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with KillerPool(1, timeout=0.5) as pool:
        assert isinstance(ends(pool.submit(hostile.ignore_sigterm, str(path))), TimeoutError)
    assert not any(map(is_running, workers_in(path)))


def test_what_a_late_call_has_started_is_killed_too(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with KillerPool(1, timeout=1.5) as pool:
        assert isinstance(ends(pool.submit(hostile.start_children, str(path))), TimeoutError)
        started = set(recorded(path)) - set(recorded(path, "machinery"))
        assert len(started) > 1
        assert not any(map(is_running, started))


def test_a_late_call_concerns_itself_only(tmp_path: Path) -> None:
    with KillerPool(2, timeout=1) as pool:
        late, good = pool.submit(hostile.nap, 60), pool.submit(hostile.nap, 0.1)
        assert good.result(PATIENCE) == 0.1
        assert isinstance(ends(late), TimeoutError)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_a_dead_worker_fails_its_call_only(single: KillerPool) -> None:
    futures = [single.submit(os._exit, 3), single.submit(abs, -1)]
    error = ends(futures[0])
    assert isinstance(error, killercall.WorkerDied)
    assert error.exitcode == 3
    assert futures[1].result(PATIENCE) == 1


def test_a_crash_is_told_with_its_signal(single: KillerPool) -> None:
    error = ends(single.submit(hostile.crash))
    assert isinstance(error, killercall.WorkerDied)
    assert error.signal == "SIGSEGV"
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_sys_exit_is_a_death(single: KillerPool) -> None:
    error = ends(single.submit(sys.exit, 4))
    assert isinstance(error, killercall.WorkerDied)
    assert error.exitcode == 4


def test_a_worker_that_dies_while_it_waits_is_replaced(single: KillerPool) -> None:
    pid = single.submit(os.getpid).result(PATIENCE)
    os.kill(pid, signal.SIGKILL)
    assert single.submit(os.getpid).result(PATIENCE) != pid


def test_a_limit_of_memory() -> None:
    with KillerPool(1, timeout=30, max_memory="300MiB") as pool:
        error = ends(pool.submit(lambda: len(b"x" * (1 << 30))))
        assert isinstance(error, killercall.MemoryLimitExceeded)
        assert pool.submit(abs, -1).result(PATIENCE) == 1


def test_retries(tmp_path: Path) -> None:
    path = tmp_path / "tries"
    with KillerPool(1, timeout=30, retries=2) as pool:
        pool.submit(hostile.fail_first, str(path), 2, ValueError()).result(PATIENCE)
    assert len(path.read_text().splitlines()) == 3


# Views


def test_a_view_has_another_deadline(single: KillerPool) -> None:
    error = ends(single.options(timeout=0.2).submit(hostile.nap, 60))
    assert str(error) == "function 'nap' timed out after 0.2s"
    assert single.submit(hostile.nap, 0.4).result(PATIENCE) == 0.4


def test_a_view_has_the_same_workers(single: KillerPool) -> None:
    pid = single.submit(os.getpid).result(PATIENCE)
    assert single.options(timeout=5, retries=3).submit(os.getpid).result(PATIENCE) == pid


def test_a_view_waits_its_turn(single: KillerPool, tmp_path: Path) -> None:
    first = busy(single, tmp_path / "pid")
    second = single.options(timeout=5).submit(abs, -1)
    assert not concurrent.futures.wait([second], timeout=0.2).done
    first.cancel()
    assert second.result(PATIENCE) == 1


def test_a_view_takes_a_timedelta_or_none(single: KillerPool) -> None:
    soon = single.options(timeout=datetime.timedelta(milliseconds=200))
    assert isinstance(ends(soon.submit(hostile.nap, 60)), TimeoutError)
    assert single.options(timeout=None).submit(abs, -1).result(PATIENCE) == 1


def test_what_takes_the_place_of_a_late_call(single: KillerPool) -> None:
    view = single.options(timeout=0.2, on_timeout="default", default="late")
    assert view.submit(hostile.nap, 60).result(PATIENCE) == "late"
    assert list(view.map(hostile.nap, [0, 60, 0], chunksize=3)) == [0, "late", 0]
    again = view.options(on_timeout="return")
    assert isinstance(again.submit(hostile.nap, 60).result(PATIENCE), killercall.TimeoutError)


def test_a_view_has_retries(single: KillerPool, tmp_path: Path) -> None:
    path = tmp_path / "tries"
    single.options(retries=1).submit(hostile.fail_first, str(path), 1, ValueError()).result(
        PATIENCE
    )
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "name", ["initializer", "initargs", "env", "cwd", "start_method", "preload", "max_memory"]
)
def test_a_view_does_not_change_the_workers(single: KillerPool, name: str) -> None:
    with pytest.raises(TypeError, match=f"cannot change '{name}'.*another KillerPool"):
        single.options(**{name: None})


def test_a_view_has_no_other_options(single: KillerPool) -> None:
    with pytest.raises(TypeError, match=r"has no option 'timout'; did you mean 'timeout'"):
        single.options(timout=1)
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        single.options(timeout=0)


def test_a_view_keeps_its_pool(tmp_path: Path) -> None:
    view = KillerPool(1, timeout=30).options(timeout=20)
    gc.collect()
    pid = view.submit(os.getpid).result(PATIENCE)
    assert view.submit(os.getpid).result(PATIENCE) == pid


# The same key


def test_an_equal_key_has_the_same_future(single: KillerPool, tmp_path: Path) -> None:
    blocker = busy(single, tmp_path / "pid")
    path = str(tmp_path / "calls")
    first = single.submit_once(("a", 1), hostile.append, path, "x")
    assert single.submit_once(("a", 1.0), hostile.append, path, "y") is first
    assert single.options(timeout=3).submit_once(("a", 1), hostile.append, path, "z") is first
    blocker.cancel()
    first.result(PATIENCE)
    assert (tmp_path / "calls").read_text().split() == ["x"]


def test_a_running_call_has_its_key(single: KillerPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    first = single.submit_once("key", hostile.note_and_nap, str(path))
    assert wait_until(lambda: bool(workers_in(path)))
    assert single.submit_once("key", hostile.note_and_nap, str(path)) is first
    first.cancel()


def test_another_key_is_another_call(pool: KillerPool) -> None:
    first, second = (pool.submit_once(key, abs, -1) for key in "ab")
    assert first is not second


def test_a_key_is_free_when_its_call_has_ended(pool: KillerPool) -> None:
    for expected in range(5):
        assert pool.submit_once("key", abs, -expected).result(PATIENCE) == expected


def test_a_key_is_free_when_its_call_has_failed_or_is_cancelled(
    single: KillerPool, tmp_path: Path
) -> None:
    assert isinstance(ends(single.submit_once("key", divmod, 1, 0)), ZeroDivisionError)
    blocker = busy(single, tmp_path / "pid")
    waits = single.submit_once("key", abs, -2)
    assert waits.cancel()
    other = single.submit_once("key", abs, -3)
    blocker.cancel()
    assert other.result(PATIENCE) == 3


def test_what_cannot_be_pickled_takes_no_key(pool: KillerPool) -> None:
    future = pool.submit_once("key", hostile.same, threading.Lock())
    assert isinstance(ends(future), killercall.SerializationError)
    assert pool.submit_once("key", abs, -1).result(PATIENCE) == 1


def test_keys_are_hashable(pool: KillerPool) -> None:
    with pytest.raises(TypeError, match=r"key must be hashable, not \[1\]"):
        pool.submit_once([1], abs, -1)


def test_threads_with_one_key_make_one_call(single: KillerPool, tmp_path: Path) -> None:
    blocker = busy(single, tmp_path / "pid")
    path = str(tmp_path / "calls")
    got: list[Any] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        got.append(single.submit_once("key", hostile.append, path, "x"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1
    blocker.cancel()
    got[0].result(PATIENCE)
    assert (tmp_path / "calls").read_text().split() == ["x"]


# Maps


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_a_map_is_in_order(pool: KillerPool, chunksize: int) -> None:
    got = pool.map(pow, range(10), range(10), chunksize=chunksize)
    assert list(got) == list(map(pow, range(10), range(10)))


def test_a_map_ends_with_the_shortest(pool: KillerPool) -> None:
    assert list(pool.map(pow, itertools.count(), [1, 2])) == [0, 1]


def test_a_map_of_nothing(pool: KillerPool) -> None:
    assert list(pool.map(abs, [])) == []
    assert list(pool.map(abs)) == []


@pytest.mark.parametrize("chunksize", [1, 2, 4])
def test_an_exception_comes_in_its_place(pool: KillerPool, chunksize: int) -> None:
    got = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=chunksize)
    assert [next(got), next(got)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(got)
    with pytest.raises(StopIteration):
        next(got)


def test_a_map_has_a_limit_of_its_own(single: KillerPool) -> None:
    got = single.map(hostile.nap, [0, 0, 60], timeout=1)
    assert [next(got), next(got)] == [0, 0]
    with took(0, PATIENCE), pytest.raises(TimeoutError) as raised:
        next(got)
    assert not isinstance(raised.value, killercall.TimeoutError)
    # What was late is killed, so that the worker is free.
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_a_limit_of_zero_takes_only_what_is_there(single: KillerPool) -> None:
    with pytest.raises(TimeoutError):
        next(single.map(hostile.nap, [60], timeout=0))


def test_the_limit_of_a_map_is_a_time(single: KillerPool) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        single.map(abs, [1], timeout="soon")


def test_deadlines_are_those_of_items(single: KillerPool) -> None:
    view = single.options(timeout=1, on_timeout="default")
    assert list(view.map(hostile.nap, [0.4] * 4 + [60], chunksize=5)) == [0.4] * 4 + [None]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_death_concerns_one_item(single: KillerPool, chunksize: int) -> None:
    got = single.map(lambda x: os._exit(1) if x == 1 else x, range(3), chunksize=chunksize)
    assert next(got) == 0
    with pytest.raises(killercall.WorkerDied):
        next(got)


def test_an_item_that_cannot_be_pickled_concerns_itself(single: KillerPool) -> None:
    got = single.map(hostile.same, [1, threading.Lock(), 2], chunksize=3)
    assert next(got) == 1
    with pytest.raises(killercall.SerializationError):
        next(got)
    with pytest.raises(killercall.SerializationError):
        list(single.map(hostile.same, [threading.Lock()] * 2, chunksize=2))


def test_a_function_that_cannot_be_pickled_fails_the_map(single: KillerPool) -> None:
    lock = threading.Lock()
    for chunksize in (1, 2):
        with pytest.raises(killercall.SerializationError):
            list(single.map(lambda _: lock, range(2), chunksize=chunksize))


def test_items_of_a_chunk_are_retried(single: KillerPool, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(3)]
    list(
        single.options(retries=1).map(
            hostile.fail_first, paths, [1] * 3, [ValueError()] * 3, chunksize=3
        )
    )
    assert [len((tmp_path / name).read_text().splitlines()) for name in "012"] == [2] * 3


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_sizes_are_whole_and_positive(pool: KillerPool, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        pool.map(abs, [1], **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{name} must be a whole number, not 1.5"):
        pool.map(abs, [1], **{name: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_buffer_bounds_what_is_read(pool: KillerPool, chunksize: int) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    got = pool.map(abs, items(), buffersize=3, chunksize=chunksize)
    assert len(read) == 3 * chunksize
    assert list(itertools.islice(got, 10)) == list(range(10))
    assert len(read) <= 10 + 4 * chunksize
    got.close()  # type: ignore[attr-defined]


def test_a_map_reads_all_of_its_input_at_once(pool: KillerPool) -> None:
    items = iter(range(20))
    got = pool.map(abs, items)
    assert next(items, None) is None
    assert list(got) == list(range(20))


def test_an_input_that_fails_ends_the_map(single: KillerPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def items() -> Iterator[str]:
        yield str(path)
        assert wait_until(lambda: bool(workers_in(path)))
        raise LookupError

    with pytest.raises(LookupError):
        single.map(hostile.note_and_nap, items())
    (pid,) = workers_in(path)
    assert wait_until(lambda: not is_running(pid))


def test_closing_a_map_kills_what_runs(single: KillerPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    got = single.map(lambda where: where and hostile.note_and_nap(where), ["", str(path), ""])
    assert next(got) == ""
    assert wait_until(lambda: bool(workers_in(path)))
    got.close()  # type: ignore[attr-defined]
    (pid,) = workers_in(path)
    assert wait_until(lambda: not is_running(pid))


def test_a_map_does_not_keep_what_it_yields(pool: KillerPool) -> None:
    class Thing:
        pass

    for chunksize in (1, 4):
        for thing in pool.map(lambda _: Thing(), range(8), chunksize=chunksize):
            kept = weakref.ref(thing)
            del thing
            gc.collect()
            assert kept() is None


def test_a_map_that_is_not_read_is_made(pool: KillerPool, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(4)]
    pool.map(hostile.append, map(str, paths), ["x"] * 4, chunksize=2)
    gc.collect()
    assert wait_until(lambda: all(path.exists() for path in paths))


# Callbacks, and how to cancel


def test_a_callback_before_the_end(single: KillerPool, tmp_path: Path) -> None:
    said: list[Any] = []
    future = single.submit(hostile.nap, 0.2)
    future.add_done_callback(said.append)
    future.result(PATIENCE)
    assert wait_until(lambda: said == [future])


def test_a_callback_after_the_end(single: KillerPool) -> None:
    said: list[Any] = []
    future = single.submit(abs, -1)
    future.result(PATIENCE)
    future.add_done_callback(said.append)
    assert said == [future]


def test_callbacks_of_a_failure_and_of_a_late_call(single: KillerPool) -> None:
    said: list[Any] = []
    futures = [
        single.submit(divmod, 1, 0),
        single.options(timeout=0.2).submit(hostile.nap, 60),
    ]
    for future in futures:
        future.add_done_callback(lambda done: said.append(type(done.exception())))
    assert wait_until(lambda: len(said) == 2)
    assert said == [ZeroDivisionError, killercall.TimeoutError]


def test_a_callback_of_a_cancelled_call(single: KillerPool, tmp_path: Path) -> None:
    said: list[bool] = []
    running = busy(single, tmp_path / "pid")
    waiting = single.submit(abs, -1)
    for future in (waiting, running):
        future.add_done_callback(lambda done: said.append(done.cancelled()))
        assert future.cancel()
    assert said == [True, True]


def test_a_callback_that_raises(single: KillerPool, caplog: pytest.LogCaptureFixture) -> None:
    said: list[Any] = []
    future = single.submit(hostile.nap, 0.2)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(said.append)
    assert wait_until(lambda: said == [future])
    assert "ZeroDivisionError" in caplog.text
    # Its traceback holds all that was there.
    caplog.clear()
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_a_callback_may_submit(single: KillerPool) -> None:
    said: list[int] = []
    first = single.submit(abs, -1)
    first.add_done_callback(
        lambda _: single.submit(abs, -2).add_done_callback(lambda done: said.append(done.result()))
    )
    assert wait_until(lambda: said == [2])


def test_cancel_kills_a_running_call(single: KillerPool, tmp_path: Path) -> None:
    future = busy(single, tmp_path / "pid")
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    (pid,) = workers_in(tmp_path / "pid")
    assert wait_until(lambda: not is_running(pid))


def test_a_running_chunk_is_killed_whole(single: KillerPool, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    got = single.map(hostile.note_and_nap, map(str, paths), chunksize=2, timeout=2)
    assert wait_until(lambda: bool(workers_in(paths[0])))
    with pytest.raises(TimeoutError):
        next(got)
    (pid,) = workers_in(paths[0])
    assert single.submit(os.getpid).result(PATIENCE) != pid
    assert not is_running(pid)
    assert not paths[1].exists()


def test_cancel_takes_out_what_waits(single: KillerPool, tmp_path: Path) -> None:
    running = busy(single, tmp_path / "pid")
    path = tmp_path / "never"
    waiting = single.submit(hostile.append, str(path), "x")
    assert not waiting.running()
    assert waiting.cancel()
    running.cancel()
    assert single.submit(abs, -1).result(PATIENCE) == 1
    assert not path.exists()


def test_cancel_after_the_end(single: KillerPool) -> None:
    future = single.submit(abs, -1)
    assert future.result(PATIENCE) == 1
    assert not future.cancel()
    assert not future.cancelled()


def test_the_next_call_has_another_worker_after_cancel(single: KillerPool, tmp_path: Path) -> None:
    pid = single.submit(os.getpid).result(PATIENCE)
    future = busy(single, tmp_path / "pid")
    future.cancel()
    assert single.submit(os.getpid).result(PATIENCE) != pid


def test_result_has_a_limit(single: KillerPool) -> None:
    future = single.submit(hostile.nap, 60)
    with pytest.raises(TimeoutError):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(0.05)
    future.cancel()


# Several futures


def test_wait_for_the_first(pool: KillerPool, tmp_path: Path) -> None:
    endless = busy(pool, tmp_path / "pid")
    quick = pool.submit(abs, -1)
    done, pending = concurrent.futures.wait([endless, quick], PATIENCE, FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {endless})
    endless.cancel()


def test_wait_for_the_first_where_some_are_done(pool: KillerPool, tmp_path: Path) -> None:
    quick = pool.submit(abs, -1)
    quick.result(PATIENCE)
    endless = busy(pool, tmp_path / "pid")
    done, _ = concurrent.futures.wait([endless, quick], PATIENCE, FIRST_COMPLETED)
    assert done == {quick}
    endless.cancel()


def test_wait_for_the_first_exception(pool: KillerPool, tmp_path: Path) -> None:
    endless = busy(pool, tmp_path / "pid")
    good, bad = pool.submit(abs, -1), pool.submit(divmod, 1, 0)
    done, pending = concurrent.futures.wait([endless, good, bad], PATIENCE, FIRST_EXCEPTION)
    assert (done, pending) == ({good, bad}, {endless})
    endless.cancel()


def test_wait_for_all(pool: KillerPool) -> None:
    futures = [pool.submit(abs, -1), pool.submit(divmod, 1, 0), pool.submit(os._exit, 1)]
    done, pending = concurrent.futures.wait(futures, PATIENCE, ALL_COMPLETED)
    assert (done, pending) == (set(futures), set())


def test_wait_is_told_of_cancelled_calls(single: KillerPool, tmp_path: Path) -> None:
    futures = [busy(single, tmp_path / "pid"), single.submit(abs, -1)]
    timer = threading.Timer(0.2, lambda: [future.cancel() for future in futures])
    timer.start()
    done, _ = concurrent.futures.wait(futures, PATIENCE)
    timer.join()
    assert done == set(futures)


def test_wait_has_a_limit(single: KillerPool, tmp_path: Path) -> None:
    future = busy(single, tmp_path / "pid")
    assert concurrent.futures.wait([future], timeout=0.1) == (set(), {future})
    future.cancel()


def test_as_completed_has_each_once(pool: KillerPool) -> None:
    future = pool.submit(hostile.nap, 0.1)
    assert list(concurrent.futures.as_completed([future] * 3, PATIENCE)) == [future]


def test_as_completed_in_the_order_of_their_ends(pool: KillerPool) -> None:
    slow, quick = pool.submit(hostile.nap, 0.8), pool.submit(hostile.nap, 0)
    assert list(concurrent.futures.as_completed([slow, quick], PATIENCE)) == [quick, slow]


def test_as_completed_has_a_limit(single: KillerPool, tmp_path: Path) -> None:
    done = single.submit(abs, -1)
    done.result(PATIENCE)
    endless = busy(single, tmp_path / "pid")
    for limit in (0, 0.1):
        got = []
        with pytest.raises(TimeoutError):
            got.extend(concurrent.futures.as_completed([done, endless], limit))
        completed = concurrent.futures.as_completed([done, endless], limit)
        assert next(completed) is done
        completed.close()
    endless.cancel()


# Pickling


class Rude:
    """Does something else in place of being pickled, or unpickled, outside of the host."""

    def __init__(self, when: str, what: Callable[..., Any], *args: Any) -> None:
        self.rest = when, what, args, os.getpid()

    def __reduce__(self) -> Any:
        when, what, args, _pid = self.rest
        return what(*args) if when == "pickle" else (what, args)


def rude_result(when: str, what: Callable[..., Any], *args: Any) -> Rude:
    """Made in the worker."""
    return Rude(when, what, *args)


def test_an_argument_that_cannot_be_pickled(single: KillerPool) -> None:
    error = ends(single.submit(hostile.same, threading.Lock()))
    assert isinstance(error, killercall.SerializationError)
    assert isinstance(error, pickle.PicklingError)
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_an_argument_that_raises_when_it_is_pickled(single: KillerPool) -> None:
    bad = Rude("pickle", divmod, 1, 0)
    assert isinstance(ends(single.submit(hostile.same, bad)), killercall.SerializationError)


@pytest.mark.parametrize("what", [hostile.exit_hard, sys.exit, hostile.crash])
def test_an_argument_that_ends_the_worker(single: KillerPool, what: Any) -> None:
    """When it is unpickled there; SystemExit does not, as it is not the function's."""
    args = () if what is hostile.crash else (5,)
    error = ends(single.submit(hostile.same, Rude("unpickle", what, *args)))
    expected = killercall.SerializationError if what is sys.exit else killercall.WorkerDied
    assert isinstance(error, expected)
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_an_argument_that_raises_when_it_is_unpickled(single: KillerPool) -> None:
    error = ends(single.submit(hostile.same, Rude("unpickle", divmod, 1, 0)))
    assert isinstance(error, killercall.SerializationError)
    assert "ZeroDivisionError" in str(error)


def test_a_result_that_cannot_be_pickled(single: KillerPool) -> None:
    assert isinstance(ends(single.submit(threading.Lock)), killercall.SerializationError)
    assert single.submit(abs, -1).result(PATIENCE) == 1


@pytest.mark.parametrize("what", [hostile.exit_hard, hostile.crash])
def test_a_result_that_ends_the_worker(single: KillerPool, what: Any) -> None:
    args = () if what is hostile.crash else (5,)
    error = ends(single.submit(rude_result, "pickle", what, *args))
    assert isinstance(error, killercall.WorkerDied)
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_a_result_that_cannot_be_unpickled(single: KillerPool) -> None:
    future = single.submit(rude_result, "unpickle", divmod, 1, 0)
    assert isinstance(ends(future), killercall.SerializationError)
    with pytest.raises(killercall.SerializationError):
        next(single.map(rude_result, ["unpickle"], [divmod], [1], [0]))


def test_a_result_that_wants_to_exit_when_it_is_unpickled(single: KillerPool) -> None:
    future = single.submit(rude_result, "unpickle", sys.exit, 1)
    assert isinstance(ends(future), killercall.SerializationError)
    assert single.submit(abs, -1).result(PATIENCE) == 1


def test_crashes_with_large_data(pool: KillerPool) -> None:
    got = [pool.submit(lambda _: hostile.crash(), b"x" * (1 << 20)) for _ in range(6)]
    assert all(isinstance(ends(future), killercall.WorkerDied) for future in got)


def test_a_pool_cannot_be_pickled(pool: KillerPool) -> None:
    for thing in (pool, pool.options(timeout=1)):
        with pytest.raises(TypeError, match="a KillerPool cannot be pickled"):
            pickle.dumps(thing)


# Initializers


def test_an_initializer_is_run_once_a_worker(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with KillerPool(1, timeout=30, initializer=hostile.append, initargs=(str(path), "x")) as pool:
        for _ in range(3):
            pool.submit(abs, -1).result(PATIENCE)
        assert len(path.read_text().splitlines()) == 1
        ends(pool.submit(os._exit, 1))
        pool.submit(abs, -1).result(PATIENCE)
        assert len(path.read_text().splitlines()) >= 2


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_sets_what_calls_see(method: str) -> None:
    with KillerPool(
        1, timeout=30, initializer=hostile.set_setting, initargs=(7,), start_method=method
    ) as pool:
        assert pool.submit(hostile.get_setting).result(PATIENCE) == 7


def test_pools_have_initializers_of_their_own() -> None:
    pools = [
        KillerPool(1, timeout=30, initializer=hostile.set_setting, initargs=(number,))
        for number in range(2)
    ]
    for _ in range(2):
        got = [pool.submit(hostile.get_setting).result(PATIENCE) for pool in pools]
        assert got == [0, 1]
    for pool in pools:
        pool.shutdown()


def test_all_workers_are_set_up_with_the_same() -> None:
    """What the host makes of the arguments later makes no other kind of worker."""
    setting = [1]
    with KillerPool(1, timeout=30, initializer=hostile.set_setting, initargs=(setting,)) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)
        setting.append(2)
        assert pool.submit(lambda: (os.getpid(), hostile.get_setting())).result() == (pid, [1])
        ends(pool.submit(os._exit, 1))
        assert pool.submit(hostile.get_setting).result(PATIENCE) == [1]


def fail(path: str) -> None:
    """An initializer that fails, after a note."""
    hostile.append(path, "x")
    message = "no setup"
    raise ValueError(message)


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_fails_breaks_the_pool(method: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    pool = KillerPool(1, initializer=fail, initargs=(str(path),), start_method=method)
    futures = [pool.submit(abs, -1) for _ in range(5)]
    errors = [ends(future) for future in futures]
    assert all(isinstance(error, killercall.WorkerStartError) for error in errors)
    assert all(isinstance(error.__cause__, ValueError) for error in errors if error)
    for submit in (pool.submit, pool.options(timeout=1).submit):
        with pytest.raises(BrokenExecutor, match="no setup") as raised:
            submit(abs, -1)
        assert raised.value.__cause__ is errors[0]
    with pytest.raises(BrokenExecutor):
        pool.map(abs, [1])
    with pytest.raises(BrokenExecutor):
        pool.submit_once("key", abs, -1)
    pool.shutdown()
    assert len(path.read_text().splitlines()) == 1


def test_a_pool_is_broken_when_the_first_is_told(tmp_path: Path) -> None:
    said: list[type] = []
    pool = KillerPool(1, initializer=fail, initargs=(str(tmp_path / "runs"),))

    def again(_future: Any) -> None:
        try:
            pool.submit(abs, -1)
        except BrokenExecutor as error:
            said.append(type(error))

    futures = [pool.submit(abs, -1) for _ in range(3)]
    for future in futures:
        future.add_done_callback(again)
    pool.shutdown()
    assert said == [BrokenExecutor] * 3


def test_an_initializer_that_fails_fails_a_map(tmp_path: Path) -> None:
    with KillerPool(2, initializer=fail, initargs=(str(tmp_path / "runs"),)) as pool:
        with pytest.raises(killercall.WorkerStartError):
            list(pool.map(abs, range(20), chunksize=4))
        with pytest.raises(BrokenExecutor):
            pool.submit(abs, -1)


@pytest.mark.parametrize("what", [hostile.exit_hard, hostile.exit_softly])
def test_an_initializer_that_exits_breaks_the_pool(what: Any) -> None:
    pool = KillerPool(1, initializer=what, initargs=(3,))
    error = ends(pool.submit(abs, -1))
    assert isinstance(error, killercall.WorkerStartError)
    with pytest.raises(BrokenExecutor):
        pool.submit(abs, -1)
    pool.shutdown()


def test_an_initializer_that_hangs_breaks_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "START_LIMIT", 0.5)
    pool = KillerPool(1, initializer=hostile.hang_in_initializer)
    error = ends(pool.submit(abs, -1))
    assert isinstance(error, killercall.WorkerStartError)
    assert "in time" in str(error)
    with pytest.raises(BrokenExecutor):
        pool.submit(abs, -1)
    pool.shutdown()


def fail_if(path: str) -> None:
    """An initializer that fails once there is something."""
    if os.path.exists(path):
        message = "it is there"
        raise ValueError(message)


def test_a_call_that_runs_goes_on_in_a_broken_pool(tmp_path: Path) -> None:
    path, go = tmp_path / "there", tmp_path / "go"
    with KillerPool(2, timeout=30, initializer=fail_if, initargs=(str(path),)) as pool:
        good = pool.submit(hostile.wait_for_file, str(tmp_path / "pid"), str(go))
        assert wait_until(lambda: bool(workers_in(tmp_path / "pid")))
        path.touch()
        assert isinstance(ends(pool.submit(abs, -1)), killercall.WorkerStartError)
        assert not good.done()
        go.touch()
        good.result(PATIENCE)


def test_an_initializer_that_cannot_be_pickled(tmp_path: Path) -> None:
    with KillerPool(1, initializer=hostile.same, initargs=(threading.Lock(),)) as pool:
        error = ends(pool.submit(abs, -1))
        assert isinstance(error, killercall.SerializationError)
    assert waiting_workers() == set()


def test_a_lack_of_the_system_breaks_nothing(tmp_path: Path) -> None:
    code = """
import os, resource
from killercall import KillerPool, WorkerStartError
with KillerPool(1, initializer=abs, initargs=(1,)) as pool:
    pool.submit(abs, -1).result()
    hold = [open(os.devnull) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pool.submit(os._exit, 1).exception()
    pool.submit(os._exit, 1).exception()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    errors = [pool.submit(os._exit, 1).exception() for _ in range(4)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    lacks = [error for error in errors if isinstance(error, WorkerStartError)]
    print(bool(lacks), all(error.errno is not None for error in lacks))
    print(pool.submit(abs, -2).result())
    for file in hold:
        file.close()
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("True True\n2\n", "")


# The end of a pool


def test_leaving_the_block_waits_for_all() -> None:
    with KillerPool(1, timeout=30) as pool:
        futures = [pool.submit(hostile.nap, 0.01) for _ in range(20)]
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == [0.01] * 20


def test_no_worker_is_left_after_shutdown() -> None:
    with KillerPool(2, timeout=30) as pool:
        pids = set(pool.map(lambda _: hostile.nap(0.1) and os.getpid(), range(4)))
    assert _host.idle_workers() == 0
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_no_spare_is_left_after_shutdown() -> None:
    with KillerPool(1, timeout=0.2) as pool:
        for _ in range(3):
            assert isinstance(ends(pool.submit(hostile.nap, 60)), TimeoutError)
    assert _host.idle_workers() == 0


def test_what_was_refused_for_want_of_a_thread_is_not_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killercall.shutdown()
    pool, path = KillerPool(1, timeout=30), tmp_path / "never"
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no"))
        )
        for submit in (pool.submit, functools.partial(pool.submit_once, "key")):
            with pytest.raises(RuntimeError, match="no"):
                submit(hostile.append, str(path), "x")
    assert pool.submit_once("key", abs, -1).result(PATIENCE) == 1
    pool.shutdown()
    assert not path.exists()


def test_nothing_is_taken_after_shutdown() -> None:
    pool = KillerPool(1)
    pool.submit(abs, -1).result(PATIENCE)
    view = pool.options(timeout=1)
    pool.shutdown()
    for submit in (pool.submit, view.submit, functools.partial(pool.submit_once, "key"), pool.map):
        with pytest.raises(RuntimeError, match="the pool was shut down"):
            submit(abs, (-1))


def test_shutdown_of_what_was_never_used() -> None:
    pool = KillerPool(1)
    pool.shutdown()
    pool.shutdown()
    assert "killercall" not in {thread.name for thread in threading.enumerate()}


def test_shutdown_again_waits_too(single: KillerPool) -> None:
    future = single.submit(hostile.nap, 0.3)
    single.shutdown(wait=False)
    single.shutdown()
    assert future.done()


def test_shutdown_without_waiting(single: KillerPool) -> None:
    futures = [single.submit(hostile.nap, 0.2) for _ in range(3)]
    single.shutdown(wait=False)
    assert not futures[-1].done()
    assert [future.result(PATIENCE) for future in futures] == [0.2] * 3
    assert wait_until(lambda: _host.idle_workers() == 0)


def test_shutdown_can_cancel_what_waits(single: KillerPool) -> None:
    futures = [single.submit(hostile.nap, 0.5) for _ in range(20)]
    assert wait_until(futures[0].running)
    single.shutdown(cancel_futures=True)
    assert futures[0].result(0) == 0.5
    assert all(future.cancelled() for future in futures[1:])


def test_shutdown_can_cancel_later(single: KillerPool) -> None:
    futures = [single.submit(hostile.nap, 0.5) for _ in range(20)]
    single.shutdown(wait=False)
    single.shutdown(cancel_futures=True)
    assert futures[-1].cancelled()


def test_shutdown_right_after_cancel(single: KillerPool) -> None:
    single.submit(int).result(PATIENCE)
    single.submit(int).cancel()
    with took(0, PATIENCE):
        single.shutdown()


def test_shutdown_while_a_call_dies(pool: KillerPool) -> None:
    futures = [pool.submit(hostile.crash) for _ in range(3)]
    pool.shutdown()
    assert all(isinstance(future.exception(0), killercall.WorkerDied) for future in futures)


def test_shutdown_after_what_cannot_be_pickled(single: KillerPool) -> None:
    future = single.submit(hostile.same, threading.Lock())
    single.shutdown(wait=False)
    assert isinstance(future.exception(0), killercall.SerializationError)
    single.shutdown()


def test_shutdown_in_a_callback() -> None:
    """It waits for the calls, and not for itself."""
    pool = KillerPool(1, timeout=30)
    future = pool.submit(hostile.nap, 0.2)
    future.add_done_callback(lambda _: pool.shutdown())
    future.result(PATIENCE)
    assert wait_until(lambda: _host.idle_workers() == 0)
    with took(0, PATIENCE):
        pool.shutdown()


def test_shutdown_from_many_threads(single: KillerPool) -> None:
    futures = [single.submit(hostile.nap, 0.05) for _ in range(5)]
    threads = [threading.Thread(target=single.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert all(future.done() for future in futures)


def test_threads_submit_while_it_is_shut_down() -> None:
    """Each call is either made or refused."""
    pool = KillerPool(2, timeout=30)
    futures: list[Any] = []
    refused: list[RuntimeError] = []

    def work() -> None:
        for number in itertools.count():
            try:
                futures.append(pool.submit(abs, -number))
            except RuntimeError as error:
                refused.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(futures) > 20)
    pool.shutdown()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(refused) == 4
    assert all(future.exception(0) is None for future in futures)
    assert _host.idle_workers() == 0


def test_the_general_shutdown_leaves_a_pool_usable(single: KillerPool, tmp_path: Path) -> None:
    running, waiting = busy(single, tmp_path / "pid"), single.submit(abs, -1)
    killercall.shutdown()
    assert running.cancelled()
    assert waiting.cancelled()
    assert single.submit(abs, -2).result(PATIENCE) == 2


def test_a_dropped_pool_makes_its_calls() -> None:
    pool = KillerPool(1, timeout=30)
    futures = [pool.submit(hostile.nap, 0.1) for _ in range(4)]
    alive = weakref.ref(pool)
    del pool
    assert alive() is None
    assert [future.result(PATIENCE) for future in futures] == [0.1] * 4
    assert wait_until(lambda: _host.idle_workers() == 0)


def test_a_dropped_pool_has_no_workers() -> None:
    pool = KillerPool(1, timeout=30)
    pid = pool.submit(os.getpid).result(PATIENCE)
    assert is_running(pid)
    del pool
    assert wait_until(lambda: not is_running(pid))


def test_a_pool_in_a_cycle_is_dropped_too() -> None:
    pool = KillerPool(1, timeout=30)
    pid = pool.submit(os.getpid).result(PATIENCE)
    pool.itself = pool  # type: ignore[attr-defined]
    del pool
    gc.collect()
    assert wait_until(lambda: not is_running(pid))


def test_an_instance_is_released_after_its_call(single: KillerPool) -> None:
    class Thing:
        def method(self, *_args: Any) -> None:
            pass

    thing, argument = Thing(), Thing()
    kept = [weakref.ref(thing), weakref.ref(argument)]
    future = single.submit(thing.method, argument)
    del thing, argument
    future.result(PATIENCE)
    assert wait_until(lambda: [ref() for ref in kept] == [None, None])


def test_a_fork_pool_releases_arguments_too() -> None:
    class Thing:
        def method(self, *_args: Any) -> None:
            pass

    with KillerPool(1, timeout=30, start_method="fork") as pool:
        thing, argument = Thing(), Thing()
        kept = [weakref.ref(thing), weakref.ref(argument)]
        future = pool.submit(thing.method, argument)
        del thing, argument
        future.result(PATIENCE)
        assert wait_until(lambda: [ref() for ref in kept] == [None, None])


def test_a_pool_remembers_a_bounded_number_of_functions(single: KillerPool) -> None:
    def make(number: int) -> Any:
        return lambda: number

    functions = [make(number) for number in range(100)]
    kept = [weakref.ref(function) for function in functions]
    assert [single.submit(function).result(PATIENCE) for function in functions] == list(range(100))
    functions.clear()
    assert wait_until(lambda: sum(ref() is not None for ref in kept) <= 40)


# The end of the interpreter

EXIT = """
import time
from killercall import KillerPool
def write(path):
    time.sleep(0.2)
    open(path, "x").close()
pool = KillerPool(1, timeout=30)
for name in "ab":
    pool.submit(write, "{0}/" + name)
{1}
print("end")
"""


@pytest.mark.parametrize("last", ["", "pool.shutdown(wait=False)", "del pool"])
def test_the_interpreter_waits_for_calls_with_a_deadline(tmp_path: Path, last: str) -> None:
    result = run_script(EXIT.format(tmp_path, last))
    assert (result.stdout, result.stderr) == ("end\n", "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_the_interpreter_kills_calls_without_a_deadline() -> None:
    code = """
import time
from killercall import KillerPool
pool = KillerPool(1, timeout=None)
futures = [pool.submit(time.sleep, 600) for _ in range(2)]
while not futures[0].running():
    time.sleep(0.01)
print("end")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("end\n", "")


def test_too_late_is_a_runtime_error() -> None:
    code = """
import atexit
from killercall import KillerPool
def last():
    try:
        pool.submit(abs, -1)
    except RuntimeError:
        print("RuntimeError")
    pool.shutdown()
atexit.register(last)
pool = KillerPool(1)
print(pool.submit(abs, -2).result())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("2\nRuntimeError\n", "")


def test_a_pool_of_a_module_that_is_taken_down() -> None:
    code = """
from killercall import KillerPool
class Holder:
    def __init__(self):
        self.pool, self.me = KillerPool(1), self
        self.pool.submit(abs, -1).result()
holder = Holder()
"""
    result = run_script(code)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_a_forked_copy_has_workers_of_its_own() -> None:
    code = """
import os
from killercall import KillerPool
pool = KillerPool(1, timeout=30)
first = pool.submit(os.getpid).result()
pid = os.fork()
if pid == 0:
    other = pool.submit(os.getpid).result()
    print(other != first, flush=True)
    pool.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
print(pool.submit(os.getpid).result() == first)
pool.shutdown()
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("True\nTrue\n", "")


def test_a_pool_that_was_shut_down_is_so_in_a_forked_copy() -> None:
    code = """
import os
from killercall import KillerPool
pool = KillerPool(1)
pool.shutdown()
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
try:
    pool.submit(abs, -1)
except RuntimeError as error:
    print(error, flush=True)
if not pid:
    os._exit(0)
"""
    result = run_script(code)
    said = "cannot submit a call: the pool was shut down\n"
    assert (result.stdout, result.stderr) == (2 * said, "")


def test_ctrl_c_while_the_block_waits() -> None:
    code = """
import os, signal, threading, time
from killercall import KillerPool
pool = KillerPool(1, timeout=60)
future = pool.submit(time.sleep, 50)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    pool.shutdown()
except KeyboardInterrupt:
    print("interrupted", future.cancel())
pool.shutdown()
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("interrupted True\n", "")


# Friends


def test_an_event_loop_runs_in_it(pool: KillerPool) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        soon = pool.options(timeout=0.2)
        return await asyncio.gather(
            loop.run_in_executor(pool, pow, 2, 3),
            loop.run_in_executor(pool, os.getpid),
            loop.run_in_executor(soon, hostile.nap, 60),
            return_exceptions=True,
        )

    value, pid, late = asyncio.run(main())
    assert value == 8
    assert pid != os.getpid()
    assert isinstance(late, killercall.TimeoutError)


def test_a_cancelled_task_kills_its_call(single: KillerPool, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(single, hostile.note_and_nap, str(path))
        assert await asyncio.to_thread(wait_until, lambda: bool(workers_in(path)))
        future.cancel()
        await asyncio.wait([future], timeout=PATIENCE)

    asyncio.run(main())
    (pid,) = workers_in(path)
    assert wait_until(lambda: not is_running(pid))


def test_a_progress_bar_goes_round_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    # Or it starts a thread that stays.
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    with KillerPool(2, timeout=30) as pool:
        bar = tqdm.tqdm(pool.map(abs, range(-5, 0), chunksize=2), total=5, disable=True)
        assert list(bar) == [5, 4, 3, 2, 1]


def test_it_is_an_executor(pool: KillerPool) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    assert isinstance(pool.submit(abs, -1), concurrent.futures.Future)


# In the calling process


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    with KillerPool(2) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()
        assert set(pool.map(lambda _: os.getpid(), range(4), chunksize=2)) == {os.getpid()}
        assert pool.submit_once("key", os.getpid).result() == os.getpid()
        assert isinstance(pool.submit(divmod, 1, 0).exception(), ZeroDivisionError)
        got = pool.map(divmod, [1, 1], [1, 0], chunksize=2)
        assert next(got) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            next(got)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(abs, -1)


def test_inline_runs_the_initializer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    runs: list[int] = []
    with KillerPool(2, initializer=runs.append, initargs=(1,)) as pool:
        assert runs == []
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    assert runs == [1]


def test_inline_an_initializer_may_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    with KillerPool(2, initializer=fail, initargs=(str(tmp_path / "runs"),)) as pool:
        error = pool.submit(abs, -1).exception()
        assert isinstance(error, killercall.WorkerStartError)
        assert isinstance(error.__cause__, ValueError)
        with pytest.raises(BrokenExecutor, match="no setup"):
            pool.submit(abs, -1)


# What it is made of


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, not 0"),
        ({"workers": -1}, ValueError, "workers must be at least 1, not -1"),
        ({"workers": 1.5}, TypeError, "workers must be a whole number, not 1.5"),
        ({"workers": True}, TypeError, "workers must be a whole number, not True"),
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds"),
        ({"initializer": 3}, TypeError, "initializer must be callable or None, not 3"),
        ({"initargs": 3}, TypeError, "initargs must be a tuple of arguments, not 3"),
        ({"max_workers": 2}, TypeError, "no option 'max_workers'; did you mean 'workers'"),
        ({"budget": 2}, TypeError, "KillerPool has no option 'budget'"),
        ({"owner": 2}, TypeError, "KillerPool has no option 'owner'"),
        ({"start_method": "thread"}, ValueError, "start_method must be one of"),
    ],
)
def test_bad_input_is_named(values: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        KillerPool(**values)


def test_a_pool_without_numbers_has_the_workers_of_a_map() -> None:
    with KillerPool() as pool:
        assert f"of {killercall._cpus.default_workers()} workers" in repr(pool)


def test_it_says_what_it_is(pool: KillerPool) -> None:
    assert repr(pool) == "<KillerPool of 2 workers, timeout=30.0>"
    assert repr(pool.options(timeout=1)) == f"<view of {pool!r}, timeout=1.0>"


def test_making_one_starts_nothing() -> None:
    killercall.shutdown()
    pool = KillerPool(2, initializer=abs, initargs=(1,))
    assert not _host._shared.roster.has_server()
    pool.shutdown()
    assert not _host._shared.roster.has_server()


def test_what_was_published_in_a_chunk() -> None:
    """Takes the place of the item; where nothing was, the deadline is told of."""

    def hang(value: int) -> None:
        if value == 0:
            killercall.publish(value)
        time.sleep(60)

    with KillerPool(1, timeout=0.5, on_timeout="partial") as pool:
        found = pool.map(hang, range(2), chunksize=2)
        assert next(found) == 0
        with pytest.raises(killercall.TimeoutError):
            next(found)
