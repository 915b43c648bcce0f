"""What the first call imports, and that doing without changes nothing."""

from __future__ import annotations

import argparse
import inspect
import logging
import subprocess
import types
from typing import TYPE_CHECKING

import pytest
from cloudpickle import cloudpickle

from killercall import _payload
from processes import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each takes longer than all that a first call needs.
DEAR = ("cloudpickle", "dataclasses", "inspect", "logging", "pathlib", "re", "threading", "typing")

FIRST_CALL = f"""
import sys

before = set(sys.modules)

from killercall import killer_call, killer_pmap

def imported(x):
    import sys
    return sorted({set(DEAR)!r} & sys.modules.keys())

print([name for name in killer_call(imported)(1) if name not in before])
print([name for name in killer_pmap(imported, [1])[0] if name not in before])
print([name for name in imported(1) if name not in before])
"""

# Whatever `__main__` may hold. `TURN` decides whether cloudpickle is there from the start.
LIGHT_OR_NOT = """
TURN
import enum
import functools
import math
import os.path
import time
from decimal import Decimal
from typing import NamedTuple

from killercall import killer_call, killer_pmap

limit = 3
count = 5

class Odd(Exception):
    def __init__(self, amount, reason):
        super().__init__(f"{amount}: {reason}")
        self.amount = amount

class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1
    BLUE = "b"

class Point(NamedTuple):
    x: int
    y: int = 2

class Counter:
    count = 0

def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)

def is_even(n):
    return n == 0 or is_odd(n - 1)

def is_odd(n):
    return n != 0 and is_even(n - 1)

def full(a, /, b: int = 2, *args, c: "str" = "x", d=(1, 2), **rest) -> float:
    "Says what it is."
    return (a, b, args, c, d, rest, full.__doc__, full.__name__, full.__qualname__, full.__module__,
            full.__annotations__, full.__kwdefaults__, full.__defaults__, full.tag,
            full.__code__.co_filename, full.__code__.co_firstlineno)

full.tag = "tagged"

def bump():
    global count
    count += 1
    return count

def reads_an_attribute(x):
    class Holder:
        count = 9
    return Holder.count + x

def assigned_later(x):
    return later(x)

def later(x):
    return math.floor(x) + limit

@functools.lru_cache(maxsize=7)
def cached(x):
    return x + limit

def fails(x):
    raise Odd(x, "no")

def fails_plainly(x):
    raise KeyError(x, Decimal(1))

def makes(x):
    return Point(x), Colour.CRIMSON, Odd(1, "r").amount, Decimal("1.5"), os.path.join("a", "b")

def gives_back(x):
    return x

def nested(x):
    def inner(y):
        return y + limit + x
    return [inner(y) for y in range(3)], (lambda z: z * limit)(x)

def without_a_global(x):
    return missing + x

def outer(k):
    def within(x):
        return x + k
    return within

def show(name, call, *args):
    try:
        value = call(*args)
    except Exception as error:
        value = type(error).__name__, str(error), vars(error).get("amount"), type(error) is Odd
    print(name, value, type(value).__name__)

for function in (factorial, is_even, assigned_later, cached, fails, fails_plainly, makes, nested,
                 reads_an_attribute, without_a_global, outer(4), math.sqrt, abs, str,
                 functools.partial(full, 1), Point, Colour, Decimal, "x{}".format):
    show(getattr(function, "__name__", "?"), killer_call(function), 1)
show("full", killer_call(full), 1)
show("bump", killer_call(bump))
show("attribute", killer_call(reads_an_attribute), 1)
show("bump", killer_call(bump))
for value in (Point(1), Colour.BLUE, limit, [1, {2: (3,)}], {1, 2}, ValueError("v", 1), range(3),
              time.struct_time(range(9)), Decimal("2.5"), b"b", 1j, float("inf"), NotImplemented, ...,
              type(None), int, Colour, Odd, slice(1), bytearray(b"c"), memoryview, math):
    show("back", killer_call(gives_back), value)
print(killer_call(gives_back)(Point) is Point, killer_call(gives_back)(Colour.RED) is Colour.RED)
print(killer_call(gives_back)(factorial)(5), killer_pmap(later, [1.5, 2.5]))
limit = 30
print(killer_call(later)(1.5), killer_pmap(cached, [1, 2]))
"""


def test_first_call_imports_little() -> None:
    """Neither host nor worker imports what takes longer than the call."""
    done = run_script(FIRST_CALL)
    assert (done.stdout, done.stderr) == ("[]\n[]\n[]\n", "")


def test_doing_without_cloudpickle_changes_nothing() -> None:
    """The same program says the same where cloudpickle was imported first."""
    said = []
    for turn in ("", "import cloudpickle"):
        done = run_script(LIGHT_OR_NOT.replace("TURN", turn), limit=100)
        assert not done.stderr
        said.append(done.stdout.splitlines())
    assert said[0] == said[1]


def functions() -> Iterator[types.FunctionType]:
    """Those of a part of the standard library."""
    for module in (argparse, inspect, logging, subprocess):
        for found in vars(module).values():
            of_class = vars(found).values() if isinstance(found, type) else ()
            for part in (found, *of_class):
                if isinstance(part, types.FunctionType):
                    yield part


def test_globals_are_found_as_cloudpickle_finds_them() -> None:
    """Without it no other names go along, which would overwrite what a worker has."""
    checked = 0
    for function in functions():
        code = function.__code__
        assert list(cloudpickle._extract_code_globals(code)) == _payload.names_in(code)
        checked += 1
    assert checked > 300


def test_globals_beyond_the_reach_of_one_byte() -> None:
    """Their numbers take more than one instruction."""
    names = [f"name_{number}" for number in range(70_000)]
    code = compile("def f():\n" + "".join(f" {name}\n" for name in names), "", "exec").co_consts[0]
    assert names == _payload.names_in(code)


@pytest.mark.parametrize("name", ["nothing", "_nothing"])
def test_unknown_name_of_the_package(name: str) -> None:
    """Names that come at first use do not make others appear."""
    import killercall

    with pytest.raises(AttributeError, match=f"module 'killercall' has no attribute '{name}'"):
        getattr(killercall, name)


def test_names_that_come_at_first_use() -> None:
    """All are listed and can be imported by a star."""
    script = (
        "import killercall\n"
        "print(sorted(set(killercall.__all__) - set(dir(killercall))))\n"
        "from killercall import *\n"
        "print(sorted(set(killercall.__all__) - set(globals())))\n"
    )
    done = run_script(script)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")
