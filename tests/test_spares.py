"""Workers that are started ahead of need."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import hostile
import killercall
from killercall import _host, killer_call
from processes import PATIENCE, is_running, run_script, wait_until, waiting_workers

if TYPE_CHECKING:
    from pathlib import Path


def ready_spare() -> int:
    """The one worker that waits."""
    assert wait_until(lambda: _host.idle_workers() == 1)
    (pid,) = waiting_workers()
    return pid


def miss_deadline() -> None:
    """A call that is killed at its deadline."""
    with pytest.raises(killercall.TimeoutError):
        killer_call(time.sleep, timeout=0.2)(60)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_fresh_call_finds_a_worker(method: str) -> None:
    """Each runs in a process of its own, which was there before."""
    call = killer_call(os.getpid, reuse=False, timeout=30, start_method=method)
    used = {call()}
    for _ in range(3):
        spare = ready_spare()
        assert spare not in used
        assert spare == call()
        used.add(spare)


def test_a_worn_out_worker_is_replaced() -> None:
    """The spare is there after the last call that a worker may serve, not before."""
    call = killer_call(os.getpid, reuse=2, timeout=30)
    first = call()
    assert first == ready_spare()
    assert first == call()
    assert first != ready_spare()


def test_the_call_after_a_kill_finds_a_worker() -> None:
    """It was started before the deadline had passed."""
    miss_deadline()
    spare = ready_spare()
    assert spare == killer_call(os.getpid, timeout=30)()


def test_warm_calls_pay_for_none() -> None:
    """Their worker is all there is, also when one spare of theirs has become it."""
    call = killer_call(os.getpid, timeout=30)
    assert 1 == len({call() for _ in range(5)})
    assert 1 == _host.idle_workers()
    miss_deadline()
    assert 1 == len({call() for _ in range(5)})
    assert 1 == _host.idle_workers()


def test_calls_back_to_back_have_two_at_most() -> None:
    """However many there are, and from several threads."""
    call = killer_call(abs, reuse=False, timeout=30)
    threads = [threading.Thread(target=lambda: [call(-1) for _ in range(5)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(waiting_workers()) <= 2


def test_kinds_have_eight_at_most() -> None:
    """Spares of kinds that are not used any more make room."""
    for number in range(12):
        killer_call(abs, reuse=False, timeout=30, env={"NUMBER": str(number)})(-1)
    assert wait_until(lambda: len(waiting_workers()) <= 8)


def test_shutdown_ends_them() -> None:
    """A spare is a worker like others."""
    killer_call(abs, reuse=False, timeout=30)(-1)
    spare = ready_spare()
    killercall.shutdown()
    assert not is_running(spare)
    assert 0 == _host.idle_workers()


def test_a_cancelled_call_leaves_none(tmp_path: Path) -> None:
    """Who has interrupted a call has had enough."""
    call = killer_call(hostile.busy_loop, timeout=30)
    main = threading.get_ident()

    def interrupt() -> None:
        wait_until((tmp_path / "pids").exists)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        call(str(tmp_path / "pids"))
    thread.join()
    assert 0 == _host.idle_workers()


def fail_after_first(path: str) -> None:
    """An initializer that works once, and notes each try."""
    with open(path, "a", encoding="ascii") as file:
        file.write("x")
    if os.path.getsize(path) > 1:
        raise RuntimeError("no more")


def test_an_initializer_that_fails_is_not_tried_for_ever(tmp_path: Path) -> None:
    """A spare that could not be set up is not replaced; the next call tries itself, and says so."""
    path = tmp_path / "tries"
    call = killer_call(
        abs, reuse=False, timeout=30, initializer=fail_after_first, initargs=(str(path),)
    )
    assert 1 == call(-1)
    assert wait_until(lambda: path.stat().st_size == 2)
    wait_until(lambda: not waiting_workers())
    with pytest.raises(killercall.WorkerStartError, match="no more"):
        call(-1)
    tries = path.stat().st_size
    assert tries <= 3
    time.sleep(0.3)
    assert tries == path.stat().st_size


def surroundings() -> tuple[str, str | None, str]:
    return os.getcwd(), os.environ.get("KILLERCALL_TEST_SPARE"), sys.path[-1]


def test_a_spare_follows_what_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory, environment and path are those at the call, not those at the spare's start."""
    call = killer_call(surroundings, reuse=False, timeout=30)
    call()
    ready_spare()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILLERCALL_TEST_SPARE", "here")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert (str(tmp_path), "here", str(tmp_path)) == call()


def test_what_a_spare_has_tried_out_leaves_no_trace() -> None:
    """It is as a worker that found its call waiting: same modules, same `__main__`, nothing printed."""
    code = """
import sys, threading, time
from killercall import killer_call
def trace():
    # What our pickler needs is no trace.
    return sorted(set(sys.modules) - {"opcode", "_opcode", "_opcode_metadata"}), sorted(vars(sys.modules["__main__"])), threading.active_count()
call = killer_call(trace, reuse=False, timeout=30)
first = call()
for _ in range(3):
    time.sleep(0.3)
    assert call() == first
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


def test_fresh_calls_see_what_has_changed() -> None:
    """Though nothing is pickled again as long as nothing has."""
    code = """
import os
from killercall import killer_call
rate, table, late = 1, [1, 2], None
def price(x):
    return x * rate, table, late and late(), os.environ.get("MARK")
call = killer_call(price, reuse=False, timeout=30)
assert [call(2) for _ in range(3)] == [(2, [1, 2], None, None)] * 3
rate = 5
assert call(2) == (10, [1, 2], None, None)
table.append(3)
assert call(2) == (10, [1, 2, 3], None, None)
late = lambda: "late"
assert call(2) == (10, [1, 2, 3], "late", None)
os.environ["MARK"] = "here"
assert call(2) == (10, [1, 2, 3], "late", "here")
if os.fork() == 0:
    rate = 7
    assert call(2) == (14, [1, 2, 3], "late", "here")
    print("child right", flush=True)
    os._exit(0)
os.wait()
assert call(2) == (10, [1, 2, 3], "late", "here")
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("child right\nright\n", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_happens_to_a_spare_costs_time_only(number: signal.Signals) -> None:
    """One that was killed is passed over; one that was stopped is told to go on."""
    call = killer_call(abs, reuse=False, timeout=3)
    call(-1)
    os.kill(ready_spare(), number)
    assert 1 == call(-1)


def test_a_fresh_worker_runs_nothing_after_its_answer(tmp_path: Path) -> None:
    """Not even in a thread."""
    path = tmp_path / "ticks"

    def leave_thread() -> None:
        def tick() -> None:
            with open(path, "ab", buffering=0) as file:
                while True:
                    file.write(b"x")

        threading.Thread(target=tick, daemon=True).start()
        wait_until(path.exists, PATIENCE)

    killer_call(leave_thread, reuse=False, timeout=30)()
    size = path.stat().st_size
    time.sleep(0.1)
    assert size == path.stat().st_size
