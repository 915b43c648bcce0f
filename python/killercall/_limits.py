"""
How many workers the system has room for, before any is started.

Only a forecast: others start processes too. What the system refuses all the same is found out when
it does, and has the same consequence: fewer workers, and a warning.
"""

from __future__ import annotations

import os
import resource
import sys

from killercall import _host
from killercall._cgroups import enclosing_groups, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types

_PACKAGE = os.path.dirname(__file__)

# What a worker takes in the host: its socket, and the pipe that tells of its end.
_FDS_PER_WORKER = 2
# What is left to others, and needed for a moment when a worker or the forkserver starts.
_SPARE_FDS = 16
_SPARE_PROCESSES = 4
# More workers than any machine runs at a time, where there is no limit.
_NO_LIMIT = 1 << 30


def room_for_workers(wanted: int) -> tuple[int, str] | None:
    """
    How many of so many workers there is room for, at least 1, and what limits them.

    None if there is room for all of them.
    """
    # Those that are there already can be taken.
    room, reason = min(_room_for_fds(), _room_in_cgroups(), _room_for_processes(wanted))
    room += _host.idle_workers()
    return None if room >= wanted else (max(room, 1), reason)


def warn_of_shortage(wanted: int, workers: int, reason: str, *, where: str = "killer_pmap") -> None:
    """Says that a map has fewer workers than were asked for."""
    message = f"{where} runs with {workers} of {wanted} workers: {reason}"
    import warnings

    warnings.warn(message, RuntimeWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """The caller of `warn_of_shortage` is level 2; this finds the one outside of the package."""
    level = 1
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and os.path.dirname(frame.f_code.co_filename) == _PACKAGE:
        level, frame = level + 1, frame.f_back
    return level


def _room_for_fds() -> tuple[int, str]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _NO_LIMIT, ""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:
        # Not on this system; what is open is found out when a worker cannot be started.
        used = 0
    return (
        (limit - used - _SPARE_FDS) // _FDS_PER_WORKER,
        f"{used} files are open, and ulimit -n is {limit}",
    )


def _room_in_cgroups() -> tuple[int, str]:
    """Threads count as well as processes there."""
    found = _NO_LIMIT, ""
    for group, _ in enclosing_groups("pids"):
        try:
            limit = read(group, "pids.max")
            used = int(read(group, "pids.current"))
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            room = int(limit) - used - _SPARE_PROCESSES
            reason = f"{used} tasks exist, and pids.max of cgroup {group} is {limit}"
            found = min(found, (room, reason))
    return found


def _room_for_processes(wanted: int) -> tuple[int, str]:
    """The limit on the tasks of this user, threads included; it does not bind root."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or os.geteuid() == 0:
        return _NO_LIMIT, ""
    # The system's whole count is quick to read, and mostly enough to know.
    room = limit - _all_tasks() - _SPARE_PROCESSES
    if room >= wanted:
        return room, ""
    used = _own_tasks()
    return limit - used - _SPARE_PROCESSES, f"the user has {used} tasks, and ulimit -u is {limit}"


def _all_tasks() -> int:
    try:
        _, _, _, tasks, _ = read("/proc", "loadavg").split()
        return int(tasks.split("/")[1])
    except (OSError, ValueError):
        return 0


def _own_tasks() -> int:
    user, tasks = os.getuid(), 0
    try:
        processes = [entry for entry in os.scandir("/proc") if entry.name.isdecimal()]
    except OSError:
        return 0
    for process in processes:
        try:
            if process.stat().st_uid == user:
                # Two links of the directory are its own.
                tasks += os.stat(f"{process.path}/task").st_nlink - 2
        except OSError:
            # It has ended.
            continue
    return tasks
