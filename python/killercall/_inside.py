"""
What a function may do while it runs in a worker: keep the best answer so far, and ask how much time
there is.
"""

from __future__ import annotations

import sys

from killercall import _context, _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def publish(value: Any) -> None:
    """
    Keeps a value in the host as the best answer so far of the call that runs.

    If the call misses its deadline, the newest such value is `partial` of the `TimeoutError`, or
    the result itself with `on_timeout="partial"`. Each attempt of a call that is retried starts
    with none. A value replaces the one before only when the whole of it is there. It is pickled at
    once, as a result would be, so what is changed in it afterwards makes no difference.

    Any thread of the function may publish; of calls inside of others, it concerns the innermost
    one. Outside of a worker, in a process that the function has started, and with
    `KILLERCALL_INLINE` set, this does nothing.

    Args:
        value: anything that could be returned.

    Raises:
        SerializationError: the value cannot be pickled. The one before stays.

    Example:
        >>> import time
        >>> from killercall import killer_call, publish
        >>> @killer_call(timeout=0.5, on_timeout="partial")
        ... def improve(guess):
        ...     while True:
        ...         guess = (guess + 2 / guess) / 2
        ...         publish(round(guess, 6))
        ...         time.sleep(0.01)
        >>> improve(1.0)
        1.414214
    """
    worker = getattr(sys.modules.get("killercall._worker"), "serving", None)
    if worker is not None and not _context.is_inline():
        worker.publish(value)


def append(more: bytes) -> None:
    """Keeps more in the host of what the call that runs has so far; see `_command`."""
    worker = getattr(sys.modules.get("killercall._worker"), "serving", None)
    if worker is not None:
        worker.append(more)


def time_left() -> float | None:
    """
    How much time there is until the nearest deadline of the call that runs.

    That is its own, a map's budget, or the deadline of a call around it, whichever comes first.

    Returns:
        Seconds, 0.0 if the deadline has passed. None without a deadline, and outside of a worker.

    Example:
        >>> from killercall import killer_call, time_left
        >>> time_left() is None
        True
        >>> 0 < killer_call(time_left, timeout=5)() < 5
        True
    """
    return _core.time_left()


__all__ = ["append", "publish", "time_left"]
