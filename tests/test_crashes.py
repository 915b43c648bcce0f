"""A worker that dies or harms others costs one call, and the error tells how."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import killer_call, killer_pmap
from processes import (
    PATIENCE,
    TESTS,
    is_running,
    lines,
    open_fds,
    recorded,
    run_script,
    still_running,
    took,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]

# Function, its arguments, exit code, signal.
DEATHS = [
    pytest.param(hostile.exit_hard, (0,), 0, None, id="os._exit(0)"),
    pytest.param(hostile.exit_hard, (7,), 7, None, id="os._exit(7)"),
    pytest.param(hostile.exit_softly, (), 0, None, id="sys.exit()"),
    pytest.param(hostile.exit_softly, (0,), 0, None, id="sys.exit(0)"),
    pytest.param(hostile.exit_softly, (7,), 7, None, id="sys.exit(7)"),
    pytest.param(hostile.exit_softly, (300,), 44, None, id="sys.exit(300)"),
    pytest.param(hostile.exit_softly, ("text",), 1, None, id="sys.exit(text)"),
    pytest.param(hostile.crash, (), -signal.SIGSEGV, "SIGSEGV", id="SIGSEGV"),
    pytest.param(hostile.abort, (), -signal.SIGABRT, "SIGABRT", id="SIGABRT"),
    pytest.param(
        hostile.signal_itself, (signal.SIGKILL,), -signal.SIGKILL, "SIGKILL", id="SIGKILL"
    ),
    pytest.param(
        hostile.signal_itself, (signal.SIGTERM,), -signal.SIGTERM, "SIGTERM", id="SIGTERM"
    ),
    pytest.param(hostile.signal_itself, (signal.SIGBUS,), -signal.SIGBUS, "SIGBUS", id="SIGBUS"),
    pytest.param(hostile.signal_itself, (signal.SIGFPE,), -signal.SIGFPE, "SIGFPE", id="SIGFPE"),
    pytest.param(hostile.signal_itself, (signal.SIGILL,), -signal.SIGILL, "SIGILL", id="SIGILL"),
]
# The fatal signals, at which a worker can still write where it was.
WITH_STACK = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize(("function", "arguments", "exitcode", "name"), DEATHS)
def test_exit_code_and_signal(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    exitcode: int,
    name: str | None,
    method: str,
) -> None:
    """The error has exit code, signal and pid, and the next call works."""
    options: dict[str, Any] = {"timeout": 30, "start_method": method}

    with took(0, PATIENCE), pytest.raises(killercall.WorkerDied) as caught:
        killer_call(function, **options)(*arguments)

    error = caught.value
    assert exitcode == error.exitcode
    assert name == error.signal
    assert function.__name__ == error.function
    assert isinstance(error.pid, int)
    assert not is_running(error.pid)
    assert repr(function.__name__) in str(error)
    assert f"pid {error.pid}" in str(error)
    assert (name or f"code {exitcode}") in str(error)
    if name in WITH_STACK:
        assert error.stack is not None
        assert f" in {function.__name__}" in error.stack
        assert hostile.__file__ in error.stack
        assert any(error.stack.rstrip() in note for note in error.__notes__)
    else:
        assert error.stack is None
    assert killer_call(hostile.same, **options)("next") == "next"


def test_no_stack_where_there_is_none() -> None:
    """SIGKILL and exits leave no stack, nor that of an earlier timeout."""
    for function, argument in ((hostile.signal_itself, 9), (hostile.exit_hard, 3)):
        with pytest.raises(killercall.WorkerDied) as caught:
            killer_call(function)(argument)
        assert caught.value.stack is None


def test_sys_exit_text_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """As in a script, the text goes to standard error."""
    with pytest.raises(killercall.WorkerDied):
        killer_call(hostile.exit_softly)("the reason")

    assert "the reason\n" == capfd.readouterr().err


def test_crash_is_quiet_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """What is in the error is not printed besides."""
    with pytest.raises(killercall.WorkerDied):
        killer_call(hostile.crash)()

    assert "" == capfd.readouterr().err


@pytest.mark.parametrize("method", START_METHODS)
def test_death_takes_children_along(method: str, tmp_path: Path) -> None:
    """Whatever a worker started ends with it, also when it dies by itself."""

    def leave_children(path: str) -> None:
        if os.fork() == 0:
            hostile.escape_to_own_session(path)
        hostile.note_worker(path)
        # Worker, machinery, child with its machinery, grandchild.
        hostile._wait_for_lines(path, 7)
        os._exit(5)

    with pytest.raises(killercall.WorkerDied) as caught:
        killer_call(leave_children, timeout=20, start_method=method)(str(tmp_path / "pids"))

    worker = caught.value.pid
    pids = [pid for pid in recorded(tmp_path / "pids", "worker", "grandchild") if pid != worker]
    running = [pid for pid in pids if is_running(pid)]
    assert [] == running
    assert 5 == caught.value.exitcode


# With "fork" the worker, and the child with it, ends as soon as the call has returned.
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("function", [hostile.fork_and_return, hostile.fork_and_raise])
def test_child_of_the_function_does_not_answer(
    function: Callable[[str], int], method: str, tmp_path: Path
) -> None:
    """Who forks and comes back twice has one answer, and the child does not run on."""
    record = tmp_path / "pids"
    call = killer_call(function, start_method=method)

    worker = call(str(record))

    assert [worker] == recorded(record, "worker")
    wait_until(lambda: recorded(record, "child"))
    (child,) = recorded(record, "child")
    wait_until(lambda: not is_running(child))
    assert not is_running(child)
    pids = [killer_call(hostile.pid, start_method=method)() for _ in range(20)]
    assert child not in pids
    assert [hostile.same(i) for i in range(20)] == [killer_call(hostile.same)(i) for i in range(20)]


def test_child_of_the_function_may_exit() -> None:
    """`sys.exit` in a forked child is the child's own affair."""
    call = killer_call(hostile.exit_in_child_after_fork)

    assert call() == call()


