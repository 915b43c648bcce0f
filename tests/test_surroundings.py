"""The host's own signals, children, tracing and streams stay as they are beside our calls."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

import hostile
from killercall import WorkerDied, killer_call, killer_pmap
from processes import TESTS, alive_with_mark, is_running, run_script, took, wait_until

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ("forkserver", "spawn", "fork")


def use(method: str) -> None:
    """A call, a deadline, a death and a map."""
    assert 1 == killer_call(abs, start_method=method)(-1)
    with pytest.raises(TimeoutError):
        killer_call(hostile.nap, timeout=0.05, start_method=method)(60)
    with pytest.raises(WorkerDied):
        killer_call(hostile.exit_hard, start_method=method)(3)
    assert [1, 2] == killer_pmap(abs, [-1, -2], cpus=2, start_method=method)


def test_signal_handlers_masks_and_wakeup_fd_are_kept() -> None:
    """And warm calls cause no SIGCHLD at all."""
    calls: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: calls.append(number))
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        for method in METHODS:
            use(method)
            assert handlers == {number: signal.getsignal(number) for number in handlers}
            assert mask | {signal.SIGUSR2} == signal.pthread_sigmask(signal.SIG_BLOCK, [])
        use("forkserver")
        calls.clear()
        use("forkserver")
        use("spawn")
        assert [] == calls
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert [signal.SIGCHLD] == calls
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        was = signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, before)
        os.close(reader)
        os.close(writer)
    assert writer == was


def test_warm_workers_are_no_children_of_the_host() -> None:
    """So nobody who waits for any child meets one."""
    killer_call(abs)(-1)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    use("forkserver")
    use("spawn")
    with pytest.raises(ChildProcessError):
        os.wait()


def test_someone_who_reaps_every_child() -> None:
    """As `os.wait()` in a thread does: it steals nothing that we need."""
    reaped: list[tuple[int, int]] = []
    done = threading.Event()

    def reap() -> None:
        while not done.is_set():
            try:
                reaped.append(os.wait())
            except ChildProcessError:
                time.sleep(0.001)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        for method in METHODS:
            use(method)
        mine = os.posix_spawn(sys.executable, [sys.executable, "-c", "exit(5)"], os.environ)
        assert wait_until(lambda: mine in dict(reaped))
    finally:
        done.set()
        thread.join()
    assert 5 == os.waitstatus_to_exitcode(dict(reaped)[mine])
    # Those of ours that it meets have done their work, and well: also an interpreter that has
    # launched a forkserver and is not quick enough to leave.
    assert {status for pid, status in reaped if pid != mine} <= {0, signal.SIGKILL}


def test_subprocesses_beside_calls_in_threads() -> None:
    """Each gets the exit codes of its own."""
    codes: list[int] = []
    program = "import sys; sys.exit(int(sys.argv[1]))"

    def run() -> None:
        for code in range(5):
            command = [sys.executable, "-S", "-c", program, str(code)]
            codes.append(subprocess.run(command, check=False).returncode)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for method in METHODS:
        use(method)
    for thread in threads:
        thread.join()
    assert sorted([0, 1, 2, 3, 4] * 2) == sorted(codes)


@pytest.mark.parametrize("in_loop", [False, True])
def test_asyncio_subprocesses_beside_calls(in_loop: bool) -> None:
    """Calls in threads, and in the loop's own thread."""

    async def run(code: int) -> int:
        command = [sys.executable, "-S", "-c", f"import os; os._exit({code})"]
        return await (await asyncio.create_subprocess_exec(*command)).wait()

    async def main() -> None:
        for method in METHODS:
            children = [asyncio.create_task(run(code)) for code in range(3)]
            await asyncio.sleep(0)
            if in_loop:
                use(method)
            else:
                await asyncio.gather(*(asyncio.to_thread(use, method) for _ in range(2)))
            assert [0, 1, 2] == await asyncio.gather(*children)

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="child watchers are deprecated")
def test_child_watchers_of_asyncio() -> None:
    """Those with a SIGCHLD handler too."""
    script = """
import asyncio, sys
from killercall import killer_call, shutdown
async def main(watcher):
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    for method in ("forkserver", "spawn", "fork"):
        child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "import os; os._exit(3)")
        assert 1 == await asyncio.to_thread(killer_call(abs, start_method=method), -1)
        print(await child.wait(), end=" ")
    shutdown()
    watcher.close()
for watcher in (asyncio.SafeChildWatcher, asyncio.PidfdChildWatcher):
    asyncio.run(main(watcher()))
"""
    done = run_script(script)
    assert ("", "3 " * 6) == (done.stderr, done.stdout)


