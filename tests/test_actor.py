"""`killer_actor`: objects in workers of their own."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import killercall
from killercall import _host, killer_actor, killer_call
from processes import PATIENCE, alive_with_mark, is_running, run_script, took, wait_until


@killer_actor(timeout=30)
class Counter:
    """Counts, and does what it is told otherwise."""

    LIMIT = 100

    def __init__(self, start: int = 0, journal: str | None = None) -> None:
        self.count = start
        if journal is not None:
            with open(journal, "a", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")

    @classmethod
    def of(cls, text: str) -> Any:
        return cls(int(text))

    @property
    def double(self) -> int:
        return 2 * self.count

    @staticmethod
    def pid() -> int:
        return os.getpid()

    def add(self, number: int = 1) -> int:
        self.count += number
        return self.count

    def fail(self, error: BaseException) -> None:
        self.count += 1
        raise error

    def give(self) -> Any:
        self.count += 1
        return threading.Lock()

    def note(self, path: str, entry: int) -> None:
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{entry}\n")

    def hang(self, path: str | None = None) -> None:
        if path is not None:
            Path(path).touch()
        time.sleep(60)

    def leave(self, code: int) -> None:
        os._exit(code)

    def spawn(self) -> int:
        return subprocess.Popen(["sleep", "60"]).pid

    async def later(self, number: int) -> int:
        await asyncio.sleep(0.01)
        return self.count + number

    def me(self) -> Any:
        return self

    def nested(self, number: int) -> tuple[int, int]:
        with Counter(number) as inner:
            return inner.add(), killer_call(abs, timeout=30)(-number)


class Plain:
    """Not decorated."""

    def __init__(self, values: list[int], seconds: float = 0) -> None:
        time.sleep(seconds)
        self.values = values

    def get(self) -> list[int]:
        return self.values


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def gone(pid: int) -> bool:
    return bool(wait_until(lambda: not is_running(pid), PATIENCE))


# What an actor is


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_state_lives_in_a_worker_of_its_own(method: str) -> None:
    cls = killer_actor(Counter, timeout=30, start_method=method)
    first, second = cls(10), cls(start=20)
    assert (first.add(), first.add(number=2), second.add()) == (11, 13, 21)
    pids = {first.pid(), second.pid(), os.getpid()}
    assert len(pids) == 3
    assert first.pid() in pids
    # Nobody else's call goes there.
    assert killer_call(os.getpid, timeout=30)() not in pids


def test_bare_with_arguments_and_as_a_wrapper() -> None:
    assert killer_actor(Plain)([1]).get() == [1]
    assert killer_actor(timeout=30)(Plain)([2]).get() == [2]
    assert killer_actor(Plain, timeout=30)([3]).get() == [3]
    assert Counter.__name__ == "Counter"
    assert Counter.__doc__ == "Counts, and does what it is told otherwise."
    assert "Counter" in repr(Counter) + repr(Counter(1)) + repr(Counter(1).add)


def test_only_methods_can_be_reached() -> None:
    counter = Counter(1)
    for name in ("count", "LIMIT", "double", "nothing"):
        with pytest.raises(AttributeError, match=f"no method '{name}'; only methods of an actor"):
            getattr(counter, name)
    with pytest.raises(AttributeError, match="cannot set 'count'"):
        counter.count = 5
    assert {"add", "pid", "close"} <= set(dir(counter))
    assert "count" not in dir(counter)
    assert Counter.LIMIT == 100


def test_inheritance() -> None:
    @killer_actor(timeout=30)
    class Twice(Counter):
        def add(self, number: int = 1) -> int:
            return super().add(2 * number)

    twice = Twice(1)
    assert twice.add(3) == 7
    assert twice.fail.submit(ValueError("x")).exception(PATIENCE).args == ("x",)
    assert isinstance(twice, Counter)
    assert isinstance(twice, Twice)
    assert not isinstance(Counter(), Twice)
    assert issubclass(Twice, Counter)
    assert isinstance(Counter.__wrapped__(), Counter)


def test_a_class_method_makes_an_actor() -> None:
    counter = Counter.of("5")
    assert counter.add() == 6
    assert counter.pid() != os.getpid()


def test_an_instance_comes_back_as_one_of_the_class_itself() -> None:
    copy = Counter(3).me()
    assert type(copy) is Counter.__wrapped__
    assert copy.count == 3


def test_an_actor_cannot_be_pickled() -> None:
    counter = Counter()
    for thing in (counter, counter.add):
        with pytest.raises(TypeError, match="cannot pickle an actor of 'Counter'"):
            pickle.dumps(thing)
    with pytest.raises(killercall.SerializationError, match="cannot pickle an actor of 'Counter'"):
        killer_call(repr, timeout=30)(counter)


def test_the_class_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Counter)) is Counter
    assert killer_call(lambda cls: cls(4).add(), timeout=30)(Counter) == 5


# Order


def test_calls_run_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    path = tmp_path / "order"
    counter = Counter()
    futures = [counter.note.submit(str(path), number) for number in range(20)]
    counter.note(str(path), 20)
    assert all(future.done() for future in futures)
    assert pids_in(path) == list(range(21))


def test_submit_runs_beside_the_caller(tmp_path: Path) -> None:
    """Two actors at once, too."""
    paths = [str(tmp_path / "0"), str(tmp_path / "1")]
    actors = [Counter(), Counter()]
    futures = [actor.hang.submit(path) for actor, path in zip(actors, paths, strict=True)]
    assert wait_until(lambda: all(map(os.path.exists, paths)), PATIENCE)
    assert not any(future.done() for future in futures)
    for future in futures:
        future.cancel()


def test_many_threads() -> None:
    counter = Counter()
    got: list[int] = []

    def work() -> None:
        got.extend(counter.add() for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 81))


def test_asyncio() -> None:
    counter = Counter(10)

    async def main() -> list[Any]:
        calls = counter.add.aio(), counter.later(5), counter.later.aio(6), counter.add.aio(2)
        return list(await asyncio.gather(*calls))

    assert asyncio.run(main()) == [11, 16, 17, 13]
    assert counter.later.submit(1).result(PATIENCE) == 14


def test_arguments_are_those_of_the_moment_of_the_call(tmp_path: Path) -> None:
    actor = killer_actor(Plain, timeout=30)([0])
    blocked = killer_actor(Keeper, timeout=30)(str(tmp_path / "go"))
    values = [1, 2]
    blocked.wait.submit()
    future = blocked.same.submit(values)
    values.append(3)
    (tmp_path / "go").touch()
    assert future.result(PATIENCE) == [1, 2]
    assert actor.get() == [0]


class Keeper:
    """Waits for a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def wait(self) -> None:
        wait_until(lambda: os.path.exists(self.path), 60)

    def same(self, value: Any) -> Any:
        return value


