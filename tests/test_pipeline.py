"""`killer_pipeline`: a reader, workers and a writer."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

import killercall
from killercall import _stages, killer_call, killer_pipeline
from killercall._pipeline import _End
from processes import PATIENCE, is_running, run_script, took, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def square(x: int) -> int:
    return x * x


def numbers() -> Iterator[int]:
    """Without end."""
    number = 0
    while True:
        yield number
        number += 1


def to_list(results: Iterator[Any]) -> list[Any]:
    return list(results)


def test_results_come_in_the_order_of_the_items() -> None:
    def work(x: int) -> int:
        time.sleep(0.02 * (x % 3 == 0))
        return -x

    got = killer_pipeline(lambda: range(40), work, to_list, cpus=3, timeout=30)
    assert got == [-x for x in range(40)]


def test_results_come_as_they_are_done() -> None:
    def work(x: int) -> int:
        time.sleep(0.5 if x == 0 else 0)
        return x

    got = killer_pipeline(lambda: range(10), work, to_list, cpus=2, timeout=30, ordered=False)
    assert got[0] != 0
    assert sorted(got) == list(range(10))


def test_each_stage_has_a_process_of_its_own() -> None:
    def read() -> Iterator[int]:
        yield os.getpid()

    reader, worker, writer = killer_pipeline(
        read,
        lambda pid: (pid, os.getpid()),
        lambda results: (*next(results), os.getpid()),
        cpus=1,
        timeout=30,
    )
    assert len({reader, worker, writer, os.getpid()}) == 4


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches(batch: int) -> None:
    sizes = killer_pipeline(lambda: range(7), len, to_list, cpus=1, timeout=30, batch=batch)
    assert sum(sizes) == 7
    assert all(size == batch for size in sizes[:-1])
    assert sizes[-1] <= batch


def test_no_items() -> None:
    assert killer_pipeline(list, square, to_list, cpus=1, timeout=30) == []


def test_objects_of_all_kinds_go_round() -> None:
    code = """
import dataclasses
import numpy as np
from killercall import killer_pipeline
@dataclasses.dataclass
class Point:
    x: int
    data: object = None
def read():
    for x in range(5):
        yield Point(x, np.full(100_000, x, float))
def work(point):
    assert type(point) is Point
    return Point(point.x + 1, point.data * 2)
def write(points):
    points = list(points)
    assert all(type(point) is Point for point in points)
    return points
points = killer_pipeline(read, work, write, cpus=2, timeout=30)
assert all(type(point) is Point for point in points)
print([(point.x, float(point.data[0]), point.data.shape) for point in points][3])
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("(4, 6.0, (100000,))\n", "")


def test_the_reader_is_not_far_ahead(tmp_path: Path) -> None:
    path = tmp_path / "read"

    def read() -> Iterator[int]:
        with open(path, "ab", buffering=0) as file:
            for number in range(10_000):
                file.write(b"x")
                yield number

    def write(results: Iterator[int]) -> int:
        next(results)
        time.sleep(0.5)
        return path.stat().st_size

    # The kernel's buffers are between the processes, too.
    assert killer_pipeline(read, lambda x: "x" * 50_000, write, cpus=1, timeout=30) < 2_000


# Failures: the first one ends all


def fails_soon(call: Any, kind: type[BaseException]) -> Any:
    start = time.monotonic()
    with pytest.raises(kind) as raised:
        call()
    assert time.monotonic() - start < 20, "while there would be work for ever"
    return raised.value


def test_a_writer_that_cannot_open_its_file() -> None:
    def write(results: Iterator[int]) -> None:
        with open("/nonexistent/file", "w", encoding="ascii") as file:
            file.writelines(map(str, results))

    error = fails_soon(
        lambda: killer_pipeline(numbers, square, write, cpus=1, timeout=30), FileNotFoundError
    )
    assert "stage 'write' of the pipeline" in error.__notes__
    assert "in write" in str(error.__cause__)


