"""
The forkserver's interpreter: clean, single-threaded, and without any code of the user's but what
`preload` names.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    # The module around it makes enumerations of its constants, for which there is no use here.
    import _signal as signal


def main() -> None:
    """Runs in the fresh interpreter that the host has started."""
    # A file that does not exist must not be looked for by whoever reads `__main__`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(None)


def serve(control: int | None) -> None:
    """
    Becomes guard and forkserver, and a worker in each process that comes out of it.

    Never returns: whatever happens, the caller's code must not go on in these processes.
    """
    status = 1
    try:
        # The thread that made the first call may have blocked what we live by.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Before the first fork, so that no worker has to import it again.
        from killercall import _core, _worker

        ends = _core.boot(control, os.fork, _preload)
        if ends is not None:
            segment, socket, fresh = ends
            if fresh:
                _become_fresh_worker(segment, socket)
            _worker.main(segment, socket)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def forget_other_threads() -> None:
    """
    In a copy of the host: nobody waits for a lock that one of the host's other threads held.

    Python does this for its own locks, but not for those of modules that were being imported. Half
    a module is dropped, and imported anew by whoever wants it here.
    """
    import _thread

    # Private, and where it is missing there is nothing to be done.
    locks = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None)
        if owner is not None and owner != _thread.get_ident():
            del locks[name]
            sys.modules.pop(name, None)
    if "cloudpickle.cloudpickle" in sys.modules:
        tracker = vars(sys.modules["cloudpickle.cloudpickle"])
        tracker["_DYNAMIC_CLASS_TRACKER_LOCK"] = _thread.allocate_lock()


def _become_fresh_worker(segment: int, socket: int) -> NoReturn:
    from killercall import _core

    try:
        os.getcwd()
    except OSError:
        # An interpreter should not start in a directory that is gone: CPython 3.13.0 cannot import
        # extension modules there.
        os.chdir("/")
    _core.keep_open([segment, socket])
    command = f"from killercall._worker import main; main({segment}, {socket})"
    os.execv(sys.executable, interpreter_command(command))


def interpreter_command(code: str) -> list[str]:
    """The arguments of an interpreter like this one that runs `code` with this `sys.path`."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    flags = [
        f"-X{name}" if value is True else f"-X{name}={value}"
        for name, value in sys._xoptions.items()
    ]
    flags += [f"-W{option}" for option in sys.warnoptions]
    for letter, on in (("s", sys.flags.no_user_site), ("E", sys.flags.ignore_environment)):
        if on:
            flags.append(f"-{letter}")
    return [sys.executable, *flags, "-c", f"import sys; sys.path[:] = {path!r}; {code}"]


def _preload(modules: str) -> None:
    """Imports modules for the workers to come. Failures are the affair of the worker that asks."""
    import contextlib
    import importlib

    for name in modules.split(","):
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    if "logging" in sys.modules:
        # Then each worker forwards records from its start, and would import this by itself.
        with contextlib.suppress(BaseException):
            importlib.import_module("killercall._records")
