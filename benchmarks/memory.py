"""What an idle warm worker holds: bytes of proportional and of unique set size."""

from __future__ import annotations

import contextlib
import os
import statistics
import time

from benchmarks import maps
from benchmarks.contestant import MARK
from benchmarks.work import pid_soon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    import psutil

    Turn = Callable[[int], Any]

WORKERS = 4
MB = 1e6


def our_processes() -> Iterator[psutil.Process]:
    """The contestant and all that it has started, wherever those went."""
    import psutil

    mark = os.environ[MARK]
    for process in psutil.process_iter():
        # Some are gone by now, and some are not ours to look at.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                yield process


@contextlib.contextmanager
def idle(how: str, **options: Any) -> Generator[Turn, None, None]:
    """Four workers that have run a call; a sample is the PSS of one."""
    with getattr(maps, how)(workers=WORKERS, **options) as mapper:
        workers = set(mapper(pid_soon, list(range(WORKERS))))

        def turn(_: int) -> tuple[list[float], str]:
            time.sleep(0.5)
            below = {process.pid: process.memory_full_info() for process in our_processes()}
            if len(workers) != WORKERS or not workers <= set(below) - {os.getpid()}:
                message = f"{WORKERS} workers {workers} are not among {set(below)}"
                raise AssertionError(message)
            unique = statistics.median(below[pid].uss for pid in workers) / MB
            helpers = [below[pid].uss for pid in below if pid not in {*workers, os.getpid()}]
            note = f"USS {unique:.1f} MB"
            if helpers:
                note += f"; {len(helpers)} helpers, USS {sum(helpers) / MB:.1f} MB together"
            return [below[pid].pss for pid in workers], note

        yield turn