def test_a_writer_that_fails_while_nothing_is_written(tmp_path: Path) -> None:
    """It is told of at once, though no result is to be had for a minute."""
    path = tmp_path / "pid"

    def work(x: int) -> None:
        part = tmp_path / "part"
        part.write_text(str(os.getpid()))
        # It is killed as soon as the writer finds it.
        part.replace(path)
        time.sleep(60)

    def write(results: Iterator[int]) -> None:
        wait_until(path.exists, PATIENCE)
        message = "disk full"
        raise OSError(message)

    error = fails_soon(lambda: killer_pipeline(numbers, work, write, cpus=1, timeout=120), OSError)
    assert str(error) == "disk full"
    assert wait_until(lambda: not is_running(int(path.read_text())), PATIENCE)


def test_a_reader_that_raises() -> None:
    def read() -> Iterator[int]:
        yield 1
        message = "torn tape"
        raise LookupError(message)

    error = fails_soon(
        lambda: killer_pipeline(read, lambda _: time.sleep(60), to_list, cpus=1, timeout=120),
        LookupError,
    )
    assert "stage 'read' of the pipeline" in error.__notes__


@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_a_stage_that_dies(stage: str) -> None:
    def read() -> Iterator[int]:
        for number in numbers():
            if stage == "read" and number == 5:
                os._exit(7)
            yield number

    def work(x: int) -> int:
        if stage == "work" and x == 5:
            os._exit(7)
        return x

    def write(results: Iterator[int]) -> None:
        for result in results:
            if stage == "write" and result == 5:
                os._exit(7)

    error = fails_soon(
        lambda: killer_pipeline(read, work, write, cpus=2, timeout=30), killercall.WorkerDied
    )
    assert (error.stage, error.exitcode) == (stage, 7)
    if stage == "work":
        assert (error.item, error.index) == (5, 5)


def test_a_killed_writer_has_not_seen_the_end(tmp_path: Path) -> None:
    """What comes after its loop is not done for a part of the results."""
    part, whole = tmp_path / "part", tmp_path / "whole"

    def write(results: Iterator[int]) -> None:
        with open(part, "w", encoding="ascii") as file:
            for result in results:
                file.write(f"{result}\n")
                file.flush()
        os.replace(part, whole)

    def work(x: int) -> int:
        if x == 20:
            message = "no"
            raise ValueError(message)
        return x

    fails_soon(lambda: killer_pipeline(numbers, work, write, cpus=1, timeout=30), ValueError)
    assert not whole.exists()
    killer_pipeline(lambda: range(5), work, write, cpus=1, timeout=30)
    assert whole.read_text().split() == ["0", "1", "2", "3", "4"]


def test_a_late_item_ends_all() -> None:
    error = fails_soon(
        lambda: killer_pipeline(
            numbers, lambda x: time.sleep(60 * (x == 3)), to_list, cpus=2, timeout=0.5
        ),
        killercall.TimeoutError,
    )
    assert (error.stage, error.item) == ("work", 3)


def test_a_late_item_has_a_default() -> None:
    def work(x: int) -> int:
        time.sleep(60 * (x == 1))
        return x

    got = killer_pipeline(
        lambda: range(3), work, to_list, cpus=2, timeout=0.5, on_timeout="default", default="late"
    )
    assert got == [0, "late", 2]


def test_failures_may_be_results() -> None:
    def work(x: int) -> float:
        return 1 / x

    zero, one = killer_pipeline(
        lambda: [0, 1], work, to_list, cpus=1, timeout=30, on_error="return"
    )
    assert isinstance(zero, ZeroDivisionError)
    assert one == 1.0


def test_what_cannot_be_pickled_names_its_stage() -> None:
    lock = threading.Lock
    reader = fails_soon(
        lambda: killer_pipeline(lambda: [lock()], square, to_list, cpus=1, timeout=30),
        killercall.SerializationError,
    )
    assert reader.stage == "read"
    worker = fails_soon(
        lambda: killer_pipeline(lambda: [1], lambda _: lock(), to_list, cpus=1, timeout=30),
        killercall.SerializationError,
    )
    assert worker.stage == "work"
    writer = fails_soon(
        lambda: killer_pipeline(lambda: [1], square, lambda _: lock(), cpus=1, timeout=30),
        killercall.SerializationError,
    )
    assert writer.stage == "write"


