"""
The host's surroundings that workers follow: working directory, environment, `sys.path`
and the key of `multiprocessing`.

A worker is told of them when it is set up, and again with the next call after they have changed.
"""

from __future__ import annotations

import itertools
import os
import sys
from _thread import allocate_lock

from killercall import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pickle
    from typing import Any

    from killercall._outlets import Told
else:
    import _pickle as pickle

DEPTH_VARIABLE = "KILLERCALL_DEPTH"
MAX_DEPTH_VARIABLE = "KILLERCALL_MAX_DEPTH"
DEFAULT_MAX_DEPTH = 10

# Variables that concern one process and must not follow the host's to the worker.
_OWN = frozenset({DEPTH_VARIABLE})

# So that W workers do not start W x cores threads. Set for workers only where the user has not.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Current:
    """The surroundings as they are, with what is told of outlets, and a number for all that."""

    def __init__(self, version: int, pickled: bytes, seen: _core.Surroundings) -> None:
        self.version = version
        self.pickled = pickled
        self.seen = seen


_versions = itertools.count(1)
# By what is told of outlets, which differs between functions and comes back: a notebook prints from
# one cell and logs from the next.
_current: dict[Told, Current] = {}
_MOST_CURRENT = 16
# Threads that call at the same moment must not see half of a new look.
_lock = allocate_lock()


def is_inline() -> bool:
    """Whether everything is to run in the calling process."""
    return os.environ.get("KILLERCALL_INLINE", "") not in {"", "0"}


def depth() -> int:
    """How many calls enclose this process: 0 in the host."""
    value = os.environ.get(DEPTH_VARIABLE, "0")
    if not value.isdecimal():
        message = f"{DEPTH_VARIABLE} is set by killercall and must be a whole number, not {value!r}"
        raise ValueError(message)
    return int(value)


def max_depth() -> int:
    """The limit of nesting."""
    value = os.environ.get(MAX_DEPTH_VARIABLE, "")
    if not value:
        return DEFAULT_MAX_DEPTH
    if not value.isdecimal() or int(value) < 1:
        message = f"{MAX_DEPTH_VARIABLE} must be a whole number of at least 1, not {value!r}"
        raise ValueError(message)
    return int(value)


def worker_environment() -> dict[str, str]:
    """The environment of a new forkserver or fresh interpreter."""
    environment = dict(os.environ)
    for name in THREAD_VARIABLES:
        environment.setdefault(name, "1")
    return environment


def current(told: Told = (False, False, None)) -> Current:
    """The surroundings, looked at anew."""
    with _lock:
        known = _current.get(told)
        if known is None or not known.seen.is_current():
            if known is not None or len(_current) >= _MOST_CURRENT:
                _current.clear()
            seen = _core.Surroundings()
            pickled = pickle.dumps((*_described(seen), told))
            known = _current[told] = Current(next(_versions), pickled, seen)
        return known


def _described(seen: _core.Surroundings) -> tuple[Any, ...]:
    names = {
        os.fsdecode(name): os.fsdecode(value)
        for name, value in seen.environment.items()
        if os.fsdecode(name) not in _OWN
    }
    path = [entry for entry in seen.path if isinstance(entry, str)]
    # Where it was removed, the worker keeps the one that it has.
    cwd = None if seen.directory is None else os.fsdecode(seen.directory)
    return cwd, names, path, None if seen.key is None else bytes(seen.key)


def _new_lock() -> None:
    global _lock  # ruff: ignore[global-statement] - another thread may have held it when this process was forked
    _lock = allocate_lock()


os.register_at_fork(after_in_child=_new_lock)


def told_in(pickled: bytes) -> Told:
    """In a worker: what it is told of outlets."""
    told: Told = pickle.loads(pickled)[-1]
    return told


def apply(pickled: bytes, *, cwd: bool, environment: bool) -> None:
    """In a worker: takes on the host's surroundings, except those that options replaced."""
    new_cwd, new_environment, path, authkey, _ = pickle.loads(pickled)
    sys.path[:] = path
    if authkey is not None:
        # Only if the host has imported it: the import takes longer than starting a worker.
        import multiprocessing.process

        multiprocessing.process.current_process().authkey = authkey
    if environment:
        replace_environment(new_environment)
    if cwd and new_cwd is not None:
        change_directory(new_cwd)


if TYPE_CHECKING:
    Snapshot = tuple[str | None, dict[bytes, bytes], list[str]]


def snapshot() -> Snapshot:
    """In a worker: the surroundings that a call finds."""
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = None
    return cwd, dict(getattr(os.environ, "_data", os.environb)), list(sys.path)


def restore(before: Snapshot) -> None:
    """Puts back what the call changed, so that the next one finds what the host has."""
    now = snapshot()
    if now == before:
        return
    cwd, environment, path = before
    sys.path[:] = path
    for name in now[1].keys() - environment.keys():
        del os.environb[name]
    for name, value in environment.items():
        if now[1].get(name) != value:
            os.environb[name] = value
    if cwd is not None and now[0] != cwd:
        change_directory(cwd)


def replace_environment(wanted: dict[str, str]) -> None:
    """Makes `os.environ` hold just this, and what is the worker's own."""
    wanted = {**dict.fromkeys(THREAD_VARIABLES, "1"), **wanted}
    for name in os.environ.keys() - wanted.keys() - _OWN:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def change_directory(path: str) -> None:
    """Goes there; a directory that is gone meanwhile leaves the worker where it is."""
    try:
        if os.getcwd() == path:
            return
    except OSError:
        pass
    try:
        os.chdir(path)
    except OSError as error:
        import warnings

        warnings.warn(f"the worker could not follow the host to {path!r}: {error}", stacklevel=1)
