"""The cgroups that enclose this process, of either version, and how much memory they leave it."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")


def enclosing_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """
    From the innermost outwards, each with whether it is of the unified hierarchy (version 2).

    Those of version 2 may or may not have the controller: who reads its files finds out.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        unified = not controllers
        if not unified and controller not in controllers.split(","):
            continue
        root = _ROOT if unified else _ROOT / controller
        group = root / path.lstrip("/")
        while True:
            yield group, unified
            if group in {root, group.parent}:
                break
            group = group.parent


@functools.cache
def memory() -> int:
    """The bytes of memory that this machine has, or that the enclosing cgroups allow."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group, unified in enclosing_groups("memory"):
        try:
            name = "memory.max" if unified else "memory.limit_in_bytes"
            limit = (group / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            found = min(found, int(limit))
    return found
