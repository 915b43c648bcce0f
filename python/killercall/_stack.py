"""What `faulthandler` wrote, made readable: the thread in question first, without our frames."""

from __future__ import annotations

import os

# How the lines of our machinery begin.
_OURS = tuple(
    f'  File "{os.path.join(os.path.dirname(__file__), name)}.py"'
    for name in ("_worker", "_forkserver", "_host", "_objects", "_wrapped")
)
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
    """Cuts a stack, most recent call first, where it enters our machinery."""
    kept: list[str] = []
    for line in block:
        if line.startswith(_OURS):
            # If nothing else has been seen, the time went into our part (unpickling, say).
            if len(kept) > 1:
                break
            continue
        if line.startswith("Extension modules:"):
            break
        kept.append(line)
    return "\n".join(kept).rstrip()
