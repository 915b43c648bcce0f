"""`.submit()`, `.aio()` and `async def` functions."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import functools
import gc
import os
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import _driver, _futures, killer_call
from processes import PATIENCE, is_running, run_script, wait_until

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ["forkserver", "spawn", "fork"]


def note_pid(path: str) -> None:
    """Says which process runs it, and hangs."""
    with open(path, "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("method", METHODS)
def test_a_future_has_the_value_or_the_exception(method: str) -> None:
    divide = killer_call(lambda a, b: a / b, timeout=30, start_method=method)
    good, bad = divide.submit(6, 3), divide.submit(1, b=0)
    assert good.result(PATIENCE) == 2
    assert isinstance(bad.exception(PATIENCE), ZeroDivisionError)
    with pytest.raises(ZeroDivisionError) as raised:
        bad.result()
    assert "Traceback" in str(raised.value.__cause__)
    assert good.done() and not good.cancelled() and not good.running()


def test_it_is_a_future_of_the_standard_library() -> None:
    square = killer_call(lambda x: x * x, timeout=30, cpus=2)
    futures = [square.submit(number) for number in range(10)]
    done, pending = concurrent.futures.wait(futures, timeout=PATIENCE)
    assert (10, 0) == (len(done), len(pending))
    by_end = concurrent.futures.as_completed(futures, timeout=PATIENCE)
    assert sorted(future.result() for future in by_end) == [number**2 for number in range(10)]


def test_a_deadline_is_kept_and_names_the_function() -> None:
    def bar(seconds: float) -> None:
        time.sleep(seconds)

    future = killer_call(bar, timeout=0.3).submit(60)
    error = future.exception(PATIENCE)
    assert isinstance(error, killercall.TimeoutError)
    assert str(error).startswith("function 'bar' timed out after 0.3s")
    assert not is_running(error.pid)


def test_on_timeout_counts_for_futures_too() -> None:
    nap = killer_call(time.sleep, timeout=0.2, on_timeout="default", default="late")
    assert nap.submit(60).result(PATIENCE) == "late"
    error = nap.options(on_timeout="return").submit(60).result(PATIENCE)
    assert isinstance(error, killercall.TimeoutError)


def test_a_death_is_told() -> None:
    error = killer_call(os._exit, timeout=30).submit(3).exception(PATIENCE)
    assert isinstance(error, killercall.WorkerDied)
    assert error.exitcode == 3


@pytest.mark.parametrize("method", METHODS)
def test_cancel_kills_a_running_call(method: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    future = killer_call(note_pid, timeout=60, start_method=method).submit(str(path))
    assert wait_until(lambda: bool(pids_in(path)), PATIENCE)
    assert future.running()
    said: list[bool] = []
    future.add_done_callback(lambda done: said.append(done.cancelled()))
    assert future.cancel()
    assert future.cancelled() and future.done() and said == [True]
    with pytest.raises(CancelledError):
        future.result()
    (pid,) = pids_in(path)
    assert wait_until(lambda: not is_running(pid), PATIENCE)
    assert future.cancel(), "again, as in the standard library"
    assert concurrent.futures.wait([future], timeout=PATIENCE).done == {future}


def test_cancel_takes_out_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    call = killer_call(note_pid, timeout=60, cpus=1)
    first, second = call.submit(str(path)), call.submit(str(path))
    assert wait_until(lambda: bool(pids_in(path)), PATIENCE)
    assert second.cancel()
    waiter = concurrent.futures.wait([second], timeout=PATIENCE)
    assert waiter.done == {second}
    assert first.cancel()
    assert killer_call(abs, cpus=1, timeout=30).submit(-1).result(PATIENCE) == 1
    assert len(pids_in(path)) == 1


def test_an_ended_call_is_not_cancelled() -> None:
    future = killer_call(abs, timeout=30).submit(-1)
    assert future.result(PATIENCE) == 1
    assert not future.cancel()
    assert future.result() == 1


def test_so_many_run_at_a_time(tmp_path: Path) -> None:
    call = killer_call(hostile.count_beside, timeout=30, cpus=3)
    futures = [call.submit(str(tmp_path)) for _ in range(20)]
    most = max(future.result(PATIENCE) for future in futures)
    assert 1 < most <= 3


def test_arguments_are_taken_when_they_are_submitted() -> None:
    call = killer_call(lambda items: list(items), timeout=30, cpus=1)
    items = [1, 2]
    futures = [call.submit(items) for _ in range(3)]
    items.append(3)
    assert [future.result(PATIENCE) for future in futures] == [[1, 2]] * 3


def test_what_cannot_be_pickled_fails_its_future() -> None:
    future = killer_call(abs, timeout=30).submit(threading.Lock())
    assert isinstance(future.exception(PATIENCE), killercall.SerializationError)


class Rude:
    """Cannot be unpickled in the host."""

    def __reduce__(self) -> Any:
        return refuse, (os.getpid(),)


def refuse(pid: int) -> int:
    """Raises elsewhere."""
    if os.getpid() != pid:
        message = "not here"
        raise LookupError(message)
    return pid


def test_what_cannot_be_unpickled_fails_its_future_for_everybody() -> None:
    future = killer_call(Rude, timeout=30).submit()
    errors = [future.exception(PATIENCE) for _ in range(2)]
    assert all(isinstance(error, killercall.SerializationError) for error in errors)
    with pytest.raises(killercall.SerializationError, match="not here"):
        future.result()


def test_callbacks_that_raise_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    call = killer_call(abs, timeout=30)
    future = call.submit(-1)
    future.add_done_callback(lambda _: 1 / 0)
    assert future.result(PATIENCE) == 1
    assert call.submit(-2).result(PATIENCE) == 2
    assert wait_until(lambda: "ZeroDivisionError" in caplog.text, PATIENCE)
    # Its traceback holds all that was there.
    caplog.clear()


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def test_a_callback_that_wants_to_leave_ends_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    future, seen = killer_call(wait_for, timeout=30).submit(str(tmp_path / "go")), []
    future.add_done_callback(lambda _: sys.exit(3))
    (tmp_path / "go").touch()
    assert wait_until(lambda: "SystemExit: 3" in caplog.text, PATIENCE)
    caplog.clear()
    other = killer_call(wait_for, timeout=30).submit(str(tmp_path / "on"))
    other.add_done_callback(seen.append)
    (tmp_path / "on").touch()
    assert wait_until(lambda: seen == [other], PATIENCE)


def test_without_a_thread_for_them_callbacks_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killercall.shutdown()
    start, refused, seen = threading.Thread.start, [], []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "killercall-callbacks":
            refused.append(thread)
            message = "can't start new thread"
            raise RuntimeError(message)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    future = killer_call(wait_for, timeout=30).submit(str(tmp_path / "go"))
    future.add_done_callback(seen.append)
    (tmp_path / "go").touch()
    assert wait_until(lambda: seen == [future], PATIENCE)
    assert 1 == len(refused)


def test_when_nobody_can_wait_for_them_all_futures_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    killercall.shutdown()
    wait, call = _driver._core.wait_any, killer_call(time.sleep, timeout=30, cpus=2)

    def refuse(scopes: list[object], *others: object) -> list[int]:
        if scopes:
            raise OSError(errno.EBADF, "no such descriptor")
        return wait(scopes, *others)

    with monkeypatch.context() as patch:
        patch.setattr(_driver._core, "wait_any", refuse)
        for future in [call.submit(60), call.submit(60)]:
            with pytest.raises(OSError, match="no such descriptor"):
                future.result(PATIENCE)
    assert call.submit(0).result(PATIENCE) is None


def test_methods_of_all_instances_share_a_lane() -> None:
    class Scale:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @killer_call(timeout=30, cpus=2)
        def times(self, x: int) -> int:
            return self.factor * x

    futures = [Scale(number).times.submit(2) for number in range(6)]
    assert [future.result(PATIENCE) for future in futures] == [0, 2, 4, 6, 8, 10]


def test_one_thread_drives_all_and_ends_at_shutdown() -> None:
    call = killer_call(abs, timeout=30, cpus=2)
    assert [call.submit(-n).result(PATIENCE) for n in range(3)] == [0, 1, 2]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("killercall") == 1
    killercall.shutdown()
    assert "killercall" not in [thread.name for thread in threading.enumerate()]
    assert call.submit(-7).result(PATIENCE) == 7


def test_shutdown_cancels_what_has_not_ended(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    call = killer_call(note_pid, timeout=60, cpus=1)
    futures = [call.submit(str(path)) for _ in range(3)]
    assert wait_until(lambda: bool(pids_in(path)), PATIENCE)
    killercall.shutdown()
    assert all(future.cancelled() for future in futures)
    assert not any(map(is_running, pids_in(path)))


def test_a_dropped_future_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "done"
    killer_call(lambda where: open(where, "x").close(), timeout=30).submit(str(path))
    gc.collect()
    assert wait_until(path.exists, PATIENCE)


def test_many_threads_submit_at_once() -> None:
    call = killer_call(lambda x: x + 1, timeout=30, cpus=2)
    got: list[int] = []

    def work(first: int) -> None:
        futures = [call.submit(first + number) for number in range(10)]
        got.extend(future.result(PATIENCE) for future in futures)

    threads = [threading.Thread(target=work, args=(10 * first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 81))


# asyncio


@killer_call(timeout=30)
async def twice(x: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * x


def test_a_coroutine_function_runs_in_the_worker() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(twice(1), twice(x=2), twice.aio(3))

    assert asyncio.run(main()) == [2, 4, 6]
    assert twice.submit(4).result(PATIENCE) == 8
    assert killercall.killer_pmap(twice, [1, 2], cpus=1, timeout=30) == [2, 4]


class Later:
    """Its instances are coroutine functions."""

    async def __call__(self, x: int) -> int:
        return x


def test_what_is_called_may_be_a_coroutine_function_inside() -> None:
    call = killer_call(functools.partial(Later(), 5), timeout=30)
    assert asyncio.run(call.aio()) == 5
    assert asyncio.run(killer_call(Later(), timeout=30)(6)) == 6


def test_a_coroutine_function_has_a_deadline() -> None:
    @killer_call(timeout=0.3)
    async def hang() -> None:
        await asyncio.sleep(60)

    with pytest.raises(killercall.TimeoutError, match="function 'hang' timed out after 0.3s"):
        asyncio.run(hang())


def test_cancelling_the_task_kills_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "pid"

    async def main() -> None:
        task = asyncio.create_task(killer_call(note_pid, timeout=60).aio(str(path)))
        assert await asyncio.to_thread(wait_until, lambda: bool(pids_in(path)), PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (pid,) = pids_in(path)
    assert wait_until(lambda: not is_running(pid), PATIENCE)


def test_two_hundred_at_once() -> None:
    """With four workers; a third is cancelled, a third is late."""

    def work(kind: int, number: int) -> int:
        time.sleep(60 if kind else 0.001)
        return number

    call = killer_call(work, timeout=0.25, cpus=4)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(call.aio(number % 3, number)) for number in range(200)]
        await asyncio.sleep(0)
        for task in tasks[1::3]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(main())
    assert ends[0::3] == list(range(0, 200, 3))
    assert all(isinstance(end, asyncio.CancelledError) for end in ends[1::3])
    assert all(isinstance(end, killercall.TimeoutError) for end in ends[2::3])


def test_async_generators_are_refused() -> None:
    async def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match="async generator"):
        killer_call(numbers)


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    assert killer_call(os.getpid).submit().result() == os.getpid()
    assert isinstance(killer_call(lambda: 1 / 0).submit().exception(), ZeroDivisionError)
    assert asyncio.run(twice(4)) == 8
    assert asyncio.run(killer_call(os.getpid).aio()) == os.getpid()


# The end of the interpreter

EXIT = """
import time
from killercall import _futures, killer_call
def write(seconds, path):
    time.sleep(seconds)
    open(path, "x").close()
    time.sleep(60 if path.endswith("endless") else 0)
