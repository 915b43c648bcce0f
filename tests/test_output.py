"""What workers print comes to the host's own streams, in its order, while the call runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
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

import killercall
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


@pytest.mark.parametrize("method", START_METHODS)
def test_redirected_streams(method: str) -> None:
    """A call and a map print where the host does, in order with what the host prints itself."""
    with captured() as stream:
        print("before")
        assert 1 == killer_call(say_and_return, start_method=method)(1)
        print("between")
        assert [2] == killer_pmap(say_and_return, [2], start_method=method)

    expected = "before\nout 1\nerr 1\nbetween\nout 2\nerr 2\n"
    assert expected == stream.getvalue()


def test_capsys(capsys: pytest.CaptureFixture[str]) -> None:
    """Pytest has it, of warm calls too, and knows the streams apart."""
    call = killer_call(say_and_return)
    for x in range(3):
        call(x)
        assert (f"out {x}\n", f"err {x}\n") == capsys.readouterr()


def test_capfd(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the forkserver has inherited."""
    killer_call(say)("x")
    assert ("x\n", "") == capfd.readouterr()


def test_stream_that_is_replaced_between_calls() -> None:
    """A warm worker prints where the host's stream is now, not where it was."""
    call = killer_call(say)
    for x in range(3):
        with captured() as stream:
            call(x)
        assert f"{x}\n" == stream.getvalue()


SCRIPT = """
import sys
from killercall import killer_call, killer_pmap
def f(x):
    print("worker", x)
print("host 0")
killer_call(f, start_method={method!r})(0)
call = killer_call(f, start_method={method!r})
for x in range(1, 4):
    # No newline: it waits in the buffer, whatever the buffering.
    print("host", x, end=" ")
    call(x)
killer_pmap(f, [4], start_method={method!r})
print("end", end="")
"""
SAID = "host 0\nworker 0\nhost 1 worker 1\nhost 2 worker 2\nhost 3 worker 3\nworker 4\nend"


@pytest.mark.parametrize("method", START_METHODS)
def test_script_into_a_pipe(method: str) -> None:
    """What the host has in its buffer comes first, and once."""
    done = run_script(SCRIPT.format(method=method))

    assert (SAID, "") == (done.stdout, done.stderr)


def test_script_into_a_file(tmp_path: Path) -> None:
    """The same; what a child of the function writes is in its place, too."""
    script = SCRIPT.replace(
        '    print("worker", x)',
        "    print('worker', end=' '); sys.stdout.flush()"
        "\n    import subprocess; subprocess.run(['echo', str(x)])",
    )
    with open(tmp_path / "out", "w", encoding="utf-8") as out:
        subprocess.run(
            [sys.executable, "-c", script.format(method="forkserver")], stdout=out, check=True
        )

    assert SAID == (tmp_path / "out").read_text(encoding="utf-8")


def test_script_that_forwards_always() -> None:
    """Then nothing is written past the host's own buffer, which it may have replaced."""
    script = SCRIPT.replace("start_method={method!r}", "forward_output=True")
    assert SAID == run_script(script).stdout


def test_not_forwarded(capfd: pytest.CaptureFixture[str]) -> None:
    """With False it goes to the descriptors that the workers have inherited."""
    with captured() as stream:
        killer_call(say_and_return, forward_output=False)(1)

    assert ("", ("out 1\n", "err 1\n")) == (stream.getvalue(), capfd.readouterr())


def test_functions_with_different_options_share_workers(capfd: pytest.CaptureFixture[str]) -> None:
    """Each call prints as its own function says."""
    call = killer_call(lambda: print(os.getpid()))
    other = call.options(forward_output=False)
    with captured() as stream:
        for _ in range(2):
            call()
            other()

    pids = stream.getvalue().split()
    assert (pids, 1) == (capfd.readouterr().out.split(), len(set(pids)))


def test_no_stream() -> None:
    """Where the host has none, nothing is printed and nothing fails."""
    with contextlib.redirect_stdout(None):
        assert 1 == killer_call(say_and_return, forward_output=True)(1)


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


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    """What is not captured goes to the descriptors, as with `subprocess`."""
    killer_exec(["echo", "said"], timeout=PATIENCE)
    assert "said\n" == capfd.readouterr().out


def test_initializer_that_fails() -> None:
    """What it has printed is seen."""

    def fail() -> None:
        print("before")
        raise LookupError

    with captured() as stream, pytest.raises(WorkerStartError):
        killer_call(say, initializer=fail)()
    assert "before\n" == stream.getvalue()


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
    """No line is lost, and those of each worker are in its order."""

    def item(x: int) -> int:
        print(os.getpid(), x)
        return x

    with captured() as stream:
        assert list(range(10_000)) == killer_pmap(item, range(10_000), cpus=2, timeout=60)
    said = [tuple(map(int, line.split())) for line in stream.getvalue().splitlines()]
    assert list(range(10_000)) == sorted(x for _, x in said)
    for pid in {pid for pid, _ in said}:
        items = [x for other, x in said if other == pid]
        assert sorted(items) == items


def test_map_is_done_before_what_it_has_printed_is_there() -> None:
    """No: when it returns, all is there, of whatever size."""
    with captured() as stream:
        killer_pmap(lambda x: print("x" * x), [10_000] * 50, cpus=2)
    assert 50 * 10_001 == len(stream.getvalue())


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


@pytest.mark.parametrize("text", ["a line\n", "  7%\r", "flushed"])
@pytest.mark.parametrize("way", ["call", "warm", "map", "future", "fork"])
def test_while_it_runs(text: str, way: str, tmp_path: Path) -> None:
    """Lines and what is flushed are shown during the call."""
    path = tmp_path / "seen"
    stream: Any = Telling(text, path)
    with contextlib.redirect_stdout(stream):
        if way == "map":
            runs = killer_pmap(
                lambda x: say_and_wait(*x, flush=True), [(text, path)], timeout=PATIENCE
            )
            assert [True] == runs
            return
        method = "fork" if way == "fork" else "forkserver"
        call = killer_call(say_and_wait, timeout=PATIENCE, start_method=method)
        if way == "warm":
            call("", tmp_path)
        if way == "future":
            assert call.submit(text, path, flush=True).result()
        else:
            assert call(text, path, flush=True)
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


@pytest.mark.parametrize("ending", ["timeout", "kill", "exit", "fork"])
def test_of_a_worker_that_dies(ending: str) -> None:
    """What it had said before is the most useful output of all."""

    def run() -> None:
        print("line")
        print("part", end="")
        if ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if ending == "exit":
            sys.exit("because")
        time.sleep(600)

    method = "fork" if ending == "fork" else "forkserver"
    call = killer_call(run, timeout=PATIENCE, start_method=method)
    if ending in {"timeout", "fork"}:
        call = call.options(timeout=0.3)
    with captured() as stream, pytest.raises((TimeoutError, WorkerDied)):
        call()
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


def test_text_that_the_host_cannot_encode() -> None:
    """It is escaped there."""
    buffer = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(buffer, encoding="ascii")) as stream:
        killer_call(say)("é")
        stream.flush()
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


def test_no_memory_is_kept() -> None:
    """A warm worker that has printed a lot serves on."""
    call = killer_call(say, reuse=True)
    with captured() as stream:
        for _ in range(500):
            call("x" * 100)
    assert 500 * 101 == len(stream.getvalue())
    assert killercall._host.idle_workers() >= 1
