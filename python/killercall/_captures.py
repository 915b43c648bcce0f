"""
What a function refers to, if a glance tells whether any of it has changed.

A function that goes to a worker by value takes along the globals, cells and defaults that it uses.
As long as those are modules, importable things or immutable values, the same objects mean the same
function, and so do small lists and dicts of such with the same objects in the same order. Of
anything else only its pickled bytes can tell.
"""

from __future__ import annotations

import functools
import sys
import types

from killercall import _core, _payload

# What finds names needs it. In the host it is there from the start, as an interrupt in the middle
# of an import is printed.
__import__("opcode")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

# The same object means the same value for good.
_IMMUTABLE = _payload.ATOMS | {
    range,
    type(Ellipsis),
    type(NotImplemented),
}

# More are quicker pickled than looked at.
_MOST = 200


def captures_of(function: Any) -> _core.Captures | None:
    """What to look at before each call; None if that does not tell."""
    walk = _Walk()
    if not walk.is_told(function):
        return None
    return _core.Captures(walk.items, walk.attributes, walk.sizes, walk.dicts, walk.lists)


class _Walk:
    """All that is reached from a function, and where it was found."""

    def __init__(self) -> None:
        self.items: list[tuple[dict[Any, Any], Any]] = []
        self.attributes: list[tuple[Any, str]] = []
        self.sizes: list[dict[Any, Any]] = []
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        # How many things were looked at.
        self._count = 0
        self._seen: set[int] = set()

    def is_told(self, value: Any) -> bool:
        """Whether the identity of all that is reached from here tells whether it has changed."""
        kind = type(value)
        if kind in _IMMUTABLE:
            return True
        if id(value) in self._seen:
            return True
        self._count += 1
        if self._count > _MOST:
            return False
        self._seen.add(id(value))
        if kind is types.FunctionType:
            return self._is_function_told(value)
        if kind is types.ModuleType:
            self._watch_reload(value)
            return sys.modules.get(value.__name__) is value
        if kind is types.BuiltinFunctionType:
            return value.__self__ is None or type(value.__self__) is types.ModuleType
        if kind is tuple or kind is frozenset:
            return self._are_told(value)
        if kind is list:
            self.lists.append(value)
            return self._are_told(value)
        if kind is dict:
            self.dicts.append(value)
            return self._are_told(value) and self._are_told(value.values())
        if kind is functools.partial:
            parts = (value.func, value.args)
            return (
                self._are_told(parts)
                and self._is_dict_told(value.keywords)
                and self._is_dict_told(vars(value))
            )
        if hasattr(kind, "_killercall_calls"):
            return self._is_decorated_told(value)
        if isinstance(value, type):
            return kind is type and _is_importable(value)
        if _is_of(value, "enum", "Enum"):
            return _is_importable(kind)
        if _is_of(value, "re", "Pattern"):
            return True
        numpy = sys.modules.get("numpy")
        # Of all scalars those with fields can be changed.
        return (
            numpy is not None
            and isinstance(value, numpy.generic)
            and not isinstance(value, numpy.void)
            and not value.dtype.hasobject
        )

    def _are_told(self, values: Collection[Any]) -> bool:
        self._count += len(values)
        return self._count <= _MOST and all(map(self.is_told, values))

    def _is_function_told(self, function: types.FunctionType) -> bool:
        if _payload.is_decorated(function) or _is_importable(function):
            self._watch_reload(sys.modules.get(function.__module__))
            return True
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self.attributes.append((function, name))
        if not self.is_told(function.__defaults__ or ()):
            return False
        if not (
            self._is_dict_told(function.__dict__) and self._is_dict_told(function.__kwdefaults__)
        ):
            return False
        for name in _names(function.__code__):
            self.items.append((function.__globals__, name))
            if name in function.__globals__ and not self.is_told(function.__globals__[name]):
                return False
        for cell in function.__closure__ or ():
            self.attributes.append((cell, "cell_contents"))
            try:
                contents = cell.cell_contents
            except ValueError:
                # It is empty, as that of a function which is defined later.
                continue
            if not self.is_told(contents):
                return False
        return True

    def _watch_reload(self, module: Any) -> None:
        """A module that is reloaded stays the same object, but gets another specification."""
        if type(module) is types.ModuleType and module.__name__ != "__main__":
            self.items.append((vars(module), "__spec__"))

    def _is_dict_told(self, found: dict[Any, Any] | None) -> bool:
        if found is None:
            return True
        self.sizes.append(found)
        self.items += [(found, key) for key in found]
        return all(type(key) is str for key in found) and self._are_told(found.values())

    def _is_decorated_told(self, decorated: Any) -> bool:
        self.attributes.append((decorated, "__wrapped__"))
        options = vars(decorated._killercall_options)
        plain = {name: part for name, part in options.items() if name != "serializer"}
        return self._are_told((decorated.__wrapped__, *plain.values()))


def _is_of(value: Any, module: str, name: str) -> bool:
    """Whether it is an instance of that class; nobody has one without its module."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(value, cls)


def _names(code: types.CodeType) -> Iterable[str]:
    """The globals that are sent with a function."""
    if _payload.takes_cloudpickle():
        from cloudpickle import cloudpickle as internals

        names: Iterable[str] = internals._extract_code_globals(code)
        return names
    return _payload.names_in(code)


def _is_importable(value: Any) -> bool:
    """Whether it goes by its name."""
    if _payload.takes_cloudpickle():
        from cloudpickle import cloudpickle as internals

        return bool(internals._should_pickle_by_reference(value))
    return _payload.is_importable(value)
