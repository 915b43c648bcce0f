"""
From Python objects to bytes and back.

Exact numbers, strings and flat containers of them take pickle's own way. Everything else goes
through the serializer, by default cloudpickle with these differences:

- Functions of `__main__` live in the worker's `__main__`, so that they share one namespace there.
- A class that came from the host goes back as a reference to the host's class. By value it would
  overwrite the attributes of the host's own class (cloudpickle issue 376).
- An exception is rebuilt without its own `__init__`, which may take other arguments than `args`.
- A function that its module knows only as a decorated `killer_call` is sent as a reference to
  that.
- Code keeps the name of its file, so that tracebacks and stacks have source lines. (From 3.1.3 on
  cloudpickle calls all files `<dynamic-code>`.)

Large values become a parcel: the buffers of arrays stay out of the pickled stream, and all of it is
written once, into a file that the receiver maps.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import io
import itertools
import pickle
import sys
import time
import types
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
from cloudpickle import cloudpickle as _internals

from killercall import _core
from killercall._exceptions import SerializationError, new_exception, set_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROTOCOL = pickle.HIGHEST_PROTOCOL

# Types that need no serializer: immutable, and the same everywhere.
ATOMS = frozenset({int, float, bool, type(None), str, bytes, complex})


class Serializer(Protocol):
    """What the option `serializer` takes besides names."""

    def dumps(self, obj: Any, /) -> bytes:
        """To bytes."""

    def loads(self, data: bytes, /) -> Any:
        """And back."""


# How deep and how far to look for what pickle cannot do alone.
_DEPTH = 3
_LENGTH = 1000


def needs_no_help(value: Any, depth: int = 0) -> bool:
    """Whether pickle alone does it: atoms, arrays of numbers, and containers of them."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind is tuple or kind is list:
        return ATOMS.issuperset(map(type, value)) or _need_no_help(value, value, depth)
    if kind is dict:
        return ATOMS.issuperset(map(type, value)) and (
            ATOMS.issuperset(map(type, value.values()))
            or _need_no_help(value.values(), value, depth)
        )
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and (
            kind is numpy.ndarray
            or (issubclass(kind, numpy.generic) and kind.__module__ == "numpy")
        )
        and not value.dtype.hasobject
    )


def _need_no_help(parts: Any, container: Any, depth: int) -> bool:
    return (
        depth < _DEPTH
        and len(container) <= _LENGTH
        and all(needs_no_help(part, depth + 1) for part in parts)
    )


# What the reduction of a function by value holds; one by reference is shorter.
_BY_VALUE = ("make", "arguments", "state", "items", "pairs", "set_state")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Cloudpickle's, with the differences that the module describes."""

    def __init__(
        self,
        file: Any,
        *,
        towards_host: bool,
        leave_out: Callable[[pickle.PickleBuffer], object] | None = None,
    ) -> None:
        super().__init__(file, protocol=PROTOCOL, buffer_callback=leave_out)
        self._towards_host = towards_host

    def reducer_override(self, obj: Any) -> Any:
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
            return functools.singledispatchmethod, (_same,), parts, None, None, _set_method_state
        if type(obj) is functools.cached_property:
            # Up to Python 3.11 it holds a lock.
            state = (obj.func, obj.attrname)
            return functools.cached_property, (_same,), state, None, None, _set_property_state
        if issubclass(type(obj), BaseException) and _has_default_reduce(type(obj)):
            return _reduce_exception(obj)
        if "polars" in sys.modules:
            from killercall import _frames

            reduced = _frames.reduce_polars(obj)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        token = _token(cls)
        if self._towards_host and token is not None and token not in _own_tokens:
            return _class_of_token, (token,)
        if self._towards_host and _is_inherited(cls):
            return _class_of_main, (cls.__qualname__,)
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
                _own_tokens.add(token)
        return reduced

    def _reduce_cached(self, cached: Any) -> Any:
        """By its name where that leads here outside of `__main__`, else with an empty cache."""
        decorated = _decorated(cached)
        if decorated is not None:
            return _unwrap, (decorated,)
        module = sys.modules.get(cached.__module__ or "")
        if cached.__module__ != "__main__" and _attribute(module, cached.__qualname__) is cached:
            return NotImplemented
        parameters = cached.cache_parameters()
        reduced = (
            self._reduce_function(cached.__wrapped__)
            if isinstance(cached.__wrapped__, types.FunctionType)
            else NotImplemented
        )
        if not isinstance(reduced, tuple) or len(reduced) != len(_BY_VALUE):
            return _make_cached, (parameters, _same, (cached.__wrapped__,))
        make, arguments, state, _, _, set_state = reduced
        # The function's state follows the cache's creation: it may refer to the cache itself.
        return (
            _make_cached,
            (parameters, make, arguments),
            (set_state, state),
            None,
            None,
            _set_cached_state,
        )

    def _reduce_function(self, function: types.FunctionType) -> Any:
        decorated = _decorated(function)
        if decorated is not None:
            return _unwrap, (decorated,)
        reduced = super().reducer_override(function)
        if not isinstance(reduced, tuple):
            return reduced
        if _is_generic(function):
            generic: Any = function
            return (
                _make_generic,
                (),
                (generic.__wrapped__, dict(generic.registry)),
                None,
                None,
                _set_generic_state,
            )
        if not shares_main(function):
            return reduced
        # Its arguments are code, globals, name, defaults and closure.
        _, arguments, state, *_ = reduced
        return _make_main_function, (arguments[0], arguments[4]), state, None, None, _set_main_state


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    make, arguments = _internals._code_reduce(code)
    before, after = arguments[:_FILENAME], arguments[_FILENAME + 1 :]
    return make, (*before, code.co_filename, *after)