def test_a_writer_may_have_enough() -> None:
    """Then the others end."""
    assert killer_pipeline(numbers, square, next, cpus=1, timeout=30) == 0


def test_retries(tmp_path: Path) -> None:
    def work(x: int) -> int:
        path = tmp_path / str(x)
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    got = killer_pipeline(lambda: range(3), work, to_list, cpus=2, timeout=30, retries=1)
    assert got == [0, 1, 2]


def test_an_interrupt_ends_all(tmp_path: Path) -> None:
    code = f"""
import os, signal, threading, time
from killercall import killer_pipeline
def work(x):
    open("{tmp_path}/begun", "w").close()
    time.sleep(60)
def interrupt():
    while not os.path.exists("{tmp_path}/begun"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    killer_pipeline(lambda: range(10), work, list, cpus=1, timeout=None)
except KeyboardInterrupt:
    print("interrupted", threading.active_count() <= 2)
print(killer_pipeline(lambda: range(3), abs, list, cpus=1, timeout=5))
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("interrupted True\n[0, 1, 2]\n", "")


def test_pipelines_in_threads_and_in_workers() -> None:
    def inner(x: int) -> int:
        return int(killer_pipeline(lambda: range(x), square, sum, cpus=1, timeout=30))

    got: list[int] = []
    threads = [threading.Thread(target=lambda n=n: got.append(inner(n))) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [5, 14]
    assert killer_call(inner, timeout=30)(5) == 30


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    here = killer_pipeline(lambda: [1, 2, 3], lambda x: (os.getpid(), x), to_list, batch=2)
    assert here == [(os.getpid(), [1, 2]), (os.getpid(), [3])]
    options: dict[str, Any] = {"on_error": "default", "default": -1}
    assert [1.0, -1, 0.5] == killer_pipeline(lambda: [1, 0, 2], invert, to_list, **options)
    with pytest.raises(ZeroDivisionError) as caught:
        killer_pipeline(lambda: [1, 0, 2], invert, to_list)
    assert "item 1 of the pipeline: 0" in caught.value.__notes__


def invert(x: int) -> float:
    return 1 / x


def end_as_told(items: list[str]) -> list[str]:
    for item in items:
        match item:
            case "raise":
                raise ValueError(item)
            case "hang":
                time.sleep(60)
            case "die":
                os._exit(7)
    return items


def test_progress_counts_items() -> None:
    """Not batches; in the caller's thread, with nothing left out."""
    items = ["a", "b", "raise", "c", "hang", "d", "die", "e", "f"]
    told: list[tuple[Any, ...]] = []
    threads: set[int] = set()

    def progress(*numbers: Any) -> None:
        told.append(numbers)
        threads.add(threading.get_ident())

    got = killer_pipeline(
        lambda: items,
        end_as_told,
        to_list,
        cpus=2,
        timeout=2,
        batch=2,
        ordered=False,
        on_error="default",
        on_timeout="default",
        progress=progress,
    )
    assert 5 == len(got) and 2 == sum(found is not None for found in got)
    assert (9, 2, 4, None) == told[-1] and sorted(told) == told
    assert {threading.get_ident()} == threads


