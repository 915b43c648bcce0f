"""What workers print comes to the host's own streams, in its order, while the call runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from killercall import (
    KillerPool,
    TimeoutError,  # ruff: ignore[builtin-import-shadowing]
    WorkerDied,
    WorkerStartError,
    killer_actor,
    killer_call,
    killer_exec,
    killer_imap,
    killer_pipeline,
    killer_pmap,
)
from processes import PATIENCE, run_script, took

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """What comes to both of the host's streams."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def say(*words: object) -> None:
    """Prints a line."""
    print(*words)


def say_and_return(x: Any) -> Any:
    """A line on each stream."""
    print("out", x)
    print("err", x, file=sys.stderr)
    return x


# Where it goes.


def test_redirected_streams() -> None:
    """A call and a map print where the host does, in order with what the host prints itself."""
    for method in START_METHODS:
        with captured() as stream:
            print("before")
            assert 1 == killer_call(say_and_return, start_method=method)(1)
            print("between")
            assert [2] == killer_pmap(say_and_return, [2], start_method=method)

        expected = "before\nout 1\nerr 1\nbetween\nout 2\nerr 2\n"
        assert expected == stream.getvalue(), method


def test_capsys(capsys: pytest.CaptureFixture[str]) -> None:
    """Pytest has it, of warm calls too, and knows the streams apart."""
    call = killer_call(say_and_return)
    for x in range(3):
        call(x)
        assert (f"out {x}\n", f"err {x}\n") == capsys.readouterr()


def test_stream_that_is_replaced_between_calls() -> None:
    """A warm worker prints where the host's stream is now, not where it was."""
    call = killer_call(say)
    for x in range(3):
        with captured() as stream:
            call(x)
        assert f"{x}\n" == stream.getvalue()


SCRIPT = """
import subprocess, sys
from killercall import killer_call, killer_pmap
def f(x):
    print("worker", x)
def g(x):
    print("worker", end=" ", flush=True)
    subprocess.run(["echo", str(x)])
for options in {options}:
    print("host 0")
    killer_call(f, **options)(0)
    call = killer_call({function}, **options)
    for x in range(1, 4):
        # No newline: it waits in the buffer, whatever the buffering.
        print("host", x, end=" ")
        call(x)
    killer_pmap(f, [4], **options)
    print("end", end=" ")
"""
METHODS = [{"start_method": method} for method in START_METHODS]
SAID = "host 0\nworker 0\nhost 1 worker 1\nhost 2 worker 2\nhost 3 worker 3\nworker 4\nend "


def test_script_into_a_pipe() -> None:
    """What the host has in its buffer comes first, and once."""
    done = run_script(SCRIPT.format(options=[*METHODS, {"forward_output": True}], function="f"))

    assert (SAID * 4, "") == (done.stdout, done.stderr)


def test_script_into_a_file(tmp_path: Path) -> None:
    """The same; what a child of the function writes is in its place, too."""
    script = SCRIPT.format(options=METHODS[:1], function="g")
    with open(tmp_path / "out", "w", encoding="utf-8") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True)

    assert SAID == (tmp_path / "out").read_text(encoding="utf-8")


def test_not_forwarded(capfd: pytest.CaptureFixture[str]) -> None:
    """With False it goes to the descriptors; functions with other options share the workers."""
    killer_call(say)("captured")
    assert ("captured\n", "") == capfd.readouterr()
    call = killer_call(lambda: say_and_return(os.getpid()))
    with captured() as stream, KillerPool(1) as pool:
        pids = [call(), call.options(forward_output=False)(), call()]
        assert f"out {pids[0]}\nerr {pids[0]}\n" * 2 == stream.getvalue()
        assert [pids[0]] * 3 == pids
        pool.options(forward_output=False).submit(say, "pool").result()

    assert (f"out {pids[0]}\npool\n", f"err {pids[0]}\n") == capfd.readouterr()


def test_no_stream() -> None:
    """Where the host has none, nothing is printed and nothing fails."""
    with contextlib.redirect_stdout(None):
        assert 1 == killer_call(say_and_return, forward_output=True)(1)
    detached = io.TextIOWrapper(io.BytesIO())
    detached.detach()
    with contextlib.redirect_stdout(detached), pytest.warns(RuntimeWarning, match="detached"):
        assert 2 == killer_call(say_and_return)(2)


# Who prints.


