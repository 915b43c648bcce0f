"""
Cloudpickle with the differences that `_payload` describes.

A module of its own, as importing cloudpickle takes as long as starting an interpreter: what needs
less (`_payload.LightPickler`) goes without it.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from typing import TYPE_CHECKING, Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

from killercall import _payload

if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable

# What the reduction of a function by value holds; one by reference is shorter.
_BY_VALUE = ("make", "arguments", "state", "items", "pairs", "set_state")


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle's, with the differences that the module describes."""

    def __init__(
        self,
        file: Any,
        *,
        towards_host: bool,
        leave_out: Callable[[pickle.PickleBuffer], object] | None = None,
    ) -> None:
        super().__init__(file, protocol=_payload.PROTOCOL, buffer_callback=leave_out)
        self._towards_host = towards_host

    def reducer_override(self, obj: Any) -> Any:
        light = _payload.reduce_part(obj)
        if light is not None:
            return light
        if isinstance(obj, types.FunctionType):
            return self._reduce_function(obj)
        if isinstance(obj, types.CodeType):
            return _reduce_code(obj)
        if isinstance(obj, type):
            return self._reduce_class(obj)
        if isinstance(obj, functools._lru_cache_wrapper):
            return self._reduce_cached(obj)
        if type(obj) is functools.singledispatchmethod:
            # From Python 3.13 on it holds a cache of weak references.
            parts = (obj.dispatcher, obj.func)
            return (
                functools.singledispatchmethod,
                (_payload._same,),
                parts,
                None,
                None,
                _payload._set_method_state,
            )
        if type(obj) is functools.cached_property:
            # Up to Python 3.11 it holds a lock.
            state = (obj.func, obj.attrname)
            return (
                functools.cached_property,
                (_payload._same,),
                state,
                None,
                None,
                _payload._set_property_state,
            )
        if issubclass(type(obj), BaseException) and _payload._has_default_reduce(type(obj)):
            return _payload._reduce_exception(obj)
        if "polars" in sys.modules:
            from killercall import _frames

            reduced = _frames.reduce_polars(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        decorated = _payload._decorated(cls)
        if decorated is not None:
            return _payload._unwrap, (decorated,)
        token = _token(cls)
        if self._towards_host and token is not None and token not in _payload._own_tokens:
            return _payload._class_of_token, (token,)
        if self._towards_host and _is_inherited(cls):
            return _payload._class_of_main, (cls.__qualname__,)
        reduced = super().reducer_override(cls)
        if isinstance(reduced, tuple) and issubclass(cls, enum.Enum):
            reduced = _with_members(reduced, cls)
        # The class of a NamedTuple brings its own, and must not be told.
        if isinstance(reduced, tuple) and vars(cls).get("__slots__"):
            reduced = _with_slots(reduced, cls)
        if token is None:
            # Now it has one, if it went by value.
            token = _token(cls)
            if token is not None:
                _payload._own_tokens.add(token)
        return reduced

    def _reduce_cached(self, cached: Any) -> Any:
        """By its name where that leads here outside of `__main__`, else with an empty cache."""
        decorated = _payload._decorated(cached)
        if decorated is not None:
            return _payload._unwrap, (decorated,)
        module = sys.modules.get(cached.__module__ or "")
        if (
            cached.__module__ != "__main__"
            and _payload._attribute(module, cached.__qualname__) is cached
        ):
            return NotImplemented
        parameters = cached.cache_parameters()
        reduced = (
            self._reduce_function(cached.__wrapped__)
            if isinstance(cached.__wrapped__, types.FunctionType)
            else NotImplemented
        )
        if not isinstance(reduced, tuple) or len(reduced) != len(_BY_VALUE):
            return _payload._make_cached, (parameters, _payload._same, (cached.__wrapped__,))
        make, arguments, state, _, _, set_state = reduced
        # The function's state follows the cache's creation: it may refer to the cache itself.
        return (
            _payload._make_cached,
            (parameters, make, arguments),
            (set_state, state),
            None,
            None,
            _payload._set_cached_state,
        )

    def _reduce_function(self, function: types.FunctionType) -> Any:
        decorated = _payload._decorated(function)
        if decorated is not None:
            return _payload._unwrap, (decorated,)
        reduced: Any = super().reducer_override(function)
        if not isinstance(reduced, tuple):
            return reduced
        if _is_generic(function):
            generic: Any = function
            return (
                _payload._make_generic,
                (),
                (generic.__wrapped__, dict(generic.registry)),
                None,
                None,
                _payload._set_generic_state,
            )
        if not _payload.shares_main(function):
            return reduced
        # Its arguments are code, globals, name, defaults and closure.
        _, arguments, state, *_ = reduced
        absent = _payload.absent_names(_internals._extract_code_globals(function.__code__))
        if absent:
            state[1]["__absent__"] = absent
        return (
            _payload._make_main_function,
            (arguments[0], arguments[4]),
            state,
            None,
            None,
            _payload._set_main_state,
        )


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    """Of code that marshal does not take. Code keeps the name of its file, see `_payload`."""
    make, arguments = _internals._code_reduce(code)
    before, after = arguments[:_FILENAME], arguments[_FILENAME + 1 :]
    return make, (*before, code.co_filename, *after)


# The place of the file's name among the arguments of `types.CodeType`.
_FILENAME = 10


def _with_slots(reduced: tuple[Any, ...], cls: type) -> tuple[Any, ...]:
    """Slots have to be there when a class is made; cloudpickle sets them afterwards, in vain."""
    make, arguments, *rest = reduced
    if make is not _internals._make_skeleton_class:
        return reduced
    namespace = {**arguments[3], "__slots__": vars(cls)["__slots__"]}
    return make, (*arguments[:3], namespace, *arguments[4:]), *rest


def _with_members(reduced: tuple[Any, ...], cls: type[enum.Enum]) -> tuple[Any, ...]:
    """Cloudpickle leaves out aliases, and what the members' own `__init__` or `__new__` has set."""
    make, arguments, state, *_ = reduced
    if make is not _internals._make_skeleton_enum:
        return reduced
    members = {name: member.value for name, member in cls.__members__.items()}
    arguments = (*arguments[:3], members, *arguments[4:])
    attributes = {
        name: {key: value for key, value in vars(member).items() if key not in _OF_MEMBERS}
        for name, member in cls.__members__.items()
    }
    in_class, slots = state
    in_class = {name: value for name, value in in_class.items() if name not in members}
    return make, arguments, ((in_class, slots), attributes), None, None, _payload._set_enum_state


# What the class of an enumeration gives each member.
_OF_MEMBERS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def _is_generic(function: types.FunctionType) -> bool:
    """Whether it is the face of a `functools.singledispatch`, whose cache cannot be pickled."""
    return (
        function.__globals__ is vars(functools)
        and {"registry", "dispatch"} <= vars(function).keys()
    )


def _token(cls: type) -> str | None:
    token: str | None = _internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
    return token


def _is_inherited(cls: type) -> bool:
    if _payload._inherited_main is None or cls.__module__ != "__main__":
        return False
    return _payload._attribute(_payload._inherited_main, cls.__qualname__) is cls
