"""What cannot be pickled or unpickled fails one call, and names the culprit."""

from __future__ import annotations

import ctypes
import dataclasses
import fnmatch
import functools
import itertools
import os
import pickle
import sys
import threading
import time
from typing import Any

import pytest

import hostile
import killercall
from killercall import (
    DepthLimitExceeded,
    KillerError,
    MemoryLimitExceeded,
    SerializationError,
    TimeoutError,
    WorkerDied,
    WorkerStartError,
    _payload,
    killer_call,
)
from processes import run_script, took


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


def test_caches_and_code() -> None:
    """A cache of a module is found there, one of ours goes along empty; code goes with its file."""
    decorated = killer_call(lambda: None)
    cached, of_builtin = fnmatch._compile_pattern, functools.cache(divmod)
    code = compile("1 / 0", "some_file.py", "eval")

    @functools.cache
    @killer_call
    def inner(x: int) -> int:
        return x + 1

    def look() -> tuple[object, ...]:
        same = cached is sys.modules["fnmatch"]._compile_pattern
        return same, of_builtin(7, 2), of_builtin.cache_info().hits, code.co_filename, inner(1)

    assert decorated() is None
    assert (True, (3, 1), 0, "some_file.py", 2) == killer_call(look)()
    assert "some_file.py" == killer_call(lambda given: given.co_filename)(code)


def test_a_class_that_is_gone() -> None:
    """What comes back as a class of the host is an error if the host has dropped that meanwhile."""
    with pytest.raises(SerializationError, match="a class that was sent .* is gone in the host"):
        _payload._class_of_token("no such token")
    with pytest.raises(SerializationError, match="class 'Gone.Inner' of __main__ is gone"):
        _payload._class_of_main("Gone.Inner")


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


def test_more_kinds_of_classes_of_main() -> None:
    """Metaclasses, enumerations, hooks: the same classes come back, and the host's stay as is."""
    script = """
import abc, enum, functools, typing
from killercall import killer_call
class Meta(type):
    def __new__(meta, name, bases, namespace, **options):
        made = super().__new__(meta, name, bases, namespace)
        made.options = options
        return made
    @property
    def kind(cls): return "kind " + cls.__name__
class WithMeta(metaclass=Meta, option=3): pass
class Abstract(abc.ABC):
    @abc.abstractmethod
    def f(self): ...
@Abstract.register
class Registered: pass
class Hook:
    def __init_subclass__(cls, tag=None): cls.tag = tag
class Hooked(Hook, tag="t"): pass
class Field:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, instance, owner=None): return self.name
class Described:
    field = Field()
class Outer:
    class Inner: pass
class Typed(typing.TypedDict):
    a: int
class Planet(enum.Enum):
    EARTH = (2, 3)
    MARS = (4, 5)
    HOME = (2, 3)
    def __init__(self, mass, radius): self.mass, self.radius = mass, radius
    @property
    def density(self): return self.mass * self.radius
class Labelled(enum.Enum):
    ONE = (1, "one")
    def __new__(cls, value, label):
        made = object.__new__(cls)
        made._value_, made.label = value, label
        return made
class Flags(enum.Flag):
    A = enum.auto()
    B = enum.auto()
    AB = A | B
class Text(enum.StrEnum):
    X = enum.auto()
Functional = enum.Enum("Functional", "ONE TWO")
class Weak:
    __slots__ = ("a", "__weakref__")
@typing.runtime_checkable
class Proto(typing.Protocol):
    def f(self) -> int: ...
class Has:
    def f(self): return 1
class Single:
    only = None
    def __new__(cls):
        cls.only = cls.only or super().__new__(cls)
        return cls.only
class Cached:
    @functools.cached_property
    def value(self): return 1
    @functools.singledispatchmethod
    def kind(self, x): return "other"
class Err(BaseException): pass
class Numbers(dict):
    def __init__(self, *args): super().__init__(*args); self.count = len(self)
values = [WithMeta(), Registered(), Hooked(), Described(), Outer.Inner(), Planet.MARS,
    Labelled.ONE, Flags.AB, Text.X, Functional.TWO, Weak(), Has(), Single(), Cached(), Err(1),
    Numbers({1: 2})]
classes = [*map(type, values), Meta, Abstract, Hook, Field, Outer, Typed, Proto]
def attributes():
    # The last one is a cache of pickle's.
    passing = {"_abc_impl", "__slotnames__"}
    return [{k: v for k, v in vars(c).items() if k not in passing} for c in classes]
before = attributes()
def use(values):
    assert type(values[0]) is WithMeta and WithMeta.kind == "kind WithMeta"
    assert WithMeta.options == {"option": 3} and isinstance(values[1], Abstract)
    assert Hooked.tag == "t" and values[3].field == "field" and isinstance(values[11], Proto)
    assert values[5] is Planet.MARS and Planet.MARS.density == 20
    assert Planet["HOME"] is Planet.HOME is Planet.EARTH and Labelled(1).label == "one"
    assert Flags["AB"] is Flags.A | Flags.B and values[8] == "x" and values[15].count == 1
    assert values[13].value == 1 and values[13].kind(3) == "other"
    for cls in (WithMeta, Hooked, Single, Weak):
        cls.changed = "in the worker"
    Single.only = Hooked.tag = None
    return values, classes
for method in ("forkserver", "spawn", "fork"):
    for _ in range(2):
        back, types = killer_call(use, start_method=method)(values)
        print(all(type(a) is type(b) for a, b in zip(values, back, strict=True)), end=" ")
        print(all(a is b for a, b in zip(classes, types, strict=True)), attributes() == before)
        assert back[5] is Planet.MARS and back[9] is Functional.TWO
"""
    done = run_script(script)
    assert ("", "True True True\n" * 6) == (done.stderr, done.stdout)


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