def test_nested_workers() -> None:
    """A worker's worker prints to its host, and so up to ours."""

    def outer() -> None:
        print("outer before")
        killer_call(say)("inner")
        killer_pmap(say, ["item"])
        print("outer after")

    with captured() as stream:
        killer_call(outer)()
    assert "outer before\ninner\nitem\nouter after\n" == stream.getvalue()


def test_everything_else_that_runs_functions(tmp_path: Path) -> None:
    """Iterators, pools, actors, pipelines, coroutines and commands."""

    @killer_actor
    class Speaker:
        def __init__(self) -> None:
            print("built")

        def speak(self) -> None:
            print("spoke")

    async def coroutine() -> None:
        print("awaited")

    def read() -> Any:
        print("read")
        yield 1

    def write(results: Any) -> None:
        print("written", *results)

    with captured() as stream, KillerPool(1, initializer=say, initargs=("set up",)) as pool:
        for _ in killer_imap(say, ["imap"]):
            pass
        pool.submit(say, "pool").result()
        Speaker().speak()
        asyncio.run(killer_call(coroutine)())
        killer_call(say).submit("future").result()
        killer_pipeline(read, lambda x: say("work", x) or x, write)
    expected = {
        "imap", "set up", "pool", "built", "spoke", "awaited", "future", "read", "work 1", "written 1",
    }  # fmt: skip
    assert expected == set(stream.getvalue().splitlines())

    def fail() -> None:
        print("before")
        raise LookupError

    with captured() as stream, pytest.raises(WorkerStartError):
        killer_call(say, initializer=fail)()
    assert "before\n" == stream.getvalue()


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    """What is not captured goes to the descriptors, as with `subprocess`."""
    killer_exec(["echo", "said"], timeout=PATIENCE)
    assert "said\n" == capfd.readouterr().out


