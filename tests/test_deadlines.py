"""The caller has its answer at the deadline, and nothing of the call runs on."""

from __future__ import annotations

import inspect
import math
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import killer_call
from processes import PATIENCE, is_running, lines, recorded, still_running, took, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]

# How many processes each of them records, guard and forkserver included.
HANGS: dict[Callable[[str], Any], int] = {
    hostile.busy_loop: 3,
    hostile.hold_gil_in_pow: 3,
    hostile.hold_gil_in_regex: 3,
    hostile.block_on_lock: 3,
    hostile.swallow_everything: 3,
    hostile.ignore_sigterm: 3,
    hostile.block_all_signals: 3,
    hostile.stop_itself: 3,
    hostile.escape_to_own_session: 4,
    hostile.start_children: 5,
    hostile.relay_race: 3,
    hostile.return_hanging: 3,
    hostile.note_and_nap: 3,
}
# Those that no signal for a stack dump reaches, and the one whose function has returned.
NO_STACK = {hostile.block_all_signals, hostile.stop_itself, hostile.return_hanging}


def by_name(value: object) -> str | None:
    """Test ids."""
    return getattr(value, "__name__", None)


def miss(call: Callable[..., Any], path: Path, *args: Any) -> killercall.TimeoutError:
    """Calls with the path of a record; the error, after a look at once for who still runs."""
    try:
        value = call(str(path), *args)
    except killercall.TimeoutError as error:
        running = still_running(path)
        assert {} == running
        return error
    pytest.fail(f"returned {value!r}")


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("hang", HANGS, ids=by_name)
def test_deadline_is_kept_whatever_it_does(
    hang: Callable[[str], Any], method: str, tmp_path: Path
) -> None:
    """
    The error comes in time, and no process of the call is alive then.

    It has its exact text, limit, time, pid and stack, and costs no other call.
    """
    record = tmp_path / "pids"
    call = killer_call(hang, timeout=0.3, start_method=method)
    pid = killer_call(hostile.pid, start_method=method)
    warm = pid()

    with took(0.3, PATIENCE):
        error = miss(call, record)

    assert f"function {hang.__name__!r} timed out after 0.3s" == str(error)
    assert (hang.__name__, 0.3) == (error.function, error.timeout)
    assert 0.3 <= error.elapsed < PATIENCE
    assert recorded(record, "worker") == [error.pid]
    assert HANGS[hang] == len(recorded(record))
    machinery = recorded(record, "machinery")
    of_call = [pid for pid in recorded(record) if pid not in machinery]
    assert [] == wait_until_reaped(of_call)
    if hang not in NO_STACK:
        with_stack = error
        again = iter(range(3))
        while with_stack.stack is None:
            # A dump has 20 ms, in which a busy machine may not let the worker run at all.
            with_stack = miss(call, tmp_path / f"again{next(again)}")
        assert_stack_leads_to(hang, with_stack)
    if method != "fork":
        assert warm == error.pid
    after = pid()
    assert after != warm
    if method != "fork":
        assert after == pid()


def assert_stack_leads_to(function: Callable[..., Any], error: killercall.TimeoutError) -> None:
    """The stack names the function and a line in it, has no frame of ours, and is in the notes."""
    source, first = inspect.getsourcelines(function)
    assert error.stack is not None
    ends = f" in {function.__name__}"
    frames = [line for line in error.stack.splitlines() if line.endswith(ends)]
    assert 1 == len(frames), error.stack
    assert hostile.__file__ in frames[0]
    number = int(frames[0].split(", line ")[1].split(" in ")[0])
    assert first < number < first + len(source)
    assert any(error.stack.rstrip() in note for note in error.__notes__)
    assert "killercall" not in error.stack


def wait_until_reaped(pids: list[int]) -> list[int]:
    """Those that still exist, as zombies, after a while; the kernel may take its time."""
    wait_until(lambda: not any(map(exists, pids)))
    return [pid for pid in pids if exists(pid)]


