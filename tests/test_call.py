"""`killer_call`: what may be decorated, how options work, what the function sees."""

from __future__ import annotations

import functools
import inspect
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import hostile
import killercall
from killercall import killer_call
from killercall._exceptions import RemoteTraceback
from processes import is_running, lines, recorded, run_script, took, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]


# What may be decorated.


def test_bare_decorator() -> None:
    """Without parentheses."""

    @killer_call
    def double(x: int) -> int:
        return 2 * x

    assert 6 == double(3)


def test_decorator_without_arguments() -> None:
    """With empty parentheses."""

    @killer_call()
    def double(x: int) -> int:
        return 2 * x

    assert 6 == double(3)


def test_decorator_with_arguments() -> None:
    """With options."""

    @killer_call(timeout=5, reuse=False)
    def double(x: int) -> int:
        return 2 * x

    assert 6 == double(3)


def test_wrapper() -> None:
    """As a plain function, with and without options, by position too."""
    assert 3 == killer_call(abs)(-3)
    assert 3 == killer_call(abs, timeout=2)(-3)
    assert 3 == killer_call(abs, 2)(-3)
    assert 3 == killer_call(func=abs, timeout=2)(-3)


def test_runs_in_another_process() -> None:
    """The host does not run the function."""
    assert os.getpid() != killer_call(os.getpid)()


class Counter:
    """A callable object, with all kinds of methods."""

    step = 10

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __call__(self, by: int) -> int:
        """Callable without `__name__`."""
        return self.start + by

    @killer_call
    def method(self, by: int) -> int:
        """An instance method."""
        return self.start + by

    @classmethod
    @killer_call
    def inner_class_method(cls, by: int) -> int:
        """Decorated inside."""
        return cls.step + by

    @killer_call
    @classmethod
    def outer_class_method(cls, by: int) -> int:
        """Decorated outside."""
        return cls.step + by

    @staticmethod
    @killer_call
    def inner_static_method(by: int) -> int:
        """Decorated inside."""
        return 100 + by

    @killer_call
    @staticmethod
    def outer_static_method(by: int) -> int:
        """Decorated outside."""
        return 100 + by

    def plain(self, by: int) -> int:
        """Not decorated."""
        return self.start + by


class Shadow(Counter):
    """A subclass, for class methods."""

    step = 20


@pytest.mark.parametrize("method", START_METHODS)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: 5 + x,
        functools.partial(pow, 6, mod=7),
        functools.partial(functools.partial(max, 7), 6),
        Counter(6),
        Counter(6).plain,
        Counter.plain.__get__(Counter(6)),
        Counter(6).method,
        (6).__add__,
        "1234567".index,
    ],
    ids=["lambda", "partial", "partial of partial", "object", "method", "bound", "decorated"]
    + ["builtin method", "method of str"],
)
def test_callables(function: Callable[[Any], Any], method: str) -> None:
    """Whatever can be called can be called in a worker."""
    argument = "7" if function == "1234567".index else 1

    assert function(argument) == killer_call(function, start_method=method)(argument)


def test_methods_on_instance_and_class() -> None:
    """Instance, class and static methods, through instance, class and subclass."""
    counter = Counter(3)

    assert 4 == counter.method(1)
    assert 4 == Counter.method(counter, 1)
    assert [11, 11, 21, 21] == [
        counter.inner_class_method(1),
        Counter.inner_class_method(1),
        Shadow().inner_class_method(1),
        Shadow.inner_class_method(1),
    ]
    assert [11, 11, 21, 21] == [
        counter.outer_class_method(1),
        Counter.outer_class_method(1),
        Shadow().outer_class_method(1),
        Shadow.outer_class_method(1),
    ]
    assert [101] * 4 == [
        counter.inner_static_method(1),
        Counter.inner_static_method(1),
        counter.outer_static_method(1),
        Counter.outer_static_method(1),
    ]


def test_local_class_with_decorated_methods() -> None:
    """A class that can only be sent by value."""

    class Local:
        def __init__(self) -> None:
            self.value = 5

        @killer_call(timeout=5)
        def add(self, x: int) -> int:
            return self.value + self.helper(x)

        @classmethod
        @killer_call(timeout=5)
        def name(cls) -> str:
            return cls.__name__

        def helper(self, x: int) -> int:
            return 2 * x

    assert 11 == Local().add(3)
    assert "Local" == Local.name()


def test_arguments_with_our_names() -> None:
    """Names that mean something to us reach the function unchanged."""

    @killer_call
    def names(self: int, fn: int, func: int, timeout: int, **rest: int) -> Any:
        return self, fn, func, timeout, rest

    expected = (1, 2, 3, 4, {"options": 5, "args": 6, "kwargs": 7, "function": 8, "call": 9})

    assert expected == names(
        self=1, fn=2, func=3, timeout=4, options=5, args=6, kwargs=7, function=8, call=9
    )


