"""Ctrl+C: one KeyboardInterrupt, one traceback, no orphan, and the next call works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from processes import (
    TESTS,
    alive_with_mark,
    is_running,
    lines,
    recorded,
    run_script,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

HOST = """
    import sys, threading, time
    sys.path.insert(0, {tests!r})
    import hostile
    from killercall import killer_call, killer_pmap

    def run():
        {run}

    try:
        run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(killer_call(abs)(-1), flush=True)
    {after}
"""
RUNS = {
    "call": "killer_call(hostile.note_and_nap, timeout=None)({path!r})",
    "map": "killer_pmap(hostile.note_and_nap, [{path!r}] * 3, cpus=3, timeout=None)",
    "fork": "killer_call(hostile.note_and_nap, timeout=None, start_method='fork')({path!r})",
}


def start(run: str, path: Path, after: str = "") -> subprocess.Popen[str]:
    """A host whose `run` is interrupted."""
    code = textwrap.dedent(HOST).format(
        tests=str(TESTS), run=run.format(path=str(path)), after=after
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_workers(path: Path, count: int) -> None:
    """Until so many have noted themselves."""
    assert wait_until(lambda: len(recorded(path, "worker")) >= count, 30)


@pytest.mark.parametrize("run", RUNS)
def test_interrupted(run: str, tmp_path: Path) -> None:
    """The workers are dead when KeyboardInterrupt is raised; the next call works."""
    path = tmp_path / "pids"
    host = start(RUNS[run], path)
    wait_for_workers(path, 3 if run == "map" else 1)

    os.killpg(host.pid, signal.SIGINT)

    said, errors = host.communicate(timeout=30)
    assert ("interrupted\n1\n", "", 0) == (said, errors, host.returncode)
    assert [] == [pid for pid in recorded(path, "worker") if is_running(pid)]
    assert wait_until(lambda: not alive_with_mark(), 5)


@pytest.mark.parametrize("run", RUNS)
def test_uncaught(run: str, tmp_path: Path) -> None:
    """One traceback, of the host alone."""
    path = tmp_path / "pids"
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import hostile\n"
    code += "from killercall import killer_call, killer_pmap\n" + RUNS[run].format(path=str(path))
    host = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_workers(path, 1)

    os.killpg(host.pid, signal.SIGINT)

    _, errors = host.communicate(timeout=30)
    assert 1 == errors.count("Traceback")
    assert errors.endswith("KeyboardInterrupt\n")
    assert wait_until(lambda: not alive_with_mark(), 5)


def test_grace(tmp_path: Path) -> None:
    """The function's `finally` runs before the worker is killed."""
    path, done = tmp_path / "pids", tmp_path / "done"
    run = f"killer_call(hostile.finally_writes, timeout=None, grace=20)({{path!r}}, {str(done)!r})"
    host = start(run, path)
    wait_for_workers(path, 1)

    os.killpg(host.pid, signal.SIGINT)

    said, errors = host.communicate(timeout=15)
    assert ("interrupted\n1\n", "") == (said, errors)
    assert ["finally"] == lines(done)


def test_second_one_during_grace_kills_at_once(tmp_path: Path) -> None:
    """Whoever ignores the first is not waited for."""
    path = tmp_path / "pids"
    host = start("killer_call(hostile.ignore_sigterm, timeout=None, grace=60)({path!r})", path)
    wait_for_workers(path, 1)
    (worker,) = recorded(path, "worker")

    os.killpg(host.pid, signal.SIGINT)
    time.sleep(0.5)
    assert is_running(worker)
    os.killpg(host.pid, signal.SIGINT)

    said, errors = host.communicate(timeout=15)
    assert ("interrupted\n1\n", "") == (said, errors)
    assert not is_running(worker)


def test_handler_of_the_host_runs_while_it_waits(tmp_path: Path) -> None:
    """Other signals' handlers run at once, and the call goes on."""
    path = tmp_path / "pids"
    run = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True)); "
        "print(killer_call(hostile.wait_for_file, timeout=60)({path!r}, {path!r} + '.done'))"
    )
    host = start(run, path)
    wait_for_workers(path, 1)

    os.kill(host.pid, signal.SIGUSR1)
    assert host.stdout is not None
    assert "handled\n" == host.stdout.readline()
    (tmp_path / "pids.done").touch()

    said, errors = host.communicate(timeout=30)
    assert "" == errors
    assert "seen\n1\n" == said


def test_interrupted_while_forking() -> None:
    """Ctrl+C that another thread takes, just when the host has forked itself, loses no child."""
    code = """
        import functools, os, signal, threading, time
        from killercall import killer_call

        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        # Hooks in C: a function of Python's would be where the exception is raised.
        for hook in (functools.partial(os.kill, os.getpid(), signal.SIGINT),
                     functools.partial(time.sleep, 0.2)):
            os.register_at_fork(after_in_parent=hook)
        try:
            killer_call(abs, start_method="fork")(-1)
        except KeyboardInterrupt:
            print("interrupted")
        try:
            print(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            print("no child")
    """
    done = run_script(textwrap.dedent(code))

    assert ("interrupted\nno child\n", "", 0) == (done.stdout, done.stderr, done.returncode)
