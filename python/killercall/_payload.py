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

import builtins
import contextlib
import copyreg
import functools
import io
import itertools
import marshal
import sys
import time
import types
from collections import OrderedDict

from killercall import _core
from killercall._exceptions import (
    SerializationError,
    leave_out_ours,
    new_exception,
    set_attribute,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import enum
    import pickle
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    from killercall import _pickler
    from killercall._globals import Globals
else:
    import _pickle as pickle

    Protocol = object

# The highest that there is.
PROTOCOL = 5

# Types that need no serializer: immutable, and the same everywhere.
ATOMS = frozenset({int, float, bool, type(None), str, bytes, complex})


class Serializer(Protocol):
    """What the option `serializer` takes besides names."""

    def dumps(self, obj: Any, /) -> bytes:
        """To bytes."""
        raise NotImplementedError  # A protocol: whoever inherits without it is to be told.

    def loads(self, data: bytes, /) -> Any:
        """And back."""
        raise NotImplementedError  # A protocol: whoever inherits without it is to be told.


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


def _set_enum_state(cls: type[enum.Enum], state: Any) -> None:
    from cloudpickle import cloudpickle as _internals

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


# In a worker: what becomes of the globals that functions of `__main__` bring along.
globals_here: Globals | None = None

# Names of builtins that globals of `__main__` have hidden at some time.
_hidden: set[str] = set()


def absent_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the globals that a function uses which there are none of in `__main__`."""
    namespace = vars(sys.modules["__main__"])
    _hidden.update(name for name in names if name in namespace and hasattr(builtins, name))
    return tuple([
        name
        for name in names
        if name not in namespace and (name in _hidden or not hasattr(builtins, name))
    ])  # fmt: skip


def _make_main_function(code: types.CodeType, closure: Any) -> types.FunctionType:
    return types.FunctionType(code, vars(sys.modules["__main__"]), None, None, closure)


# Parts of a function's state that are no attributes of it. What is last there is only imported.
_NOT_ATTRIBUTES = frozenset({"__absent__", "__globals__", "__closure__", "_cloudpickle_submodules"})


def _set_main_state(function: types.FunctionType, state: Any) -> None:
    attributes, slots = state
    values = slots["__globals__"]
    namespace = vars(sys.modules["__main__"])
    if globals_here is not None and globals_here.is_taking():
        globals_here.take(values, slots.get("__absent__", ()))
    else:
        # It has come back from a worker, and whoever asked for that has globals of their own.
        for name, value in values.items():
            namespace.setdefault(name, value)
    vars(function).update(attributes)
    namespace["__builtins__"] = __builtins__
    for cell, sent in zip(function.__closure__ or (), slots["__closure__"] or (), strict=False):
        # An empty one stays empty.
        with contextlib.suppress(ValueError):
            cell.cell_contents = sent.cell_contents
    for name, value in slots.items():
        if name not in _NOT_ATTRIBUTES:
            setattr(function, name, value)
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


def _attribute(found: Any, qualname: str) -> Any:
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _class_of_token(token: str) -> type:
    from cloudpickle import cloudpickle as _internals

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
    from cloudpickle import cloudpickle as _internals

    if not isinstance(function, types.FunctionType):
        function = getattr(function, "__wrapped__", function)
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


class _TooHeavyError(Exception):
    """Cloudpickle is needed."""


class LightPickler(pickle.Pickler):
    """
    Pickles what needs no cloudpickle, and gives up on the first thing that may need it.

    Functions of `__main__` are among it, if all that they refer to is.
    """

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            if is_importable(obj):
                return NotImplemented
            raise _TooHeavyError
        if kind is types.MethodType:
            raise _TooHeavyError
        if kind is types.ModuleType:
            return _reduce_module(obj)
        part = reduce_part(obj)
        if part is not None:
            return part
        if issubclass(kind, BaseException) and _has_default_reduce(kind):
            return _reduce_exception(obj)
        if kind.__module__ in _ODD_MODULES:
            # Generators, locks, dictionary views, caches: cloudpickle knows some of them.
            raise _TooHeavyError
        return NotImplemented

    def _reduce_function(self, function: types.FunctionType) -> Any:
        if is_importable(function):
            return NotImplemented
        if (
            not shares_main(function)
            or function.__module__ != "__main__"
            or function.__closure__
            or _decorated(function) is not None
        ):
            raise _TooHeavyError
        namespace = vars(sys.modules["__main__"])
        names = names_in(function.__code__)
        values = {name: namespace[name] for name in names if name in namespace}
        if not all(map(_is_small, values.values())):
            raise _TooHeavyError
        slots = {
            "__globals__": values,
            "__name__": function.__name__,
            "__qualname__": function.__qualname__,
            "__annotations__": function.__annotations__,
            "__kwdefaults__": function.__kwdefaults__,
            "__defaults__": function.__defaults__,
            "__module__": function.__module__,
            "__doc__": function.__doc__,
            "__closure__": None,
        }
        absent = absent_names(names)
        if absent:
            slots["__absent__"] = absent
        state = (vars(function), slots)
        return _make_main_function, (function.__code__, None), state, None, None, _set_main_state


# Whose instances cannot be pickled, or better by cloudpickle.
_ODD_MODULES = frozenset(
    ("_abc", "_io", "_thread", "_weakref", "_weakrefset", "functools", "logging", "typing")
) | {"weakref"}


def is_importable(obj: Any) -> bool:
    """Whether a function or a class is found where its name says, outside of `__main__`."""
    module = obj.__module__
    return module != "__main__" and _attribute(sys.modules.get(module), obj.__qualname__) is obj


def names_in(code: types.CodeType) -> list[str]:
    """
    The globals that a function and those within it use, as cloudpickle finds them.

    Without `dis`, whose import takes longer than all else that is done here.
    """
    from opcode import opmap

    names: dict[str, None] = {}
    data = code.co_code
    high = 0
    for at in range(0, len(data), 2):
        operation, low = data[at], data[at + 1]
        argument = high << 8 | low
        high = argument if operation == opmap["EXTENDED_ARG"] else 0
        if operation == opmap["LOAD_GLOBAL"]:
            # The lowest bit tells whether it is about to be called.
            names[code.co_names[argument >> 1]] = None
        elif operation in {opmap["STORE_GLOBAL"], opmap["DELETE_GLOBAL"]}:
            names[code.co_names[argument]] = None
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            names.update(dict.fromkeys(names_in(part)))
    return list(names)


def _is_small(value: Any) -> bool:
    return type(value) in _SMALL or isinstance(value, type)


_SMALL = ATOMS | {types.FunctionType, types.BuiltinFunctionType, types.ModuleType}


def reduce_part(obj: Any) -> tuple[Any, ...] | None:
    """Of the parts of a function, those that take no cloudpickle to be put together again."""
    kind = type(obj)
    if kind is types.CodeType:
        with contextlib.suppress(ValueError):
            # Version 2 depends on nothing but the code: the same code, the same bytes.
            return _load_code, (marshal.dumps(obj, 2),)
    elif kind is types.CellType:
        try:
            return _make_cell, (obj.cell_contents,)
        except ValueError:
            return _make_cell, ()
    return None


def _reduce_module(module: types.ModuleType) -> tuple[Any, ...]:
    name = module.__name__
    # One with a path may stand for submodules as well.
    if name == "__main__" or sys.modules.get(name) is not module or hasattr(module, "__path__"):
        raise _TooHeavyError
    return _import_module, (name,)


def _load_code(data: bytes) -> types.CodeType:
    code: types.CodeType = marshal.loads(data)
    return code


def _make_cell(*contents: Any) -> types.CellType:
    return types.CellType(*contents)


def _import_module(name: str) -> types.ModuleType:
    __import__(name)
    return sys.modules[name]


# What can go wrong because a thing takes cloudpickle, which tries again and says what is wrong.
_LIGHT_FAILURES = (_TooHeavyError, pickle.PicklingError, TypeError, AttributeError, RecursionError)


def takes_cloudpickle() -> bool:
    """Whether it is there: it is the more faithful one, and users may have told it how."""
    return "cloudpickle" in sys.modules


def _dump_light(
    obj: Any, file: Any, leave_out: Callable[[pickle.PickleBuffer], object] | None
) -> bool:
    """Pickles without cloudpickle; false if that may not do, after which the file is of no use."""
    if takes_cloudpickle() or "polars" in sys.modules:
        return False
    try:
        LightPickler(file, PROTOCOL, buffer_callback=leave_out).dump(obj)
    except _LIGHT_FAILURES:
        return False
    return True


def _heavy() -> type[_pickler.Pickler]:
    """Cloudpickle's pickler, which may have to be imported."""
    if "killercall._pickler" not in sys.modules:
        before_cloudpickle()
    from killercall._pickler import Pickler

    return Pickler


def _nothing() -> None:
    pass


# Called before cloudpickle is imported: workers may need it as well.
before_cloudpickle: Callable[[], None] = _nothing


class _Cloudpickle:
    """The default serializer."""

    name = "cloudpickle"

    def __init__(self, *, towards_host: bool = False) -> None:
        self._towards_host = towards_host

    def dumps(self, obj: Any) -> bytes:
        buffer = io.BytesIO()
        if not _dump_light(obj, buffer, None):
            buffer = io.BytesIO()
            _heavy()(buffer, towards_host=self._towards_host).dump(obj)
        return buffer.getvalue()

    def dump_parts(self, obj: Any, parts: Parts) -> None:
        """The same, without a copy."""
        if needs_no_help(obj):
            pickle.Pickler(parts, PROTOCOL, buffer_callback=parts.leave_out).dump(obj)
            return
        light = Parts()
        if _dump_light(obj, light, light.leave_out):
            parts.stream += light.stream
            parts.buffers += light.buffers
        else:
            _heavy()(parts, towards_host=self._towards_host, leave_out=parts.leave_out).dump(obj)

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
        leave_out_ours(error)
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

    def __init__(self) -> None:
        """Those used last are remembered; a forgotten one is sent again."""
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._names: OrderedDict[Any, int] = OrderedDict()
        self._large: OrderedDict[Any, tuple[int, _core.Parcel]] = OrderedDict()
        self._next = itertools.count(1)

    def number(self, data: bytes, name: tuple[Any, ...]) -> int:
        """
        The number of these bytes; those of functions with the same name are versions of one.

        Workers keep fewer versions than functions: see `supervisor/functions.rs`, which knows them
        by the upper half of their numbers.
        """
        number = self._numbers.get(data)
        if number is None:
            function = self._names.get(name)
            if function is None:
                function = next(self._next)
            _use(self._names, name, function)
            number = function << 32 | (next(self._next) & 0xFFFF_FFFF)
        _use(self._numbers, data, number)
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


def _use(numbers: OrderedDict[Any, int], key: Any, number: int) -> None:
    """Makes it the newest, and forgets the oldest."""
    numbers[key] = number
    # Another thread may do so at the same moment.
    with contextlib.suppress(KeyError):
        numbers.move_to_end(key)
        while len(numbers) > _SMALL_MAX:
            numbers.popitem(last=False)


# Most functions that are remembered, of a few hundred bytes each: more than a program makes anew.
_SMALL_MAX = 1024
# Most large functions whose files are kept.
_LARGE_MAX = 16
# How much of a stream tells most functions from each other.
_KEY_LENGTH = 4096