@pytest.mark.parametrize("method", START_METHODS)
def test_closing_all_fds_and_returning(method: str) -> None:
    """The call ends, with its value or with an error, and the next one works."""
    call = killer_call(hostile.close_fds_and_return, timeout=5, start_method=method)

    with took(0, 4):
        try:
            assert call() != os.getpid()
        except killercall.WorkerDied as error:
            assert error.pid is not None

    assert killer_call(hostile.same, start_method=method)(1) == 1


@pytest.mark.parametrize("method", START_METHODS)
def test_closing_all_fds_and_hanging(method: str, tmp_path: Path) -> None:
    """The deadline holds without any channel, and so does the tree kill."""
    record = tmp_path / "pids"
    call = killer_call(hostile.close_fds_and_hang, timeout=0.4, start_method=method)

    with took(0, PATIENCE), pytest.raises(killercall.KillerError) as caught:
        call(str(record))

    assert {} == still_running(record)
    assert isinstance(caught.value, (killercall.TimeoutError, killercall.WorkerDied))
    assert killer_call(hostile.same, start_method=method)(1) == 1


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("which", ["forkserver", "guard"])
def test_killing_the_machinery(which: str, method: str, tmp_path: Path) -> None:
    """A lost forkserver or guard ends the calls in flight, and the next call has new ones."""
    record = tmp_path / "pids"
    call = killer_call(hostile.signal_machinery, timeout=30, start_method=method)

    with took(0, PATIENCE), pytest.raises(killercall.WorkerDied) as caught:
        call(which, signal.SIGKILL, str(record))

    assert "signal_machinery" == caught.value.function
    assert recorded(record, "worker") == [caught.value.pid]
    pids = recorded(record)
    wait_until(lambda: not any(map(is_running, pids)))
    assert [] == [pid for pid in pids if is_running(pid)]
    assert killer_call(hostile.same, start_method=method)("next") == "next"