# Deadlines and other ends


def test_deadline_and_restart() -> None:
    counter = Counter(10)
    assert counter.add() == 11
    pid = counter.pid()
    with (
        took(0.3, 30),
        pytest.raises(killercall.TimeoutError) as caught,
    ):
        counter.hang.options(timeout=0.3)()
    assert str(caught.value) == "function 'Counter.hang' timed out after 0.3s"
    assert caught.value.pid == pid
    assert not is_running(pid)
    assert "in hang" in (caught.value.stack or "")
    assert "_objects.py" not in (caught.value.stack or "")
    assert counter.add() == 11
    assert counter.pid() != pid


def test_what_waits_comes_after_the_new_instance(tmp_path: Path) -> None:
    counter = Counter(0, str(tmp_path / "journal"))
    counter.add(5)
    late = counter.hang.options(timeout=0.3).submit()
    futures = [counter.add.submit() for _ in range(5)]
    assert isinstance(late.exception(PATIENCE), killercall.TimeoutError)
    assert [future.result(PATIENCE) for future in futures] == [1, 2, 3, 4, 5]
    assert len(pids_in(tmp_path / "journal")) == 2


def test_the_constructor_has_the_deadline() -> None:
    cls = killer_actor(Plain, timeout=0.3)
    with pytest.raises(
        killercall.TimeoutError, match="function 'Plain' timed out after 0.3s"
    ) as caught:
        cls([], seconds=60)
    assert not is_running(caught.value.pid or 0)


