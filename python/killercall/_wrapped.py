"""
The function of a map, with what is done around each item in the worker.

Imported by workers when they unpickle one, so it imports next to nothing itself.
"""

from __future__ import annotations

import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In what units `getrusage` counts memory.
_UNIT = 1 if sys.platform == "darwin" else 1024
# What begins the measurement of the peak anew; see proc(5).
_RESET_FILE = "/proc/self/clear_refs"
_RESET = b"5"


class Wrapped:
    """
    A function that takes an item, and measures; errors name the function itself.

    Not a closure: so it goes to workers by its name, whatever the serializer.
    """

    def __init__(self, function: Any, name: str, *, is_async: bool) -> None:
        self.__wrapped__ = function
        # Messages are about this one.
        self.__name__ = name
        self.is_async = is_async

    def __call__(self, item: Any) -> tuple[Any, int]:
        """The value, and the most bytes that this process had meanwhile."""
        _reset_peak()
        value = self.__wrapped__(item)
        if self.is_async:
            import asyncio

            value = asyncio.run(value)
        return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def _reset_peak() -> None:
    """Where that is not possible, the peak is that since the worker's start."""
    try:
        with open(_RESET_FILE, "wb", buffering=0) as file:
            file.write(_RESET)
    except OSError:
        return


__all__ = ["Wrapped"]
