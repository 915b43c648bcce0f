"""Workers may have workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import hostile
import killercall
from killercall import killer_call, killer_pmap
from processes import is_running, recorded, run_script, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def double(x: int) -> int:
    """The innermost work."""
    return 2 * x


def map_inside(xs: list[int]) -> list[int]:
    """A map inside a call."""
    return killer_pmap(double, xs, cpus=2, timeout=20)


def call_inside(xs: list[int]) -> list[int]:
    """A call inside a map."""
    return killer_call(map_inside, timeout=30)(xs)


def test_map_in_call_in_map() -> None:
    """Three levels, each in processes of its own."""
    assert [[2, 4], [6, 8]] == killer_pmap(call_inside, [[1, 2], [3, 4]], cpus=2, timeout=40)


def pool_inside(start_method: str) -> list[int]:
    """A pool of multiprocessing in a worker."""
    import multiprocessing

    with multiprocessing.get_context(start_method).Pool(2) as pool:
        return pool.map(double, [1, 2, 3])


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("outer", ["forkserver", "spawn", "fork"])
def test_multiprocessing_pool_in_worker(outer: str, start_method: str) -> None:
    """Whatever starts either of them."""
    call = killer_call(pool_inside, timeout=60, start_method=outer)

    assert [2, 4, 6] == call(start_method)


def process_and_program() -> tuple[int, str]:
    """A Process and a program in a worker."""
    import multiprocessing
    import subprocess

    process = multiprocessing.get_context("fork").Process(target=double, args=(1,))
    process.start()
    process.join()
    said = subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout
    return process.exitcode, said


def test_process_and_subprocess_in_worker() -> None:
    """They work, and tell how they ended."""
    assert (0, "hello\n") == killer_call(process_and_program, timeout=60)()


def hang_below(path: str) -> list[float]:
    """A map whose items note themselves and hang."""
    return killer_pmap(hostile.note_and_nap, [path, path], cpus=2, timeout=None)


def test_outer_deadline_kills_everything_inner(tmp_path: Path) -> None:
    """The workers of the worker are dead when the outer exception is raised."""
    path = tmp_path / "pids"
    with pytest.raises(killercall.TimeoutError, match="'hang_below'"):
        killer_call(hang_below, timeout=3)(str(path))

    pids = recorded(path, "worker")
    assert 2 == len(pids)
    assert [] == [pid for pid in pids if is_running(pid)]


def inner_times_out(path: str) -> str:
    """A call that misses its own deadline, inside one that has time."""
    try:
        killer_call(hostile.note_and_nap, timeout=0.3)(path)
    except killercall.TimeoutError as error:
        return str(error)
    return "it returned"


def test_inner_deadline_fires_alone(tmp_path: Path) -> None:
    """The outer call goes on and returns."""
    said = killer_call(inner_times_out, timeout=30)(str(tmp_path / "pids"))

    assert "function 'note_and_nap' timed out after 0.3s" == said


def test_depth_limit() -> None:
    """The level above the limit is an error of the innermost call, not a fork bomb."""
    code = """
        import killercall
        @killercall.killer_call(timeout=60)
        def nest(levels):
            return 1 if levels == 1 else 1 + nest(levels - 1)
        print(nest(3))
        try:
            nest(4)
        except killercall.DepthLimitExceeded as error:
            print(isinstance(error, RecursionError), error)
    """
    import textwrap

    done = run_script(textwrap.dedent(code), environment={"KILLERCALL_MAX_DEPTH": "3"})

    assert "" == done.stderr
    deep, error = done.stdout.splitlines()
    assert "3" == deep
    assert error.startswith("True this call would be nested 4 deep, and the limit is 3")


def test_depth_limit_by_default_is_ten() -> None:
    """Ten levels work, the eleventh does not."""
    assert 9 == killer_call(hostile.nest, timeout=100)(9)
    with pytest.raises(killercall.DepthLimitExceeded):
        killer_call(hostile.nest, timeout=100)(10)


def leave_nested_worker(path: str) -> None:
    """Ends with a warm worker of its own still there."""
    killer_call(hostile.note_worker)(path)


def test_nested_workers_end_with_their_host(tmp_path: Path) -> None:
    """A worker that is worn out takes its own warm workers along."""
    path = tmp_path / "pids"
    killer_call(leave_nested_worker, reuse=False)(str(path))

    (pid,) = recorded(path, "worker")
    assert wait_until(lambda: not is_running(pid))
