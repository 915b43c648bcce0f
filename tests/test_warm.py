"""The short way of a call: what has changed since the last one is seen, and nothing is mixed up."""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import hostile
import killercall
from killercall import killer_call, killer_pmap
from processes import lines, run_script

if TYPE_CHECKING:
    from pathlib import Path

# What changes between two calls of one decorated function, and what they return.
CHANGES = {
    "a number": ("n = 1\ndef f(): return n", "n = 2", "[1, 2]"),
    "a list in place": ("n = [1]\ndef f(): return len(n)", "n.append(2)", "[1, 2]"),
    "a place of a list": ("n = [1, 1]\ndef f(): return n[1]", "n[1] = 2", "[1, 2]"),
    "a list in a list": ("n = [[1]]\ndef f(): return n[0][0]", "n[0][0] = 2", "[1, 2]"),
    "a dict in place": ("n = {'a': 1}\ndef f(): return n['a']", "n['a'] = 2", "[1, 2]"),
    "a new key": ("n = {'a': 1}\ndef f(): return len(n)", "n['b'] = 2", "[1, 2]"),
    "another key": (
        "n = {1: 0}\ndef f(): return str(next(iter(n)))",
        "del n[1]; n[True] = 0",
        "['1', 'True']",
    ),
    "the order of a dict": (
        "n = {'a': 1, 'b': 2}\ndef f(): return next(iter(n))",
        "n['a'] = n.pop('a')",
        "['a', 'b']",
    ),
    "a dict of dicts": (
        "n = {'a': {'b': 1}}\ndef f(): return n['a']['b']",
        "n['a']['b'] = 2",
        "[1, 2]",
    ),
    "a set in a dict": ("n = {'a': {1}}\ndef f(): return len(n['a'])", "n['a'].add(2)", "[1, 2]"),
    "a name that was not there": (
        "def f():\n    try:\n        return n\n    except NameError:\n        return 0",
        "n = 2",
        "[0, 2]",
    ),
    "a function that it calls": (
        "def g(): return 1\ndef f(): return g()",
        "def g(): return 2",
        "[1, 2]",
    ),
    "what that function refers to": (
        "n = 1\ndef g(): return n\ndef f(): return g()",
        "n = 2",
        "[1, 2]",
    ),
    "the code": ("def f(): return 1\ndef g(): return 2", "f.__code__ = g.__code__", "[1, 2]"),
    "a default": ("def f(n=1): return n", "f.__defaults__ = (2,)", "[1, 2]"),
    "a keyword's default": ("def f(*, n=1): return n", "f.__kwdefaults__['n'] = 2", "[1, 2]"),
    "an attribute": ("def f(): return f.n\nf.n = 1", "f.n = 2", "[1, 2]"),
    "a new attribute": ("def f(): return getattr(f, 'n', 1)", "f.n = 2", "[1, 2]"),
    "a class": (
        "class C:\n    n = 1\ndef f(): return C.n",
        "C.n = 2",
        "[1, 2]",
    ),
    "a closure's cell": (
        (
            "def make():\n    n = 1\n    def f(): return n\n    def change():\n"
            "        nonlocal n\n        n = 2\n    return f, change\nf, change = make()"
        ),
        "change()",
        "[1, 2]",
    ),
    "another decorated function": (
        "n = 1\n@killer_call\ndef g(): return n\ndef f(): return g()",
        "n = 2",
        "[1, 2]",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: str, tmp_path: Path) -> None:
    """Whatever a function refers to is what it is now, warm as the worker may be."""
    before, between, expected = CHANGES[change]
    code = (
        "from killercall import killer_call\n"
        f"{before}\nw = killer_call(f)\nfirst = [w(), w(), w()]\n"
        f"{between}\nsecond = [w(), w(), w()]\nprint([first[0], second[0]])\n"
        "assert len(set(first)) == len(set(second)) == 1, (first, second)\n"
    )
    done = run_script(code, way="file", directory=tmp_path)

    assert (f"{expected}\n", "", 0) == (done.stdout, done.stderr, done.returncode)


@killer_call
def seen() -> tuple[str, str | None, bool]:
    """Where it is, a variable, and whether a path is there."""
    return os.getcwd(), os.environ.get("KILLERCALL_TEST_SEEN"), "/nowhere" in sys.path


def test_the_surroundings_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A warm worker follows the host to another directory, and sees variables come and go."""
    here = os.getcwd()
    assert [(here, None, False)] * 2 == [seen(), seen()]
    with monkeypatch.context() as changed:
        changed.chdir(tmp_path)
        assert [(str(tmp_path), None, False)] * 2 == [seen(), seen()]
        changed.setenv("KILLERCALL_TEST_SEEN", "1")
        assert [(str(tmp_path), "1", False)] * 2 == [seen(), seen()]
        changed.syspath_prepend("/nowhere")
        assert [(str(tmp_path), "1", True)] * 2 == [seen(), seen()]
    assert [(here, None, False)] * 2 == [seen(), seen()]


@killer_call
def disturb(what: str) -> None:
    """Changes what the next call should find."""
    match what:
        case "directory":
            os.chdir("/")
        case "variable":
            os.environ["KILLERCALL_TEST_SEEN"] = "disturbed"
        case "path":
            sys.path.append("/nowhere")


@pytest.mark.parametrize("what", ["directory", "variable", "path"])
def test_what_a_call_changes_ends_with_it(what: str) -> None:
    """The next call of a warm worker finds what the host has, however quickly it comes."""
    expected = seen()
    for _ in range(30):
        disturb(what)
        assert expected == seen()


def disturb_or_look(number: int) -> tuple[str, str | None, bool]:
    """Every third item changes something, each of the others looks."""
    if number % 3 == 0:
        disturb.__wrapped__(["directory", "variable", "path"][number // 3 % 3])
        return ("", None, False)
    return seen.__wrapped__()


def test_what_an_item_changes_ends_with_it() -> None:
    """The same in a map, whose items follow each other at once."""
    expected = seen()
    found = killer_pmap(disturb_or_look, range(3000), cpus=2, timeout=60)

    assert {expected} == {found[number] for number in range(3000) if number % 3}


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(codec=None), max_size=5)
    | st.binary()
    | st.complex_numbers()
)


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Each kind of container of some of these."""
    keys = st.integers() | st.text() | st.tuples(st.integers())
    lists = st.lists(parts, max_size=5)
    return lists | lists.map(tuple) | st.dictionaries(keys, parts, max_size=4)


SHALLOW = ATOMS | containers(ATOMS)
VALUES = SHALLOW | containers(SHALLOW)


def described(value: Any) -> str:
    """Types and values; `repr` tells 0.0 from -0.0 and one nan is like another."""
    return f"{type(value).__name__} {value!r}"


@killer_call
def here_and_there(value: Any) -> tuple[Any, str]:
    """The value, and what it is in the worker."""
    return value, described(value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
def test_values_come_and_go_as_they_are(value: Any) -> None:
    """There and back, types included."""
    back, there = here_and_there(value)

    assert described(value) == there == described(back)


@killer_call
def are_the_same(pair: Any) -> bool:
    """Whether two parts are one object."""
    first, second = pair
    return first is second


def test_one_list_does_not_become_two() -> None:
    """What is shared in an argument is shared in the worker, also below a dict."""
    shared: list[int] = [1]
    assert are_the_same((shared, shared))
    assert not are_the_same(([1], [1]))
    assert are_the_same([shared, shared])
    inner: dict[str, Any] = {}
    assert are_the_same(({"a": inner}["a"], inner))


def test_a_list_may_hold_itself() -> None:
    """In argument and result."""
    knot: list[Any] = []
    knot.append(knot)
    back = killer_call(lambda value: value)(knot)
    assert back[0] is back


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 16_000, 17_000, 70_000, 2_000_000])
def test_any_length(length: int) -> None:
    """From a word in the ring to a file of its own."""
    echo = killer_call(lambda text: text)
    for _ in range(3):
        assert "x" * length == echo("x" * length)
        assert b"x" * length == echo(b"x" * length)


