"""What tells whether the host has changed a global."""

from __future__ import annotations

import copy
import math
import sys
import types
from typing import Any

from killercall import killer_call
from killercall._globals import word_of
from processes import PATIENCE, took


def make(default: Any, cell: Any) -> Any:
    """A function as it comes from `__main__`."""

    def function(x: Any = default) -> Any:
        return x, cell

    function.__module__ = "__main__"
    return function


def is_same(one: Any, other: Any) -> bool:
    return bool(word_of(one) == word_of(other))


EQUAL: list[Any] = [
    1, "a", b"a", None, 2.5, -0.0, math.nan, 1j, (), [1, [2, {"a": (3,)}]], {1, 2}, {"a": []},
]  # fmt: skip
DIFFERENT: list[tuple[Any, Any]] = [
    (1, True), (1, 1.0), (0.0, -0.0), ("a", b"a"), ([1], (1,)), ([], [[]]), ({1: 2}, {2: 1}),
    ({1, 2}, {1, True}), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (object(), object()),
    (range(3), range(3)), (make(1, 2), make(1, 3)), (make(1, 2), make(2, 2)),
    (make(1, 2), lambda x=1: (x, 2)), (math, sys), ({(1,)}, {(1,)}), ([object()], [object()]),
    (killer_call(make(1, 1), timeout=5), killer_call(make(1, 1), timeout=6)),
    ([0] * 1000, [0] * 1000), (types.SimpleNamespace(), types.SimpleNamespace()),
]  # fmt: skip


def test_equal_values_have_equal_words() -> None:
    for value in EQUAL:
        assert is_same(value, copy.deepcopy(value)), value
        assert is_same(make(value, value), make(copy.deepcopy(value), copy.deepcopy(value)))
        wrapped = [killer_call(make(value, 1), timeout=5) for _ in range(2)]
        assert is_same(*wrapped), value


def test_others_do_not() -> None:
    """Also where it takes too long to find out that they mean the same."""
    for one, other in DIFFERENT:
        assert not is_same(one, other), (one, other)
        assert is_same(one, one), one


def test_large_values_are_not_looked_through() -> None:
    deep: list[Any] = []
    for _ in range(20):
        deep = [deep] * 10
    deep.append(deep)
    with took(0, PATIENCE):
        assert is_same(deep, deep)
        assert not is_same(deep, copy.deepcopy(deep))
