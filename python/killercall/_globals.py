"""
Which values the globals of `__main__` have in a worker.

All functions of `__main__` in a worker share one namespace. Each comes with the values, as they
were when it was sent, of the globals that it uses; and it is sent only once, however often the host
changes them and changes them back. So what the host has said of a name last is remembered here, its
*word*, and what each function came with. When a function is about to be called whose word of a name
is another one, the host has changed that global since, and the function's value is put back. Where
the words are equal, whatever functions have made of the global in this worker stays.

Two words are equal if they surely mean the same: atoms, and small containers and functions of such,
by what they are; anything else only if it is the same object.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import types
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    # Of each name the value and the word.
    Taken = dict[str, tuple[Any, Any]]

_BY_VALUE = frozenset({int, bool, str, bytes, type(None)})
_BY_REPR = frozenset({float, complex})
# So many parts of a value are looked at, and so deep.
_MOST = 200
_DEPTH = 5

_ABSENT = object()


class _Same:
    """The word of a value that is equal to nothing but itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def word_of(value: Any) -> Any:
    """What is compared instead of the value, which functions may change."""
    return _word(value, itertools.repeat(None, _MOST), 0)


def _word(value: Any, left: Iterator[None], depth: int) -> Any:
    kind = type(value)
    if kind in _BY_VALUE:
        return kind, value
    if kind in _BY_REPR:
        # NaN is not equal to itself, and 0.0 is to -0.0.
        return kind, repr(value)
    parts: list[Any] = []
    if kind is tuple or kind is list:
        parts = [len(value), *value[:_MOST]]
    elif kind is set or kind is frozenset:
        if not all(type(part) in _BY_VALUE for part in value):
            return _Same(value)
        return kind, frozenset((type(part), part) for part in value)
    elif kind is dict:
        parts = [
            len(value),
            *itertools.islice(value, _MOST),
            *itertools.islice(value.values(), _MOST),
        ]
    elif kind is types.FunctionType and value.__module__ == "__main__":
        parts = [value.__defaults__, value.__kwdefaults__, vars(value)]
        for cell in value.__closure__ or ():
            # An empty one stays empty.
            with contextlib.suppress(ValueError):
                parts.append(cell.cell_contents)
    elif hasattr(kind, "_killercall_calls"):
        options = vars(value._killercall_options).items()
        parts = [value.__wrapped__, {name: part for name, part in options if name != "serializer"}]
    else:
        return _Same(value)
    if depth == _DEPTH or sum(1 for _ in itertools.islice(left, len(parts))) < len(parts):
        return _Same(value)
    code = value.__code__ if kind is types.FunctionType else None
    return kind, code, tuple([_word(part, left, depth + 1) for part in parts])


class Globals:
    """The words of the host in this worker."""

    def __init__(self, on_stale: Callable[[int], None]) -> None:
        """`on_stale` is told of each function that must be `refresh`ed before its next call."""
        self._on_stale = on_stale
        # Names that an initializer of this worker has assigned: they win over the host's.
        self._initialized: set[str] = set()
        self._words: dict[str, Any] = {}
        self._functions: dict[int, Taken] = {}
        self._stale: set[int] = set()
        # By name, the functions that have come with its word and are not stale.
        self._users: dict[str, set[int]] = {}
        # While something is unpickled: in which thread, what has come, and what was there before.
        self._thread: int | None = None
        self._values: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    def keep_initialized(self, before: dict[str, Any]) -> None:
        """Whatever has changed since `before` is the initializer's."""
        self._initialized.update(
            name for name, value in _namespace().items() if before.get(name, _ABSENT) is not value
        )

    def __enter__(self) -> Taken:
        """What is unpickled in the block comes from the host; what came is known after it."""
        self._thread = get_ident()
        self._taken: Taken = {}
        return self._taken

    def __exit__(self, *_exception: object) -> None:
        self._thread = None
        if not self._values:
            return
        values, self._values = self._values, {}
        before, self._before = self._before, {}
        for name, value in values.items():
            # Not earlier: a function may be among the globals that it uses itself.
            word = _ABSENT if value is _ABSENT else word_of(value)
            self._taken[name] = value, word
            if word != self._words.get(name, _ABSENT):
                self._say(name, word)
                _assign(name, value)
            elif before[name] is not _ABSENT:
                _assign(name, before[name])

    def is_taking(self) -> bool:
        """Whether this thread unpickles what comes from the host."""
        return self._thread == get_ident()

    def take(self, values: dict[str, Any], absent: tuple[str, ...]) -> None:
        """The host has these values of globals, and none of others that are used."""
        namespace = _namespace()
        for name, value in [*values.items(), *[(name, _ABSENT) for name in absent]]:
            if name in self._initialized:
                continue
            self._before.setdefault(name, namespace.get(name, _ABSENT))
            self._values[name] = value
            if value is not _ABSENT:
                # Unpickling goes on, and may run code that uses it.
                namespace[name] = value

    def keep(self, number: int, taken: Taken) -> None:
        """A function with this number has come with these."""
        if taken:
            self._functions[number] = taken
            self._use(number, taken)

    def forget(self, number: int) -> None:
        """That function is gone."""
        self._stale.discard(number)
        for name in self._functions.pop(number, ()):
            self._users.get(name, set()).discard(number)

    def refresh(self, number: int) -> bool:
        """Before a function is called; whether it was stale."""
        if number not in self._stale:
            return False
        self._stale.remove(number)
        taken = self._functions[number]
        for name, (value, word) in taken.items():
            if word != self._words.get(name, _ABSENT):
                self._say(name, word)
                _assign(name, value)
        self._use(number, taken)
        return True

    def _use(self, number: int, taken: Taken) -> None:
        for name in taken:
            self._users.setdefault(name, set()).add(number)

    def _say(self, name: str, word: Any) -> None:
        self._words[name] = word
        for number in self._users.pop(name, ()):
            if number not in self._stale:
                self._stale.add(number)
                self._on_stale(number)


def _namespace() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def _assign(name: str, value: Any) -> None:
    if value is _ABSENT:
        _namespace().pop(name, None)
    else:
        _namespace()[name] = value


__all__ = ["Globals", "word_of"]
