"""Maps of two workers: items a second, and seconds where some items hang."""

from __future__ import annotations

import contextlib
import functools
import time

from benchmarks import peers, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Turn = Callable[[int], Any]
    Mapper = Callable[[Callable[[Any], Any], list[Any]], list[Any]]

WORKERS = 2
REHEARSAL = 2000


@contextlib.contextmanager
def plain_loop() -> Generator[Mapper, None, None]:
    """The floor: no processes."""
    yield lambda function, items: list(map(function, items))


@contextlib.contextmanager
def killercall(
    timeout: float = work.STUCK, workers: int = WORKERS
) -> Generator[Mapper, None, None]:
    """Ours: a deadline for every item."""
    from killercall import killer_pmap, shutdown

    # One copy for all maps: a new function each time would be another function.
    copies: dict[Callable[..., Any], Callable[..., Any]] = {}

    def mapper(function: Callable[..., Any], items: list[Any]) -> list[Any]:
        if function not in copies:
            copies[function] = work.of_script(function)
        return killer_pmap(copies[function], items, cpus=workers, timeout=timeout)

    try:
        yield mapper
    finally:
        shutdown()


@contextlib.contextmanager
def multiprocessing_pool(workers: int = WORKERS) -> Generator[Mapper, None, None]:
    """The standard library's pool, chunks as it likes them, no deadlines."""
    import multiprocessing

    with multiprocessing.Pool(workers) as pool:
        yield pool.map


@contextlib.contextmanager
def executor(chunksize: int = 1000, workers: int = WORKERS) -> Generator[Mapper, None, None]:
    """The standard library's executor, no deadlines."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield lambda function, items: list(pool.map(function, items, chunksize=chunksize))


@contextlib.contextmanager
def loky(chunksize: int = 1000, workers: int = WORKERS) -> Generator[Mapper, None, None]:
    """The executor beneath joblib, no deadlines."""
    from loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=workers, timeout=600)
    try:
        yield lambda function, items: list(pool.map(function, items, chunksize=chunksize))
    finally:
        pool.shutdown(wait=True)


@contextlib.contextmanager
def billiard(timeout: float = work.STUCK, workers: int = WORKERS) -> Generator[Mapper, None, None]:
    """Celery's pool: a deadline for every item."""
    from billiard.exceptions import TimeLimitExceeded
    from billiard.pool import Pool

    def mapper(function: Callable[..., Any], items: list[Any]) -> list[Any]:
        running = [pool.apply_async(function, (item,), timeout=timeout) for item in items]
        return [
            value_or_none(functools.partial(peers.billiard_value, result), TimeLimitExceeded)
            for result in running
        ]

    pool = Pool(workers, enable_timeouts=True)
    try:
        yield mapper
    finally:
        pool.terminate()
        pool.join()


@contextlib.contextmanager
def pebble(
    chunksize: int = 1,
    timeout: float = work.STUCK,
    workers: int = WORKERS,
    start_method: str = "fork",
) -> Generator[Mapper, None, None]:
    """Pebble's pool: a deadline for every chunk."""
    import multiprocessing

    import pebble as library

    def mapper(function: Callable[..., Any], items: list[Any]) -> list[Any]:
        mapped = pool.map(function, items, chunksize=chunksize, timeout=timeout)
        values = mapped.result()
        return [value_or_none(lambda: next(values), TimeoutError) for _ in items]

    pool = library.ProcessPool(
        max_workers=workers, context=multiprocessing.get_context(start_method)
    )
    try:
        yield mapper
    finally:
        pool.close()
        pool.join()


@contextlib.contextmanager
def mpire(workers: int = WORKERS) -> Generator[Mapper, None, None]:
    """Chunks as it likes them, a deadline for every item."""
    from mpire import WorkerPool

    with WorkerPool(workers, keep_alive=True) as pool:
        # What is not in a tuple of its own would be unpacked into arguments.
        yield lambda function, items: pool.map(
            function, [(item,) for item in items], task_timeout=work.STUCK
        )


@contextlib.contextmanager
def in_threads(peer: str, timeout: float) -> Generator[Mapper, None, None]:
    """A peer without a map: two threads, each of which waits for one call at a time."""
    from multiprocessing.pool import ThreadPool

    with getattr(peers, peer)() as bind, ThreadPool(WORKERS) as threads:

        def mapper(function: Callable[..., Any], items: list[Any]) -> list[Any]:
            call = bind(function, timeout)
            return threads.map(
                lambda item: value_or_none(lambda: call(item), TimeoutError), items, chunksize=1
            )

        yield mapper


@contextlib.contextmanager
def naps_in_threads(timeout: float) -> Generator[Mapper, None, None]:
    """The floor: two threads that sleep as long as the items may, and do nothing else."""
    from multiprocessing.pool import ThreadPool

    def nap(item: int) -> int | None:
        hangs = item % 10 == 5
        time.sleep(timeout if hangs else 0.001)
        return None if hangs else item

    with ThreadPool(WORKERS) as threads:
        yield lambda _, items: threads.map(nap, items, chunksize=1)


def value_or_none(get: Callable[[], Any], late: type[BaseException]) -> Any:
    """The value, or None if it was not there in time."""
    try:
        return get()
    except late:
        return None


def _items(kind: str, count: int) -> tuple[Callable[[Any], Any], list[Any], list[Any]]:
    """A function, items, and what the map of both is."""
    numbers = list(range(count))
    if kind == "ints":
        return work.identity, numbers, numbers
    pairs = [(number, -number) for number in numbers]
    return work.to_dict, pairs, [{"a": number, "b": -number} for number in numbers]


@contextlib.contextmanager
def rate(
    how: str, kind: str, most: int, seconds: float = 2.0, **options: Any
) -> Generator[Turn, None, None]:
    """
    Items a second of a map of functions that do nothing.

    So many items at most; fewer where they would take more than a few seconds.
    """
    with globals()[how](**options) as mapper:

        def once(function: Callable[..., Any], items: list[Any], expected: list[Any]) -> float:
            start = time.perf_counter()
            result = mapper(function, items)
            took = time.perf_counter() - start
            # Not `check`, which would print them.
            if result != expected:
                message = "the map returned something else"
                raise AssertionError(message)
            return len(items) / took

        # From few to many: the more items, the less does a map's start count.
        given = _items(kind, min(most, REHEARSAL))
        once(*given)
        for share in (0.2, 1.0):
            wanted = int(once(*given) * seconds * share)
            given = _items(kind, min(most, max(REHEARSAL, wanted)))
        note = f"{len(given[1]):,} items"
        yield lambda count: ([once(*given) for _ in range(count)], note)


@contextlib.contextmanager
def some_hang(
    how: str, items: int = 200, timeout: float = 0.1, **options: Any
) -> Generator[Turn, None, None]:
    """Seconds of a map of naps, every tenth of which does not end by itself."""
    with globals()[how](timeout=timeout, **options) as mapper:
        mapper(work.identity, [1, 2])

        def once() -> float:
            start = time.perf_counter()
            result = mapper(work.nap_or_hang, list(range(items)))
            took = time.perf_counter() - start
            expected = [None if item % 10 == 5 else item for item in range(items)]
            wrong = sum(1 for got, right in zip(result, expected, strict=True) if got != right)
            wrongs.append(wrong)
            return took

        wrongs: list[int] = []
        yield lambda count: (
            [once() for _ in range(count)],
            f"wrong results: {max(wrongs)} of {items} at most",
        )