def test_threads() -> None:
    """Lines of threads are whole, and none is lost."""

    def many(thread: int) -> None:
        for line in range(200):
            print(thread, line, "x" * random.randrange(60))

    def run() -> None:
        threads = [threading.Thread(target=many, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with captured() as stream:
        killer_call(run)()
    said = [tuple(map(int, line.split()[:2])) for line in stream.getvalue().splitlines()]
    assert [(thread, line) for thread in range(8) for line in range(200)] == sorted(said)
    for thread in range(8):
        assert list(range(200)) == [line for other, line in said if other == thread]


def test_map_of_many_items() -> None:
    """No line is lost or cut, and those of each worker are in its order."""

    def item(x: int) -> int:
        number = vars(sys).setdefault("_numbers", itertools.count())
        print(os.getpid(), next(number), x)
        return x

    with captured() as stream:
        assert list(range(10_000)) == killer_pmap(item, range(10_000), cpus=2, timeout=60)
    said = [tuple(map(int, line.split())) for line in stream.getvalue().splitlines()]
    assert list(range(10_000)) == sorted(x for _, _, x in said)
    for pid in {pid for pid, _, _ in said}:
        numbers = [number for other, number, _ in said if other == pid]
        assert list(range(len(numbers))) == numbers


def test_child_of_the_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """It writes to the descriptor, whoever prints in it."""

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            print("child")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        print("parent")

    with captured() as stream:
        killer_call(fork)()
    assert ("parent\n", "child\n") == (stream.getvalue(), capfd.readouterr().out)


# When it comes.


class Telling(io.StringIO):
    """A stream that makes a file as soon as a word is written to it."""

    def __init__(self, word: str, path: Path) -> None:
        super().__init__()
        self._word = word
        self._path = path

    def write(self, text: str) -> int:
        """As the base, and more."""
        written = super().write(text)
        if self._word in self.getvalue():
            self._path.touch()
        return written


def say_and_wait(text: str, path: Path, *, flush: bool = False) -> bool:
    """Whether the text was seen while this runs."""
    print(text, end="", flush=flush)
    end = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.005)
    return path.exists()


def say_and_wait_for(item: tuple[str, Path]) -> bool:
    """As an item of a map."""
    return say_and_wait(*item)


def test_while_it_runs(tmp_path: Path) -> None:
    """Lines and what is flushed are shown during the call, whoever waits for it."""
    call = killer_call(say_and_wait, timeout=PATIENCE)
    for number, (text, run) in enumerate((
        ("a line\n", call),
        ("  7%\r", call),
        ("flushed", lambda *args: call(*args, flush=True)),
        ("future\n", lambda *args: call.submit(*args).result()),
        ("map\n", lambda *args: killer_pmap(say_and_wait_for, [args], timeout=PATIENCE)[0]),
        ("fork\n", call.options(start_method="fork")),
    )):  # fmt: skip
        path = tmp_path / str(number)
        with contextlib.redirect_stdout(Telling(text, path)) as stream:
            assert run(text, path), text
        assert text == stream.getvalue()


def test_before_the_exception() -> None:
    """What was printed is there when the error is."""

    def fail() -> None:
        print("before")
        raise LookupError

    with captured() as stream:
        for _ in range(2):
            with pytest.raises(LookupError):
                killer_call(fail)()
            print("after")
    assert "before\nafter\n" * 2 == stream.getvalue()


def test_of_a_worker_that_dies() -> None:
    """What it had said before is the most useful output of all."""

    def run(ending: str) -> None:
        print("line")
        print("part", end="")
        if ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if ending == "exit":
            sys.exit("because")
        time.sleep(600)

    call = killer_call(run, timeout=0.3)
    for ending in ("timeout", "kill", "exit", "fork"):
        here = call.options(start_method="fork") if ending == "fork" else call
        here = here.options(timeout=PATIENCE) if ending in {"kill", "exit"} else here
        with captured() as stream, pytest.raises((TimeoutError, WorkerDied)):
            here(ending)
        assert {"exit": "line\npartbecause\n"}.get(ending, "line\npart") == stream.getvalue()


def test_flood() -> None:
    """Who prints without end is killed in time; what came before is there, without a gap."""

    def flood() -> None:
        number = 0
        while True:
            print(number)
            number += 1

    with captured() as stream, took(0.4, 5.0), pytest.raises(TimeoutError):
        killer_call(flood, timeout=0.4)()
    *whole, _ = stream.getvalue().split("\n")
    assert [str(number) for number in range(len(whole))] == whole
    assert len(whole) > 1000


def test_flood_while_the_host_is_slow() -> None:
    """The worker waits for the host, and keeps nothing in its memory for it."""

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.02)
            return super().write(text)

    def flood() -> int:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(300):
            print("x" * 10_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    with contextlib.redirect_stdout(Slow()) as stream:
        grown = killer_call(flood, timeout=60)()
    assert 300 * 10_001 == len(stream.getvalue())
    assert grown < 1500


def test_thread_that_prints_while_its_worker_is_idle() -> None:
    """It is not held up; what it says last comes with the next call, what is too much is dropped."""

    def begin() -> int:
        def run() -> None:
            started.wait()
            for number in range(3000):
                print("idle", number, "x" * 100)
            done.set()

        started, done = threading.Event(), threading.Event()
        threading.Thread(target=run, daemon=True).start()
        vars(sys)["_test"] = started, done
        return os.getpid()

    def end() -> int:
        _, done = vars(sys)["_test"]
        assert done.wait(PATIENCE)
        print("end")
        return os.getpid()

    begin_call, end_call = killer_call(begin), killer_call(end)
    with captured() as stream:
        pid = begin_call()
        killer_call(lambda: vars(sys)["_test"][0].set())()
        time.sleep(0.1)
        assert pid == end_call()
    said = stream.getvalue().splitlines()
    numbers = [int(line.split()[1]) for line in said if line.startswith("idle")]
    assert ("end", 2999) == (said[-1], numbers[-1])
    assert sorted(numbers) == numbers


def test_interrupt_while_text_is_in_flight() -> None:
    """Ctrl+C ends a call that floods the host, and the next call prints as ever."""

    def flood() -> None:
        while True:
            print("x" * 100)

    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with captured(), pytest.raises(KeyboardInterrupt):
        killer_call(flood, timeout=60)()
    timer.join()
    with captured() as stream:
        killer_call(say)("next")
    assert "next\n" == stream.getvalue()


def test_future_prints_in_the_context_in_which_it_was_submitted() -> None:
    """By this a notebook knows the cell."""
    cell: contextvars.ContextVar[str] = contextvars.ContextVar("cell", default="none")
    said = []

    class InCell(io.StringIO):
        def write(self, text: str) -> int:
            said.append((cell.get(), text))
            return len(text)

    call = killer_call(say)
    with contextlib.redirect_stdout(InCell()):
        futures = []
        for name in ("first", "second"):
            cell.set(name)
            futures.append(call.submit(name))
        for future in futures:
            future.result()
    assert {("first", "first\n"), ("second", "second\n")} == set(said)


# What is printed.


def test_any_text() -> None:
    """No text fails in the worker."""
    with captured() as stream:
        killer_call(say)("\U0001f40d\udc80\ud800 é" + "ü" * 20_000)
    assert "\U0001f40d\\udc80\\ud800 é" + "ü" * 20_000 + "\n" == stream.getvalue()
    # Nor in the host.
    buffer = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(buffer, encoding="ascii")) as ascii_stream:
        killer_call(say)("é")
        ascii_stream.flush()
    assert b"\\xe9\n" == buffer.getvalue()


