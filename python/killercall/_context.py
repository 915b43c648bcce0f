"""
The host's surroundings that workers follow: working directory, environment, `sys.path`
and the key of `multiprocessing`.

A worker is told of them when it is set up, and again with the next call after they have changed.
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
from typing import Any

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

_versions = itertools.count(1)
_last: tuple[int, bytes, tuple[Any, ...]] | None = None


def depth() -> int:
    """How many calls enclose this process: 0 in the host."""
    return int(os.environ.get(DEPTH_VARIABLE, "0"))


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


def current() -> tuple[int, bytes]:
    """The version of the surroundings, and the pickled surroundings themselves."""
    global _last  # noqa: PLW0603 - one per process, like what it describes
    try:
        cwd = os.getcwd()
    except OSError:
        # It was removed; the worker keeps the one that it has.
        cwd = None
    environment = {name: value for name, value in os.environ.items() if name not in _OWN}
    path = [entry for entry in sys.path if isinstance(entry, str)]
    process = sys.modules.get("multiprocessing.process")
    authkey = bytes(process.current_process().authkey) if process is not None else None
    state = (cwd, environment, path, authkey)
    if _last is None or _last[2] != state:
        _last = (next(_versions), pickle.dumps(state), state)
    return _last[0], _last[1]


def apply(pickled: bytes, *, cwd: bool, environment: bool) -> None:
    """In a worker: takes on the host's surroundings, except those that options replaced."""
    new_cwd, new_environment, path, authkey = pickle.loads(pickled)
    sys.path[:] = path
    if authkey is not None:
        # Only if the host has imported it: the import takes longer than starting a worker.
        import multiprocessing.process

        multiprocessing.process.current_process().authkey = authkey
    if environment:
        replace_environment(new_environment)
    if cwd and new_cwd is not None:
        change_directory(new_cwd)


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
