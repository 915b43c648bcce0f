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


SENDS_ONE = """
import os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
import hostile
from killercall import killer_call, killer_pmap
{before}
def send():
    while not os.path.exists({path!r}):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=send).start()
try:
    print({run})
except BaseException as error:
    print(type(error).__name__, *error.args)
{after}
print(killer_call(abs)(-1))
"""


def run_interrupted(path: Path, run: str, *, before: str = "", after: str = "") -> str:
    """What a host says that sends itself one SIGINT as soon as the function runs."""
    code = SENDS_ONE.format(
        tests=str(TESTS), path=str(path), run=run.format(path=str(path)), before=before, after=after
    )
    done = run_script(code)
    assert "" == done.stderr
    assert wait_until(lambda: not alive_with_mark(), 5)
    return done.stdout


def test_handler_that_raises_something_else(tmp_path: Path) -> None:
    """That comes out, and the worker is dead."""
    before = """
class Stop(Exception): pass
def handler(*_): raise Stop("now")
signal.signal(signal.SIGINT, handler)
"""
    for run in RUNS.values():
        path = tmp_path / str(len(run))
        assert "Stop now\n1\n" == run_interrupted(path, run, before=before)
        assert [] == [pid for pid in recorded(path, "worker") if is_running(pid)]


def test_handler_that_returns(tmp_path: Path) -> None:
    """The call goes on."""
    before = "signal.signal(signal.SIGINT, lambda *_: print('handled'))"
    for method in ("forkserver", "spawn", "fork"):
        run = f"killer_call(hostile.note_and_nap, start_method={method!r})({{path!r}}, 0.4)"
        assert "handled\n0.4\n1\n" == run_interrupted(tmp_path / method, run, before=before)


def test_only_the_call_of_the_main_thread_is_interrupted(tmp_path: Path) -> None:
    """Another thread's goes on to its end."""
    before = f"""
said = []
path = {str(tmp_path / "other")!r}
other = killer_call(hostile.wait_for_file, timeout=None)
thread = threading.Thread(target=lambda: said.append(other(path, path + ".done")))
thread.start()
while not os.path.exists(path):
    time.sleep(0.01)
"""
    after = "open(path + '.done', 'w').close(); thread.join(); print(said)"
    said = run_interrupted(tmp_path / "own", RUNS["call"], before=before, after=after)
    assert "KeyboardInterrupt\n['seen']\n1\n" == said


def test_interrupt_while_the_host_is_copied() -> None:
    """A hook of some module after the fork is the place where it comes, and would be lost."""
    code = """
import os, signal, threading, time
from killercall import killer_call
# It takes the signal, as the main thread keeps it away; so do threads of numeric libraries.
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
host = os.getpid()
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
def hook():
    if os.getpid() == host:
        os.kill(host, signal.SIGINT)
        # Until it has arrived.
        os.read(reader, 1)
os.register_at_fork(after_in_parent=hook)
try:
    print(killer_call(abs, start_method="fork")(-1))
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(killer_call(abs)(-1))
"""
    done = run_script(code)
    assert ("", "interrupted True\n1\n") == (done.stderr, done.stdout)