class Misbehaves:
    """Does `how` while it is pickled or, with `later`, while it is unpickled."""

    def __init__(self, how: str, *, later: bool = False) -> None:
        self.how = how
        self.later = later

    def __reduce__(self) -> Any:
        return (misbehave, (self.how,)) if self.later else misbehave(self.how)


def misbehave(how: str) -> Any:
    """In each of many ways."""
    match how:
        case "interrupts":
            raise KeyboardInterrupt
        case "base exception":
            raise BaseException("base")
        case "system exit":
            sys.exit(7)
        case "exits":
            os._exit(7)
        case "crashes":
            ctypes.string_at(0)
        case "hangs":
            time.sleep(600)
        case "recurses":
            return misbehave(how)
        case "returns a number":
            return 5
        case "cannot be named":
            raise HostileError
    raise AssertionError


class HostileError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit(9)

    __repr__ = __str__


# What the exception says, where the process lives on.
RAISES = {
    "interrupts": "KeyboardInterrupt",
    "base exception": "BaseException: base",
    "system exit": "SystemExit: 7",
    "recurses": "[Rr]ecursion",
    "cannot be named": "HostileError: <its __str__ raised>",
}
REDUCES = RAISES | {"returns a number": "must return a string or tuple"}
ENDS = {"exits": (WorkerDied, "code 7"), "crashes": (WorkerDied, "SIGSEGV")}


def test_result_and_exception_misbehave_while_pickled() -> None:
    """In the worker; what is raised is no answer of the function, and no exit."""
    for how in REDUCES:
        with pytest.raises(SerializationError, match=REDUCES[how]) as caught:
            killer_call(lambda: [Misbehaves(how)])()
        assert "result[0]" == caught.value.path

        def fail() -> None:
            error = ValueError("mine")
            error.attribute = Misbehaves(how)  # type: ignore[attr-defined]
            raise error

        with pytest.raises(KillerError, match=r"ValueError: mine .*exception\.attribute"):
            killer_call(fail)()


def test_call_misbehaves_while_pickled() -> None:
    """In the host: arguments, closures and arguments of the initializer."""
    for how in REDUCES.keys() - {"interrupts"}:
        bad = Misbehaves(how)
        with pytest.raises(SerializationError, match=REDUCES[how]) as caught:
            killer_call(hostile.same)(0, [bad])
        assert "args[1][0]" == caught.value.path
        with pytest.raises(SerializationError, match=REDUCES[how]) as caught:
            killer_call(lambda: bad)()
        assert "function.<closure bad>" == caught.value.path
        with pytest.raises(SerializationError, match=REDUCES[how]) as caught:
            killer_call(abs, initializer=hostile.same, initargs=(bad,))(1)
        assert "initializer[1][0]" == caught.value.path
        assert 1 == killer_call(abs)(-1)