# The place of the file's name among the arguments of `types.CodeType`.
_FILENAME = 10


def _has_default_reduce(cls: type[BaseException]) -> bool:
    definer = next(base for base in cls.__mro__ if "__reduce__" in vars(base))
    return (
        definer.__module__ == "builtins"
        and cls.__reduce_ex__ is object.__reduce_ex__
        and cls not in copyreg.dispatch_table
    )


def _reduce_exception(error: BaseException) -> tuple[Any, ...]:
    """What the class would do itself, but with slots, and see `_rebuild_exception`."""
    cls = type(error)
    reduced: Any = error.__reduce__()
    args, state = reduced[1], reduced[2] if len(reduced) > 2 else None  # ruff: ignore[magic-value-comparison] - callable, arguments, state
    if _has_own_state(cls):
        # Both halves are the class's own; Python passes over the first one.
        state = error.__getstate__()
    slots = {}
    for name in copyreg._slotnames(cls):  # type: ignore[attr-defined]
        with contextlib.suppress(AttributeError):
            slots[name] = object.__getattribute__(error, name)
    state = (state, slots) if state or slots else None
    return _rebuild_exception, (cls, args), state, None, None, _set_exception_state


def _has_own_state(cls: type[BaseException]) -> bool:
    return (
        cls.__getstate__ is not object.__getstate__
        and cls.__setstate__ is not BaseException.__setstate__
    )


def _rebuild_exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """
    An exception without a call of its own `__init__`.

    By default Python would call it with `args`, which are what it passed on to its base and often
    fewer than it takes. The attributes that it set follow as state.
    """
    error = new_exception(cls, args)
    builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    builtin.__init__(error, *args)  # type: ignore[misc]
    if cls.__reduce__ is BaseException.__reduce__:
        # Others hand over more than their `args`.
        set_attribute(error, "args", args)
    return error


def _set_exception_state(error: BaseException, state: Any) -> None:
    """Past a `__setattr__` of the class, which may refuse: frozen dataclasses do."""
    attributes, slots = state
    if attributes and type(error).__setstate__ is not BaseException.__setstate__:
        error.__setstate__(attributes)
        attributes = None
    for name, value in {**(attributes or {}), **slots}.items():
        set_attribute(error, name, value)


def shares_main(function: types.FunctionType) -> bool:
    """Whether the function's globals are those of this process's `__main__`."""
    return function.__globals__ is vars(sys.modules["__main__"])


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
    return make, arguments, ((in_class, slots), attributes), None, None, _set_enum_state