ANYWHERE = """
import itertools, os, random, sys, tempfile, threading, time
from killercall import killer_call, killer_pmap

folder = tempfile.mkdtemp()

def work(path):
    with open(path, "a") as file:
        print("begin", os.getpid(), file=file, flush=True)
        time.sleep(0.01)
        print("end", os.getpid(), file=file, flush=True)

def fail(path):
    with open(path, "a") as file:
        print("begin", os.getpid(), file=file, flush=True)
        if os.path.getsize(path) < 20:
            # Its worker waits for another call then.
            print("end", os.getpid(), file=file, flush=True)
            raise ValueError
        time.sleep(0.3)
        print("end", os.getpid(), file=file, flush=True)

def call(path):
    killer_call(work, timeout=None)(path)

def late(path):
    try:
        killer_call(time.sleep, timeout=0.001)(1)
    except TimeoutError:
        pass

def many(path):
    killer_pmap(work, [path] * 3, cpus=2, timeout=None)

def failing(path):
    try:
        killer_pmap(fail, [path] * 3, cpus=2, timeout=None)
    except ValueError:
        pass

class Interrupt:
    # As the interpreter does it: where a Python function begins, or a C function has returned.
    def __init__(self, at, within):
        self.left, self.within, self.fired = at, within.__code__, False

    def __call__(self, frame, event, _):
        # A generator that is closed begins for the profiler only.
        if event not in ("call", "c_return") or frame.f_code.co_flags & 0x20:
            return
        caller = frame.f_back
        while caller is not None and caller.f_code is not self.within:
            caller = caller.f_back
        if caller is None:
            return
        self.left -= 1
        if self.left == 0:
            self.fired = True
            sys.setprofile(None)
            raise KeyboardInterrupt

def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *rest = stat.read().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in "ZX" and not int(rest[5]) & 4

def unfinished(path):
    if not os.path.exists(path):
        return set()
    with open(path) as file:
        lines = file.readlines()
    begun = {line.split()[1] for line in lines if line.startswith("begin")}
    ended = {line.split()[1] for line in lines if line.startswith("end")}
    return {pid for pid in begun - ended if is_running(pid)}

generator = random.Random(int(sys.argv[1]))
killer_call(abs)(-1)
for run in (call, late, many, failing):
    at = points = 0
    while True:
        at += generator.randint(1, int(sys.argv[2]))
        path = os.path.join(folder, f"{run.__name__}{at}")
        interrupt = Interrupt(at, run)
        came = False
        sys.setprofile(interrupt)
        try:
            run(path)
        except KeyboardInterrupt:
            came = True
            running = unfinished(path)
            assert not running, (run.__name__, at, running)
        finally:
            sys.setprofile(None)
        assert came == interrupt.fired, (run.__name__, at)
        assert killer_call(abs)(-1) == 1
        if not interrupt.fired:
            break
        points += 1
    assert points > 5, points
print("done")
"""


def test_interrupt_anywhere() -> None:
    """Between any two steps of ours: it comes out once, and no worker goes on with the call."""
    done = run_script(ANYWHERE, arguments=["1", "40"])
    assert ("", "done\n") == (done.stderr, done.stdout)
    assert wait_until(lambda: not alive_with_mark(), 5)


# On a machine with far more to do than it can.
OVERLOADED = "the forkserver does not answer; ending it and all its workers\n"

RANDOM = """
import random, signal, sys
from killercall import killer_call, killer_pmap
import time
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
generator = random.Random(int(sys.argv[1]))
runs = [lambda m=m: killer_call(time.sleep, timeout=None, start_method=m)(0.005)
    for m in ("forkserver", "spawn", "fork")]
runs.append(lambda: killer_pmap(time.sleep, [0.005] * 3, cpus=2, timeout=None))
limits = [0.01, 0.04, 0.03, 0.02]
came = 0
# What is imported first is not interrupted: importlib itself may say something of that then.
for run in runs:
    run()
for count in range(int(sys.argv[2])):
    which = count % len(runs)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, limits[which]))
            runs[which]()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        came += 1
    assert killer_call(abs)(-1) == 1
print("done", came > 0)
"""


def test_interrupts_at_random_moments() -> None:
    """Real signals: never two, nothing on standard error, and the next call works."""
    done = run_script(RANDOM, arguments=["1", "100"])
    said = done.stderr.replace(OVERLOADED, "")
    assert ("", "done True\n") == (said, done.stdout)
    assert wait_until(lambda: not alive_with_mark(), 5)


def test_notebook_kernel() -> None:
    """Interrupted in a call and in a map, it stays usable; no worker is left running."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "interrupted_kernel.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ("KeyboardInterrupt 1\nKeyboardInterrupt 1\n", "") == (done.stdout, done.stderr)
    assert wait_until(lambda: not alive_with_mark(), 5)