def test_faulthandler_of_the_host_is_kept() -> None:
    """A copy of the host that crashes or meddles does not write to the host's file."""
    with tempfile.TemporaryFile() as file:
        before = faulthandler.is_enabled()
        faulthandler.enable(file)
        faulthandler.register(signal.SIGUSR1, file)
        try:
            for method in METHODS:
                with pytest.raises(WorkerDied, match="SIGSEGV"):
                    killer_call(hostile.crash, start_method=method)()
                killer_call(faulthandler.disable, start_method=method)()
            assert faulthandler.is_enabled()
            assert 0 == os.fstat(file.fileno()).st_size
            os.kill(os.getpid(), signal.SIGUSR1)
            assert wait_until(lambda: os.fstat(file.fileno()).st_size)
            file.seek(0)
            assert b"test_faulthandler_of_the_host_is_kept" in file.read()
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            faulthandler.disable()
            if before:
                faulthandler.enable()


def test_trace_and_profile_functions_are_kept() -> None:
    """Of a debugger or coverage."""
    traced: set[str] = set()
    profiled: set[str] = set()

    def trace(frame, _event, _argument):  # noqa: ANN202
        traced.add(frame.f_code.co_name)
        return trace

    def profile(frame, _event, _argument) -> None:
        profiled.add(frame.f_code.co_name)

    before = sys.gettrace(), sys.getprofile()
    try:
        for method in METHODS:
            sys.settrace(trace)
            sys.setprofile(profile)
            use(method)
            assert (trace, profile) == (sys.gettrace(), sys.getprofile())
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    assert {"use", "killer_pmap"} <= traced & profiled


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is younger")
def test_monitoring_is_kept() -> None:
    """As coverage uses it from Python 3.12 on."""
    monitoring = sys.monitoring  # type: ignore[attr-defined]
    tool, seen = 4, []
    monitoring.use_tool_id(tool, "test")
    try:
        started = monitoring.events.PY_START
        monitoring.register_callback(tool, started, lambda code, _: seen.append(code.co_name))
        monitoring.set_events(tool, started)
        for method in METHODS:
            use(method)
            assert ("test", started) == (monitoring.get_tool(tool), monitoring.get_events(tool))
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    assert 3 == seen.count("use")


def test_no_warning_in_a_host_with_threads() -> None:
    """From Python 3.12 on a fork beside threads warns; ours happens elsewhere."""
    script = """
import os, threading
from killercall import killer_call, killer_pmap
done = threading.Event()
for _ in range(3):
    threading.Thread(target=done.wait).start()
def inner():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return killer_call(abs)(-2)
for method in ("forkserver", "spawn"):
    print(killer_call(inner, start_method=method)(), killer_pmap(abs, [-3], start_method=method))
done.set()
"""
    done = run_script(script)
    assert ("", "2 [3]\n" * 2) == (done.stderr, done.stdout)


def test_numpy_in_host_and_workers() -> None:
    """Its threads, in all of them; with fork while the host's are idle."""
    script = """
import threading
import numpy as np
from killercall import killer_call, killer_pmap
def work(x):
    ones = np.ones((300, 300)) * x
    np.linalg.inv(np.random.rand(200, 200))
    return float((ones @ ones)[0, 0])
print(work(1))
for method in ("forkserver", "spawn", "fork"):
    done = threading.Event()
    def keep_busy():
        while not done.is_set():
            work(3)
    thread = threading.Thread(target=keep_busy)
    if method != "fork":
        thread.start()
    print(killer_pmap(work, [1, 2], cpus=2, timeout=60, on_timeout="raise", start_method=method))
    print(killer_call(work, timeout=60, start_method=method)(1))
    done.set()
    if method != "fork":
        thread.join()
"""
    done = run_script(script, limit=100)
    assert ("", "300.0\n" + "[300.0, 1200.0]\n300.0\n" * 3) == (done.stderr, done.stdout)


def test_fork_of_the_host() -> None:
    """The child makes calls of its own; what it does and its end leave the parent's alone."""
    call = killer_call(os.getpid)
    worker = call()
    running: list[float] = []
    thread = threading.Thread(target=lambda: running.append(killer_call(hostile.nap)(1)))
    thread.start()
    for end in ("call", "shutdown", "nothing"):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if end == "call":
                    own = killer_call(os.getpid, timeout=30)()
                    forked = killer_call(abs, start_method="fork", timeout=30)(-1)
                    status = 0 if own != worker and forked == 1 else 2
                elif end == "shutdown":
                    import killercall

                    killercall.shutdown()
                    status = 0
                else:
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert 0 == status
        assert is_running(worker)
    thread.join()
    assert [1] == running
    assert worker == call()