def test_all_kinds_of_parameters() -> None:
    """Positional, default, variable and keyword arguments."""

    @killer_call
    def all_kinds(
        a: Any, /, b: Any, c: Any = 3, *args: Any, d: Any, e: Any = 5, **kwargs: Any
    ) -> Any:
        return a, b, c, args, d, e, kwargs

    assert (1, 2, 3, (), 4, 5, {}) == all_kinds(1, 2, d=4)
    assert (1, 2, 0, (9, 8), 4, 6, {"f": 7}) == all_kinds(1, 2, 0, 9, 8, d=4, e=6, f=7)


def test_wrong_arguments_are_the_functions_own_error() -> None:
    """A call that the function cannot take raises what it raises without us."""
    with pytest.raises(TypeError, match=re.escape("same() takes 1 positional argument but 2 were")):
        killer_call(hostile.same)(1, 2)


def test_metadata_is_kept() -> None:
    """Name, docstring, module, signature and attributes are the function's."""

    def function(x: int, *, y: str = "y") -> bytes:
        """The docstring."""
        return f"{x}{y}".encode()

    function.attribute = "kept"  # type: ignore[attr-defined]
    decorated = killer_call(timeout=3)(function)

    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        assert getattr(function, name) == getattr(decorated, name)
    assert inspect.signature(function) == inspect.signature(decorated)
    assert function is decorated.__wrapped__
    assert "kept" == decorated.attribute  # type: ignore[attr-defined]
    assert "function" in repr(decorated)


def test_wrapped_runs_here() -> None:
    """`.__wrapped__` is the function without us."""
    assert os.getpid() == killer_call(os.getpid).__wrapped__()


def test_options_returns_a_copy() -> None:
    """The original keeps its options, the copy those that were not named."""
    nap = killer_call(hostile.nap, timeout=30, on_timeout="default", default="late")
    short = nap.options(timeout=0.2)

    assert "late" == short(60)
    assert 0.3 == nap(0.3)
    assert hostile.nap is short.__wrapped__
    assert "nap" == short.__name__
    with pytest.raises(killercall.TimeoutError):
        short.options(on_timeout="raise")(60)


def test_options_of_a_method() -> None:
    """A bound method has `.options` too."""
    assert 4 == Counter(3).method.options(timeout=3)(1)


def test_decorating_twice() -> None:
    """A decorated function can be wrapped again; the inner deadline holds."""
    inner = killer_call(hostile.nap, timeout=0.3)
    outer = killer_call(inner, timeout=20)

    assert 0 == outer(0)
    with pytest.raises(killercall.TimeoutError) as caught:
        outer(60)
    assert "function 'nap' timed out after 0.3s" == str(caught.value)


@pytest.mark.parametrize("timeout", [5, 5.5, timedelta(seconds=5), None], ids=str)
def test_types_of_timeout(timeout: object) -> None:
    """Numbers, lengths of time, and no limit."""
    assert 1 == killer_call(hostile.same, timeout=timeout)(1)


# What the function sees of the host's program.

SEEN: Any = "as imported"


def test_closure() -> None:
    """Captured values go along, as they are at the time of the call."""
    captured = 1

    @killer_call
    def read() -> int:
        return captured

    assert 1 == read()
    captured = 2
    assert 2 == read()


def test_changed_mutable_closure() -> None:
    """A list that was changed in place is seen as it is now; the worker's changes stay there."""
    captured: list[int] = []

    @killer_call
    def grow() -> list[int]:
        captured.append(99)
        return captured

    for number in range(3):
        captured.append(number)
        assert [*range(number + 1), 99] == grow()
        assert list(range(number + 1)) == captured


def test_changed_globals_of_main() -> None:
    """Functions of `__main__` see the host's globals as they are at the time of the call."""
    script = """
from killercall import killer_call
value, table = 1, {"a": 1}

def helper():
    return value, table

@killer_call
def read():
    return helper()

print(read())
value = 2
table["a"] = 2
print(read())
def helper():
    return "another function"
print(read())
"""
    run = run_script(script)

    assert "" == run.stderr
    assert "(1, {'a': 1})\n(2, {'a': 2})\nanother function\n" == run.stdout