def test_what_the_constructor_raises_is_raised() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'no'") as caught:
        Counter(no=1)  # type: ignore[call-arg]
    # Though the traceback is kept.
    assert caught.tb is not None
    assert wait_until(lambda: _host.idle_workers() == 0, PATIENCE)


def test_the_arguments_of_the_constructor_are_those_of_then() -> None:
    values = [1]
    actor = killer_actor(Plain, timeout=30)(values)
    values.append(2)
    assert actor.get() == [1]
    actor.get().append(3)
    kill_idle(actor)
    assert actor.get() == [1]


def kill_idle(actor: Any) -> None:
    """From outside, while nobody calls it."""
    pid = actor._killercall_instance.pid
    assert wait_until(lambda: pid in _host._shared.roster.idle_pids(), PATIENCE)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)


@pytest.mark.parametrize("options", [{"serializer": "pickle"}, {"start_method": "spawn"}])
def test_restart_with_other_options(options: dict[str, Any]) -> None:
    actor = killer_actor(Plain, timeout=30, **options)([1])
    assert actor.get() == [1]
    kill_idle(actor)
    assert actor.get() == [1]


def test_large_arguments_of_the_constructor_serve_again() -> None:
    actor = killer_actor(Holder, timeout=30)(np.ones(300_000))
    assert actor.add(1) == 600_000
    assert actor.add(1) == 900_000
    with pytest.raises(killercall.WorkerDied):
        actor.leave()
    assert actor.add(1) == 600_000
    kill_idle(actor)
    assert actor.take(np.ones(300_000)) == 600_000