limited = killer_call(write, timeout=30, cpus=1)
first, second = limited.submit(0.2, "{0}/first"), limited.submit(0.2, "{0}/second")
endless = killer_call(write, timeout=None, cpus=1)
late = [endless.submit(0, "{0}/endless"), endless.submit(0, "{0}/never")]
while not __import__("os").path.exists("{0}/endless"):
    time.sleep(0.01)
print("end")
"""


def test_the_interpreter_waits_for_calls_with_a_deadline(tmp_path: Path) -> None:
    """Also for those that wait their turn; others are killed."""
    start = time.monotonic()
    result = run_script(EXIT.format(tmp_path))
    assert (result.stdout, result.stderr) == ("end\n", "")
    assert sorted(os.listdir(tmp_path)) == ["endless", "first", "second"]
    assert time.monotonic() - start < 30


def test_a_call_on_its_way_at_the_exit_is_ended_too() -> None:
    """It comes in when all others have been ended."""
    code = """
import time
from killercall import _driver, killer_call
nap = killer_call(time.sleep, timeout=None)
call, lane = nap._queued((3600,), {}), nap._lane()
call.lane = lane
begin_exit = _driver.Driver._begin_exit
def begin(self):
    begin_exit(self)
    lane._enter(call)
_driver.Driver._begin_exit = begin
print(killer_call(abs, timeout=30).submit(-1).result())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_too_late_is_a_runtime_error() -> None:
    code = """
import atexit
from killercall import _futures, killer_call
call = killer_call(abs, timeout=5)
def last():
    try:
        print(call.submit(-1).result())
    except RuntimeError as error:
        print("RuntimeError")
atexit.register(last)
print(call.submit(-2).result())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("2\nRuntimeError\n", "")


def test_a_forked_copy_has_futures_of_its_own() -> None:
    code = """
