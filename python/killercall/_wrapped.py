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
# Of 32 bits each: what numpy is seeded with.
_WORDS = 8


class Wrapped:
    """
    A function of a map, with seeding before it and measuring around it.

    Not a closure: so it goes to workers by its name, whatever the serializer.
    """

    def __init__(
        self, function: Any, name: str, *, is_async: bool, seed: int | None, measures: bool
    ) -> None:
        """With a `seed` it takes pairs of index and item; else items."""
        self.__wrapped__ = function
        # Messages are about this one.
        self.__name__ = name
        self.is_async = is_async
        self.seed = seed
        self.measures = measures

    def __call__(self, argument: Any) -> Any:
        """The value; if it measures, with the most bytes that this process had meanwhile."""
        if self.seed is None:
            item = argument
        else:
            index, item = argument
            seed_item(self.seed, index)
        if not self.measures:
            return self._run(item)
        _reset_peak()
        value = self._run(item)
        return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT

    def _run(self, item: Any) -> Any:
        value = self.__wrapped__(item)
        if self.is_async:
            import asyncio

            return asyncio.run(value)
        return value


def seed_item(seed: int, index: int) -> None:
    """Seeds `random`, and `numpy.random` where numpy is loaded, by these two numbers alone."""
    import random

    # A text is hashed, so that neighbours have nothing in common.
    text = f"killercall {seed} {index}"
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        words = random.Random(f"numpy {text}")  # ruff: ignore[suspicious-non-cryptographic-random-usage]
        numpy.random.seed([words.getrandbits(32) for _ in range(_WORDS)])
    random.seed(text)


def _reset_peak() -> None:
    """Where that is not possible, the peak is that since the worker's start."""
    try:
        with open(_RESET_FILE, "wb", buffering=0) as file:
            file.write(_RESET)
    except OSError:
        return


__all__ = ["Wrapped", "seed_item"]
