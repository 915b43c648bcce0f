# pyright: reportUnnecessaryTypeIgnoreComment=true
"""
What type checkers make of many calls: maps, pools and pipelines. See `calls.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, assert_type

import killercall
from killercall import (
    KillerFuture,
    KillerPool,
    Outcome,
    Outcomes,
    killer_call,
    killer_imap,
    killer_pipeline,
    killer_pmap,
)


def work(number: int) -> str:
    return str(number)


async def work_slowly(number: int) -> str:
    return str(number)


def pmap() -> None:
    assert_type(killer_pmap(work, range(4)), list[str | None])
    assert_type(killer_pmap(work, [1], 2, 0.5, grace=1, seed=3), list[str | None])
    # mypy does not look into a function without a name before it has chosen an overload.
    floats: list[float | None] = killer_pmap(lambda number: number * 1.5, [1, 2])
    assert floats
    assert_type(killer_pmap(killer_call(work), [1]), list[str | None])
    assert_type(killer_pmap(work_slowly, [1]), list[str | None])
    assert_type(killer_pmap(work_slowly, [1], on_timeout="raise"), list[str])
    assert_type(killer_pmap(work, [1], default=0.5), list[str | float])
    assert_type(killer_pmap(work, [1], default=""), list[str])
    killer_pmap(work, ["one"])  # type: ignore[arg-type]
    killer_pmap(work)  # type: ignore[call-overload]
    killer_pmap(work, [1], cpu=2)  # type: ignore[call-overload]
    killer_pmap(work, [1], on_error="ignore")  # type: ignore[call-overload]


def failures() -> None:
    late, failed = killercall.TimeoutError, BaseException
    assert_type(killer_pmap(work, [1], on_timeout="raise"), list[str])
    assert_type(killer_pmap(work, [1], on_timeout="raise", on_error="raise"), list[str])
    assert_type(killer_pmap(work, [1], on_error="default"), list[str | None])
    assert_type(
        killer_pmap(work, [1], on_timeout="raise", on_error="default", default=0), list[str | int]
    )
    assert_type(killer_pmap(work, [1], on_error="return"), list[str | None | BaseException])
    assert_type(
        killer_pmap(work, [1], on_timeout="return", on_error="return"), list[str | BaseException]
    )
    assert_type(killer_pmap(work, [1], on_timeout="return"), list[str | killercall.TimeoutError])
    kept = [text for text in killer_pmap(work, [1], on_error="return", on_timeout="return")
            if not isinstance(text, failed)]  # fmt: skip
    assert_type(kept, list[str])
    in_time = [text for text in killer_pmap(work, [1], on_timeout="return")
               if not isinstance(text, late)]  # fmt: skip
    assert_type(in_time, list[str])


def outcomes() -> None:
    records = killer_pmap(work, [1], outcomes=True, on_error="return", default=3)
    assert_type(records, Outcomes)
    assert_type(records[0], Outcome)
    assert_type(records[0].status, str)


def imap() -> None:
    assert_type(killer_imap(work, iter([1])), Generator[str | None, None, None])
    assert_type(
        killer_imap(work, [1], ordered=False, on_timeout="raise"), Generator[str, None, None]
    )
    assert_type(next(killer_imap(work, [1], default=0)), str | int)
    assert_type(next(killer_imap(work, [1], outcomes=True)), Outcome)
    as_usual: Iterator[str] = killer_imap(work, [1], on_timeout="raise")
    assert as_usual
    killer_imap(work, [1]).close()
    killer_imap(work, ["one"])  # type: ignore[arg-type]


def pools() -> None:
    with KillerPool(2, timeout=4, retries=1) as pool:
        assert_type(pool, KillerPool)
        assert_type(pool.submit(work, 1), KillerFuture[str])
        assert_type(pool.submit(work_slowly, 1).result(), str)
        assert_type(pool.submit_once("key", work, 1), KillerFuture[str])
        assert_type(pool.options(timeout=1).submit(work, number=1), KillerFuture[str])
        assert_type(list(pool.map(work, [1])), list[str])
        pool.submit(work, "one")  # type: ignore[call-overload]
        pool.submit(work)  # type: ignore[call-overload]
        pool.submit_once(["key"], work, 1)  # type: ignore[call-overload]
        pool.options(max_memory=1)  # type: ignore[call-arg]
    KillerPool(2, worker=3)  # type: ignore[call-arg]
    executor: Executor = pool
    assert executor


def read() -> Iterator[int]:
    yield from range(3)


def write(results: Iterable[str]) -> int:
    return len(list(results))


def work_on_many(numbers: list[int]) -> str:
    return str(sum(numbers))


def write_what_there_is(results: Iterable[str | None]) -> bytes:
    return bytes(len(list(results)))


def pipelines() -> None:
    assert_type(killer_pipeline(read, work, write), int)
    assert_type(killer_pipeline(read, work, write, cpus=2, timeout=1, ordered=False), int)
    assert_type(killer_pipeline(read, work_on_many, write, batch=8), int)
    assert_type(
        killer_pipeline(read, work, write_what_there_is, on_timeout="default", on_error="default"),
        bytes,
    )
    killer_pipeline(read, work, write, batch=8)  # type: ignore[arg-type]
    killer_pipeline(lambda: ["one"], work, write)  # type: ignore[misc]
    killer_pipeline(read, work, write, seed=3)  # type: ignore[call-overload]


def anything() -> Any:
    return killer_pmap(work, [1], on_timeout="partial")
