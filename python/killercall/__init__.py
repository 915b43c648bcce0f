"""
Functions that answer in time or die.

`killer_call` runs a function in a supervised worker process and kills it at its deadline;
`killer_pmap` maps in parallel with a deadline for every item, and `killer_imap` does so lazily.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    _message = "killercall supports Linux and macOS; on Windows it works inside WSL"
    raise ImportError(_message)

try:
    import _interpreters  # type: ignore[import-not-found]
except ImportError:
    # Its name up to Python 3.12.
    import _xxsubinterpreters as _interpreters  # type: ignore[import-not-found]

if _interpreters.get_current() != _interpreters.get_main():
    # Each would need its own forkserver, and its own handlers at exit and at fork.
    _message = "killercall works in the main interpreter only, not in a subinterpreter"
    raise ImportError(_message)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from killercall._actor import killer_actor
    from killercall._call import KillerFunction, killer_call
    from killercall._core import __version__
    from killercall._exceptions import (
        DepthLimitExceeded,
        KillerError,
        MemoryLimitExceeded,
        SerializationError,
        TimeoutError,  # ruff: ignore[builtin-import-shadowing] - derives from the builtin
        WorkerDied,
        WorkerStartError,
    )
    from killercall._exec import killer_exec
    from killercall._futures import KillerFuture
    from killercall._host import preload, shutdown
    from killercall._imap import killer_imap
    from killercall._inside import publish, time_left
    from killercall._outcomes import Outcome, Outcomes
    from killercall._pipeline import killer_pipeline
    from killercall._pmap import killer_pmap
    from killercall._pool import KillerPool
    from killercall._versions import show_versions

# Imported at first use: forkserver and workers, which never use them, would carry the host's side
# in their memory, and each fork of a worker takes the longer for it.
_HOMES = {
    "DepthLimitExceeded": "_exceptions",
    "KillerError": "_exceptions",
    "KillerFunction": "_call",
    "KillerFuture": "_futures",
    "KillerPool": "_pool",
    "MemoryLimitExceeded": "_exceptions",
    "Outcome": "_outcomes",
    "Outcomes": "_outcomes",
    "SerializationError": "_exceptions",
    "TimeoutError": "_exceptions",
    "WorkerDied": "_exceptions",
    "WorkerStartError": "_exceptions",
    "__version__": "_core",
    "killer_actor": "_actor",
    "killer_call": "_call",
    "killer_exec": "_exec",
    "killer_imap": "_imap",
    "killer_pipeline": "_pipeline",
    "killer_pmap": "_pmap",
    "preload": "_host",
    "publish": "_inside",
    "show_versions": "_versions",
    "shutdown": "_host",
    "time_left": "_inside",
}


def __getattr__(name: str) -> Any:
    """What `__all__` names, from where it is."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    module = __import__(f"{__name__}.{home}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "DepthLimitExceeded",
    "KillerError",
    "KillerFunction",
    "KillerFuture",
    "KillerPool",
    "MemoryLimitExceeded",
    "Outcome",
    "Outcomes",
    "SerializationError",
    "TimeoutError",
    "WorkerDied",
    "WorkerStartError",
    "__version__",
    "killer_actor",
    "killer_call",
    "killer_exec",
    "killer_imap",
    "killer_pipeline",
    "killer_pmap",
    "preload",
    "publish",
    "show_versions",
    "shutdown",
    "time_left",
]
