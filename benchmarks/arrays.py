"""Large arrays: there and back, and captured by the function of a map."""

from __future__ import annotations

import contextlib
import os
import time

from benchmarks import peers
from benchmarks.memory import our_processes
from benchmarks.warm import check
from benchmarks.work import STUCK, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    import numpy as np

    Turn = Callable[[int], Any]

STRIDE = 10_007
ITEMS = 64


def make(size: int) -> np.ndarray:
    """An array of floats of so many bytes."""
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


@contextlib.contextmanager
def there_and_back(peer: str, size: int, **options: Any) -> Generator[Turn, None, None]:
    """Seconds of an identity call; what comes back is looked at outside the clock."""
    array = make(size)
    with getattr(peers, peer)(**options) as bind:
        call = bind(identity)

        def one() -> float:
            start = time.perf_counter()
            answer = call(array)
            took = time.perf_counter() - start
            check(answer.shape, array.shape)
            check(bool((answer[::STRIDE] == array[::STRIDE]).all()), expected=True)
            return took

        one()
        yield lambda count: [one() for _ in range(count)]


@contextlib.contextmanager
def killercall_map(workers: int) -> Generator[Callable[..., list[Any]], None, None]:
    """`killer_pmap`, whose workers stay warm."""
    from killercall import killer_pmap, shutdown

    try:
        yield lambda function, items: killer_pmap(function, items, cpus=workers, timeout=STUCK)
    finally:
        shutdown()


@contextlib.contextmanager
def joblib_map(workers: int) -> Generator[Callable[..., list[Any]], None, None]:
    """`joblib.Parallel`, likewise."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        with Parallel(n_jobs=workers) as parallel:
            yield lambda function, items: parallel(delayed(function)(item) for item in items)
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _summing(array: np.ndarray, pause: float) -> Callable[[int], float]:
    def total(item: int) -> float:
        answer = float(array.sum()) + item
        time.sleep(pause)
        return answer

    total.__module__ = "__main__"
    return total


@contextlib.contextmanager
def captured(how: str, size: int, workers: int) -> Generator[Turn, None, None]:
    """Seconds of a map whose function sums an array that it has captured."""
    array = make(size)
    right = float(array.sum())
    total = _summing(array, 0.0)
    with globals()[how](workers) as mapper:

        def one() -> float:
            start = time.perf_counter()
            result = mapper(total, range(ITEMS))
            took = time.perf_counter() - start
            check(result, [right + item for item in range(ITEMS)])
            return took

        one()
        yield lambda count: [one() for _ in range(count)]


def _tree_memory() -> int:
    """Proportional set size of this process and all below it, in bytes."""
    import psutil

    total = 0
    for process in our_processes():
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            total += process.memory_full_info().pss
    return total


@contextlib.contextmanager
def copies(how: str, size: int, workers: int) -> Generator[Turn, None, None]:
    """How many copies of a captured array there are, beside the host's own, while a map runs."""
    import threading

    def peak(length: int) -> int:
        total = _summing(make(length), 0.3)
        most = 0
        done = threading.Event()

        def look() -> None:
            nonlocal most
            while not done.wait(0.05):
                most = max(most, _tree_memory())

        with globals()[how](workers) as mapper:
            looking = threading.Thread(target=look)
            looking.start()
            try:
                mapper(total, range(2 * workers))
            finally:
                done.set()
                looking.join()
        return most

    def one() -> float:
        return (peak(size) - peak(os.sysconf("SC_PAGESIZE"))) / size - 1

    yield lambda count: [one() for _ in range(count)]