def test_call_misbehaves_while_unpickled() -> None:
    """In the worker: SystemExit is not the function's own."""
    for how in RAISES:
        bad = Misbehaves(how, later=True)
        with pytest.raises(SerializationError, match=f"the arguments in the worker: {RAISES[how]}"):
            killer_call(hostile.same)(bad)
        with pytest.raises(SerializationError, match=f"the function in the worker: {RAISES[how]}"):
            killer_call(lambda: bad)()
        with pytest.raises(WorkerStartError, match="failed to set up a worker"):
            killer_call(abs, initializer=hostile.same, initargs=(bad,))(1)
        assert 1 == killer_call(abs)(-1)


def test_answer_misbehaves_while_unpickled() -> None:
    """In the host."""
    for how in RAISES.keys() - {"interrupts"}:
        with pytest.raises(SerializationError, match=RAISES[how]):
            killer_call(Misbehaves)(how, later=True)

        def fail() -> None:
            error = ValueError("mine")
            error.attribute = Misbehaves(how, later=True)  # type: ignore[attr-defined]
            raise error

        with pytest.raises(KillerError, match=f"ValueError: mine .*{RAISES[how]}"):
            killer_call(fail)()


def test_worker_ends_over_pickling() -> None:
    """A death like any other."""
    for how, later in itertools.product(ENDS, [False, True]):
        expected, text = ENDS[how]
        bad = Misbehaves(how, later=later)
        with pytest.raises(expected, match=text):
            killer_call(hostile.same if later else Misbehaves)(*([bad] if later else [how]))
        assert 1 == killer_call(abs)(-1)


def test_pickling_in_the_worker_hangs() -> None:
    """It is under the same deadline."""
    for what in ("argument", "closure", "result", "exception"):
        slow = Misbehaves("hangs", later=True)

        def fail() -> None:
            error = ValueError("mine")
            error.attribute = Misbehaves("hangs")  # type: ignore[attr-defined]
            raise error

        with took(0.3, 5), pytest.raises(TimeoutError):
            match what:
                case "argument":
                    killer_call(hostile.same, timeout=0.3)(slow)
                case "closure":
                    killer_call(lambda: slow, timeout=0.3)()
                case "result":
                    killer_call(Misbehaves, timeout=0.3)("hangs")
                case _:
                    killer_call(fail, timeout=0.3)()


def test_neighbours_of_what_cannot_be_pickled_keep_their_results() -> None:
    """Each failure costs one item."""

    def work(item: Any) -> Any:
        match item:
            case "late":
                return Misbehaves("base exception", later=True)
            case "raises":
                raise BadLook
            case str():
                return Misbehaves(item)
            case _:
                return item

    bad: list[Any] = ["interrupts", "exits", "late", "raises", Misbehaves("recurses")]
    bad.append(Misbehaves("system exit", later=True))
    items = [value for index, one in enumerate(bad) for value in (index, one)]
    done = killercall.killer_pmap(work, items, cpus=2, on_error="return")
    assert list(range(len(bad))) == done[::2]
    assert all(isinstance(failure, KillerError) for failure in done[1::2])
    kinds = ["SerializationError", "WorkerDied", "SerializationError", "KillerError"]
    kinds += ["SerializationError", "SerializationError"]
    assert kinds == [type(failure).__name__ for failure in done[1::2]]


def nested(kind: type, depth: int = 100_000) -> Any:
    """Deeper than any recursion gets."""
    value: Any = None
    for _ in range(depth):
        value = Nested(value) if kind is Nested else kind([value])
    return value