def test_keyword_arguments() -> None:
    """Together with others, and alone."""
    collect = killer_call(lambda *args, **kwargs: (args, kwargs))
    for _ in range(3):
        assert ((1, "a"), {"b": 2, "self": None}) == collect(1, "a", b=2, self=None)
        assert ((), {"x": {"y": [1]}}) == collect(x={"y": [1]})
        assert ((), {}) == collect()


def test_arrays() -> None:
    """Small ones, in and out, also inside of containers."""
    double = killer_call(lambda part: {"twice": part["x"] * 2, "sum": part["x"].sum()})
    for number in range(5):
        back = double({"x": np.arange(number)})
        assert (np.arange(number) * 2).tolist() == back["twice"].tolist()
        assert np.arange(number).sum() == back["sum"]
        assert isinstance(back["sum"], np.integer)


def test_exceptions_and_values_in_turn() -> None:
    """Each call gets its own answer."""

    def divide(number: int) -> float:
        return 10 / number

    call = killer_call(divide)
    for number in [1, 0, 2, 0, 4] * 5:
        if number:
            assert 10 / number == call(number)
        else:
            with pytest.raises(ZeroDivisionError) as caught:
                call(number)
            assert "return 10 / number" in str(caught.value.__cause__)


def test_deadlines_and_values_in_turn() -> None:
    """Also where the call before was answered at once."""

    def maybe(hangs: bool) -> int:
        while hangs:
            pass
        return 7

    call = killer_call(maybe, timeout=0.3)
    for _ in range(3):
        assert [7, 7] == [call(False), call(False)]
        with pytest.raises(killercall.TimeoutError):
            call(True)