import os
from killercall import _futures, killer_call
call = killer_call(abs, timeout=30)
print(call.submit(-1).result(), flush=True)
unfinished = killer_call(__import__("time").sleep, timeout=60).submit(30)
pid = os.fork()
print(call.submit(-2).result(), flush=True)
if pid == 0:
    for ask in (unfinished.result, unfinished.exception):
        try:
            ask()
        except RuntimeError as error:
            assert "forked copy" in str(error)
        else:
            os._exit(1)
    unfinished.cancel()
    os._exit(0)
print(os.waitpid(pid, 0)[1], unfinished.running(), unfinished.cancel())
print(call.submit(-3).result())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("1\n2\n2\n0 True True\n3\n", "")


# What user code can do to the thread that drives


def test_a_slow_exception_delays_nobody_else() -> None:
    code = """
import os, time
from killercall import _futures, killer_call
class Slow(Exception):
    def __reduce__(self):
        return rebuild, (os.getpid(),)
def rebuild(pid):
    if os.getpid() != pid:
        time.sleep(3600)
    return Slow()
def fail():
    raise Slow
slow = killer_call(fail, timeout=30, cpus=2).submit()
while not slow.done():
    time.sleep(0.01)
print(killer_call(abs, timeout=30).submit(-1).result())
print(slow.cancel())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("1\nFalse\n", "")


def test_stop_iteration_ends_the_wait() -> None:
    def stop() -> None:
        raise StopIteration(3)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(killer_call(stop, timeout=30).aio())
    assert isinstance(killer_call(stop, timeout=30).submit().exception(PATIENCE), StopIteration)


def test_cancel_kills_whatever_callbacks_do(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    future = killer_call(note_pid, timeout=None).submit(str(path))
    assert wait_until(lambda: bool(pids_in(path)), PATIENCE)

    def leave(_: object) -> None:
        raise SystemExit

    future.add_done_callback(leave)
    with pytest.raises(SystemExit):
        future.cancel()
    (pid,) = pids_in(path)
    assert wait_until(lambda: not is_running(pid), PATIENCE)


def test_shutdown_ends_what_submits_again(caplog: pytest.LogCaptureFixture) -> None:
    call = killer_call(abs, timeout=30)
    count = 0

    def again(_: object) -> None:
        nonlocal count
        count += 1
        if count < 10_000:
            call.submit(-1).add_done_callback(again)

    call.submit(-1).add_done_callback(again)
    assert wait_until(lambda: count > 3, PATIENCE)
    killercall.shutdown()
    assert count < 10_000
    assert "while shutdown" in caplog.text
    caplog.clear()


def test_without_a_thread_a_submitted_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    killercall.shutdown()
    call = killer_call(abs, timeout=30)

    def refuse(_: object) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            call.submit(-1)
    assert call.submit(-2).result(PATIENCE) == 2


def test_a_forked_copy_ends_while_its_parent_submits() -> None:
    code = """