class Holder:
    """Changes what it was given."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def add(self, number: int) -> int:
        self.array += number
        return int(self.array.sum())

    def take(self, other: Any) -> int:
        return int((self.array + other).sum())

    def leave(self) -> None:
        os._exit(1)


def test_death() -> None:
    counter = Counter(1)
    counter.add()
    with pytest.raises(killercall.WorkerDied) as caught:
        counter.leave(3)
    assert caught.value.exitcode == 3
    assert "Counter.leave" in str(caught.value)
    assert counter.add() == 2


def test_a_worker_that_is_killed_while_it_waits_is_replaced(tmp_path: Path) -> None:
    """The method runs once."""
    counter = Counter(1, str(tmp_path / "journal"))
    counter.add()
    pid = counter.pid()
    os.kill(pid, signal.SIGKILL)
    counter.note(str(tmp_path / "notes"), 7)
    assert pids_in(tmp_path / "notes") == [7]
    assert counter.add() == 2
    first, second = pids_in(tmp_path / "journal")
    assert (first, second) == (pid, counter.pid())


def test_shutdown_ends_the_instance() -> None:
    counter = Counter(1)
    counter.add()
    killercall.shutdown()
    assert counter.add() == 2
    last = killer_actor(Counter, restart=False)(1)
    killercall.shutdown()
    with pytest.raises(killercall.WorkerDied, match="it died while it was idle"):
        last.add()


def test_cancel(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    counter = Counter(1)
    counter.add()
    pid = counter.pid()
    future = counter.hang.submit(str(path))
    withdrawn, stays = counter.add.submit(50), counter.add.submit()
    assert wait_until(path.exists, PATIENCE)
    assert withdrawn.cancel()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    assert gone(pid)
    assert stays.result(PATIENCE) == 2


def test_cancelling_what_waits_leaves_the_instance() -> None:
    counter = Counter(1)
    pid = counter.pid()
    blocked = counter.later.submit(1)
    waiting = counter.add.submit()
    waiting.cancel()
    assert blocked.result(PATIENCE) == 2
    assert counter.pid() == pid


def test_cancelling_the_task_kills_the_call(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    counter = Counter(1)
    pid = counter.pid()

    async def main() -> None:
        task = asyncio.create_task(counter.hang.aio(str(path)))
        assert await asyncio.to_thread(wait_until, path.exists, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert gone(pid)
    assert counter.add() == 2


def test_restart_off_after_a_deadline() -> None:
    counter = killer_actor(Counter, timeout=30, restart=False)(1)
    with pytest.raises(killercall.TimeoutError) as caught:
        counter.hang.options(timeout=0.2)()
    for _ in range(2):
        with pytest.raises(
            killercall.WorkerDied,
            match="'Counter.hang' timed out after 0.2s.* restart=False",
        ) as died:
            counter.add()
        assert died.value.pid == caught.value.pid
    assert isinstance(counter.add.submit().exception(PATIENCE), killercall.WorkerDied)
    # No spare waits for what will not be built.
    assert wait_until(lambda: _host.idle_workers() == 0, PATIENCE)


def test_restart_off_after_a_cancelled_call_or_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    cls = killer_actor(Counter, timeout=30, restart=False)
    cancelled, killed = cls(1), cls(1)
    future = cancelled.hang.submit(str(path))
    assert wait_until(path.exists, PATIENCE)
    future.cancel()
    with pytest.raises(killercall.WorkerDied, match="'Counter.hang' was cancelled"):
        cancelled.add()
    os.kill(killed.pid(), signal.SIGKILL)
    with pytest.raises(killercall.WorkerDied, match="restart=False"):
        killed.add()


def test_a_constructor_that_fails_the_second_time_fails_the_call(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    actor = killer_actor(Picky, timeout=30)(str(tmp_path / "there"))
    assert actor.one() == 1
    (tmp_path / "there").unlink()
    kill_idle(actor)
    with pytest.raises(FileNotFoundError) as caught:
        actor.one()
    assert any("'Picky' was built again for 'Picky.one'" in note for note in caught.value.__notes__)
    (tmp_path / "there").touch()
    assert actor.one() == 1


class Picky:
    """Needs a file."""

    def __init__(self, path: str) -> None:
        os.stat(path)

    def one(self) -> int:
        return 1


def test_an_exception_keeps_the_state() -> None:
    counter = Counter(1)
    pid = counter.pid()
    with pytest.raises(ZeroDivisionError) as caught:
        counter.fail(ZeroDivisionError("here"))
    assert "in fail" in str(caught.value.__cause__)
    assert "_objects.py" not in str(caught.value.__cause__)
    assert (counter.add(), counter.pid()) == (3, pid)


def test_what_cannot_be_pickled_keeps_the_state() -> None:
    counter = Counter(1)
    pid = counter.pid()
    with pytest.raises(killercall.SerializationError, match=r"args\[0\]"):
        counter.add(threading.Lock())
    assert isinstance(
        counter.add.submit(threading.Lock()).exception(PATIENCE), killercall.SerializationError
    )
    with pytest.raises(killercall.SerializationError, match=r"result"):
        counter.give()
    assert (counter.add(), counter.pid()) == (3, pid)
    with pytest.raises(killercall.SerializationError, match=r"pickle args\[0\]") as caught:
        Counter(threading.Lock())
    assert caught.value.path == "args[0]"


def test_memory_limit() -> None:
    actor = killer_actor(Hoarder, timeout=60, max_memory="300MB")()
    assert actor.take(1) == 1
    with pytest.raises(killercall.MemoryLimitExceeded):
        actor.take(600 * 10**6)
    assert actor.take(1) == 1


class Hoarder:
    """Keeps memory."""

    def __init__(self) -> None:
        self.kept: list[bytearray] = []

    def take(self, size: int) -> int:
        self.kept.append(bytearray(b"x") * size)
        return len(self.kept)


def test_options_of_a_method() -> None:
    counter = Counter(1)
    hang = counter.hang.options(timeout=0.2, on_timeout="default", default="late")
    assert hang() == "late"
    assert hang.submit().result(PATIENCE) == "late"
    returned = hang.options(on_timeout="return")()
    assert isinstance(returned, killercall.TimeoutError)
    with pytest.raises(TypeError, match="a method of an actor has no option 'env'"):
        counter.add.options(env={})


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="was timeout=4 meant"):
        killer_actor(4)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="cls must be a class, not"):
        killer_actor(len)
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        killer_actor(Plain, timeout=0)
    with pytest.raises(TypeError, match="restart must be True or False, not 1"):
        killer_actor(Plain, restart=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="killer_actor has no option 'retries'"):
        killer_actor(Plain, retries=1)
    with pytest.raises(ValueError, match="start_method must be 'forkserver' or 'spawn'"):
        killer_actor(Plain, start_method="fork")
    with pytest.raises(TypeError, match="killer_actor has no option 'owner'"):
        killer_actor(Plain, owner=1)


# The end


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_nothing_is_left(how: str) -> None:
    counter = Counter(1)
    pid, child = counter.pid(), counter.spawn()
    # The spare of one that was killed goes along.
    with pytest.raises(killercall.TimeoutError):
        counter.hang.options(timeout=0.2)()
    assert gone(pid)
    assert gone(child)
    pid, child = counter.pid(), counter.spawn()
    if how == "close":
        counter.close()
        counter.close()
    elif how == "with":
        with counter as same:
            assert same is counter
    else:
        del counter
        gc.collect()
    assert gone(pid)
    assert gone(child)
    assert wait_until(lambda: _host.idle_workers() == 0, PATIENCE)
    if how != "drop":
        for call in (counter.add, counter.add.submit):
            with pytest.raises(RuntimeError, match="'Counter.add': the actor is closed"):
                call()


def test_closing_ends_what_runs_and_waits(tmp_path: Path) -> None:
    counter = Counter(1)
    pid = counter.pid()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            counter.add()
        except BaseException as error:
            errors.append(error)

    futures = [counter.hang.submit(str(tmp_path / "runs")), counter.add.submit()]
    assert wait_until((tmp_path / "runs").exists, PATIENCE)
    thread = threading.Thread(target=wait)
    thread.start()
    assert wait_until(lambda: len(counter._killercall_instance.lane._waiting) == 2, PATIENCE)
    with took(0, 30):
        counter.close()
    assert all(future.cancelled() for future in futures)
    thread.join()
    assert [type(error) for error in errors] == [killercall.WorkerDied]
    assert "was ended by close()" in str(errors[0])
    assert gone(pid)


def test_a_close_of_the_class_is_called_first(tmp_path: Path) -> None:
    path = tmp_path / "closed"
    cls = killer_actor(Closing, timeout=30)
    with cls(str(path)) as actor:
        future = actor.pid.submit()
    assert path.read_text() == "closed"
    assert gone(future.result(PATIENCE))
    failing = cls(str(tmp_path / "no" / "such"))
    with pytest.raises(FileNotFoundError):
        failing.close()
    assert wait_until(lambda: _host.idle_workers() == 0, PATIENCE)
    killed = cls(str(tmp_path / "killed"))
    kill_idle(killed)
    killed.close()
    assert not (tmp_path / "killed").exists()


class Closing:
    """Has an end of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        with open(self.path, "w", encoding="ascii") as file:
            file.write("closed")