class Nested:
    """Holds one of its kind."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def test_nested_without_end() -> None:
    """The search for the culprit ends, and its way fits on the screen."""
    for kind in (list, tuple, Nested):
        with took(0, 5), pytest.raises(SerializationError, match="(?i)recursion") as caught:
            killer_call(nested)(kind)
        assert str(caught.value.path).endswith("...")
        assert len(str(caught.value)) < 500
        with took(0, 5), pytest.raises(SerializationError, match="(?i)recursion"):
            killer_call(str)(nested(kind))
        with pytest.raises(KillerError, match="raised builtins.ValueError"):
            killer_call(lambda: _raise(ValueError(nested(kind))))()
        assert 1 == killer_call(abs)(-1)


def test_function_that_could_not_be_unpickled_is_tried_again(tmp_path: Any) -> None:
    """What was in the way may be gone at the next call."""
    (tmp_path / "missing_until_now.py").write_text("value = 3\n", encoding="utf-8")
    where = str(tmp_path)
    gate = tmp_path / "open"

    class Gate:
        def __reduce__(self) -> Any:
            return pass_gate, (str(gate),)

    closed = Gate()
    call = killer_call(lambda: (closed, where))
    with pytest.raises(SerializationError, match="the function in the worker"):
        call()
    gate.touch()
    assert ("passed", where) == call()


def pass_gate(path: str) -> str:
    """Raises until the file is there."""
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return "passed"


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Refuses to have attributes set, `__cause__` and `__notes__` too."""

    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotsError(Exception):
    """The same with a state of its own."""

    code: int