@pytest.mark.parametrize("imports", ["", "import cloudpickle"])
def test_globals_that_were_changed_back_or_deleted(imports: str) -> None:
    """A worker that has met them follows all the same, whichever function told it of a change."""
    script = f"""
{imports}
from killercall import killer_call, killer_pmap

def tell(call, *args):
    try:
        return call(*args)
    except NameError as error:
        return str(error)

@killer_call
def first():
    return value

@killer_call
def second():
    return value, table

def with_argument(x):
    return value + x

value, table = 1, [1]
print(first(), second())
value = 2
print(first())
value = 1
print(second(), first(), first())
value, table = 2, [1, 2]
print(second())
value, table = 1, [1]
print(first(), first(), second(), killer_pmap(with_argument, range(3), cpus=1))
value = 5
print(second(), killer_pmap(with_argument, range(3), cpus=1), first())
del value
print(tell(first), "-", tell(second))
value = 5
print(first(), second())
sum = 3
total = killer_call(lambda: sum)
print(total())
del sum
print(total())
sum = 3
print(total())
futures = []
late, other = killer_call(lambda: value, cpus=1), killer_call(lambda: (value, 0), cpus=1)
for value in [1, 2, 1, 3] * 3:
    futures += [late.submit(), other.submit()]
print([future.result() for future in futures])
call = killer_call(lambda function, *args: function(*args))
value = 7
print(call(with_argument, 1), late(), call(lambda: value), other())
"""
    run = run_script(script)

    assert "" == run.stderr
    numbers = [entry for value in [1, 2, 1, 3] * 3 for entry in (value, (value, 0))]
    assert [
        "1 (1, [1])",
        "2",
        "(1, [1]) 1 1",
        "(2, [1, 2])",
        "1 1 (1, [1]) [1, 2, 3]",
        "(5, [1]) [5, 6, 7] 5",
        "name 'value' is not defined - name 'value' is not defined",
        "5 (5, [1])",
        "3",
        "<built-in function sum>",
        "3",
        str(numbers),
        "8 7 7 (7, 0)",
    ] == run.stdout.splitlines()


def test_what_functions_make_of_globals_stays_in_their_worker() -> None:
    """As long as the host does not change it, whichever function uses it; and it stays there."""
    script = """
import os
from killercall import killer_call
count, cache = 0, {}

@killer_call
def add(key):
    global count, own
    count += 1
    own = count
    cache[key] = count
    return count

@killer_call
def look():
    return count, dict(cache), os.getpid()

@killer_call
def find():
    return own

@killer_call
def give():
    global count
    count = 70
    return lambda: count

add("a"), look(), add("b")
print(*look()[:2], find())
print(give()(), count, cache)
count = 5
print(*look()[:2], add("c"))
count = 0
print(*look()[:2], find())
"""
    run = run_script(script)

    assert "" == run.stderr
    assert [
        "2 {'a': 1, 'b': 2} 2",
        "0 0 {}",
        "5 {'a': 1, 'b': 2} 6",
        "0 {'a': 1, 'b': 2, 'c': 6} 6",
    ] == run.stdout.splitlines()


def test_changed_defaults_and_attributes() -> None:
    """Defaults and attributes of a local function are followed."""

    def function(x: int = 1) -> Any:
        return x, function.attribute  # type: ignore[attr-defined]

    function.attribute = "a"  # type: ignore[attr-defined]
    call = killer_call(function)
    assert (1, "a") == call()
    function.__defaults__ = (2,)
    function.attribute = "b"  # type: ignore[attr-defined]
    assert (2, "b") == call()


def test_recursive_and_generator_functions() -> None:
    """A local function that calls itself, and one whose generator runs in the worker."""

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    def squares(n: int) -> list[int]:
        def generate() -> Iterator[int]:
            for i in range(n):
                yield i * i

        return list(generate())

    assert 120 == killer_call(factorial)(5)
    assert [0, 1, 4] == killer_call(squares)(3)