EXITS = {
    "threads are waited for": (
        """
import threading
def running():
    print(killer_call(time.sleep)(0.3), flush=True)
first = threading.Thread(target=running)
def late():
    threading.main_thread().join()
    first.join()
    print(killer_call(abs)(-1), killer_pmap(abs, [-2], start_method="spawn"))
first.start()
threading.Thread(target=late).start()
""",
        "None\n1 [2]\n",
    ),
    "daemon threads are not": (
        """
import threading
call = killer_call(time.sleep, timeout=None)
for method in ("forkserver", "spawn", "fork"):
    target = call.options(start_method=method)
    threading.Thread(target=target, args=(600,), daemon=True).start()
items = [600] * 3
threading.Thread(target=lambda: killer_pmap(time.sleep, items, timeout=None), daemon=True).start()
time.sleep(0.5)
print("end")
""",
        "end\n",
    ),
    "atexit": (
        """
import atexit
@atexit.register
def last():
    print(killer_call(abs)(-1), killer_pmap(abs, [-2]))
    try:
        assert 3 == killer_call(abs, start_method="fork")(-3)
    except RuntimeError as error:
        # From Python 3.12 on.
        assert "at interpreter shutdown" in str(error), error
print(killer_call(abs)(-4))
""",
        "4\n1 [2]\n",
    ),
    "finalizers": (
        """
class Last:
    def __init__(self, method): self.call = killer_call(lambda x: x, start_method=method)
    def __del__(self):
        try:
            print(self.call(1))
        except RuntimeError as error:
            print(error)
Last("forkserver")
kept = [Last(method) for method in ("forkserver", "spawn", "fork")]
""",
        "1\n" + "cannot call function '<lambda>': the interpreter is shutting down\n" * 3,
    ),
}


@pytest.mark.parametrize("case", EXITS)
@pytest.mark.parametrize("late_import", [False, True])
def test_exit_of_the_interpreter(case: str, late_import: bool) -> None:
    """Prompt and quiet, with nothing left behind, whatever calls were made at the end."""
    script, expected = EXITS[case]
    imports = "import time\nfrom killercall import killer_call, killer_pmap\n"
    if late_import:
        # Handlers registered before our own run after it.
        imports = "import atexit, time\natexit.register(lambda: late_handler())\n" + imports
        script += "def late_handler(): print(killer_call(abs)(-9))\n"
        expected = expected.replace("cannot", "9\ncannot", 1)
        expected += "" if "9" in expected else "9\n"
    with took(0, 30):
        done = run_script(imports + script)
    assert ("", expected, 0) == (done.stderr, done.stdout, done.returncode)
    assert wait_until(lambda: not alive_with_mark(), 5)


def test_call_out_of_a_finalizer_within_a_call() -> None:
    """The collector may run anywhere, in the middle of pickling for example."""
    values: list[int] = []

    class Loop:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            values.append(killer_call(abs)(-1))

    class Collects:
        def __reduce__(self) -> object:
            import gc

            Loop()
            gc.collect()
            return abs, (-4,)

    assert 4 == killer_call(hostile.same)(Collects())
    assert [1] == values


def test_subinterpreters_are_refused() -> None:
    """Clearly, whoever came first; the main interpreter goes on."""
    script = """
try:
    import _interpreters
    create, run = lambda: _interpreters.create("legacy"), _interpreters.exec
except ImportError:
    import _xxsubinterpreters as _interpreters
    create, run = lambda: _interpreters.create(isolated=False), _interpreters.run_string
code = '''
try:
    import killercall
except ImportError as error:
    print(error, flush=True)
'''
for _ in range(2):
    interpreter = create()
    run(interpreter, code)
    _interpreters.destroy(interpreter)
    from killercall import killer_call
    print(killer_call(abs)(-1), flush=True)
"""
    done = run_script(script)
    refused = "killercall works in the main interpreter only, not in a subinterpreter\n1\n"
    assert ("", refused * 2) == (done.stderr, done.stdout)


def test_import_in_a_forked_child() -> None:
    """It is a host like any other."""
    script = """
import os
child = os.fork()
if child == 0:
    from killercall import killer_call
    print(killer_call(abs)(-1), flush=True)
    raise SystemExit
print(os.waitpid(child, 0)[1])
"""
    done = run_script(script)
    assert ("", "1\n0\n") == (done.stderr, done.stdout)


def test_daemon_threads_in_calls_at_the_exit() -> None:
    """They hold nothing up, and to end them ends nothing else."""
    script = """
import threading, time
from killercall import killer_call
call = killer_call(lambda x: 1 / x, timeout=20)
def loop():
    while True:
        for x in range(4):
            try:
                call(x)
            except ZeroDivisionError:
                begun.set()
begun = threading.Event()
for _ in range(4):
    threading.Thread(target=loop, daemon=True).start()
begun.wait(60)
time.sleep(0.1)
print("done")
"""
    for _ in range(3):
        done = run_script(script)
        assert (0, "", "done\n") == (done.returncode, done.stderr, done.stdout)