import os, sys, threading
from killercall import _futures, killer_call
call = killer_call(abs, timeout=30, cpus=2)
call.submit(-1).result()
is_over = False
def work():
    while not is_over:
        call.submit(-1).cancel()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
is_over = True
for thread in threads:
    thread.join()
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


def test_deadlines_do_not_wait_for_callbacks(tmp_path: Path) -> None:
    """Nor do results, nor what callbacks wait for; `shutdown` waits until they have run."""
    path = tmp_path / "pid"
    may_end = threading.Event()
    said: list[Any] = []
    quick = killer_call(abs, timeout=30)

    def linger(_: object) -> None:
        said.append(quick.submit(-2).result(PATIENCE))
        may_end.wait(PATIENCE)
        said.append("end")

    quick.submit(-1).add_done_callback(linger)
    assert wait_until(lambda: bool(said), PATIENCE)
    late = killer_call(note_pid, timeout=0.3).submit(str(path))
    late.add_done_callback(lambda _: said.append("late"))
    error = late.exception(PATIENCE)
    assert isinstance(error, killercall.TimeoutError)
    assert not any(map(is_running, pids_in(path)))
    assert asyncio.run(quick.aio(-3)) == 3
    assert said == [2], "the callback goes on"
    may_end.set()
    killercall.shutdown()
    assert said == [2, "end", "late"]