@pytest.mark.parametrize("which", ["forkserver", "guard"])
def test_nothing_runs_once_the_killed_machinery_is_told_of(which: str, tmp_path: Path) -> None:
    """Whichever of the two is killed, the other has swept when the caller has its answer."""
    record = tmp_path / "pids"
    call = killer_call(hostile.kill_machinery_of_many, timeout=30)

    with took(0, PATIENCE), pytest.raises(killercall.WorkerDied):
        call(which, str(record))

    pids = recorded(record, "worker", "child")
    assert 31 == len(pids)
    assert [] == [pid for pid in pids if is_running(pid)]


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize("which", ["forkserver", "guard"])
def test_stopping_the_machinery(which: str, method: str, tmp_path: Path) -> None:
    """A stopped forkserver or guard does not move the deadline, and the next call works."""
    record = tmp_path / "pids"
    call = killer_call(hostile.signal_machinery, timeout=0.4, start_method=method)

    with took(0.4, PATIENCE), pytest.raises(killercall.TimeoutError) as caught:
        call(which, signal.SIGSTOP, str(record))
    worker = caught.value.pid

    assert worker is not None
    assert not is_running(worker)
    assert "function 'signal_machinery' timed out after 0.4s" == str(caught.value)
    with took(0, PATIENCE):
        assert killer_call(hostile.same, start_method=method)("next") == "next"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_new_worker_of_a_stopped_forkserver(method: str) -> None:
    """A forkserver that was stopped while idle goes on when a worker is needed."""
    call = killer_call(hostile.forkserver_pid, reuse=False, start_method=method)
    server = call()
    os.kill(server, signal.SIGSTOP)

    with took(0, PATIENCE):
        assert call() == server


def stop_once(path: str) -> None:
    """An initializer that is stopped in the middle."""
    if not os.path.exists(path):
        hostile.append(path, "stopped")
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("method", START_METHODS)
def test_worker_that_is_stopped_while_it_starts(method: str, tmp_path: Path) -> None:
    """It is told to go on."""
    path = tmp_path / "stopped"
    call = killer_call(
        hostile.same, initializer=stop_once, initargs=(str(path),), start_method=method
    )
    with took(0, PATIENCE):
        assert call("on") == "on"
    assert ["stopped"] == lines(path)


def test_idle_forkserver_killed_from_outside() -> None:
    """If it is gone before the next call, that call starts a new one."""
    server = killer_call(hostile.forkserver_pid)()

    os.kill(server, signal.SIGKILL)

    # While it is being torn down its workers are alive, and may take a call along.
    assert wait_until(lambda: not os.path.exists(f"/proc/{server}"))
    assert killer_call(hostile.same)("next") == "next"


def test_idle_worker_killed_from_outside() -> None:
    """An idle worker that is gone is no failure of the next call."""
    call = killer_call(hostile.pid)
    for _ in range(5):
        worker = call()
        os.kill(worker, signal.SIGKILL)
        # At once: that it is dead may not have come round yet.
        assert call() != worker


def test_idle_worker_stopped_from_outside() -> None:
    """A stopped idle worker costs no more than the call that meets it its deadline, and often not that."""
    worker = killer_call(hostile.pid)()
    os.kill(worker, signal.SIGSTOP)

    with took(0, PATIENCE):
        try:
            # Shortly before the deadline it is told to go on.
            assert killer_call(hostile.pid, timeout=0.5)() == worker
            lost = False
        except killercall.TimeoutError as error:
            assert worker == error.pid
            lost = True

    assert (killer_call(hostile.pid, timeout=5)() != worker) == lost


@pytest.mark.parametrize("result", ["object", "1", "open"])
@pytest.mark.parametrize("ruin", ["sys.modules.clear()", "del sys.modules['sys']"])
def test_call_that_ruins_its_worker(ruin: str, result: str) -> None:
    """It costs that call at most, and not the next, whatever it returns."""

    def work(ruin: str, result: str) -> Any:
        found = eval(result)
        exec(f"import sys; {ruin}")
        return found

    for _ in range(3):
        try:
            assert eval(result) == killer_call(work, timeout=20)(ruin, result)
        except killercall.WorkerDied as died:
            assert 1 == died.exitcode
        assert killer_call(hostile.same, timeout=20)("next") == "next"


