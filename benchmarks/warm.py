"""Calls of a worker that is there, and of a fresh one: seconds a call."""

from __future__ import annotations

import contextlib
import os
import time

from benchmarks import peers
from benchmarks.work import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Turn = Callable[[int], Any]

WARM_UP = 3
PAGE = 4096


def timed(call: Callable[[Any], object], calls: int, pause: float = 0.0) -> list[float]:
    """Seconds of each of so many calls of a function that returns its argument."""
    took = []
    for number in range(calls):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        answer = call(number)
        took.append(time.perf_counter() - start)
        check(answer, number)
    return took


def check(answer: object, expected: object) -> None:
    """A fast wrong answer is none."""
    if answer != expected:
        message = f"{answer!r} is not {expected!r}"
        raise AssertionError(message)


@contextlib.contextmanager
def grown_host(size: int) -> Generator[None, None, None]:
    """A host with pandas loaded and so many bytes touched, in pages of 4 KiB."""
    if not size:
        yield
        return
    import mmap

    import pandas  # ruff: ignore[unused-import]

    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[::PAGE] = b"x" * len(range(0, size, PAGE))
        yield


@contextlib.contextmanager
def calls(
    peer: str, pause: float = 0.0, host: int = 0, **options: Any
) -> Generator[Turn, None, None]:
    """Calls with an int in and out, one after the other or spaced by a sleep."""
    with grown_host(host), getattr(peers, peer)(**options) as bind:
        call = bind(identity)
        timed(call, WARM_UP)
        yield lambda count: timed(call, count, pause)


@contextlib.contextmanager
def threads(peer: str, number: int) -> Generator[Turn, None, None]:
    """Calls from so many threads at once; one sample a turn: wall clock over calls."""
    import threading

    def turn(count: int) -> list[float]:
        each = max(1, count // number)
        wrong: list[BaseException] = []

        def work() -> None:
            try:
                timed(call, each)
            except BaseException as error:
                wrong.append(error)

        callers = [threading.Thread(target=work) for _ in range(number)]
        start = time.perf_counter()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        took = time.perf_counter() - start
        if wrong:
            raise wrong[0]
        return [took / (each * number)]

    with getattr(peers, peer)() as bind:
        call = bind(identity)
        turn(number * WARM_UP)
        yield turn


@contextlib.contextmanager
def rich(peer: str, **options: Any) -> Generator[Turn, None, None]:
    """A closure over a dict, a dict as argument, a small numpy array as result."""
    import numpy as np

    weights = {"a": 2.0, "b": 3.0}

    def weigh(values: dict[str, float]) -> np.ndarray:
        return np.array([weights[name] * value for name, value in values.items()])

    # A function of the script, as in `peers.killercall`; the floor is given the same.
    weigh.__module__ = "__main__"
    with getattr(peers, peer)(**options) as bind:
        call = bind(weigh)

        def turn(count: int) -> list[float]:
            took = []
            for number in range(count):
                argument = {"a": float(number), "b": 1.0}
                start = time.perf_counter()
                answer = call(argument)
                took.append(time.perf_counter() - start)
                check(answer.tolist(), [2.0 * number, 3.0])
            return took

        turn(WARM_UP)
        yield turn


@contextlib.contextmanager
def bare_fork(host: int = 0) -> Generator[Turn, None, None]:
    """The floor of a fresh process: os.fork, os._exit, os.waitpid."""

    def turn(count: int) -> list[float]:
        took = []
        for _ in range(count):
            start = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            took.append(time.perf_counter() - start)
            check(status, 0)
        return took

    with grown_host(host):
        turn(WARM_UP)
        yield turn
