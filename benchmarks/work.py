"""What the contestants are asked to do: next to nothing, or never to end."""

from __future__ import annotations

import os
import pathlib
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Whoever is that late is not late but stuck. Also the deadline of what is not to miss it.
STUCK = 60.0


def identity(value: Any) -> Any:
    """Gives back what it got."""
    return value


def to_dict(pair: tuple[int, int]) -> dict[str, int]:
    """A tuple in, a dict out."""
    return {"a": pair[0], "b": pair[1]}


def pid_soon(_: object = None) -> int:
    """The worker's pid, late enough that the others get work too."""
    time.sleep(1.0)
    return os.getpid()


def nap_or_hang(item: int) -> int:
    """A millisecond of waiting; every tenth item does not end."""
    time.sleep(STUCK if item % 10 == 5 else 0.001)
    return item


def _say_who(path: str, *pids: int) -> None:
    pathlib.Path(path).write_text(" ".join(map(str, pids or (os.getpid(),))), encoding="ascii")


def sleep(path: str) -> None:
    """Waits in the kernel."""
    _say_who(path)
    time.sleep(STUCK)


def sleep_with_child(path: str) -> None:
    """The same beside a child in a session of its own, which does so too."""
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(STUCK)
        os._exit(0)
    _say_who(path, os.getpid(), child)
    time.sleep(STUCK)


def busy_in_c(path: str) -> int:
    """Stays in C code that holds the GIL: one call, no bytecode, no look at signals."""
    _say_who(path)
    return sum(range(10**12))


def regex(path: str) -> object:
    """The same in a regular expression that backtracks for years."""
    import re

    _say_who(path)
    return re.match(r"(a+)+$", "a" * 60 + "b")


def ignore_sigterm(path: str) -> None:
    """Ignores the polite signal, and sleeps."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _say_who(path)
    time.sleep(STUCK)


def of_script(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    The same function as if the user's script had defined it.

    That is how killercall is used most, and it is the harder case: such a function is pickled by
    value. Peers get functions of a module, which all of them can take.
    """
    script = sys.modules["__main__"]
    vars(script).update(
        {name: value for name, value in function.__globals__.items() if not hasattr(script, name)}
    )
    copy = type(of_script)(
        function.__code__, vars(script), function.__name__, function.__defaults__
    )
    copy.__module__ = "__main__"
    setattr(script, function.__name__, copy)
    return copy