@pytest.mark.parametrize("value", [ValueError("v"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("method", START_METHODS)
def test_returned_exception_is_a_value(value: BaseException, method: str) -> None:
    """It is not raised."""
    returned = killer_call(hostile.same, start_method=method)(value)

    assert type(value) is type(returned)
    assert value.args == returned.args


def test_threads() -> None:
    """Many threads call at once, with different functions; each has its own answer."""
    answers: dict[int, list[int]] = {}

    def call_many(thread: int) -> None:
        def add(x: int) -> int:
            return thread * 1000 + x

        call = killer_call(add, timeout=30)
        answers[thread] = [call(x) for x in range(10)]

    threads = [threading.Thread(target=call_many, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {n: [n * 1000 + x for x in range(10)] for n in range(12)} == answers


def test_threads_with_fork() -> None:
    """Copies of a host with threads work as well."""
    values: list[int] = []
    lock = threading.Lock()
    call = killer_call(lambda: (lock.locked(), 7)[1], start_method="fork", timeout=30)
    threads = [threading.Thread(target=lambda: values.append(call())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [7] * 4 == values


# Options.


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_reuse(method: str) -> None:
    """Warm workers are kept, or not, or for so many calls."""
    pid = killer_call(hostile.pid, start_method=method)
    assert 1 == len({pid() for _ in range(4)})
    assert 3 == len({pid.options(reuse=False)() for _ in range(3)})
    limited = pid.options(reuse=2)
    killercall.shutdown()
    pids = [limited() for _ in range(6)]
    assert [pids[0], pids[0], pids[2], pids[2], pids[4], pids[4]] == pids
    assert 3 == len(set(pids))


def test_no_reuse_starts_from_scratch() -> None:
    """What one call has left in its process the next does not see."""
    remember = killer_call(hostile.set_setting, reuse=False)
    remember("mine")

    assert killer_call(hostile.get_setting, reuse=False)() is None


@pytest.mark.parametrize("method", START_METHODS)
def test_start_methods(method: str) -> None:
    """All three give the same answers, and none runs in the host."""
    call = killer_call(lambda x: (x, os.getpid()), start_method=method)

    value, pid = call("x")

    assert "x" == value
    assert os.getpid() != pid


def test_fork_pickles_nothing_on_the_way_there() -> None:
    """A copy of the host has the function and its arguments."""
    lock = threading.Lock()
    generator = (x for x in range(3))

    def function(other: Any, *, items: Any) -> Any:
        with lock:
            return other.acquire(), next(items)

    call = killer_call(function, start_method="fork")

    assert (True, 0) == call(threading.Lock(), items=generator)
    assert (True, 0) == call(threading.Lock(), items=generator)


def test_fork_inherits_the_modules_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host has assigned is there."""
    monkeypatch.setattr(hostile, "SETTING", ["the host's"])

    assert ["the host's"] == killer_call(hostile.get_setting, start_method="fork")()
    assert killer_call(hostile.get_setting)() is None


@pytest.mark.parametrize("method", START_METHODS)
def test_initializer(method: str) -> None:
    """It runs once in a new worker, with its arguments."""
    call = killer_call(
        hostile.get_setting,
        start_method=method,
        initializer=hostile.set_setting,
        initargs=({"a": 1},),
    )

    assert [{"a": 1}] * 2 == [call(), call()]


@pytest.mark.parametrize("method", START_METHODS)
def test_global_that_an_initializer_assigned_wins(method: str) -> None:
    """In `__main__`, over the host's value, also after that has changed."""
    script = f"""
from killercall import killer_call
value = other = "host"

def initialize(x):
    global value
    value = x

@killer_call(initializer=initialize, initargs=("worker",), start_method={method!r})
def read():
    return value, other

print(read())
value = other = "host again"
print(read(), value)
"""
    run = run_script(script)

    assert "" == run.stderr
    expected = "('worker', 'host')\n('worker', 'host again') host again\n"
    assert expected == run.stdout


@pytest.mark.parametrize("method", START_METHODS)
def test_failing_initializer(method: str) -> None:
    """It is told once, with its error and traceback, and is not tried for ever."""
    call = killer_call(
        hostile.same,
        start_method=method,
        initializer=hostile.raise_error,
        initargs=(ValueError("not today"),),
    )

    with (
        took(0, 8),
        pytest.raises(killercall.WorkerStartError, match="ValueError: not today") as caught,
    ):
        call(1)

    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "raise error" in str(caught.value.__cause__.__cause__)
    assert 1 == killer_call(hostile.same, start_method=method)(1)


@pytest.mark.parametrize("method", START_METHODS)
def test_dying_initializer(method: str) -> None:
    """The exit code is told."""
    call = killer_call(
        hostile.same, start_method=method, initializer=hostile.exit_hard, initargs=(9,)
    )

    with took(0, 8), pytest.raises(killercall.WorkerStartError, match="9") as caught:
        call(1)

    assert 9 == caught.value.exitcode
    assert 1 == killer_call(hostile.same, start_method=method)(1)


@pytest.mark.parametrize("method", START_METHODS)
def test_hanging_initializer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker has a limit of its own."""
    monkeypatch.setattr("killercall._host.START_LIMIT", 0.5)
    call = killer_call(
        hostile.same, timeout=None, start_method=method, initializer=hostile.hang_in_initializer
    )

    with took(0.5, 8), pytest.raises(killercall.WorkerStartError, match=r"0\.5"):
        call(1)

    assert 1 == killer_call(hostile.same, start_method=method)(1)


@pytest.mark.parametrize("method", START_METHODS)
def test_interrupted_initializer_is_dead(method: str, tmp_path: Path) -> None:
    """Ctrl+C ends every worker of the call, those too that are not ready yet."""
    record = tmp_path / "pids"

    def interrupt() -> None:
        wait_until(lambda: len(recorded(record)) == 3)
        os.kill(os.getpid(), signal.SIGINT)

    call = killer_call(
        hostile.same,
        timeout=None,
        start_method=method,
        initializer=hostile.busy_loop,
        initargs=(str(record),),
    )
    thread = threading.Thread(target=interrupt)
    thread.start()
    with took(0, 8), pytest.raises(KeyboardInterrupt):
        call(1)
    running = [pid for pid in recorded(record, "worker") if is_running(pid)]
    thread.join()

    assert [] == running


def test_start_limit_holds_after_the_map_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose initializer hangs does not outlive its limit because nobody waits for it."""
    # In which the other worker has to start, on a busy machine too.
    monkeypatch.setattr("killercall._host.START_LIMIT", 4.0)
    record, first = tmp_path / "pids", tmp_path / "first"

    def hang_unless_first() -> None:
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            hostile.busy_loop(str(record))

    def fail(item: int) -> None:
        wait_until(lambda: len(recorded(record)) == 3)
        raise LookupError(item)

    with pytest.raises(LookupError):
        killercall.killer_pmap(fail, range(2), cpus=2, initializer=hang_unless_first)

    (worker,) = recorded(record, "worker")
    wait_until(lambda: not is_running(worker))
    assert not is_running(worker)


def test_initializer_that_cannot_be_pickled() -> None:
    """The error names it."""
    lock = threading.Lock()

    with pytest.raises(killercall.SerializationError, match="initializer"):
        killer_call(hostile.same, initializer=lambda: lock)(1)


@pytest.mark.parametrize("method", START_METHODS)
def test_env_replaces_the_environment(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has just these variables, and what belongs to it."""
    monkeypatch.setenv("ONLY_IN_HOST", "1")
    call = killer_call(
        lambda *names: [os.environ.get(name) for name in names],
        env={"MINE": "ü"},
        start_method=method,
    )

    assert ["ü", None, None] == call("MINE", "ONLY_IN_HOST", "HOME")


@pytest.mark.parametrize("method", START_METHODS)
def test_cwd(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute directory, a path object, and one relative to the host's."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    call = killer_call(os.getcwd, start_method=method)

    for given in (str(tmp_path / "sub"), tmp_path / "sub", "sub", b"sub"):
        assert str(tmp_path / "sub") == call.options(cwd=given)()
    assert str(tmp_path) == os.getcwd()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_preload(method: str) -> None:
    """Modules are there before the function is called."""

    def is_imported(name: str) -> bool:
        return name in sys.modules

    call = killer_call(is_imported, start_method=method)

    assert not call("colorsys")
    assert call.options(preload=["colorsys"])("colorsys")
    assert call.options(preload="xml.dom.minidom")("xml.dom.minidom")


def test_preload_of_what_does_not_exist() -> None:
    """The call that needs it gets the error."""
    with pytest.raises(killercall.WorkerStartError, match="no_such_module"):
        killer_call(hostile.same, preload="no_such_module")(1)

    assert 1 == killer_call(hostile.same)(1)


def test_preload_function() -> None:
    """Imported once in the forkserver, so in each new worker; survives a shutdown."""

    def is_imported(name: str) -> bool:
        return name in sys.modules

    call = killer_call(is_imported, reuse=False)
    killercall.preload("colorsys", "wave")
    assert [True, True] == [call("colorsys"), call("wave")]
    killercall.shutdown()
    assert [True, True] == [call("colorsys"), call("wave")]


@pytest.mark.parametrize("method", START_METHODS)
def test_serializer_pickle(method: str) -> None:
    """Takes only what can be imported; nothing is pickled for a copy of the host."""
    call = killer_call(hostile.same, serializer="pickle", start_method=method)

    assert {"a": [1, (2,)]} == call({"a": [1, (2,)]})
    if method != "fork":
        with pytest.raises(killercall.SerializationError):
            killer_call(lambda: 1, serializer="pickle", start_method=method)()


@pytest.mark.parametrize("method", START_METHODS)
def test_serializer_dill(method: str) -> None:
    """Takes lambdas."""
    assert 5 == killer_call(lambda x: x + 2, serializer="dill", start_method=method)(3)


@pytest.mark.parametrize("method", START_METHODS)
def test_own_serializer(method: str) -> None:
    """An object with dumps and loads, used for values and exceptions in both directions."""
    serializer = hostile.Base85Serializer()
    call = killer_call(hostile.same, serializer=serializer, start_method=method)

    assert {"a": 1} == call({"a": 1})
    with pytest.raises(KeyError, match="k"):
        killer_call(hostile.raise_error, serializer=serializer, start_method=method)(KeyError("k"))


def test_serializer_that_returns_no_bytes() -> None:
    """Is an error that says so."""

    class Wrong:
        def dumps(self, obj: Any) -> Any:
            return str(obj)

        def loads(self, data: Any) -> Any:
            return data

    with pytest.raises(killercall.SerializationError, match="must return bytes, not str"):
        killer_call(hostile.same, serializer=Wrong())(object())


def test_on_timeout() -> None:
    """Raises, yields the default, or returns the error."""
    nap = killer_call(hostile.nap, timeout=0.2)

    with pytest.raises(killercall.TimeoutError):
        nap.options(on_timeout="raise")(60)
    assert nap.options(on_timeout="default")(60) is None
    assert -1 == nap.options(on_timeout="default", default=-1)(60)
    returned: Any = nap.options(on_timeout="return")(60)
    assert isinstance(returned, killercall.TimeoutError)
    assert "function 'nap' timed out after 0.2s" == str(returned)


def test_on_timeout_is_not_for_other_failures() -> None:
    """An exception and a death are raised all the same."""
    options: dict[str, Any] = {"on_timeout": "default", "default": 1}

    with pytest.raises(KeyError):
        killer_call(hostile.raise_error, **options)(KeyError(1))
    with pytest.raises(killercall.WorkerDied):
        killer_call(hostile.exit_hard, **options)(3)


def test_a_timeout_error_of_the_function_is_its_own() -> None:
    """What the function raises is not taken for a missed deadline."""
    call = killer_call(hostile.raise_error, on_timeout="default")

    with pytest.raises(TimeoutError, match="^mine$") as caught:
        call(TimeoutError("mine"))

    assert not isinstance(caught.value, killercall.TimeoutError)


@pytest.mark.parametrize("method", START_METHODS)
def test_retries(method: str, tmp_path: Path) -> None:
    """So many more attempts after an exception."""
    path = str(tmp_path / "count")
    call = killer_call(hostile.fail_first, retries=2, start_method=method)

    assert 3 == call(path, 2, ValueError("again"))


def test_retries_are_limited(tmp_path: Path) -> None:
    """The last error is raised when all attempts have failed."""
    with pytest.raises(ValueError, match="again"):
        killer_call(hostile.fail_first, retries=2)(str(tmp_path / "count"), 9, ValueError("again"))

    assert 3 == len(lines(tmp_path / "count"))


def test_retries_after_timeout(tmp_path: Path) -> None:
    """A missed deadline is tried again, with the whole time."""
    call = killer_call(hostile.fail_first, retries=1, timeout=0.4)

    assert 2 == call(str(tmp_path / "count"), 1)


def test_retries_after_death(tmp_path: Path) -> None:
    """So is a death."""

    def die_first(path: str) -> int:
        hostile.append(path, "attempt")
        with open(path, encoding="utf-8") as file:
            attempts = len(file.readlines())
        if attempts < 3:
            os.abort()
        return attempts

    assert 3 == killer_call(die_first, retries=5)(str(tmp_path / "count"))


@pytest.mark.parametrize("retry_on", [ValueError, (KeyError, ValueError), Exception])
def test_retry_on(retry_on: Any, tmp_path: Path) -> None:
    """Only failures of these classes and their subclasses are tried again."""
    call = killer_call(hostile.fail_first, retries=3, retry_on=retry_on)

    assert 2 == call(str(tmp_path / "a"), 1, UnicodeError("a ValueError"))


def test_retry_on_others(tmp_path: Path) -> None:
    """Everything else is raised at once, timeouts and deaths too."""
    call = killer_call(hostile.fail_first, retries=3, retry_on=KeyError, timeout=0.3)

    with pytest.raises(ValueError, match="no"):
        call(str(tmp_path / "a"), 1, ValueError("no"))
    assert 1 == len(lines(tmp_path / "a"))
    with pytest.raises(killercall.TimeoutError):
        call(str(tmp_path / "b"), 1)
    assert 1 == len(lines(tmp_path / "b"))


def test_retry_on_a_class_of_ours(tmp_path: Path) -> None:
    """Our own classes and their builtin bases count."""
    for number, cls in enumerate((killercall.TimeoutError, TimeoutError, OSError)):
        call = killer_call(hostile.fail_first, retries=1, retry_on=cls, timeout=0.4)
        assert 2 == call(str(tmp_path / f"{number}"), 1)


def test_no_retries_by_default(tmp_path: Path) -> None:
    """A function runs once."""
    with pytest.raises(ValueError, match="x"):
        killer_call(hostile.fail_first)(str(tmp_path / "count"), 1, ValueError("x"))

    assert 1 == len(lines(tmp_path / "count"))


# Exceptions.


class CustomError(Exception):
    """An exception with attributes."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def failing_function(kind: str) -> None:
    """Raises from a line that is found in the traceback."""
    if kind == "custom":
        raise CustomError("with attributes", code=7)
    if kind == "chained":
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    error = RuntimeError("with notes")
    error.add_note("a note")
    raise error


@pytest.mark.parametrize("method", START_METHODS)
def test_exceptions_arrive_as_themselves(method: str) -> None:
    """Type, arguments and attributes are those of the exception."""
    with pytest.raises(CustomError, match="^with attributes$") as caught:
        killer_call(failing_function, start_method=method)("custom")

    assert CustomError is type(caught.value)
    assert 7 == caught.value.code
    assert ("with attributes",) == caught.value.args


@pytest.mark.parametrize("method", START_METHODS)
def test_remote_traceback_is_the_cause(method: str) -> None:
    """Its text has function and source line of the worker's side, and none of our frames."""
    with pytest.raises(ValueError, match="second") as caught:
        killer_call(failing_function, start_method=method)("chained")

    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    text = str(cause)
    assert "in failing_function" in text
    assert 'raise ValueError("second") from error' in text
    assert 'raise KeyError("first")' in text
    assert "direct cause" in text
    assert "_worker.py" not in text


def test_remote_traceback_of_a_script_shows_source_lines(tmp_path: Path) -> None:
    """Where there is a file; a script that is nowhere in one is no failure."""
    script = """
from killercall import killer_call

@killer_call
def fails():
    raise LookupError("there")  # this very line

fails()
"""
    for way in ("file", "-c", "stdin"):
        run = run_script(script, way=way, directory=tmp_path)
        assert 1 == run.returncode
        assert "LookupError: there" == run.stderr.splitlines()[-1]
        assert "in fails" in run.stderr
        if way == "file":
            assert "script.py" in run.stderr
            assert "# this very line" in run.stderr


@pytest.mark.parametrize("method", START_METHODS)
def test_functions_that_go_by_value_keep_their_place(method: str) -> None:
    """Tracebacks and stacks name the file of the function, and of those in it, and show the line."""

    def fails() -> None:
        def inside() -> None:
            raise LookupError("there")  # this very line

        inside()

    def hangs() -> None:
        (lambda: time.sleep(60))()

    with pytest.raises(LookupError) as failed:
        killer_call(fails, start_method=method, timeout=60)()
    assert __file__ in str(failed.value.__cause__)
    assert "# this very line" in str(failed.value.__cause__)

    for _ in range(5):
        with pytest.raises(killercall.TimeoutError) as late:
            killer_call(hangs, start_method=method, timeout=0.3)()
        # A dump has 20 ms, in which a busy machine may not let the worker run at all.
        if late.value.stack is not None:
            break
    assert late.value.stack is not None
    assert 2 == late.value.stack.count(__file__)


def test_notes_are_kept() -> None:
    """What was added to the exception arrives with it."""
    with pytest.raises(RuntimeError, match="with notes") as caught:
        killer_call(failing_function)("notes")

    assert "a note" in caught.value.__notes__


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("k"), GeneratorExit("g"), StopIteration(3), OSError(2, "m", "f")]
)
def test_unusual_exceptions(error: BaseException) -> None:
    """They arrive as themselves too."""
    with pytest.raises(type(error)) as caught:
        killer_call(hostile.raise_error)(error)

    assert type(error) is type(caught.value)
    assert error.args == caught.value.args


# Sizes.


@pytest.mark.parametrize("method", START_METHODS)
def test_fifty_megabytes(method: str) -> None:
    """There and back."""
    data = os.urandom(1000) * 50_000

    assert data == killer_call(hostile.same, timeout=60, start_method=method)(data)


@pytest.mark.parametrize("exponent", range(8, 22))
def test_sizes_around_every_border(exponent: int) -> None:
    """Whatever way a size takes, it comes back as it was."""
    call = killer_call(hostile.same)
    for size in (2**exponent - 40, 2**exponent - 1, 2**exponent, 2**exponent + 1):
        data = bytes([exponent]) * size
        assert data == call(data)
        assert [data, 1] == call([data, 1])


@pytest.mark.parametrize("method", START_METHODS)
def test_numpy_array(method: str) -> None:
    """An array arrives equal and writable on both sides."""

    def double(array: Any) -> Any:
        array *= 2
        return array

    array = np.arange(2_000_000, dtype=np.float64).reshape(1000, 2000)
    doubled = killer_call(double, timeout=60, start_method=method)(array)

    assert np.array_equal(2 * np.arange(2_000_000).reshape(1000, 2000), doubled)
    assert np.array_equal(np.arange(2_000_000).reshape(1000, 2000), array)
    doubled += 1
    assert 1.0 == doubled[0, 0]


def test_workers_draw_different_numbers() -> None:
    """Random states are not copies of each other."""

    def draw() -> Any:
        import random

        import numpy

        return random.random(), float(numpy.random.random())

    for method in START_METHODS:
        call = killer_call(draw, reuse=False, start_method=method, preload=["numpy", "random"])
        pairs = [call() for _ in range(3)]
        assert 3 == len({pair[0] for pair in pairs})
        assert 3 == len({pair[1] for pair in pairs})


# The host's surroundings.


@contextmanager
def _path_entry(entry: str) -> Iterator[None]:
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


@pytest.mark.parametrize("method", START_METHODS)
def test_surroundings_are_followed(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory, environment and search path are the host's at the time of the call."""

    def look() -> Any:
        return os.getcwd(), os.environ.get("FOLLOWED"), sys.path[0], os.getpid()

    call = killer_call(look, start_method=method)
    before = call()
    assert (os.getcwd(), None, sys.path[0]) == before[:3]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLLOWED", "yes")
    with _path_entry(str(tmp_path)):
        after = call()
    assert (str(tmp_path), "yes", str(tmp_path)) == after[:3]

    monkeypatch.delenv("FOLLOWED")
    monkeypatch.undo()
    again = call()
    assert before[:3] == again[:3]
    if method != "fork":
        assert before[3] == after[3] == again[3]


def test_module_found_by_changed_path(tmp_path: Path) -> None:
    """A warm worker imports from a directory that the host has added since."""
    (tmp_path / "added_module.py").write_text("VALUE = 42", encoding="utf-8")

    def read() -> int:
        import added_module

        return added_module.VALUE

    call = killer_call(read)
    with pytest.raises(ModuleNotFoundError):
        call()
    with _path_entry(str(tmp_path)):
        assert 42 == call()


def test_removed_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose directory is gone can call all the same."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    for method in START_METHODS:
        assert 1 == killer_call(hostile.same, start_method=method)(1)


@pytest.mark.parametrize("method", START_METHODS)
def test_stdin_is_at_its_end(method: str) -> None:
    """The function never takes the host's input."""
    script = f"""
import sys
from killercall import killer_call

@killer_call(start_method={method!r})
def read():
    return sys.stdin.read(), open(0, closefd=False).read()

print(read(), sys.stdin.readline())
"""
    import subprocess

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input="the host's line\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "" == run.stderr
    assert "('', '') the host's line\n\n" == run.stdout


@pytest.mark.parametrize("method", START_METHODS)
def test_stderr_goes_to_the_hosts(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What the function writes there is seen when the call has returned."""

    def write() -> None:
        sys.stderr.write("written\n")

    killer_call(write, start_method=method)()

    assert "written\n" == capfd.readouterr().err


# Depth, and calls without processes.


def test_depth_limit_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from the host has depth 1."""
    monkeypatch.setenv("KILLERCALL_MAX_DEPTH", "3")
    nest = killer_call(hostile.nest, timeout=60)

    assert 2 == nest(2)
    with pytest.raises(killercall.DepthLimitExceeded, match="4 deep, and the limit is 3") as caught:
        nest(3)
    assert isinstance(caught.value, RecursionError)


def test_default_depth_limit() -> None:
    """Level 11 raises."""
    nest = killer_call(hostile.nest, timeout=60)

    assert 9 == nest(9)
    with pytest.raises(killercall.DepthLimitExceeded, match="11 deep, and the limit is 10"):
        nest(10)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_wrong_depth_limit(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error that names variable and value."""
    monkeypatch.setenv("KILLERCALL_MAX_DEPTH", value)

    with pytest.raises(ValueError, match=f"KILLERCALL_MAX_DEPTH .*{re.escape(repr(value))}"):
        killer_call(hostile.same)(1)


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs in the calling process, without deadlines."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")

    assert os.getpid() == killer_call(os.getpid)()
    assert 0.2 == killer_call(hostile.nap, timeout=0.05)(0.2)
    with pytest.raises(KeyError):
        killer_call(hostile.raise_error)(KeyError(1))
    assert [os.getpid()] * 3 == killercall.killer_pmap(lambda _: os.getpid(), range(3))


def test_inline_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty and 0 mean no."""
    for value in ("", "0"):
        monkeypatch.setenv("KILLERCALL_INLINE", value)
        assert os.getpid() != killer_call(os.getpid)()


def test_inline_retries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Retries hold there too."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")

    assert 3 == killer_call(hostile.fail_first, retries=2)(str(tmp_path / "n"), 2, ValueError())


# Shutdown and forks of the host.


def test_shutdown_and_on() -> None:
    """The next call starts new workers; twice does no harm."""
    first = killer_call(hostile.pid)()
    killercall.shutdown()
    killercall.shutdown()

    assert first != killer_call(hostile.pid)()


def test_shutdown_ends_running_calls(tmp_path: Path) -> None:
    """Calls in other threads end with `WorkerDied`."""
    errors: list[BaseException] = []
    record = tmp_path / "pids"

    def call() -> None:
        try:
            killer_call(hostile.note_and_nap, timeout=60)(str(record))
        except killercall.KillerError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert wait_until(record.exists, 30)
    killercall.shutdown()
    thread.join()

    assert [killercall.WorkerDied] == [type(error) for error in errors]


def test_forked_child_of_the_host() -> None:
    """A child that the host forks has workers of its own and does not touch its parent's."""
    warm = killer_call(hostile.pid)()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mine = killer_call(hostile.pid)()
            killercall.shutdown()
            os.write(writing, b"other" if mine != warm else b"same")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)

    assert b"other" == answer
    assert warm == killer_call(hostile.pid)()


def test_fork_of_decorated_function_inside_itself() -> None:
    """A decorated module function that calls itself by its name starts nested calls."""
    assert 3 == decorated_countdown(3)


@killer_call(timeout=60)
def decorated_countdown(n: int) -> int:
    """Calls itself, decorated as it is."""
    return 0 if n == 0 else 1 + decorated_countdown(n - 1)