def test_user_code_of_failures_does_not_run_in_the_thread_that_drives() -> None:
    """Exceptions and publications are unpickled by whoever asks."""
    code = """
import os, threading, time
from killercall import KillerPool, killer_actor, killer_call, publish
class Slow(Exception):
    def __reduce__(self):
        return rebuild, (os.getpid(),)
def rebuild(pid):
    if os.getpid() != pid:
        time.sleep(0 if threading.current_thread().name == "MainThread" else 3600)
    return Slow()
def fail(*_):
    raise Slow
def hang(*_):
    publish(Slow())
    time.sleep(3600)
@killer_actor(timeout=30)
class Object:
    fail, hang = fail, hang
def told(future):
    error = future.exception(20)
    return type(error).__name__, type(getattr(error, "partial", None)).__name__
actor = Object()
print(told(actor.fail.submit()), told(actor.hang.options(timeout=0.5).submit()))
with KillerPool(1, timeout=0.5) as pool:
    print(told(pool.submit(hang)))
    try:
        list(pool.map(fail, range(2), chunksize=2))
    except Slow:
        print("Slow")
broken = KillerPool(1, initializer=fail)
print(told(broken.submit(abs, -1)))
print(killer_call(abs, timeout=30).submit(-1).result())
"""
    result = run_script(code)
    expected = (
        "('Slow', 'NoneType') ('TimeoutError', 'Slow')\n('TimeoutError', 'Slow')\nSlow\n"
        "('WorkerStartError', 'NoneType')\n1\n"
    )
    assert (result.stdout, result.stderr) == (expected, "")


def test_cancelling_many_takes_a_time_in_proportion() -> None:
    """Those that wait their turn; the last ones first."""

    def seconds(count: int) -> float:
        lane = _futures.Lane(0)
        calls = [
            _futures.Call(lambda: None, print, has_deadline=True, gently=False)  # type: ignore[arg-type, return-value]
            for _ in range(count)
        ]
        for call in calls:
            lane._enter(call)
        # Of this thread alone: what else the machine does is not in it.
        start = time.thread_time()
        assert all(lane.withdraw(call) for call in reversed(calls))
        assert not lane.withdraw(calls[0])
        return time.thread_time() - start

    few = min(seconds(1_000) for _ in range(5))
    assert min(seconds(16_000) for _ in range(2)) < 80 * few
