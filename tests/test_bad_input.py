"""Every wrong argument is an error that names it, before any process starts."""

from __future__ import annotations

import importlib.util
import math
import sys
from datetime import timedelta
from typing import Any

import pytest

from killercall import (
    SerializationError,
    WorkerStartError,
    _host,
    killer_call,
    killer_pmap,
    preload,
)
from processes import alive_with_mark


def identity(x: Any) -> Any:
    """Nothing that could be wrong."""
    return x


@pytest.fixture(autouse=True)
def no_process_starts() -> Any:
    """The error comes before the first process."""
    assert {} == alive_with_mark()
    yield
    # Not our children: the forkserver is nobody's.
    assert {} == alive_with_mark()


TIMEOUTS = [
    (True, TypeError, "True"),
    ("4", TypeError, "'4'"),
    ([4], TypeError, r"\[4\]"),
    (object(), TypeError, "object object"),
    (0, ValueError, "0"),
    (0.0, ValueError, "0.0"),
    (-1.5, ValueError, "-1.5"),
    (math.nan, ValueError, "nan"),
    (math.inf, ValueError, "inf"),
    (timedelta(0), ValueError, "timedelta"),
    (timedelta(seconds=-1), ValueError, "timedelta"),
]


@pytest.mark.parametrize(("value", "error", "named"), TIMEOUTS)
def test_timeout(value: Any, error: type[Exception], named: str) -> None:
    """Call and map name the value and what was expected."""
    with pytest.raises(error, match=f"timeout must be .*{named}"):
        killer_call(identity, timeout=value)
    with pytest.raises(error, match=f"timeout must be .*{named}"):
        killer_pmap(identity, [1], timeout=value)
    with pytest.raises(error, match=f"timeout must be .*{named}"):
        killer_call(identity).options(timeout=value)


OPTIONS = [
    ({"start_method": "clone"}, ValueError, "start_method must be one of 'forkserver'.*'clone'"),
    ({"start_method": None}, TypeError, "start_method must be .*None"),
    ({"reuse": 0}, ValueError, "reuse must be at least 1, not 0"),
    ({"reuse": 1.5}, TypeError, "reuse must be a whole number, not 1.5"),
    ({"grace": -1}, ValueError, "grace must be greater than 0.*-1"),
    ({"grace": math.inf}, ValueError, "grace must be finite, not inf"),
    ({"grace": None}, TypeError, "grace must be .*None"),
    ({"grace": "1"}, TypeError, "grace must be .*'1'"),
    ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
    ({"retries": True}, TypeError, "retries must be a whole number, not True"),
    ({"retry_on": "ValueError"}, TypeError, "retry_on must be an exception class.*'ValueError'"),
    ({"retry_on": (ValueError, int)}, TypeError, "retry_on must be an exception class.*int"),
    ({"serializer": "json"}, ValueError, "serializer must be one of .*'json'"),
    ({"serializer": 3}, TypeError, "serializer must be .*3"),
    ({"initializer": 3}, TypeError, "initializer must be callable or None, not 3"),
    ({"initargs": 3}, TypeError, "initargs must be a tuple of arguments, not 3"),
    ({"preload": 3}, TypeError, "preload must be module names, not 3"),
    ({"preload": ["a b"]}, ValueError, "preload must be module names.*'a b'"),
    ({"env": ["A=1"]}, TypeError, "env must be a mapping"),
    ({"env": {"A": 1}}, TypeError, "env must map strings to strings, not 'A' to 1"),
    ({"env": {"A=B": "1"}}, ValueError, "env has a variable that no environment can hold: 'A=B'"),
    ({"cwd": 3.5}, TypeError, "cwd must be a path or None, not 3.5"),
    ({"cwd": "/nowhere/at/all"}, ValueError, "cwd must be an existing directory.*nowhere"),
    ({"on_timeout": "ignore"}, ValueError, "on_timeout must be one of .*'ignore'"),
    ({"max_memory": 0}, ValueError, "max_memory must be greater than 0 bytes, .*not 0"),
    ({"max_memory": -5}, ValueError, "max_memory must be greater than 0 bytes, .*not -5"),
    ({"max_memory": True}, TypeError, "max_memory must be a number of bytes.*True"),
    ({"max_memory": 1e9}, TypeError, "max_memory must be a number of bytes.*1000000000.0"),
    ({"max_memory": "2 gigs"}, ValueError, "max_memory must be a number with a unit.*'2 gigs'"),
    ({"max_memory": "2"}, ValueError, "max_memory must be a number with a unit.*'2'"),
    ({"max_memory": "0MB"}, ValueError, "max_memory must be greater than 0 bytes, .*'0MB'"),
    ({"forward_output": 1}, TypeError, "forward_output must be True, False or 'auto', not 1"),
    ({"forward_output": "yes"}, ValueError, "forward_output must be .* 'auto', not 'yes'"),
    ({"forward_logging": "auto"}, TypeError, "forward_logging must be True or False, not 'auto'"),
    ({"forward_logging": None}, TypeError, "forward_logging must be True or False, not None"),
    ({"time_out": 1}, TypeError, "no option 'time_out'; did you mean 'timeout'"),
    ({"nonsense": 1}, TypeError, "no option 'nonsense'; it has "),
    ({"engine": 1}, TypeError, "does not have the option 'engine' yet"),
]