def test_bytes() -> None:
    """What is no text is escaped, and comes in the order in which it was written."""

    def write() -> None:
        print("text")
        sys.stdout.buffer.write(b"\xff")
        sys.stdout.buffer.write(memoryview(b"view"))
        sys.stdout.buffer.writelines([b"a", bytearray(b"b\n")])

    with captured() as stream:
        killer_call(write)()
    assert "text\n\\xffviewab\n" == stream.getvalue()


def test_streams_are_like_others() -> None:
    """They can be asked what files can be asked, and survive to be closed."""

    def look() -> list[Any]:
        found = [
            (stream.fileno(), stream.isatty(), stream.encoding, stream.name, stream.mode, stream.closed,
             stream.writable(), stream.readable(), stream.line_buffering)
            for stream in (sys.stdout, sys.stderr)
        ]  # fmt: skip
        sys.stdout.close()
        print("still there")
        return found

    with captured() as stream:
        found = killer_call(look)()
    rest = ("w", False, True, False, True)
    expected = [(1, False, "utf-8", "<stdout>", *rest), (2, False, "utf-8", "<stderr>", *rest)]
    assert (expected, "still there\n") == (found, stream.getvalue())


def test_redirected_inside_the_function() -> None:
    """What it captures itself is its own."""

    def capture() -> str:
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            print("inside")
        print("outside")
        return stream.getvalue()

    with captured() as stream:
        assert "inside\n" == killer_call(capture)()
    assert "outside\n" == stream.getvalue()


def test_stream_that_a_call_has_left_behind() -> None:
    """As all state of a worker it stays, also when the host's stream is another one."""
    call = killer_call(lambda: setattr(sys, "stdout", io.StringIO()) or os.getpid())
    with captured():
        pid = call()
    with captured() as stream:
        assert ("", pid) == killer_call(lambda: (sys.stdout.getvalue(), os.getpid()))()
    assert "" == stream.getvalue()


def test_warning() -> None:
    """It is shown on standard error, with its line."""
    with captured() as stream:
        killer_call(lambda: warnings.warn("careful", UserWarning, stacklevel=1), env={})()
    assert "UserWarning: careful" in stream.getvalue()


# When it cannot be shown.


class Broken(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str) -> int:
        """Raises."""
        raise self.error


def test_broken_stream() -> None:
    """The host is warned once, and no call is lost."""
    call = killer_call(say_and_return)
    with contextlib.redirect_stdout(Broken(OSError("no space left"))):
        with pytest.warns(
            RuntimeWarning, match="cannot be written to sys.stdout: OSError: no"
        ) as found:
            assert [0, 1, 2] == [call(x) for x in range(3)]
            assert [3] == killer_pmap(say_and_return, [3])
            assert 4 == call.submit(4).result()
    assert 1 == len(found)
    with captured() as stream:
        call(5)
    assert "out 5\nerr 5\n" == stream.getvalue()


def test_warning_as_error() -> None:
    """Then it ends the call, and its worker."""
    with contextlib.redirect_stdout(Broken(OSError("no space left"))):
        with pytest.raises(RuntimeWarning, match="no space left"):
            killer_call(say)("x")


@pytest.mark.parametrize("call", [
    lambda: killer_call(say)("x"),
    lambda: killer_pmap(say, ["x"] * 100, cpus=2),
])  # fmt: skip
def test_stream_that_raises_anything(call: Callable[[], object]) -> None:
    """What is no error, such as Ctrl+C while it is written, ends the call as ever."""
    error = KeyboardInterrupt()
    with contextlib.redirect_stdout(Broken(error)), pytest.raises(KeyboardInterrupt) as found:
        call()
    assert error is found.value


def test_stream_that_is_called_for_a_call() -> None:
    """It may make calls of its own."""

    class Calling(io.StringIO):
        def write(self, text: str) -> int:
            return super().write(killer_call(str.upper)(text))

    with contextlib.redirect_stdout(Calling()) as stream:
        killer_call(say)("word")
    assert "WORD\n" == stream.getvalue()


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers it is printed right here."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    with captured() as stream:
        killer_call(say)("x")
    assert "x\n" == stream.getvalue()
