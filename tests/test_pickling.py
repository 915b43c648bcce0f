"""What cannot be pickled or unpickled fails one call, and names the culprit."""

from __future__ import annotations

import pickle
import sys
import threading
from typing import Any

import pytest

import killercall
from killercall import (
    DepthLimitExceeded,
    KillerError,
    MemoryLimitExceeded,
    SerializationError,
    TimeoutError,
    WorkerDied,
    WorkerStartError,
    killer_call,
)
from processes import run_script


class Raises:
    """Raises while it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def _raise(error: BaseException) -> Any:
    raise error


class RaisesWhenLoaded(Raises):
    """Raises while it is unpickled."""

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


class Endless:
    """Recurses without end while it is pickled."""

    def __reduce__(self) -> Any:
        return Endless, (Endless(),)


class NotAllArguments(Exception):
    """Takes more than it passes on."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class Holds(Exception):
    """Has an attribute that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


ERRORS = [ValueError("v"), SystemExit(3), GeneratorExit(), KeyError("k")]


@pytest.mark.parametrize("error", ERRORS)
def test_argument_raises_while_pickled(error: BaseException) -> None:
    """In the host: SystemExit does not end it."""
    with pytest.raises(SerializationError, match=type(error).__name__) as caught:
        killer_call(str)({"key": [Raises(error)]})
    assert "args[0]['key'][0]" == caught.value.path


@pytest.mark.parametrize("error", [ValueError("v"), KeyError("k")])
def test_argument_raises_while_unpickled(error: Exception) -> None:
    """In the worker."""
    with pytest.raises(SerializationError, match="cannot unpickle the arguments in the worker"):
        killer_call(str)(RaisesWhenLoaded(error))
    assert "1" == killer_call(str)(1)


@pytest.mark.parametrize("error", ERRORS)
def test_result_raises_while_pickled(error: BaseException) -> None:
    """In the worker."""
    with pytest.raises(SerializationError, match=r"cannot pickle result\[1\]") as caught:
        killer_call(lambda: [0, Raises(error)])()
    assert "result[1]" == caught.value.path


@pytest.mark.parametrize("error", ERRORS)
def test_result_raises_while_unpickled(error: BaseException) -> None:
    """In the host."""
    with pytest.raises(SerializationError, match="cannot unpickle the result of function"):
        killer_call(lambda: RaisesWhenLoaded(error))()


def test_recursion_without_end() -> None:
    """As argument and as result."""
    with pytest.raises(SerializationError, match="(?i)recursion"):
        killer_call(str)(Endless())
    with pytest.raises(SerializationError, match="(?i)recursion"):
        killer_call(Endless)()


def test_unpicklable_result() -> None:
    """Names where it is."""
    with pytest.raises(SerializationError) as caught:
        killer_call(lambda: {"a": threading.Lock()})()
    assert "result['a']" == caught.value.path


def test_exception_with_other_arguments() -> None:
    """Arrives as itself, with its attributes."""
    with pytest.raises(NotAllArguments, match="7: seven") as caught:
        killer_call(lambda: _raise(NotAllArguments(7, "seven")))()
    assert (7, "seven") == (caught.value.code, caught.value.reason)


def test_exception_that_cannot_be_pickled() -> None:
    """Is described, with its type, message and traceback."""
    with pytest.raises(KillerError, match="raised .*Holds: holds a lock") as caught:
        killer_call(lambda: _raise(Holds()))()
    assert "in _raise" in str(caught.value.__cause__)


def test_exception_group_and_builtin_ones() -> None:
    """With their parts and their C attributes."""
    with pytest.raises(ExceptionGroup) as caught:
        killer_call(lambda: _raise(ExceptionGroup("two", [ValueError(1), KeyError(2)])))()
    assert ["ValueError(1)", "KeyError(2)"] == [repr(part) for part in caught.value.exceptions]
    with pytest.raises(FileNotFoundError) as missing:
        killer_call(open)("/nowhere/at/all")
    assert "/nowhere/at/all" == missing.value.filename
    with pytest.raises(UnicodeDecodeError) as undecodable:
        killer_call(b"\xff".decode)("utf-8")
    assert "utf-8" == undecodable.value.encoding


def test_notes_of_exceptions_arrive() -> None:
    """Those that the function added."""

    def fail() -> None:
        error = ValueError("v")
        error.add_note("look here")
        raise error

    with pytest.raises(ValueError, match="v") as caught:
        killer_call(fail)()
    assert ["look here"] == caught.value.__notes__


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_classes_come_back_as_themselves(method: str) -> None:
    """Those of `__main__`; and the host's attributes stay as they are."""
    script = f"""
from killercall import killer_call
class Price:
    currency = "EUR"
    def __init__(self, value): self.value = value
class Refused(Exception): pass
def local():
    class Inner: pass
    return Inner
Inner = local()
def make(value):
    Price.currency = "changed in the worker"
    return Price(value), Price, Inner()
def refuse(): raise Refused("no")
call = killer_call(make, start_method={method!r})
made, cls, inner = call(3)
print(type(made) is Price, cls is Price, type(inner) is Inner, made.value, Price.currency)
try:
    killer_call(refuse, start_method={method!r})()
except Refused as error:
    print("refused", error)
"""
    done = run_script(script)
    assert ("", "True True True 3 EUR\nrefused no\n") == (done.stderr, done.stdout)


