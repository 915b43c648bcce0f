"""What a process that makes calls all day keeps of them: in the host and in its workers."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from killercall import MemoryLimitExceeded, _payload, killer_call

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

    assert kept(call, 1100) < 300


def test_numbers_of_functions() -> None:
    """The same bytes have the same number for as long as they are among those used last."""
    interner = _payload.Interner()
    often = interner.number(b"often", ("one",))
    assert often == interner.number(bytes(bytearray(b"often")), ("one",))
    once = interner.number(b"once", ("one",))
    assert often >> 32 == once >> 32
    numbers = {often, once}
    for index in range(5000):
        numbers.add(interner.number(b"%d" % index, (index,)))
        assert often == interner.number(b"often", ("one",))
    assert len(numbers) == 5002
    assert len({number >> 32 for number in numbers}) == 5001
    assert interner.number(b"once", ("one",)) not in numbers
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


class Large:
    """What is small when it travels, and large where it arrives."""

    def __init__(self, version: int) -> None:
        self.version = version

    def __reduce__(self) -> Any:
        return make_large, (self.version,)


def make_large(version: int) -> Large:
    large = Large(version)
    vars(large)["data"] = bytes(2_000_000)
    return large


def test_few_versions_of_a_function_are_kept() -> None:
    """Whatever each of them holds."""

    def call(version: int) -> int:
        large = Large(version)
        answer: int = killer_call(lambda: large.version, max_memory="150MB")()
        return answer

    assert [call(version) for version in range(150)] == list(range(150))


def test_large_versions_that_refer_to_themselves() -> None:
    """The garbage collector does not count bytes, so it would come too late."""
    array = np.zeros(4_000_000)

    def down(steps: int) -> float:
        return down(steps - 1) if steps else float(array[0])

    call = killer_call(down, max_memory="300MB")
    for version in range(20):
        array[0] = version
        assert version == call(2)


def test_no_memory_for_a_function() -> None:
    """It is named all the same."""
    large = bytes(200_000_000)
    with pytest.raises(MemoryLimitExceeded) as caught:
        killer_call(lambda: len(large), max_memory="100MB", timeout=60)()
    assert "<lambda>" == caught.value.function
    assert "function '<lambda>' was refused more memory" in str(caught.value)
