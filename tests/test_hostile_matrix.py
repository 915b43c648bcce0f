"""
Every hostile function, through every way to start, call and nest workers.

All functions of one combination run side by side, so that the matrix is soon done: what one of
them does to the others would show as well.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import killercall
from hostile_cases import AMPLE, CASES, LATE, TIMEOUT, run_case
from killercall import killer_call, killer_pmap
from processes import PATIENCE, is_running, recorded, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

START_METHODS = ["forkserver", "spawn", "fork"]
AT_ONCE = 8


def describe(answer: Any) -> Any:
    """An answer of the innermost call, as `Case.ending` tells it."""
    if isinstance(answer, killercall.WorkerDied):
        return "died", answer.exitcode
    if isinstance(answer, BaseException):
        return f"{type(answer).__name__}: {answer}"
    return LATE if answer == LATE else "value"


def left(directory: str, name: str) -> list[int]:
    """Who of a call that did not return still runs code."""
    path = Path(directory) / name
    machinery = recorded(path, "machinery")
    return [pid for pid in recorded(path) if pid not in machinery and is_running(pid)]


def call_one(name: str, directory: str, method: str) -> tuple[str, Any, float, list[int]]:
    """One call: its name, its ending, how long it took, and who was left of it at once."""
    timeout = CASES[name].timeout
    call = killer_call(
        run_case, timeout=timeout, on_timeout="default", default=LATE, start_method=method
    )
    start = time.monotonic()
    try:
        answer = call((name, directory))
    except killercall.KillerError as error:
        answer = error
    seconds = time.monotonic() - start
    ending = describe(answer)
    return name, ending, seconds, [] if ending == "value" else left(directory, name)


def call_all(directory: str, method: str) -> list[tuple[str, Any, float, list[int]]]:
    """Each in a call of its own, some at a time."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(lambda name: call_one(name, directory, method), CASES))


def map_all(directory: str, method: str) -> list[tuple[str, Any, float, list[int]]]:
    """All in two maps: those that hang, and those that end."""
    endings = []
    for timeout in (TIMEOUT, AMPLE):
        names = [name for name, case in CASES.items() if case.timeout == timeout]
        start = time.monotonic()
        answers = killer_pmap(
            run_case,
            [(name, directory) for name in names],
            cpus=AT_ONCE,
            timeout=timeout,
            default=LATE,
            on_error="return",
            start_method=method,
        )
        each = (time.monotonic() - start) * AT_ONCE / len(names)
        for name, answer in zip(names, answers, strict=True):
            ending = describe(answer)
            # What a call that returned left running ends with its worker.
            running = [] if ending == "value" else left(directory, name)
            endings.append((name, ending, each, running))
    return endings


def nest(levels: int, way: Callable[[str, str], Any], directory: str, method: str) -> Any:
    """The same, so many workers deeper."""
    if levels == 0:
        return way(directory, method)
    inner = killer_call(nest, timeout=60, start_method=method)
    return inner(levels - 1, way, directory, method)


def all_recorded(directory: Path) -> list[int]:
    """Everyone who took part, guards and forkservers included."""
    return [pid for record in directory.iterdir() for pid in recorded(record)]


@pytest.mark.parametrize("deep", [1, 3])
@pytest.mark.parametrize("way", [call_all, map_all], ids=["call", "pmap"])
@pytest.mark.parametrize("method", START_METHODS)
def test_every_call_ends_as_it_should(
    method: str, way: Callable[[str, str], Any], deep: int, tmp_path: Path
) -> None:
    """With the right answer, soon, and nobody left; in the end nobody at all."""
    endings = nest(deep - 1, way, str(tmp_path), method)

    assert {name: case.ending for name, case in CASES.items()} == {
        name: ending for name, ending, _, _ in endings
    }
    assert {} == {name: pids for name, _, _, pids in endings if pids}
    slow = {name: seconds for name, _, seconds, _ in endings if seconds > PATIENCE}
    assert {} == slow
    hanging = [name for name, case in CASES.items() if case.ending == LATE]
    assert [] == [name for name in hanging if not recorded(tmp_path / name, "worker")]
    killercall.shutdown()
    everyone = all_recorded(tmp_path)
    assert wait_until(lambda: not any(map(is_running, everyone)))


def hang_together(directory: str, method: str) -> None:
    """All that hang, without a deadline of their own."""
    names = [name for name, case in CASES.items() if case.ending == LATE]
    killer_pmap(
        run_case,
        [(name, directory) for name in names],
        cpus=len(names),
        timeout=None,
        start_method=method,
    )


@pytest.mark.parametrize("method", START_METHODS)
def test_outer_deadline_ends_all_of_it(method: str, tmp_path: Path) -> None:
    """Three workers deep, without a deadline of their own: nobody is left at the outer one."""
    # On a busy machine most of them may not have begun by the first deadline.
    for timeout in (5, 15, 45):
        directory = tmp_path / str(timeout)
        directory.mkdir()
        call = killer_call(nest, timeout=timeout, start_method=method)
        start = time.monotonic()

        with pytest.raises(killercall.TimeoutError, match="'nest'"):
            call(1, hang_together, str(directory), method)

        everyone = {pid for record in directory.iterdir() for pid in recorded(record)}
        outer = recorded_machinery_of_host()
        assert [] == [pid for pid in everyone - outer if is_running(pid)]
        assert time.monotonic() - start < timeout + PATIENCE
        if len(everyone) > len(CASES) // 2:
            return
    pytest.fail(f"only {len(everyone)} processes had begun")


def recorded_machinery_of_host() -> set[int]:
    """The forkserver and guard that outlive the call."""
    return {process.pid for process in psutil.Process().children(recursive=True)}