def exists(pid: int) -> bool:
    """Whether the process exists, dead or alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_attributes_of_every_error() -> None:
    """Those that a plain call leaves empty, and the bases."""
    with pytest.raises(killercall.TimeoutError) as caught:
        killer_call(hostile.nap, timeout=0.2)(60)

    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, killercall.KillerError)
    assert (None, None, None) == (error.partial, error.item, error.index)


@pytest.mark.parametrize("timeout", [1, timedelta(milliseconds=300)])
def test_timeout_attribute_is_seconds_as_a_float(timeout: Any) -> None:
    """Whatever was given."""
    with pytest.raises(killercall.TimeoutError) as caught:
        killer_call(hostile.nap, timeout=timeout)(60)

    expected = timeout.total_seconds() if isinstance(timeout, timedelta) else 1.0
    assert expected == caught.value.timeout
    assert float is type(caught.value.timeout)


def test_stack_of_stopped_process_is_not_waited_for(tmp_path: Path) -> None:
    """A worker that cannot tell its stack is killed all the same, and soon."""
    with took(0.3, 3):
        error = miss(killer_call(hostile.stop_itself, timeout=0.3), tmp_path / "pids")

    assert error.stack is None


@pytest.mark.parametrize(
    ("timeout", "text"), [(4, "4s"), (4.0, "4s"), (0.25, "0.25s"), (1.0, "1s"), (90, "90s")]
)
def test_text(timeout: float, text: str) -> None:
    """Whole numbers of seconds have no decimals."""
    assert f"function 'bar' timed out after {text}" == str(killercall.TimeoutError("bar", timeout))


@pytest.mark.parametrize("timeout", [0.25, timedelta(milliseconds=250)], ids=str)
def test_text_of_call(timeout: object) -> None:
    """A length of time reads the same however it was given."""

    def bar() -> None:
        time.sleep(hostile.FOREVER)

    with pytest.raises(killercall.TimeoutError) as caught:
        killer_call(bar, timeout=timeout)()

    assert "function 'bar' timed out after 0.25s" == str(caught.value)
    assert caught.value.timeout == 0.25


def test_builtin_timeout_error_catches_it() -> None:
    """Code that knows nothing of killercall catches the builtin."""
    with pytest.raises(TimeoutError) as caught:
        killer_call(hostile.nap, timeout=0.2)(60)

    assert str(caught.value) == "function 'nap' timed out after 0.2s"


def test_unpickling_arguments_counts() -> None:
    """The clock runs while the worker unpickles."""
    with took(0.3, PATIENCE), pytest.raises(killercall.TimeoutError):
        killer_call(hostile.take, timeout=0.3)(hostile.HangsWhenLoaded())


def test_starting_a_worker_does_not_count() -> None:
    """The clock starts when a ready worker has the call."""
    call = killer_call(hostile.pid, timeout=0.5, initializer=hostile.nap, initargs=(0.8,))

    assert call() != os.getpid()


def test_finished_in_time_is_not_killed() -> None:
    """Calls just under their limit return."""
    call = killer_call(hostile.nap, timeout=0.6)

    assert [0.3] * 3 == [call(0.3) for _ in range(3)]


@pytest.mark.parametrize("seconds", [0.1, 0.2])
def test_as_long_as_the_limit_is_too_long(seconds: float) -> None:
    """A function that sleeps for just its limit cannot have answered by then."""
    call = killer_call(hostile.nap, timeout=seconds, on_timeout="default", default="late")

    assert ["late"] * 10 == [call(seconds) for _ in range(10)]


def test_none_is_no_limit() -> None:
    """Without a limit a call takes its time."""
    assert killer_call(hostile.nap, timeout=None)(0.2) == 0.2


def test_very_long_limit() -> None:
    """A limit of centuries overflows nothing."""
    assert killer_call(hostile.nap, timeout=1e300)(0) == 0
    assert killer_call(hostile.nap, timeout=10**400)(0) == 0
    assert killer_call(hostile.nap, timeout=timedelta.max)(0) == 0


def test_very_short_limit() -> None:
    """A limit that nothing can keep is an orderly timeout."""
    for _ in range(20):
        with pytest.raises(killercall.TimeoutError):
            killer_call(hostile.nap, timeout=1e-9)(1)
    assert killer_call(hostile.nap)(0) == 0


def test_many_deadlines_at_once(tmp_path: Path) -> None:
    """Threads that call at the same time each have their own deadline, and only that."""
    errors: list[str] = []
    values: list[float] = []

    def late() -> None:
        try:
            killer_call(hostile.note_and_nap, timeout=0.4)(str(tmp_path / "pids"))
        except killercall.TimeoutError as error:
            errors.append(str(error))

    def early() -> None:
        values.append(killer_call(hostile.nap, timeout=30)(0.8))

    threads = [threading.Thread(target=target) for target in (late, early) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ["function 'note_and_nap' timed out after 0.4s"] * 4 == errors
    assert [0.8] * 4 == values
    assert not any(map(is_running, recorded(tmp_path / "pids", "worker")))


def test_caller_is_not_held_up_by_output() -> None:
    """A worker that floods standard error is neither stuck nor late."""
    assert killer_call(hostile.flood_stderr)(1_000_000) == 1_000_000


# Grace.


def test_grace_lets_finally_run(tmp_path: Path) -> None:
    """The polite end raises in the function, and the answer comes when it has cleaned up."""
    done = tmp_path / "done"
    call = killer_call(hostile.finally_writes, timeout=0.3, grace=8)

    with took(0.4, 5):
        error = miss(call, tmp_path / "pids", str(done))

    assert ["finally"] == lines(done)
    assert "function 'finally_writes' timed out after 0.3s" == str(error)
    assert error.timeout == 0.3


@pytest.mark.parametrize("method", START_METHODS)
def test_grace_raises_timeout_error_in_the_function(method: str, tmp_path: Path) -> None:
    """It has the text of the caller's; what is returned after the deadline is too late."""
    done = tmp_path / "done"
    call = killer_call(hostile.return_when_told, timeout=0.3, grace=8, start_method=method)

    with took(0.3, 5):
        error = miss(call, tmp_path / "pids", str(done))

    assert ["function 'return_when_told' timed out after 0.3s"] == lines(done)
    assert lines(done) == [str(error)]


