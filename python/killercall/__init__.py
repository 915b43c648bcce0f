"""
Functions that answer in time or die.

`killer_call` runs a function in a supervised worker process and kills it at its deadline;
`killer_pmap` maps in parallel with a deadline for every item.
"""

import sys

if sys.platform == "win32":
    _message = "killercall supports Linux and macOS; on Windows it works inside WSL"
    raise ImportError(_message)

from killercall._call import KillerFunction, killer_call
from killercall._core import __version__
from killercall._exceptions import (
    DepthLimitExceeded,
    KillerError,
    MemoryLimitExceeded,
    SerializationError,
    TimeoutError,  # ruff: ignore[builtin-import-shadowing] - it is one, and derives from the builtin
    WorkerDied,
    WorkerStartError,
)
from killercall._host import preload, shutdown
from killercall._pmap import killer_pmap

__all__ = [
    "DepthLimitExceeded",
    "KillerError",
    "KillerFunction",
    "MemoryLimitExceeded",
    "SerializationError",
    "TimeoutError",
    "WorkerDied",
    "WorkerStartError",
    "__version__",
    "killer_call",
    "killer_pmap",
    "preload",
    "shutdown",
]