@pytest.mark.parametrize(("options", "error", "match"), OPTIONS)
def test_option(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """Call and map say which option it was."""
    with pytest.raises(error, match=match):
        killer_call(identity, **options)
    with pytest.raises(error, match=match):
        killer_pmap(identity, [1], **options)


def test_none_where_that_is_the_default() -> None:
    """It may be given."""
    options = {"env": None, "cwd": None, "max_memory": None, "initializer": None}
    killer_call(identity, **options)
    assert [] == killer_pmap(identity, [], cpus=None, seed=None, budget=None, **options)


def test_dill_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and how to have it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs the package dill: pip install killercall\[dill\]"):
        killer_call(identity, serializer="dill")


@pytest.mark.parametrize("level", ["deep", "-1", ""])
def test_depth_that_is_none(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of ours that somebody else has set is named."""
    monkeypatch.setenv("KILLERCALL_DEPTH", level)
    with pytest.raises(ValueError, match=f"KILLERCALL_DEPTH is set by .*, not '{level}'"):
        killer_call(identity)(1)


def test_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python is embedded it may not know its own executable."""
    monkeypatch.setattr(_host._shared, "_launch", None)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(WorkerStartError, match=r"sys\.executable does not name"):
        killer_call(identity)(1)


MAP_OPTIONS = [
    ({"cpus": 0}, ValueError, "cpus must be at least 1, not 0"),
    ({"cpus": -2}, ValueError, "cpus must be at least 1, not -2"),
    ({"cpus": True}, TypeError, "cpus must be a whole number, not True"),
    ({"cpus": 1.0}, TypeError, "cpus must be a whole number, not 1.0"),
    ({"cpus": "2"}, TypeError, "cpus must be a whole number, not '2'"),
    ({"budget": 0}, ValueError, "budget must be greater than 0"),
    ({"outcomes": "all"}, TypeError, "outcomes must be True or False, not 'all'"),
    ({"seed": 1.0}, TypeError, "seed must be a whole number or None, not 1.0 of type float"),
    ({"seed": True}, TypeError, "seed must be a whole number or None, not True of type bool"),
    ({"progress": 3}, TypeError, "progress must be True, a description or a callable, not 3"),
    ({"on_error": "ignore"}, ValueError, "on_error must be one of .*'ignore'"),
]


@pytest.mark.parametrize(("options", "error", "match"), MAP_OPTIONS)
def test_map_option(options: dict[str, Any], error: type[Exception], match: str) -> None:
    """What only a map has."""
    with pytest.raises(error, match=match):
        killer_pmap(identity, [1], **options)


@pytest.mark.parametrize("name", ["budget", "on_error", "outcomes", "progress", "seed"])
def test_call_does_not_take_options_of_map(name: str) -> None:
    """A call has no budget and no items."""
    with pytest.raises(TypeError, match=f"killer_call has no option '{name}'"):
        killer_call(identity, **{name: 1})


@pytest.mark.parametrize("function", [3, "name", [1], object()])
def test_function_is_not_callable(function: Any) -> None:
    """The message names what was given instead."""
    if not isinstance(function, int):
        with pytest.raises(TypeError, match="func must be callable, not "):
            killer_call(function)
    with pytest.raises(TypeError, match="func must be callable, not "):
        killer_pmap(function, [1])


def test_number_instead_of_function() -> None:
    """`@killer_call(4)` was meant as a timeout."""
    with pytest.raises(TypeError, match="was timeout=4 meant"):
        killer_call(4)


@pytest.mark.parametrize("items", [3, None, identity])
def test_items_are_not_iterable(items: Any) -> None:
    """The message names what was given instead."""
    with pytest.raises(TypeError, match="iterable must be iterable, not "):
        killer_pmap(identity, items)


def test_items_raise_while_they_are_read() -> None:
    """The generator's own error arrives."""

    def items() -> Any:
        yield 1
        raise LookupError("second")

    with pytest.raises(LookupError, match="second"):
        killer_pmap(identity, items())


def test_unpicklable_function_and_argument() -> None:
    """They fail at the call, with the way to the culprit."""
    import threading

    lock = threading.Lock()
    with pytest.raises(SerializationError, match="<closure lock>") as caught:
        killer_call(lambda: lock)()
    assert "function.<closure lock>" == caught.value.path
    with pytest.raises(SerializationError) as caught:
        killer_call(identity)({"a": [1, lock]})
    assert "args[0]['a'][1]" == caught.value.path
    with pytest.raises(SerializationError) as caught:
        killer_call(identity)(x=lock)
    assert "kwargs['x']" == caught.value.path


def test_unpicklable_argument_with_preload() -> None:
    """It fails before the forkserver is started to preload anything."""
    import threading

    with pytest.raises(SerializationError):
        killer_call(identity, preload=["colorsys"])(threading.Lock())
    with pytest.raises(SerializationError):
        killer_pmap(identity, [threading.Lock()], preload=["colorsys"])


@pytest.mark.parametrize("names", [(3,), ("a b",)])
def test_preload(names: tuple[Any, ...]) -> None:
    """Names of modules, and nothing else."""
    with pytest.raises((TypeError, ValueError), match="preload must be module names"):
        preload(*names)