@pytest.mark.parametrize("inline", [False, True])
def test_progress_of_single_items(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", str(int(inline)))
    told: list[Any] = []

    def count(*numbers: Any) -> None:
        told.append(numbers)

    options: dict[str, Any] = {"cpus": 1, "on_error": "default", "progress": count}
    assert [1.0, None] == killer_pipeline(lambda: [1, 0], invert, to_list, **options)
    assert (2, 0, 1, None) == told[-1]
    told.clear()
    assert [] == killer_pipeline(list, invert, to_list, **options)
    assert [] == told
    # The writer has seen enough.
    assert 1.0 == killer_pipeline(lambda: [1, 0], invert, next, **options)


def test_what_progress_raises_ends_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_numbers: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        killer_pipeline(numbers, square, to_list, cpus=1, timeout=30, progress=refuse)
    killer_pipeline(lambda: [1, 2], square, to_list, cpus=1, timeout=30, progress="squares")
    text = capsys.readouterr().err
    assert "squares: 2it" in text and "failed" not in text


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"cpus": 0}, ValueError, "cpus must be"),
        ({"batch": 0}, ValueError, "batch must be"),
        ({"batch": "all"}, TypeError, "batch must be"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"start_method": "fork"}, ValueError, "not read yet"),
        ({"budget": 0}, ValueError, "budget must be greater than 0"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        killer_pipeline(numbers, square, to_list, **options)


def test_bad_functions() -> None:
    with pytest.raises(TypeError, match="read must be callable, not 3"):
        killer_pipeline(3, square, to_list)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="write must be callable"):
        killer_pipeline(numbers, square, None)  # type: ignore[arg-type]


def test_a_child_that_the_reader_forked_does_not_speak_for_it() -> None:
    def read() -> Iterator[int]:
        for number in range(20):
            if number == 6 and os.fork() == 0:
                return
            yield number

    assert killer_pipeline(read, square, to_list, cpus=1, timeout=30) == [x * x for x in range(20)]


def test_a_child_that_the_writer_forked_takes_nothing_from_it() -> None:
    def write(results: Iterator[int]) -> list[Any]:
        pid = os.fork()
        if pid == 0:
            try:
                next(results)
            except RuntimeError:
                os._exit(3)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        return [os.waitstatus_to_exitcode(status), *results]

    assert killer_pipeline(lambda: range(3), square, write, cpus=1, timeout=30) == [3, 0, 1, 4]


def test_a_lost_connection_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has ended our thread."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("killercall._pipeline.frames", fail)
    error = fails_soon(
        lambda: killer_pipeline(numbers, square, to_list, cpus=1, timeout=30),
        killercall.KillerError,
    )
    assert "MemoryError" in str(error)


