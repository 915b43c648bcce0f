"""However the host ends, nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from processes import TESTS, alive_with_mark, is_running, lines, recorded, wait_until

if TYPE_CHECKING:
    from pathlib import Path

BUSY = """
    import sys
    sys.path.insert(0, {tests!r})
    import hostile
    from killercall import killer_pmap
    killer_pmap(hostile.start_children_for, [({path!r}, n) for n in range(4)], cpus=4, timeout=None,
                start_method={method!r})
"""


def start(code: str, **values: object) -> subprocess.Popen[str]:
    """A host in a process of its own."""
    script = textwrap.dedent(code).format(tests=str(TESTS), **values)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_killed_host_takes_busy_workers_along(number: int, method: str, tmp_path: Path) -> None:
    """Four busy workers with children of their own are gone within a second."""
    path = tmp_path / "pids"
    host = start(BUSY, path=str(path), method=method)
    # Each notes itself and two children.
    assert wait_until(lambda: len(recorded(path, "worker", "child")) >= 12, 30)

    os.kill(host.pid, number)

    start_of_end = time.monotonic()
    assert -number == host.wait(30)
    assert wait_until(lambda: not any(map(is_running, recorded(path))), 5)
    assert time.monotonic() - start_of_end < 5
    assert wait_until(lambda: not alive_with_mark(), 5)
    host.communicate()


ENDS = {
    "normally": "pass",
    "with an exception": "raise ValueError('as it should')",
    "with sys.exit": "sys.exit(3)",
    "with os._exit": "import os; os._exit(4)",
}


@pytest.mark.parametrize("end", ENDS)
def test_host_ends_with_idle_workers(end: str) -> None:
    """It ends at once, quietly, and nothing of it is left."""
    code = """
        import sys
        from killercall import killer_call
        assert killer_call(abs)(-1) == 1
        {end}
    """
    host = start(code, end=ENDS[end])
    _, said = host.communicate(timeout=30)

    assert ("ValueError" in said) == (end == "with an exception")
    if end != "with an exception":
        assert "" == said
    assert wait_until(lambda: not alive_with_mark(), 5)


def test_forked_copy_of_host_does_not_keep_workers_alive(tmp_path: Path) -> None:
    """A child that the host forked holds the sockets open, and the host's end is seen all the same."""
    code = """
        import ctypes, os, sys, time
        sys.path.insert(0, {tests!r})
        import hostile, threading
        from killercall import killer_call
        call = killer_call(hostile.note_and_nap, timeout=None)
        threading.Thread(target=call, args=({path!r},), daemon=True).start()
        while not os.path.exists({path!r}):
            time.sleep(0.01)
        # Without Python's hooks, as a C library would do it.
        if ctypes.CDLL(None).fork() == 0:
            os.close(1), os.close(2)
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), 9)
    """
    path = tmp_path / "pids"
    host = start(code, path=str(path))
    assert -signal.SIGKILL == host.wait(30)
    (worker,) = recorded(path, "worker")

    assert wait_until(lambda: not is_running(worker), 5)
    host.communicate()
    for pid in alive_with_mark():
        os.kill(pid, signal.SIGKILL)
    assert lines(path)
