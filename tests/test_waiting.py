"""Waits that signal handlers end, and the locks of futures."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from killercall._futures import KillerFuture
from killercall._waiting import Condition, Flag, Thread
from processes import PATIENCE, took

if TYPE_CHECKING:
    from collections.abc import Callable


class _Interrupt(BaseException):
    """Stands for what a signal handler raises."""


def interrupted_after(calls: int, action: Callable[[], Any]) -> bool:
    """
    Has an action end after so many calls of functions or returns from them; whether it came so far.

    That is where Python runs handlers: at the start of a function and after a call.
    """

    def trace(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        if event in {"call", "c_return"}:
            calls -= 1
            if calls == 0:
                sys.setprofile(None)
                raise _Interrupt

    sys.setprofile(trace)
    try:
        action()
    except _Interrupt:
        return True
    except (TimeoutError, concurrent.futures.TimeoutError):
        pass
    finally:
        sys.setprofile(None)
    return False


def can_be_taken(lock: Any) -> bool:
    """Whether another thread can."""
    found: list[bool] = []

    def take() -> None:
        found.append(lock.acquire(timeout=0.5))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]


def test_a_future_is_never_left_locked() -> None:
    """Wherever a signal handler raises."""
    for what in ("result", "exception", "cancel", "done", "running"):
        interrupt_everywhere(what)


def interrupt_everywhere(what: str) -> None:
    """In a method of a future."""
    calls = 0
    interrupted = True
    while interrupted:
        calls += 1
        future = KillerFuture()
        future.set_running_or_notify_cancel()
        arguments = (0.001,) if what in {"result", "exception"} else ()
        interrupted = interrupted_after(calls, lambda: getattr(future, what)(*arguments))  # ruff: ignore[function-uses-loop-variable]
        assert can_be_taken(future._condition), f"after {calls} calls"
    assert calls > 2


def test_a_condition() -> None:
    condition = Condition()
    found: list[bool] = []

    def wait() -> None:
        with condition:
            found.append(condition.wait())

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(condition._waiting) < len(threads):
        time.sleep(0.001)
    with condition, took(0.01, PATIENCE):
        assert not condition.wait(0.01)
        assert not condition.wait(-1)
        condition.notify_all()
    for thread in threads:
        thread.join()
    assert found == [True] * 3
    assert can_be_taken(condition)
    with pytest.raises(RuntimeError):
        condition.wait(0)


def test_a_thread_whose_start_is_interrupted_runs() -> None:
    """Wherever that is; if it was begun at all."""
    calls = 0
    interrupted = True
    while interrupted:
        calls += 1
        ran = Flag()
        thread = Thread(ran.set, daemon=True)
        interrupted = interrupted_after(calls, thread.start)
        # The interrupt may come before the thread is begun, and it is not known to be then.
        if thread.ident is not None or not interrupted:
            ran.wait()
    assert calls > 3


def test_a_flag() -> None:
    flag = Flag()
    threads = [threading.Thread(target=flag.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not flag.is_set()
    flag.set()
    for thread in threads:
        thread.join()
    flag.wait()
    assert flag.is_set()
