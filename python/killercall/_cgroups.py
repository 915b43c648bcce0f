"""The cgroups that enclose this process, of either version, and how much memory they leave it."""

from __future__ import annotations

import functools
import os

from killercall import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = "/sys/fs/cgroup"


def read(group: str, name: str) -> str:
    """What a group's file says."""
    return _core.read_text(os.path.join(group, name)).strip()


def enclosing_groups(controller: str) -> Iterator[tuple[str, bool]]:
    """
    From the innermost outwards, each with whether it is of the unified hierarchy (version 2).

    Those of version 2 may or may not have the controller: who reads its files finds out.
    """
    try:
        lines = _core.read_text("/proc/self/cgroup").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        unified = not controllers
        if not unified and controller not in controllers.split(","):
            continue
        root = _ROOT if unified else os.path.join(_ROOT, controller)
        group = os.path.join(root, path.lstrip("/")).rstrip("/")
        while True:
            yield group, unified
            parent = os.path.dirname(group)
            if group in {root, parent}:
                break
            group = parent


@functools.cache
def memory() -> int:
    """The bytes of memory that this machine has, or that the enclosing cgroups allow."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group, unified in enclosing_groups("memory"):
        try:
            limit = read(group, "memory.max" if unified else "memory.limit_in_bytes")
        except OSError:
            continue
        if limit.isdecimal():
            found = min(found, int(limit))
    return found