class SlotsError(Exception):
    """Keeps what it has in slots, one of them private."""

    __slots__ = ("__hidden", "code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__("slots")
        self.code = code
        self.__hidden = code + 1

    def hidden(self) -> int:
        return self.__hidden


class OwnOSError(OSError):
    """Takes less than its base."""

    def __init__(self, code: int) -> None:
        super().__init__(2, "nothing there", "file")
        self.code = code


class OwnImportError(ImportError):
    """The same."""

    def __init__(self, code: int, module: str) -> None:
        super().__init__("no such module", name=module, path="path")
        self.code = code


class KeywordOnly(Exception):
    """Passes nothing on."""

    def __init__(self, *, code: int) -> None:
        self.code = code


class NewTakesMore(Exception):
    """Has a `__new__`."""

    def __new__(cls, *args: Any) -> Any:
        made = super().__new__(cls, *args)
        made.code = 5
        return made


class GroupWithCode(ExceptionGroup[Exception]):
    """A group that takes more."""

    def __new__(cls, message: str, parts: Any, code: int) -> Any:
        made = super().__new__(cls, message, parts)
        made.code = code
        return made


class RefusesAttributes(Exception):
    """Will not be changed."""

    code = 5

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError(name)


class BadLook(Exception):
    """Will not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


UNUSUAL = [
    FrozenError(5),
    FrozenSlotsError(5),
    SlotsError(5),
    OwnOSError(5),
    OwnImportError(5, "m"),
    KeywordOnly(code=5),
    NewTakesMore("a"),
    GroupWithCode("g", [ValueError(1)], 5),
    RefusesAttributes("no"),
]


def test_unusual_exceptions_arrive_as_themselves() -> None:
    """From a call and from a map, with what they hold and the remote traceback."""
    for error in UNUSUAL:
        with pytest.raises(type(error)) as caught:
            killer_call(hostile.raise_error)(error)
        with pytest.raises(type(error)) as mapped:
            killercall.killer_pmap(hostile.raise_error, [error])
        for arrived in (caught.value, mapped.value):
            assert (type(error), 5) == (type(arrived), arrived.code)
            assert (str(error), repr(error.args)) == (str(arrived), repr(arrived.args))
            assert "in raise_error" in str(arrived.__cause__)
        assert "item 0 of the map" in mapped.value.__notes__[0]
        if isinstance(error, SlotsError):
            assert (6, False) == (caught.value.hidden(), hasattr(caught.value, "unset"))
        if isinstance(error, OwnImportError):
            assert ("m", "path") == (caught.value.name, caught.value.path)
        if isinstance(error, OSError):
            assert (2, "file") == (caught.value.errno, caught.value.filename)


def test_local_exception_class_arrives_as_itself() -> None:
    """One that only the function knows."""

    def fail() -> None:
        class Local(Exception):
            def __init__(self, code: int, reason: str) -> None:
                super().__init__(reason)
                self.code = code

        raise Local(1, "one")

    with pytest.raises(Exception, match="one") as caught:
        killer_call(fail)()
    error: Any = caught.value
    assert ("Local", 1, ("one",)) == (type(error).__name__, error.code, error.args)


def test_exception_that_cannot_be_looked_at() -> None:
    """Is described all the same, and the worker lives on."""
    pid = killer_call(os.getpid)()
    for options in ({}, {"retries": 1, "retry_on": KeyError}):
        with pytest.raises(KillerError, match="raised .*BadLook") as caught:
            killer_call(lambda: _raise(BadLook()), **options)()
        assert "in _raise" in str(caught.value.__cause__)
    assert pid == killer_call(os.getpid)()


def test_group_with_a_part_that_cannot_be_pickled() -> None:
    """Names the part."""

    def fail() -> None:
        raise ExceptionGroup("g", [KeyError(1), ExceptionGroup("inner", [Holds()])])

    with pytest.raises(KillerError, match=r"exception\.exceptions\[1\]\.exceptions\[0\]\.lock"):
        killer_call(fail)()


def test_cause_and_context_need_not_be_pickled() -> None:
    """They are in the traceback."""

    def fail() -> None:
        try:
            raise Holds
        except Holds as error:
            raise KeyError("k") from error

    with pytest.raises(KeyError) as caught:
        killer_call(fail)()
    assert "Holds: holds a lock" in str(caught.value.__cause__)


class Liar(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return self.args


LIES = [
    ((int, (5,)), KillerError, "raised .*Liar.*it came back as 5"),
    ((ValueError, ("v",)), ValueError, "v"),
    (("x",), KillerError, "raised .*Liar.*PicklingError"),
]


def test_exception_that_lies() -> None:
    """Another exception is taken for it; what is none is not raised."""
    for lie, expected, text in LIES:
        with pytest.raises(expected, match=text) as caught:
            killer_call(lambda lie=lie: _raise(Liar(*lie)))()
        assert "Liar" in str(caught.value.__cause__)


def test_state_that_misbehaves() -> None:
    """`__getstate__` in the worker, `__setstate__` in the host, `__del__` in both."""

    class GetState:
        def __getstate__(self) -> Any:
            raise SystemExit(3)

    class SetState:
        def __setstate__(self, state: Any) -> None:
            raise SystemExit(4)

        def __getstate__(self) -> Any:
            return {"a": 1}

    with pytest.raises(SerializationError, match="SystemExit: 3"):
        killer_call(GetState)()
    with pytest.raises(SerializationError, match="SystemExit: 4"):
        killer_call(SetState)()
    with pytest.raises(SerializationError, match="SystemExit: 4"):
        killer_call(hostile.same)(SetState())
    assert 1 == killer_call(abs)(-1)


def test_del_that_raises_is_told_and_no_more() -> None:
    """As Python does it: on standard error; the value is there."""
    script = """
from killercall import killer_call
class Loud:
    def __del__(self): raise SystemExit(3)
def work(argument): return 5, Loud()
value, _ = killer_call(work)(Loud())
print(value, killer_call(abs)(-1))
"""
    done = run_script(script)
    assert ("5 1\n", 0) == (done.stdout, done.returncode)
    assert "Loud.__del__" in done.stderr


def test_interrupt_while_the_host_unpickles(tmp_path: Any) -> None:
    """Ctrl+C works there as well."""
    script = """
import os, signal, sys, threading, time
from killercall import killer_call, killer_pmap
host = os.getpid()
def load():
    print("loading", flush=True)
    if os.getpid() == host:
        os.kill(host, signal.SIGINT)
    time.sleep(600)
class Slow:
    def __reduce__(self): return load, ()
def fail():
    error = ValueError()
    error.slow = Slow()
    raise error
for run in (killer_call(Slow), killer_call(fail), lambda: killer_pmap(lambda _: Slow(), [1])):
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted")
print(killer_call(abs)(-1))
"""
    done = run_script(script)
    assert ("", "loading\ninterrupted\n" * 3 + "1\n") == (done.stderr, done.stdout)
