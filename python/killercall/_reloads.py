"""
Which modules of the host have been reloaded, so that no warm worker runs what they were before.

A worker imports a module once. Whoever reloads it in the host, by `importlib.reload` or with the
extension autoreload of IPython, means the new one everywhere: then new workers are needed.
"""

from __future__ import annotations

import os
import sys
import types

from killercall import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Where nobody edits anything.
_INSTALLED = (os.path.dirname(os.__file__), sys.prefix, sys.base_prefix)

# How often something was reloaded. Its identity is watched.
count = 0
# What was reloaded since the start.
names: set[str] = set()

# What modules were loaded from: a reload makes another such object.
_specs: dict[str, Any] = {}
# How many modules there were, and what the last one was loaded from, which is where a reload puts
# its module.
_glance: tuple[int, Any] = (0, None)
# When files were changed, as it was when the cell of the notebook began.
_changed: dict[str, float] = {}
_cell: int | None = None


def look() -> bool:
    """Whether something was reloaded since the last look."""
    global count  # ruff: ignore[global-statement] - one per process, like what it describes
    found = {*_reloaded(), *_reloaded_automatically()} - {"__main__"}
    if found:
        names.update(found)
        count += 1
    return bool(found)


def _reloaded() -> list[str]:
    global _glance  # ruff: ignore[global-statement]
    before = _glance
    last = getattr(sys.modules.get(next(reversed(sys.modules))), "__spec__", None)
    if before[0] == len(sys.modules) and before[1] is last:
        return []
    _glance = len(sys.modules), last
    found = []
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None) if type(module) is types.ModuleType else None
        if _specs.setdefault(name, spec) is not spec:
            _specs[name] = spec
            found.append(name)
    return found


def _reloaded_automatically() -> list[str]:
    """
    Whose files have been changed since the cell before.

    Of autoreload itself nothing can be seen that lasts: it may replace the code of functions where
    they are. But it goes by the same.
    """
    global _cell  # ruff: ignore[global-statement]
    shell = _shell()
    if shell is None or shell.execution_count == _cell:
        return []
    _cell = shell.execution_count
    found = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) if type(module) is types.ModuleType else None
        if not isinstance(path, str) or path.startswith(_INSTALLED):
            continue
        try:
            changed = os.stat(path).st_mtime
        except OSError:
            continue
        if _changed.setdefault(name, changed) != changed:
            _changed[name] = changed
            found.append(name)
    return found


def _shell() -> Any:
    """IPython's, if autoreload is in use."""
    if "IPython.extensions.autoreload" not in sys.modules:
        return None
    return sys.modules["IPython"].get_ipython()


def watch() -> _core.Captures:
    """Whether another look is needed, as far as a glance tells."""
    shell = _shell()
    attributes: list[tuple[Any, str]] = [] if shell is None else [(shell, "execution_count")]
    return _core.Captures([(globals(), "count")], attributes, [], [], [])


def forget_modules(reloaded: tuple[str, ...]) -> None:
    """In a new worker: what came from the forkserver is imported again when it is used."""
    for name in reloaded:
        if sys.modules.pop(name, None) is None:
            continue
        package, _, rest = name.rpartition(".")
        if package in sys.modules:
            # Or `from package import rest` would find it there.
            vars(sys.modules[package]).pop(rest, None)


__all__ = ["forget_modules", "look", "watch"]