# What the class of an enumeration gives each member.
_OF_MEMBERS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})


def _set_enum_state(cls: type[enum.Enum], state: Any) -> None:
    of_class, attributes = state
    _internals._class_setstate(cls, of_class)
    for name, values in attributes.items():
        vars(cls.__members__[name]).update(values)


def _same(value: Any) -> Any:
    return value


def _make_cached(parameters: dict[str, Any], make: Callable[..., Any], arguments: Any) -> Any:
    return functools.lru_cache(**parameters)(make(*arguments))


def _set_cached_state(cached: Any, state: Any) -> None:
    set_state, function_state = state
    set_state(cached.__wrapped__, function_state)
    functools.update_wrapper(cached, cached.__wrapped__)


def _set_property_state(cached: Any, state: Any) -> None:
    cached.func, cached.attrname = state
    cached.__doc__, cached.__module__ = cached.func.__doc__, cached.func.__module__


def _set_method_state(method: Any, state: Any) -> None:
    method.dispatcher, method.func = state


def _is_generic(function: types.FunctionType) -> bool:
    """Whether it is the face of a `functools.singledispatch`, whose cache cannot be pickled."""
    return (
        function.__globals__ is vars(functools)
        and {"registry", "dispatch"} <= vars(function).keys()
    )


def _make_generic() -> Any:
    return functools.singledispatch(_same)


def _set_generic_state(generic: Any, state: Any) -> None:
    default, registry = state
    for cls, implementation in registry.items():
        generic.register(cls, implementation)
    functools.update_wrapper(generic, default)


def _decorated(function: Any) -> Any:
    """The importable decorated object whose `__wrapped__` this function is, if there is one."""
    if function.__module__ == "__main__" or "<locals>" in function.__qualname__:
        return None
    found: Any = sys.modules.get(function.__module__ or "")
    for name in function.__qualname__.split("."):
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    if found is function or getattr(found, "__wrapped__", None) is not function:
        return None
    return found if hasattr(found, "_killercall_options") else None


def is_decorated(function: types.FunctionType) -> bool:
    """Whether it is sent as a reference to what it became by decoration."""
    return _decorated(function) is not None


def _unwrap(decorated: Any) -> Any:
    return decorated.__wrapped__


# Names in `__main__` that an initializer of this worker has assigned: they win over the host's.
initialized_names: set[str] = set()


def _make_main_function(code: types.CodeType, closure: Any) -> types.FunctionType:
    return types.FunctionType(code, vars(sys.modules["__main__"]), None, None, closure)


def _set_main_state(function: types.FunctionType, state: Any) -> None:
    attributes, slots = state
    values = slots["__globals__"]
    namespace = vars(sys.modules["__main__"])
    for name, value in values.items():
        if name not in initialized_names:
            namespace[name] = value
    _internals._function_setstate(function, (attributes, {**slots, "__globals__": {}}))
    # So that multiprocessing in the worker finds it by its name.
    if "<" not in function.__qualname__ and "." not in function.__qualname__:
        namespace.setdefault(function.__name__, function)


# Classes that were defined in this process, by cloudpickle's own numbers for them. A class with a
# number that is not among these came from the host.
_own_tokens: set[str] = set()

# In a worker that is a copy of the host: the `__main__` that the host has as well.
_inherited_main: types.ModuleType | None = None


def become_worker(inherited_main: types.ModuleType | None) -> None:
    """In a new worker: what this process has so far is the host's, not its own."""
    global _inherited_main  # ruff: ignore[global-statement] - one per process, like what it describes
    _own_tokens.clear()
    _inherited_main = inherited_main


def _token(cls: type) -> str | None:
    token: str | None = _internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
    return token


def _is_inherited(cls: type) -> bool:
    if _inherited_main is None or cls.__module__ != "__main__":
        return False
    return _attribute(_inherited_main, cls.__qualname__) is cls


