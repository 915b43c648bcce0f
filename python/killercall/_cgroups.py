"""The cgroups that enclose this process, of either version."""

from __future__ import annotations

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
