"""
Functions that answer in time or die.

`killer_call` runs a function in a supervised worker process and kills it at its deadline;
`killer_pmap` maps in parallel with a deadline for every item.
"""

import sys

if sys.platform == "win32":
    _message = "killercall supports Linux and macOS; on Windows it works inside WSL"
    raise ImportError(_message)

try:
    import _interpreters  # type: ignore[import-not-found]
except ImportError:
    # Its name up to Python 3.12.
    import _xxsubinterpreters as _interpreters  # type: ignore[import-not-found]  # ruff: ignore[import-private-name] - it has no other

if _interpreters.get_current() != _interpreters.get_main():
    # Each would need its own forkserver, and its own handlers at exit and at fork.
    _message = "killercall works in the main interpreter only, not in a subinterpreter"
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