OURS = [
    TimeoutError("f", 4, elapsed=4.1, pid=7, stack="in f"),
    WorkerDied("f", -11, pid=7, stack="in f"),
    MemoryLimitExceeded("too much"),
    SerializationError("m", path="args[0]"),
    WorkerStartError("m", 11, exitcode=3),
    DepthLimitExceeded("m"),
    KillerError("m"),
]


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_our_exceptions_pickle(error: KillerError) -> None:
    """With all attributes and notes."""
    error.item = [1]
    error.index = 0
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), error.args) == (type(copy), str(copy), copy.args)
    assert vars(error) == vars(copy)
    assert getattr(error, "errno", None) == getattr(copy, "errno", None)


def test_text_of_timeout() -> None:
    """Exactly this, whatever type the number has."""
    assert "function 'bar' timed out after 4s" == str(killercall.TimeoutError("bar", 4))
    assert "function 'bar' timed out after 4s" == str(killercall.TimeoutError("bar", 4.0))
    assert "function 'bar' timed out after 0.25s" == str(killercall.TimeoutError("bar", 0.25))
    assert sys.modules["builtins"].TimeoutError in killercall.TimeoutError.__mro__


def test_slots_and_caches_of_main() -> None:
    """Classes with slots come back as themselves; cached functions go along, recursive ones too."""
    script = """
import dataclasses, functools
from killercall import killer_call
class Slotted:
    __slots__ = ("a", "b")
    def __init__(self, a): self.a = a
@dataclasses.dataclass(slots=True)
class Data:
    x: int = 1
@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
@killer_call
@functools.cache
def cached(x):
    return x + fib(50)
def use(one, two):
    one.b = fib(20)
    return one, two, Slotted(3), hasattr(one, "__dict__")
one, two, three, loose = killer_call(use)(Slotted(1), Data(2))
print(type(one) is Slotted, one.a, one.b, two == Data(2), three.a, loose, cached(1))
"""
    done = run_script(script)
    assert ("", "True 1 6765 True 3 False 12586269026\n") == (done.stderr, done.stdout)


def test_kinds_of_classes_of_main() -> None:
    """What people define in a script goes there and comes back as the same class."""
    script = """
import abc, collections, dataclasses, enum, functools, typing
from killercall import killer_call
T = typing.TypeVar("T")
class Named(typing.NamedTuple):
    a: int
    b: str = "x"
class GenericNamed(typing.NamedTuple, typing.Generic[T]):
    a: T
Old = collections.namedtuple("Old", "a b")
class SubOld(Old):
    __slots__ = ()
class Colour(enum.Enum):
    RED = 1
class Flags(enum.IntFlag):
    A = 1
    B = 2
class Box(typing.Generic[T]):
    __slots__ = ("x",)
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
class Proto(typing.Protocol):
    def f(self) -> int: ...
class Base(abc.ABC):
    __slots__ = ("__hidden",)
    def __init__(self): self.__hidden = 2
    def __eq__(self, other): return self.__hidden == other.__hidden
    @abc.abstractmethod
    def f(self): ...
class Child(Base, Proto):
    __slots__ = {"z": "doc"}
    def f(self): return 3
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
class SubFrozen(Frozen):
    pass
class Numbers(list):
    __slots__ = ()
@dataclasses.dataclass
class Lazy:
    a: int
    @functools.cached_property
    def twice(self): return self.a * 2
    @functools.singledispatchmethod
    def kind(self, x): return "other"
    @kind.register
    def _(self, x: int): return "int"
@functools.singledispatch
def size(x): return 1
@size.register
def _(x: list): return sum(size(y) for y in x)
values = [Named(1), GenericNamed(2), Old(1, 2), SubOld(3, 4), Colour.RED, Flags.A | Flags.B,
    Box(1), Child(), Frozen(1), SubFrozen(2), Numbers([1]), Lazy(4)]
def use(values):
    assert isinstance(values[0], Named) and isinstance(values[6], Box)
    lazy = values[-1]
    return values, (size([1, [2, 3]]), lazy.twice, lazy.kind(1), lazy.kind(""))
for method in ("forkserver", "spawn", "fork"):
    back, rest = killer_call(use, start_method=method)(values)
    print([type(x) for x in back] == [type(x) for x in values], back == values, rest)
"""
    done = run_script(script)
    assert ("", "True True (3, 8, 'int', 'other')\n" * 3) == (done.stderr, done.stdout)


class HostileRepr:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise SystemExit("repr")


def test_rendering_an_item_never_raises() -> None:
    """The item's own error arrives, not that of its repr."""
    with pytest.raises(ZeroDivisionError):
        killercall.killer_pmap(lambda _: 1 // 0, [HostileRepr()])


def test_result_is_kept_whatever_became_of_stdout() -> None:
    """The function may replace or delete the streams."""

    def meddle() -> int:
        del sys.stdout
        return 5

    assert 5 == killer_call(meddle, reuse=False)()


def test_what_a_call_does_to_its_surroundings_ends_with_it() -> None:
    """The next call in the same worker finds the host's again."""
    import os

    def change() -> int:
        os.chdir("/")
        os.environ["KC_LEAK"] = "1"
        os.environ.pop("HOME", None)
        sys.path.clear()
        return os.getpid()

    def look() -> tuple[object, ...]:
        return os.getpid(), os.getcwd(), os.environ.get("KC_LEAK"), os.environ.get("HOME"), sys.path

    pid = killer_call(change)()
    seen = killer_call(look)()
    assert (pid, os.getcwd(), None, os.environ.get("HOME"), sys.path) == seen