def test_fork_while_another_thread_imports(tmp_path: Path) -> None:
    """The copy has no such thread: it imports the module itself, instead of waiting for ever."""
    (tmp_path / "slow_to_import.py").write_text(
        "import threading\n"
        "if threading.current_thread().name == 'importer':\n"
        "    import __main__\n"
        "    __main__.begun.set()\n"
        "    __main__.done.wait(60)\n"
        "value = 7\n"
    )
    script = f"""
import sys, threading
sys.path.insert(0, {str(tmp_path)!r})
from killercall import killer_call
begun, done = threading.Event(), threading.Event()
def load():
    import slow_to_import
importer = threading.Thread(target=load, name="importer")
importer.start()
begun.wait(60)
@killer_call(start_method="fork", timeout=20)
def value():
    import slow_to_import
    return slow_to_import.value
try:
    print(value())
finally:
    done.set()
    importer.join()
print(sys.modules["slow_to_import"].value)
"""
    done = run_script(script)
    assert ("", "7\n7\n") == (done.stderr, done.stdout)


def test_log_handler_that_raises(tmp_path: Path) -> None:
    """It is called in the middle of our own code; its error comes out as itself."""
    script = f"""
import logging, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import hostile
from killercall import killer_call
class Refuses(logging.Handler):
    def handle(self, record): raise LookupError(record.getMessage())
logging.getLogger().addHandler(Refuses())
logging.getLogger().setLevel(logging.INFO)
try:
    killer_call(hostile.signal_machinery)("forkserver", signal.SIGKILL, {str(tmp_path / "pids")!r})
except LookupError as error:
    print(error)
print(killer_call(abs)(-1))
"""
    done = run_script(script)
    said = "the forkserver has ended; a new one is started at need"
    assert ("", f"{said}\n1\n") == (done.stderr, done.stdout)


STREAMS = """
import os, sys
out = os.dup(1)
{before}
from killercall import WorkerDied, killer_call, killer_pmap
found = []
for method in ("forkserver", "spawn", "fork"):
    found.append(killer_call(abs, start_method=method)(-1))
    found.append(killer_pmap(abs, [-2, -3], start_method=method))
    try:
        killer_call(os._exit, start_method=method)(4)
    except WorkerDied as error:
        found.append(error.exitcode)
os.write(out, repr(found).encode())
{after}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("for fd in (0, 1, 2): os.close(fd)", "os._exit(0)"),
        ("sys.stdin = sys.stdout = sys.stderr = None", ""),
        ("sys.stdout = sys.stderr = open(os.devnull, 'w'); sys.stdout.close()", "os._exit(0)"),
        (
            "r, w = os.pipe(); os.dup2(w, 1); sys.stdout = open(w, 'w'); os.close(r); print('x')",
            "os._exit(0)",
        ),
    ],
    ids=["closed", "none", "closed objects", "closed pipe"],
)
def test_host_without_streams(before: str, after: str) -> None:
    """Its calls work all the same."""
    done = run_script(STREAMS.format(before=before, after=after))
    assert ("", repr([1, [2, 3], 4] * 3), 0) == (done.stderr, done.stdout, done.returncode)


def test_signals_that_the_first_caller_has_blocked() -> None:
    """Whoever blocks signals for a `sigwait` of its own does not block them for our processes."""
    script = """
import os, signal
from killercall import WorkerDied, killer_call
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for method in ("forkserver", "spawn", "fork"):
    try:
        killer_call(lambda: os._exit(3), timeout=None, start_method=method)()
    except WorkerDied as error:
        print(error.exitcode, killer_call(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()))())
"""
    with took(0, 60):
        done = run_script(script)
    assert ("", "3 set()\n" * 3) == (done.stderr, done.stdout)


def test_log_handler_that_makes_a_call() -> None:
    """It is called in the middle of our own code, which holds no lock then."""
    script = """
import logging
from killercall import killer_call, shutdown
class Calls(logging.Handler):
    busy = False
    def emit(self, record):
        if not Calls.busy:
            Calls.busy = True
            print(killer_call(abs)(-1))
logging.getLogger().addHandler(Calls())
logging.getLogger().setLevel(logging.DEBUG)
print(killer_call(abs)(-2))
"""
    with took(0, 60):
        done = run_script(script)
    assert ("", "1\n2\n") == (done.stderr, done.stdout)


def test_first_calls_at_the_same_time_while_everything_is_logged() -> None:
    """Whoever holds a lock of ours may have to wait for Python's, so nobody waits the other way."""
    script = """
import logging, os, threading
logging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, "w"))
import killercall
call = killercall.killer_call(abs, timeout=30)
for _ in range(8):
    killercall.shutdown()
    barrier = threading.Barrier(8)
    def go():
        barrier.wait()
        assert call(-1) == 1
    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("done")
"""
    with took(0, 60):
        done = run_script(script)
    assert ("", "done\n") == (done.stderr, done.stdout)
