"""
What workers tell of where they were, made readable.

Of what `faulthandler` wrote the thread in question comes first, without our frames.
"""

from __future__ import annotations

import itertools
import os
import sys

from killercall._exceptions import OURS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# How the lines of our machinery begin, and those of what runs a coroutine for us.
_OURS = f'  File "{OURS}'
_ASYNCIO = f'  File "{os.path.join(os.path.dirname(os.__file__), "asyncio", "")}'
# The one in which a worker waits for calls: what called it has nothing to do with the function.
_SERVES = (f"{_OURS}_worker.py", " in serve")
# How the stack of a thread begins; that of the one in question comes first.
_CURRENT = "Current thread 0x"
_THREADS = (_CURRENT, "Thread 0x")


def readable(dump: str | None) -> str | None:
    """The stack of the thread that took the signal, then those of the others; None if empty."""
    if not dump:
        return None
    header: list[str] = []
    blocks: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith(_THREADS):
            blocks.append([])
        (blocks[-1] if blocks else header).append(line)
    stacks = [_without_ours(block) for block in blocks]
    stacks.sort(key=lambda stack: not stack.startswith(_CURRENT))
    first = "\n".join(header).strip()
    return (first + "\n" if first else "") + "\n".join(stacks) + "\n"


def _without_ours(block: list[str]) -> str:
    """The part of a stack, most recent call first, that is not our machinery around a call."""
    header, *lines = block
    frames: list[str] = []
    for line in lines:
        if line.startswith("Extension modules:") or (
            line.startswith(_SERVES[0]) and line.endswith(_SERVES[1])
        ):
            break
        frames.append(line)
    kept = list(itertools.dropwhile(_is_ours, frames))
    around = len(kept)
    while kept and _is_ours(kept[-1]):
        kept.pop()
    if len(kept) < around and not all(line.startswith(_ASYNCIO) for line in kept):
        while kept[-1].startswith(_ASYNCIO):
            kept.pop()
    # If nothing else has been seen, the time went into our part (unpickling, say).
    return "\n".join([header, *(kept or frames)]).rstrip()


def _is_ours(line: str) -> bool:
    return line.startswith(_OURS)


def with_sources(text: str) -> str:
    """
    A traceback of a worker, with the lines of source that only the host has.

    The cells of a notebook are in the memory of its kernel, and in no file. Where nobody has
    imported `linecache`, which keeps them, there are none.
    """
    getline: Any = getattr(sys.modules.get("linecache"), "getline", None)
    if getline is None:
        return text
    lines = text.split("\n")
    found: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        found.append(line)
        # Those of a group have bars in front.
        frame = line.lstrip(" |")
        indent = line[: len(line) - len(frame)]
        path, _, place = frame.removeprefix('File "').partition('", line ')
        number, _, _ = place.partition(", in ")
        if number.isdigit() and not following.startswith(f"{indent}  "):
            source = getline(path, int(number)).strip()
            if source:
                found.append(f"{indent}  {source}")
    return "\n".join(found)
