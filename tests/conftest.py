"""Every test is checked for what it leaves behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest

# Tests that run beside each other must not take each other's processes for their own. Before
# `processes` reads it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("KILLERCALL_TEST_MARK", None)

# A shell without job control starts what runs in the background with SIGINT ignored, and all programs that
# the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import killercall
from killercall import _host
from processes import (
    alive_with_mark,
    open_fds,
    thread_count,
    thread_names,
    wait_until,
    zombie_children,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long what was shut down may take to be gone. The check itself ends as soon as it is.
LIMIT = 5.0


@pytest.fixture(scope="session", autouse=True)
def _first_call() -> None:
    """What the first call imports and opens for good is no leak."""
    assert killercall.killer_call(abs)(-1) == 1
    killercall.shutdown()


@pytest.fixture(autouse=True)
def no_leaks(_first_call: None) -> Iterator[None]:
    """After each test no process, zombie, descriptor or thread is left of it."""
    fds, threads = open_fds(), thread_count()
    yield
    killercall.shutdown()
    # What was preloaded is preloaded again by every new forkserver, but not for other tests.
    _host._shared.preload = ()
    wait_until(lambda: not alive_with_mark(), LIMIT)
    left = alive_with_mark()
    for pid in left:
        # So that only the test that left them fails. They have the mark, so they are ours.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gc.collect()
    assert {} == left
    assert [] == zombie_children()
    wait_until(lambda: thread_count() <= threads, LIMIT)
    assert thread_count() <= threads, thread_names()
    leaked = {fd: target for fd, target in open_fds().items() if fds.get(fd) != target}
    assert {} == leaked
