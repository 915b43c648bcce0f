"""What a process that makes calls all day keeps of them: in the host and in its workers."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from killercall import _payload, killer_call

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20


def kept(call: Callable[[], object], times: int) -> int:
    """How many blocks of memory the interpreter has more after so many calls, once it is warm."""

    def repeat() -> int:
        for _ in range(times):
            call()
        gc.collect()
        return sys.getallocatedblocks()

    repeat()
    return -repeat() + repeat()


@pytest.mark.parametrize(
    "function",
    [lambda: bytes(200_000), lambda: bytearray(2_000_000), lambda: {"a": [1.5, 1_000_000]}],
    ids=["a large answer", "a large buffer", "a dictionary"],
)
def test_answers_leave_nothing_behind(function: Callable[[], Any]) -> None:
    assert kept(killer_call(function), 200) < 100


def test_new_deadlines_leave_nothing_behind() -> None:
    """Each makes a function that is sent anew; the last thousand are remembered."""
    number = iter(range(1_000_000))

    def call() -> None:
        killer_call(abs, timeout=100 + next(number) / 1000)(-1)

    assert kept(call, 1100) < 100


def test_numbers_of_functions() -> None:
    """The same bytes have the same number for as long as they are among those used last."""
    interner = _payload.Interner()
    often = interner.number(b"often")
    assert often == interner.number(bytes(bytearray(b"often")))
    once = interner.number(b"once")
    numbers = {often, once}
    for index in range(5000):
        numbers.add(interner.number(b"%d" % index))
        assert often == interner.number(b"often")
    assert len(numbers) == 5002
    assert interner.number(b"once") not in numbers
    assert len(interner._numbers) < 1100


def test_a_worker_lets_go_of_old_versions() -> None:
    """A function that differs in each call, as one does whose global is counted up."""

    def call(text: str) -> tuple[int, int, int]:
        def work() -> tuple[int, int, int]:
            return len(text), os.getpid(), psutil.Process().memory_info().rss

        answer: tuple[int, int, int] = killer_call(work)()
        return answer

    texts = ("x" * (50_000 + index) for index in range(1500))
    length, worker, before = [call(next(texts)) for _ in range(200)][-1]
    assert 50_199 == length
    for length, text in enumerate(texts, 50_200):
        found, same, now = call(text)
        assert (length, worker) == (found, same)
    # The texts have 75 MB.
    assert now - before < 24 * MIB
    # One that was let go of is sent again.
    assert (50_000, worker) == call("x" * 50_000)[:2]