def test_no_grace_kills_at_once(tmp_path: Path) -> None:
    """Without a grace period nothing in the function runs after the deadline."""
    done = tmp_path / "done"
    call = killer_call(hostile.finally_writes, timeout=0.3)

    miss(call, tmp_path / "pids", str(done))

    assert [] == lines(done)


@pytest.mark.parametrize(
    "hang",
    [
        hostile.swallow_everything,
        hostile.ignore_sigterm,
        hostile.stop_itself,
    ],
    ids=by_name,
)
def test_who_ignores_grace_is_killed_after_it(hang: Callable[[str], Any], tmp_path: Path) -> None:
    """The answer comes when timeout and grace have passed."""
    with took(0.7, PATIENCE):
        error = miss(killer_call(hang, timeout=0.3, grace=0.4), tmp_path / "pids")

    assert f"function {hang.__name__!r} timed out after 0.3s" == str(error)


def test_grace_as_timedelta(tmp_path: Path) -> None:
    """Grace takes what timeout takes."""
    call = killer_call(hostile.finally_writes, timeout=0.2, grace=timedelta(seconds=8))

    miss(call, tmp_path / "pids", str(tmp_path / "done"))

    assert ["finally"] == lines(tmp_path / "done")


def test_grace_does_not_disturb_the_next_call(tmp_path: Path) -> None:
    """After a polite end the next call works, with and without grace."""
    call = killer_call(hostile.return_when_told, timeout=0.3, grace=8)

    miss(call, tmp_path / "pids", str(tmp_path / "done"))

    assert killer_call(hostile.same, grace=1)(3) == 3
    assert killer_call(hostile.same)(4) == 4


def test_elapsed_includes_grace_or_not_but_is_finite(tmp_path: Path) -> None:
    """Elapsed is at least the limit."""
    error = miss(killer_call(hostile.ignore_sigterm, timeout=0.2, grace=0.2), tmp_path / "pids")

    assert 0.2 <= error.elapsed < PATIENCE
    assert math.isfinite(error.elapsed)


def test_deadlines_while_the_forkserver_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that wants a module that takes seconds costs nobody else the deadline, or the worker."""
    (tmp_path / "takes_long.py").write_text("import time\ntime.sleep(3)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    warm = killer_call(hostile.nap, timeout=30)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(warm, [0.2] * 3))
        neighbour = threads.submit(warm, 4)
        imports = threads.submit(killer_call(abs, preload=["takes_long"]), -1)
        # By then the import has begun and is not over.
        hostile.nap(0.7)
        for _ in range(2):
            with took(0.1, 2), pytest.raises(killercall.TimeoutError):
                killer_call(hostile.nap, timeout=0.1)(60)
        assert not imports.done()
        assert 1 == imports.result()
        assert 4 == neighbour.result()


def test_kill_while_forkserver_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill does not wait until all workers that were asked for are forked; nor is it lost."""
    slow = "import os, time; os.register_at_fork(before=lambda: time.sleep(0.1))"
    (tmp_path / "slow_fork.py").write_text(slow, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    killercall.shutdown()
    killercall.preload("slow_fork")
    assert killer_call(hostile.same)(1) == 1
    same = killer_call(hostile.same, timeout=30, reuse=False)

    with ThreadPoolExecutor(16) as threads:
        late = threads.submit(killer_call(hostile.nap, timeout=0.2), hostile.FOREVER)
        others = [threads.submit(same, number) for number in range(15)]

    assert isinstance(late.exception(), killercall.TimeoutError)
    assert list(range(15)) == [other.result() for other in others]


def leave_children(stops_forkserver: bool) -> tuple[int, list[int]]:  # ruff: ignore[boolean-type-hint-positional-argument] - goes to a worker
    """Leaves two in the background, of whom one has left the session; who has to reap them."""
    parent = os.getppid()
    if stops_forkserver:
        os.kill(parent, signal.SIGSTOP)
    command = ["sleep", "300"]
    left = [subprocess.Popen(command, start_new_session=new).pid for new in (False, True)]
    return parent, left


@pytest.mark.parametrize("calls", [1, 2])
def test_what_the_last_call_of_a_worker_leaves_is_dead_with_its_answer(calls: int) -> None:
    """Nobody else has to do it."""
    call = killer_call(leave_children, timeout=30, reuse=calls)
    earlier = [call(False)[1] for _ in range(calls - 1)]
    forkserver, left = call(True)
    try:
        running = [pid for pids in [*earlier, left] for pid in pids if is_running(pid)]
    finally:
        os.kill(forkserver, signal.SIGCONT)
    assert [] == running