def test_closed_descriptors_print_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that has lost the way to its host says so, without a traceback of our insides."""
    # The answer may have been complete by then, or not.
    with contextlib.suppress(killercall.WorkerDied):
        assert killer_call(os.closerange, timeout=20)(3, 65536) is None
    printed = capfd.readouterr().err
    assert "lost the way to its host" in printed
    assert 1 == len(printed.splitlines())


def test_killing_a_sibling(tmp_path: Path) -> None:
    """Only the item of the killed worker fails."""
    record = tmp_path / "pids"

    killer, victim = killer_pmap(
        lambda role: hostile.kill_sibling(role, str(record)),
        ["killer", "victim"],
        cpus=2,
        timeout=20,
        on_error="return",
    )

    assert "killer" == killer
    assert isinstance(victim, killercall.WorkerDied)
    assert ("SIGKILL", "victim", 1) == (victim.signal, victim.item, victim.index)
    assert recorded(record, "victim") == [victim.pid]


def test_lost_forkserver_in_a_map(tmp_path: Path) -> None:
    """Items in flight die with it; the others get a new one."""
    counted = tmp_path / "counted"

    def work(item: int) -> int:
        hostile.append(str(counted), str(item))
        if item == 3:
            os.kill(os.getppid(), signal.SIGKILL)
            hostile.nap(60)
        hostile.nap(0.02)
        return item

    results = killer_pmap(work, range(30), cpus=2, timeout=20, on_error="return")

    dead = [index for index, value in enumerate(results) if value != index]
    assert 3 in dead
    assert len(dead) <= 2
    for index in dead:
        assert isinstance(results[index], killercall.WorkerDied)
        assert results[index].item == index
    ran = sorted(map(int, lines(counted)))
    assert len(set(ran)) == len(ran)
    # One that died may have been killed before it could say that it ran.
    assert set(range(30)) - set(dead) <= set(ran)


def test_crashes_at_the_same_time() -> None:
    """Many deaths in one map are each reported with their item."""

    def work(item: int) -> int:
        if item % 3 == 0:
            os._exit(item)
        return item

    results = killer_pmap(work, range(1, 31), cpus=2, on_error="return")

    expected = [("died", item) if item % 3 == 0 else item for item in range(1, 31)]
    actual = [
        ("died", value.exitcode) if isinstance(value, killercall.WorkerDied) else value
        for value in results
    ]
    assert expected == actual


NONSENSE = ["ready", "setup failed", "another task", "descriptors", "positions"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="finds its channel there")
@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_of_a_worker_costs_one_item(what: str, tmp_path: Path) -> None:
    """It is killed with a clear error; the item is not started again, and its neighbours go on."""
    record = tmp_path / "pids"

    def item(number: int) -> int:
        if number == 1:
            hostile.write_nonsense(what, str(record))
        return number

    values = killer_pmap(item, range(8), cpus=2, timeout=20, on_error="return")

    error = values.pop(1)
    assert [0, 2, 3, 4, 5, 6, 7] == values
    assert isinstance(error, killercall.WorkerDied)
    assert "could not be understood and was killed: " in str(error)
    assert [error.pid] == recorded(record)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="finds its channel there")
def test_flood_of_doorbells_delays_nothing(tmp_path: Path) -> None:
    """A host that is rung without end keeps deadlines, those of others too."""

    def item(number: int) -> int:
        if number == 0:
            hostile.flood_socket(str(tmp_path / "pids"))
        return number

    with took(0.5, PATIENCE):
        assert [None, 1, 2, 3] == killer_pmap(item, range(4), cpus=2, timeout=0.5)


def test_overwritten_claim_word_costs_no_other_call(tmp_path: Path) -> None:
    """The worker is not used again, runs nothing again, and the next call has another."""
    ran = tmp_path / "ran"
    for attempt in range(1, 6):
        assert "returned" == killer_call(hostile.overwrite_claim_word, timeout=20)(str(ran))
        assert killer_call(hostile.same, timeout=20)("next") == "next"
        assert ["ran"] * attempt == lines(ran)


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("cpus", [1, 2])
def test_overwritten_claim_word_in_a_map(cpus: int, *, hangs: bool, tmp_path: Path) -> None:
    """The map ends in time, nothing runs twice; what was handed ahead may fail with it."""
    ran = tmp_path / "ran"

    def work(item: int) -> int:
        hostile.append(str(ran), str(item))
        if item == 20:
            hostile.overwrite_claim_word(str(tmp_path / "culprit"), 0 if hangs else 0xFF)
            hostile.nap(hostile.FOREVER if hangs else 0)
        return item

    with took(0, 2 * PATIENCE):
        values = killer_pmap(
            work, range(60), cpus=cpus, timeout=1, on_timeout="return", on_error="return"
        )

    for item, value in enumerate(values):
        assert item == value or isinstance(value, killercall.KillerError)
    assert sum(isinstance(value, int) for value in values) > 20
    assert len(lines(ran)) == len(set(lines(ran)))


FEW_DESCRIPTORS = """
    import os, resource, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import hostile
    from killercall import KillerError, killer_call
    from processes import is_running, recorded

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for room in range(4, 30, 2):
        held = []
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        for fd in held[:room]:
            os.close(fd)
        path = Path(f"{{sys.argv[1]}}-{{room}}")
        try:
            killer_call(hostile.escape_to_own_session, timeout=0.4, start_method={method!r})(str(path))
        except KillerError as error:
            ending = type(error).__name__
        for fd in held[room:]:
            os.close(fd)
        left = [pid for pid in recorded(path, "worker", "grandchild") if is_running(pid)]
        print(ending, *left)