def test_many_threads_at_once() -> None:
    """Each gets the answer to its own question."""
    wrong = []

    def ask(thread: int) -> None:
        wrong.extend(
            (thread, number) for number in range(200) if echo((thread, number)) != (thread, number)
        )

    echo = killer_call(lambda value: value, timeout=60)
    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == wrong


def test_a_forked_host_has_workers_of_its_own() -> None:
    """A copy of the host does not touch what was warm before."""
    call = killer_call(lambda number: (number, os.getppid()))
    assert call(1) == call(1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, repr(call(2)).encode())
            killercall.shutdown()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        number, server = eval(answer.read())  # ruff: ignore[suspicious-eval-usage]
    assert (pid, 0) == os.waitpid(pid, 0)
    assert 2 == number
    assert server != call(3)[1]


def test_a_partial_is_called() -> None:
    """With changed keywords too."""
    partial = functools.partial(math.pow, 2)
    call = killer_call(partial)
    assert [8.0, 16.0] == [call(3), call(4)]


def test_a_decorated_function_that_is_dropped_is_freed() -> None:
    """Though it may refer to itself."""
    import gc
    import weakref

    def make() -> weakref.ref[Any]:
        @killer_call
        def again(number: int) -> int:
            return number if number else len(repr(again))

        assert 1 == again(1) == again(1)
        return weakref.ref(again)

    dropped = make()
    gc.collect()
    assert dropped() is None


# Small items go to workers in runs. What happens to one is not the others' affair.


@pytest.mark.parametrize("how", ["raises", "dies", "hangs", "cannot be pickled"])
def test_one_of_a_run(how: str, tmp_path: Path) -> None:
    """Ten of three thousand fail, each runs once, and all others have their values."""
    path = tmp_path / "started"
    found = killer_pmap(
        functools.partial(hostile.misbehave_at_times, path=str(path), how=how),
        range(3000),
        cpus=2,
        # What the busiest machine needs to start with the first ones, but for those that hang.
        timeout=1.5 if how == "hangs" else 20,
        on_error="default",
        default=-1,
    )

    failing = {number for number in range(1000) if number % 100 == 50}
    assert [-1 if number in failing else number for number in range(3000)] == found
    assert sorted(range(3000)) == sorted(map(int, lines(path)))


def test_a_run_of_many_kinds() -> None:
    """Plain items, items that need pickling and large ones follow each other in order."""
    items: list[Any] = []
    for number in range(600):
        items += [number, {number}, "x" * number, np.arange(number % 7), {"n": [number]}]
    found = killer_pmap(repr, items, cpus=2)

    assert [repr(item) for item in items] == found


def test_results_of_many_lengths() -> None:
    """From nothing to more than a ring holds."""
    lengths = [0, 1, 300, 20_000, 255, 256, 70_000, 3] * 40
    found = killer_pmap(lambda length: "x" * length, lengths, cpus=2)

    assert lengths == [len(text) for text in found]
