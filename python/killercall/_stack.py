"""What `faulthandler` wrote, made readable: the thread in question first, without our frames."""

from __future__ import annotations

import os
import re

_OURS = re.compile(
    r'^  File "' + re.escape(os.path.dirname(__file__)) + r'[/\\](_worker|_forkserver|_host)\.py"'
)


def readable(dump: str | None) -> str | None:
    """The stack of the thread that took the signal, then those of the others; None if empty."""
    if not dump:
        return None
    header, *blocks = re.split(r"(?m)^(?=(?:Current thread|Thread) 0x)", dump)
    blocks = [_without_ours(block) for block in blocks]
    blocks.sort(key=lambda block: not block.startswith("Current thread"))
    return (header.strip() + "\n" if header.strip() else "") + "\n".join(blocks) + "\n"


def _without_ours(block: str) -> str:
    """Cuts a stack, most recent call first, where it enters our machinery."""
    kept: list[str] = []
    for line in block.rstrip().splitlines():
        if _OURS.match(line):
            # If nothing else has been seen, the time went into our part (unpickling, say).
            if len(kept) > 1:
                break
            continue
        if line.startswith("Extension modules:"):
            break
        kept.append(line)
    return "\n".join(kept)