"""


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_few_descriptors(method: str, tmp_path: Path) -> None:
    """However few are left, the call ends as it should or says so, and its processes are killed."""
    code = textwrap.dedent(FEW_DESCRIPTORS).format(tests=str(TESTS), method=method)

    done = run_script(code, arguments=[str(tmp_path / "pids")])

    endings = done.stdout.splitlines()
    assert 0 == done.returncode, done.stderr
    assert 13 == len(endings)
    assert {"TimeoutError", "WorkerStartError"} == set(endings)
    # With enough of them it works.
    assert "TimeoutError" == endings[-1]


def test_overwritten_segment(tmp_path: Path) -> None:
    """A worker that forges the note that it has not started yet is not believed."""
    ran = tmp_path / "ran"
    call = killer_call(hostile.overwrite_segment, timeout=2)

    with took(0, PATIENCE), pytest.raises(killercall.WorkerDied) as caught:
        call(str(ran))

    assert "could not be understood" in str(caught.value)
    assert ["ran"] == lines(ran)


def test_nonsense_among_tasks_handed_ahead(tmp_path: Path) -> None:
    """What a worker went on to after an answer that was nonsense does not run again."""
    ran = str(tmp_path / "ran")
    answered: list[int] = []

    for culprit in [100, 300, 500]:
        items = range(culprit - 100, culprit + 100)
        results = killer_pmap(
            lambda item, culprit=culprit: hostile.send_stray_file(ran, item, culprit),
            items,
            cpus=1,
            timeout=20,
            on_error="return",
        )
        assert results[:100] == list(items[:100])
        assert isinstance(results[100], killercall.WorkerDied)
        assert "could not be understood" in str(results[100])
        for item, value in zip(items, results, strict=True):
            assert value == item or isinstance(value, killercall.WorkerDied)
        answered += [value for value in results if not isinstance(value, killercall.WorkerDied)]

    # A task that had begun when its worker was killed may not have come as far as the file.
    began = [int(line) for line in lines(tmp_path / "ran")]
    assert len(began) == len(set(began))
    assert set(answered) <= set(began)


def test_more_files_than_the_host_takes() -> None:
    """They end with the call: the host keeps none, and the worker is told to write nonsense."""
    fds = open_fds()

    with took(0, PATIENCE), pytest.raises(killercall.WorkerDied, match="could not be understood"):
        killer_call(hostile.send_many_files, timeout=30)()

    killercall.shutdown()
    gc.collect()
    assert open_fds().keys() <= fds.keys()