def _attribute(found: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _class_of_token(token: str) -> type:
    found: type | None = _internals._DYNAMIC_CLASS_TRACKER_BY_ID.get(token)
    if found is None:
        message = "a class that was sent to the worker is gone in the host"
        raise SerializationError(message)
    return found


def _class_of_main(qualname: str) -> type:
    found = _attribute(sys.modules["__main__"], qualname)
    if not isinstance(found, type):
        message = f"class {qualname!r} of __main__ is gone in the host"
        raise SerializationError(message)
    return found


def track_classes(function: Any) -> None:
    """
    Numbers the local classes that a function refers to, before the host is copied.

    So they come back from the copy as the host's own.
    """
    function = getattr(function, "__func__", function)
    for _, part in _parts(function) if isinstance(function, types.FunctionType) else ():
        if isinstance(part, type) and "<locals>" in part.__qualname__:
            _internals._get_or_create_tracker_id(part)


# A shorter buffer stays in the stream: a copy takes less than its own place in a file.
_BUFFER_MIN = 16 * 1024
# A shorter stream without buffers needs no file of its own.
_STREAM_MIN = 64 * 1024
# More buffers than that are no gain.
_BUFFERS_MAX = 10_000


class Parts:
    """
    What a pickler writes, in pieces, and the buffers that it leaves out.

    None of it is a copy: large objects are pieces themselves.
    """

    __slots__ = ("buffers", "stream", "write")

    def __init__(self) -> None:
        self.stream: list[Any] = []
        self.buffers: list[memoryview] = []
        self.write = self.stream.append

    def leave_out(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether it stays in the stream."""
        try:
            raw = buffer.raw()
        except BufferError:
            # It is not in one piece; the pickler says what that means.
            return True
        if raw.nbytes < _BUFFER_MIN or len(self.buffers) == _BUFFERS_MAX:
            return True
        self.buffers.append(raw)
        return False

    def is_large(self) -> bool:
        """Whether that is worth a parcel."""
        return bool(self.buffers) or (
            len(self.stream) > 1 and sum(map(len, self.stream)) >= _STREAM_MIN
        )

    def lengths(self) -> tuple[int, ...]:
        """Those of the stream and of each buffer."""
        return sum(map(len, self.stream)), *(buffer.nbytes for buffer in self.buffers)

    def in_one(self) -> bytes:
        """The stream of what is not large."""
        return self.stream[0] if len(self.stream) == 1 else b"".join(self.stream)

    def sent(self, *, given: bool) -> bytes | _core.Parcel:
        """As it travels; what is `given` goes to one receiver, once."""
        if not self.is_large():
            return self.in_one()
        _keep_used_files()
        return _core.Parcel(self.stream, self.buffers, given)


_keeps_used_files = False

# The part of this machine's memory that files which may be used again take at most.
_SHARE = 16


def _keep_used_files() -> None:
    """Says how much there is to share, once."""
    global _keeps_used_files  # ruff: ignore[global-statement] - one per process, like what it describes
    if not _keeps_used_files:
        from killercall._cgroups import memory

        _core.keep_at_most(memory() // _SHARE)
        _keeps_used_files = True


class _Cloudpickle:
    """The default serializer."""

    name = "cloudpickle"

    def __init__(self, *, towards_host: bool = False) -> None:
        self._towards_host = towards_host

    def dumps(self, obj: Any) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, towards_host=self._towards_host).dump(obj)
        return buffer.getvalue()

    def dump_parts(self, obj: Any, parts: Parts) -> None:
        """The same, without a copy."""
        if needs_no_help(obj):
            pickle.Pickler(parts, PROTOCOL, buffer_callback=parts.leave_out).dump(obj)
        else:
            _Pickler(parts, towards_host=self._towards_host, leave_out=parts.leave_out).dump(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class _Pickle:
    """The standard library's pickle: faster, but only for what can be imported."""

    name = "pickle"

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj, PROTOCOL)

    def dump_parts(self, obj: Any, parts: Parts) -> None:
        """The same, without a copy."""
        pickle.Pickler(parts, PROTOCOL, buffer_callback=parts.leave_out).dump(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class _Dill:
    """Dill, for what cloudpickle does not take."""

    name = "dill"

    def dumps(self, obj: Any) -> bytes:
        import dill

        data: bytes = dill.dumps(obj, protocol=PROTOCOL, recurse=True)
        return data

    def loads(self, data: bytes) -> Any:
        import dill

        return dill.loads(data)


_NAMED: dict[str, Callable[[], Serializer]] = {
    "cloudpickle": _Cloudpickle,
    "pickle": _Pickle,
    "dill": _Dill,
}
SERIALIZER_NAMES = tuple(_NAMED)
DEFAULT_SERIALIZER = _Cloudpickle()


def serializer_named(name: str) -> Serializer:
    """The serializer of that name."""
    return DEFAULT_SERIALIZER if name == "cloudpickle" else _NAMED[name]()


def describe_serializer(serializer: Serializer) -> bytes | str:
    """What tells a worker which serializer to use: a name, or the pickled object."""
    name = getattr(serializer, "name", None)
    if isinstance(serializer, (_Cloudpickle, _Pickle, _Dill)) and name:
        return str(name)
    return dumps(DEFAULT_SERIALIZER, serializer, "serializer")


def takes_plain(serializer: Serializer) -> bool:
    """Whether plain values need not go through this serializer."""
    return isinstance(serializer, _Cloudpickle)


def serializer_from(description: bytes | str) -> Serializer:
    """The worker's side of `describe_serializer`."""
    if description == "cloudpickle":
        return _Cloudpickle(towards_host=True)
    if isinstance(description, str):
        return serializer_named(description)
    found: Serializer = DEFAULT_SERIALIZER.loads(description)
    return found


def dumps(
    serializer: Serializer,
    value: Any,
    what: str,
    *,
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> bytes:
    """
    Pickles `value`; what goes wrong is a `SerializationError` that names the culprit.

    `what` is the first word of the path, such as `args`. Exceptions of the types `passing` are no
    fault of the value: in the host that is Ctrl+C, in a worker there is none.
    """
    try:
        data = (
            pickle.dumps(value, PROTOCOL)
            if isinstance(serializer, _Cloudpickle) and needs_no_help(value)
            else serializer.dumps(value)
        )
    except passing:
        raise
    except BaseException as error:
        # Whatever user code raises while it is pickled, SystemExit too, fails this one call.
        path, culprit = find_culprit(serializer, value, what, passing)
        message = f"cannot pickle {path} (a {type(culprit).__qualname__}): {describe(error)}"
        raise SerializationError(message, path=path) from error
    if not isinstance(data, bytes):
        message = f"the serializer's dumps must return bytes, not {type(data).__qualname__}"
        raise SerializationError(message, path=what)
    return data


def pack(
    serializer: Serializer,
    value: Any,
    what: str,
    *,
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    given: bool,
) -> bytes | _core.Parcel:
    """The same, as a parcel if it is large; for `given` see there."""
    parts = parts_of(serializer, value, passing)
    return (
        dumps(serializer, value, what, passing=passing)
        if parts is None
        else parts.sent(given=given)
    )


def parts_of(
    serializer: Serializer,
    value: Any,
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Parts | None:
    """What it is pickled to; None if it cannot be, or not in parts: `dumps` says more."""
    if not isinstance(serializer, (_Cloudpickle, _Pickle)):
        return None
    parts = Parts()
    try:
        serializer.dump_parts(value, parts)
    except passing:
        raise
    except BaseException:
        return None
    return parts


def loads(serializer: Serializer, data: bytes | _core.Arrived) -> Any:
    """What `dumps` or `pack` made, back."""
    if type(data) is not _core.Arrived:
        return serializer.loads(data)
    stream, buffers = data.open()
    return pickle.loads(stream, buffers=buffers)


def in_bytes(data: bytes | _core.Arrived) -> bytes:
    """What is never packed as a parcel."""
    if not isinstance(data, bytes):
        message = "a parcel came where there are only bytes"
        raise SerializationError(message)
    return data


# Where the search for a culprit ends: a value nested without end has no innermost part, and each
# try may take as long as pickling the whole value did.
_MAX_STEPS = 40
_MAX_SECONDS = 1.0


def find_culprit(
    serializer: Serializer,
    value: Any,
    path: str,
    passing: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> tuple[str, Any]:
    """
    The innermost part of `value` that cannot be pickled by itself, and the way to it.

    The way ends in `...` where the search was given up.
    """
    end = time.monotonic() + _MAX_SECONDS
    seen: set[int] = set()
    while id(value) not in seen:
        if len(seen) == _MAX_STEPS or time.monotonic() > end:
            return path + "...", value
        seen.add(id(value))
        try:
            for step, part in itertools.islice(_parts(value), 1000):
                if time.monotonic() > end:
                    return path + "...", value
                if not _can_pickle(serializer, part, passing):
                    path, value = path + step, part
                    break
            else:
                break
        except passing:
            raise
        except BaseException:
            # It does not even let itself be looked at.
            break
    return path, value


def _can_pickle(
    serializer: Serializer, value: Any, passing: tuple[type[BaseException], ...]
) -> bool:
    try:
        serializer.dumps(value)
    except passing:
        raise
    except BaseException:
        return False
    return True


def describe(error: BaseException) -> str:
    """Its type and text, whatever its `__str__` does."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """The text of an exception, whatever its `__str__` does."""
    try:
        return str(error)
    except BaseException:
        return "<its __str__ raised>"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The direct parts of a value, each with the step of the path that leads to it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{_short(key)}]", part
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=False):
            with contextlib.suppress(ValueError):
                yield f".<closure {name}>", cell.cell_contents
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f".<global {name}>", value.__globals__[name]
    elif not isinstance(value, type):
        if isinstance(value, BaseExceptionGroup):
            for index, part in enumerate(value.exceptions):
                yield f".exceptions[{index}]", part
        elif isinstance(value, BaseException):
            for index, part in enumerate(value.args):
                yield f".args[{index}]", part
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            for name, part in state.items():
                yield f".{name}", part
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                with contextlib.suppress(AttributeError):
                    yield f".{name}", getattr(value, name)


def _short(value: Any) -> str:
    """A repr that never raises and never fills the screen."""
    try:
        text = repr(value)
    except BaseException:
        text = f"<{type(value).__qualname__} whose repr raises>"
    return text if len(text) <= 60 else text[:57] + "..."  # ruff: ignore[magic-value-comparison]


short_repr = _short


class Interner:
    """
    Numbers for function payloads: the same bytes, the same number, so that each is sent once.

    Of large ones it keeps the parcel itself, and compares what there is now with what is in there.
    """

    def __init__(self, limit: int = 4096) -> None:
        """Forgets the least recently used above `limit`; a forgotten one is sent again."""
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._large: OrderedDict[Any, tuple[int, _core.Parcel]] = OrderedDict()
        self._next = itertools.count(1)
        self._limit = limit

    def number(self, data: bytes) -> int:
        """The number of these bytes."""
        number = self._numbers.get(data)
        if number is None:
            number = next(self._next)
            self._numbers[data] = number
            if len(self._numbers) > self._limit:
                # Another thread may have done so at the same moment.
                with contextlib.suppress(KeyError):
                    self._numbers.popitem(last=False)
        return number

    def large(self, parts: Parts) -> tuple[int, _core.Parcel]:
        """The number of a large payload, and the parcel that it is in."""
        # The same code with other data, or with the same; the older version is of no more use.
        key = parts.lengths(), bytes(parts.stream[0][:_KEY_LENGTH])
        known = self._large.get(key)
        if known is None or not known[1].holds(parts.stream, parts.buffers):
            known = next(self._next), _core.Parcel(parts.stream, parts.buffers, False)
        self._large[key] = known
        # Another thread may do so at the same moment.
        with contextlib.suppress(KeyError):
            self._large.move_to_end(key)
            _keep_used_files()
            while len(self._large) > 1 and self._is_too_much():
                self._large.popitem(last=False)
        return known

    def _is_too_much(self) -> bool:
        from killercall._cgroups import memory

        kept = list(self._large.values())
        return len(kept) > _LARGE_MAX or sum(parcel.len for _, parcel in kept) > memory() // _SHARE

    def forget_large(self) -> None:
        """Lets go of their memory."""
        self._large.clear()


# Most large functions whose files are kept.
_LARGE_MAX = 16
# How much of a stream tells most functions from each other.
_KEY_LENGTH = 4096