def test_a_result_that_cannot_be_unpickled_is_a_failed_item() -> None:
    code = """
import os
from killercall import killer_pipeline
class Rude:
    def __init__(self, x):
        self.x = x
    def __reduce__(self):
        return rebuild, (os.getpid(), self.x)
def rebuild(pid, x):
    if os.getpid() != pid:
        raise LookupError(x)
    return Rude(x)
print(killer_pipeline(lambda: range(2), Rude, list, cpus=1, timeout=30, on_error="default", default="bad"))
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("['bad', 'bad']\n", "")


def test_a_connection_that_comes_while_it_is_closed_is_closed_too() -> None:
    """By its thread, if whoever closes it has looked for it before."""
    end = _End(lambda _connection: None, lambda _error: None)
    listener, accepted, is_shut = end._listener, [], threading.Event()

    class Late:
        def accept(self) -> Any:
            found = listener.accept()
            assert is_shut.wait(PATIENCE)
            # The other thread has time to go on.
            time.sleep(0.05)
            accepted.append(found[0])
            return found

        def shutdown(self, _how: int) -> None:
            is_shut.set()

        def close(self) -> None:
            listener.close()

    end._listener = Late()  # type: ignore[assignment]
    end.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stage:
        stage.connect(end.address)
        stage.sendall(end.secret)
        end.close()
    assert [-1] == [connection.fileno() for connection in accepted]


class Lean:
    """A serializer that takes no bytes for None."""

    def dumps(self, value: Any) -> bytes:
        return b"" if value is None else cloudpickle.dumps(value)

    def loads(self, data: bytes) -> Any:
        return cloudpickle.loads(data) if data else None


def test_an_item_of_no_bytes_is_not_the_end() -> None:
    """Nor is a result."""
    items = [1, None, 2, b"", b"\0" * 8, b"\xff" * 8]
    got = killer_pipeline(
        lambda: items, lambda item: item, to_list, cpus=1, timeout=30, serializer=Lean()
    )
    assert got == items


def test_frames_that_are_none() -> None:
    """A length that none of ours has, and an end in the middle of one, are errors, and no items."""
    for sent in ((2**40 + 1).to_bytes(_stages.LENGTH, "little"), b"\x05" + bytes(7) + b"part"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _stages.send_frame(theirs, b"whole")
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)
            received = _stages.frames(ours)
            assert b"whole" == next(received)
            with pytest.raises(EOFError):
                next(received)


def test_a_budget_ends_stages_that_hang() -> None:
    """And the one that has held up the others is told of; to be stopped is not death."""

    def read() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGSTOP)

    def write(results: Iterator[int]) -> None:
        next(results)
        os.kill(os.getpid(), signal.SIGSTOP)

    assert killer_pipeline(lambda: range(3), lambda x: x, sum, timeout=None, budget=60) == 3
    stages: list[tuple[str, tuple[Any, Any, Any]]] = [
        ("1 were read, 0 are worked on, 1 written", (read, lambda x: x, list)),
        (
            "2 were read, 2 are worked on, 0 written",
            (lambda: range(2), lambda x: threading.Event().wait(60 + x), list),
        ),
        ("were read, 0 are worked on", (lambda: range(60), lambda _: "x" * 1_000_000, write)),
    ]
    for (note, functions), stage in zip(stages, ("read", "work", "write"), strict=True):
        with took(1, PATIENCE), pytest.raises(killercall.TimeoutError) as raised:
            killer_pipeline(*functions, cpus=1, timeout=None, budget=1)
        assert "did not finish within the budget of 1s" in str(raised.value)
        assert raised.value.stage == stage
        assert note in str(raised.value.__notes__)


def test_an_interrupt_ends_a_stopped_stage() -> None:
    code = """
import os, signal, threading, time
from killercall import killer_pipeline
def stop():
    os.kill(host, signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGSTOP)
def read():
    yield 1
    stop()
def write(results):
    next(results)
    stop()
def interrupt(*_):
    raise KeyboardInterrupt
host = os.getpid()
signal.signal(signal.SIGUSR1, interrupt)
for stages in [(read, abs, list), (lambda: range(3), abs, write)]:
    try:
        killer_pipeline(*stages, cpus=1, timeout=None)
    except KeyboardInterrupt:
        print("interrupted", threading.active_count())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("interrupted 1\ninterrupted 1\n", "")


def test_interrupts_while_it_ends_leave_nothing() -> None:
    """However many, and wherever they come: no thread waits for ever."""
    code = """
import os, signal, threading, time
from killercall import killer_pipeline
main = threading.main_thread().ident
is_over = False
def interrupt():
    pause = 0.0
    while not is_over:
        pause = (pause + 0.0007) % 0.02
        time.sleep(pause)
        for _ in range(3):
            if not is_over:
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.0003)
def run():
    return killer_pipeline(lambda: range(10), abs, sum, cpus=1, timeout=30)
def count():
    return len(os.listdir("/proc/self/task"))
run()
before = count()
thread = threading.Thread(target=interrupt, daemon=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
thread.start()
interrupts, end = 0, time.monotonic() + 1.5
try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while time.monotonic() < end:
        try:
            run()
        except KeyboardInterrupt:
            interrupts += 1
except KeyboardInterrupt:
    pass
while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        pass
is_over = True
thread.join()
for _ in range(500):
    if count() <= before:
        break
    time.sleep(0.01)
print(count() <= before, run())
"""
    result = run_script(code)
    # What is raised in a finalizer is printed. One that comes between two lines that the interpreter
    # itself runs, before our last resort has begun, cannot be caught by anybody.
    is_cut_off = "in: <function _Ending.__del__" in result.stderr
    assert result.stdout == "True 45\n" or (is_cut_off and result.stdout == "False 45\n")