def test_a_call_keeps_the_actor(tmp_path: Path) -> None:
    """A future that has ended does not."""
    path = tmp_path / "go"
    future = killer_actor(Keeper, timeout=30)(str(path)).wait.submit()
    after = Counter(4).add.submit()
    gc.collect()
    path.touch()
    assert future.result(PATIENCE) is None
    assert after.result(PATIENCE) == 5
    assert wait_until(lambda: _host.idle_workers() == 0, PATIENCE)


def test_callbacks_submit_and_wait() -> None:
    counter = Counter(1)
    got: list[Any] = []

    def callback(_future: Any) -> None:
        got.append(counter.add.submit())
        got.append(counter.add())

    counter.add.submit().add_done_callback(callback)
    assert wait_until(lambda: len(got) == 2, PATIENCE)
    assert got[0].result(PATIENCE) == 3
    assert got[1] == 4


def test_ctrl_c_kills_the_call(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    counter = Counter(1)
    pid = counter.pid()

    def press() -> None:
        wait_until(path.exists, PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        counter.hang(str(path))
    assert not is_running(pid)
    thread.join()
    assert counter.add() == 2


def test_nested() -> None:
    assert Counter(1).nested(7) == (8, 7)


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    with Counter(1) as counter:
        assert counter.pid() == os.getpid()
        assert counter.add() == 2
        assert counter.add.submit().result() == 3
        assert asyncio.run(counter.later(1)) == counter.later.submit(1).result() == 4
        with pytest.raises(ZeroDivisionError):
            counter.fail(ZeroDivisionError())
        assert counter.add() == 5
        with pytest.raises(AttributeError, match="only methods"):
            counter.count
    with pytest.raises(RuntimeError, match="closed"):
        counter.add()
    assert alive_with_mark() == {}


MAIN = """
from killercall import killer_actor
print("top")
START = 3
class Oops(Exception):
    pass
@killer_actor(timeout=30)
class Counter:
    def __init__(self):
        self.count = START
    def add(self):
        self.count += 1
        return self.count
    def other(self):
        return Counter().add()
    def fail(self):
        raise Oops("x")
counter = Counter()
print(counter.add(), counter.add(), counter.other())
try:
    counter.fail()
except Oops as error:
    print("Oops", error)
print(counter.add())
"""


@pytest.mark.parametrize("way", ["file", "-c", "stdin"])
def test_a_class_of_main(way: str, tmp_path: Path) -> None:
    result = run_script(MAIN, way=way, directory=tmp_path)
    assert (result.stdout, result.stderr) == ("top\n4 5 4\nOops x\n6\n", "")


EXIT = """
import threading
from killercall import killer_actor
@killer_actor(timeout={0})
class Sleeper:
    def nap(self, seconds):
        import time
        time.sleep(seconds)
    def write(self, path):
        open(path, "x").close()
sleeper = Sleeper()
{1}
"""


def test_the_end_of_the_host(tmp_path: Path) -> None:
    """Submitted calls with a deadline are waited for; a daemon thread's call is not."""
    late = f'sleeper.nap.submit(0.2); sleeper.write.submit("{tmp_path}/written")'
    result = run_script(EXIT.format(30, late))
    assert (result.stdout, result.stderr) == ("", "")
    assert (tmp_path / "written").exists()
    daemon = (
        "threading.Thread(target=sleeper.nap, args=(60,), daemon=True).start()\n"
        "while not sleeper._killercall_instance.lane._running: pass"
    )
    with took(0, 30):
        result = run_script(EXIT.format(60, daemon))
    assert (result.stdout, result.stderr) == ("", "")
    with took(0, 30):
        result = run_script(EXIT.format(None, "sleeper.nap.submit(60)"))
    assert (result.stdout, result.stderr) == ("", "")


def test_a_forked_copy_cannot_call_it() -> None:
    code = """
import os
from killercall import killer_actor
class Counter:
    count = 0
    def add(self):
        self.count += 1
        return self.count
counter = killer_actor(Counter, timeout=30)()
print(counter.add(), flush=True)
pid = os.fork()
if pid == 0:
    try:
        counter.add()
    except RuntimeError as error:
        print("forked copy" in str(error), flush=True)
    counter.close()
    del counter
    print(killer_actor(Counter, timeout=30)().add(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(counter.add())
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("1\nTrue\n1\n2\n", "")


def test_nothing_was_published() -> None:
    """Then the deadline is told of, as by a function."""
    nap = killer_actor(Napper, timeout=30, on_timeout="partial")().nap
    with pytest.raises(killercall.TimeoutError):
        nap.options(timeout=0.2)()


class Napper:
    """Sleeps."""

    def nap(self) -> None:
        time.sleep(60)


def test_threads_that_are_waited_for_at_the_end_may_call() -> None:
    """With a deadline or without one, also for the first time; callbacks, too."""
    code = """
import threading, time
from killercall import _driver, killer_actor
@killer_actor(timeout=None)
class Napper:
    def nap(self, seconds):
        time.sleep(seconds)
        return seconds
napper = Napper()
driver = _driver.current()
def wait_for_the_end():
    while not driver.is_exiting:
        time.sleep(0.01)
def work():
    print(napper.nap(0.5))
    wait_for_the_end()
    print(napper.nap.options(timeout=30)(0))
    print(Napper().nap(0))
    napper.nap.submit(0)
def again(_):
    wait_for_the_end()
    print(napper.nap(0.1))
napper.nap.submit(0).add_done_callback(again)
threading.Thread(target=work).start()
"""
    result = run_script(code)
    assert sorted(result.stdout.split()) == ["0", "0", "0.1", "0.5"]
    assert "RuntimeError: cannot submit a call" in result.stderr
