"""What a run is to show: each line names two contestants, and how they have to compare."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.conductor import Taken

    Results = dict[str, dict[str, Taken]]

# "No slower" within what two medians of the same thing differ by on a noisy machine.
NO_SLOWER = 1.1


def median(samples: Sequence[float]) -> float:
    """The middle of them."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile; of fewer than a hundred the largest."""
    if len(samples) < 100:
        return max(samples)
    return statistics.quantiles(samples, n=100, method="inclusive")[98]


@dataclass(frozen=True)
class Line:
    """
    A line of the table.

    The ratio is ours over theirs, or theirs over ours where `faster` says so; of several others
    the fastest counts. Without others it is our figure itself, in the measure's unit.
    """

    text: str
    measure: str
    ours: str
    against: tuple[str, ...] = ()
    at_least: float = 1.0
    aim: float | None = None
    # Whether more is better: a limit is a minimum then.
    faster: bool = False
    rate: bool = False
    of: Callable[[Sequence[float]], float] = median
    # Where their figure is known and not measured.
    constant: float | None = None


FLOOR = ("raw socketpair",)
KILL = ("poll, SIGKILL, wait in Python",)
POOL = ("multiprocessing.Pool.map: no deadlines",)
OURS_MAP = "killercall: deadline an item"
SLEEP = "killercall: sleep"
FRESH = "killercall, reuse=False"

LINES = (
    Line(
        "warm call, int in and out, back to back, against the raw socketpair round trip",
        "warm", "killercall", FLOOR, 0.3, 0.05,
    ),
    Line(
        "warm call 1 ms after the last one, likewise spaced",
        "spaced", "killercall", FLOOR, 0.8, 0.35,
    ),
    Line(
        "warm call with a closure, a dict argument and a small numpy result, against the same "
        "through the raw socketpair",
        "rich", "killercall", ("raw socketpair, cloudpickle",), 1.0, 0.5,
    ),
    Line(
        "warm call, back to back, against the fastest peer pool that can kill, times faster",
        "warm", "killercall", ("pebble ProcessPool", "billiard Pool"), 10, 100, faster=True,
    ),
    Line(
        "the same with 2 GB and pandas in the host, against without",
        "large host", "killercall, 2 GB and pandas in the host", ("killercall",), NO_SLOWER,
    ),
    Line(
        "the same from 8 threads at once, wall clock over calls",
        "large host", "killercall, 8 threads", ("killercall, 1 thread",), NO_SLOWER,
    ),
    Line(
        "fresh call back to back against os.fork, _exit, wait of a bare Python",
        "fresh", FRESH, ("os.fork, _exit, wait of a bare Python",), 1.5, 1.1,
    ),
    Line(
        "fresh call, ten a second, against a warm call likewise spaced",
        "ten a second", FRESH, ("killercall, warm",), 3, 1.5,
    ),
    Line(
        "cold first result against `python -c pass`",
        "cold", "killercall", ("python -c pass",), 3, 2,
    ),
    Line(
        "small cold map, 16 items, import included, against ProcessPoolExecutor (fork)",
        "cold map", "killercall", ("ProcessPoolExecutor (fork)",), 1.0, 0.7,
    ),
    Line(
        "answer after the deadline, tree killed, stack attached, ms late, against poll, SIGKILL, "
        "wait in Python",
        "late", SLEEP, KILL, 2, 0.5,
    ),
    Line("the same, 99th percentiles", "late", SLEEP, KILL, 4, of=p99),
    Line(
        "the same where the function has a child in another session",
        "late", "killercall: sleep_with_child", KILL, 2, 0.5,
    ),
    Line(
        "next call after a kill, against a warm call back to back",
        "after kill", "killercall", ("killercall: a warm call, back to back",), 10, 2,
    ),
    Line(
        "map of 1 M ints, deadline per item, against multiprocessing.Pool.map without deadlines, "
        "its rate",
        "map", OURS_MAP, POOL, 0.5, 1, rate=True,
    ),
    Line(
        "the same with tuples in and dicts out",
        "map of tuples", OURS_MAP, POOL, 0.4, 0.8, rate=True,
    ),
    Line(
        "200 items, 20 hang, against the floor of (180 x 1 ms + 20 x 100 ms) / 2",
        "some hang", "killercall", at_least=1.05, aim=1.02, constant=1.09,
    ),
    *(
        Line(
            f"numpy {size} there and back against {peer}, times faster",
            measure, "killercall", (peer,), at_least, aim, faster=True,
        )
        for measure, size in (("array", "100 MB"), ("large array", "1 GB"))
        for peer, at_least, aim in (("ProcessPoolExecutor", 6, 18), ("ray", 1, 4))
    ),
    Line(
        "100 MB array captured by the function of a map, 8 workers, against joblib",
        "captured", "killercall", ("joblib",), 1.0,
    ),
    Line(
        "the same: copies in memory beside the host's own",
        "copies", "killercall", at_least=1.1,
    ),
    Line("PSS of an idle warm worker, MB", "memory", "killercall", at_least=5, aim=3),
)  # fmt: skip
