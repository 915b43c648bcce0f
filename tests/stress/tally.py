"""What a stress run has counted, and the one table that it prints at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The counts of all rounds."""

    seed: int = 0
    seconds: float = 0.0
    rounds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    items: int = 0
    wrong: int = 0
    twice: int = 0
    left: Counter[str] = field(default_factory=Counter)
    # Seconds from a deadline to the answer in the caller.
    late: float = 0.0
    late_with_machinery_stopped: float = 0.0
    # Bytes, by kind of host.
    growth: dict[str, int] = field(default_factory=dict)
    # Of the test of many calls.
    many_calls: int = 0
    many_growth: int = 0

    LEFT = ("processes", "zombies", "fds", "threads", "shm segments", "temp files")

    def table(self) -> list[str]:
        """Its lines."""
        rows: list[tuple[str, str]] = []
        if self.rounds:
            rounds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.rounds.items()))
            rows += [
                ("seed", str(self.seed)),
                ("seconds", f"{self.seconds:.0f}"),
                ("rounds", f"{sum(self.rounds.values())}: {rounds}"),
                ("faults injected", f"{sum(self.faults.values())}"),
            ]
            rows += [(f"    {kind}", str(count)) for kind, count in sorted(self.faults.items())]
            rows += [("calls ended", str(self.calls)), ("items of maps ended", str(self.items))]
            rows += [(f"    {kind}", str(count)) for kind, count in sorted(self.endings.items())]
            rows += [("outcomes wrong", str(self.wrong)), ("items run twice", str(self.twice))]
            rows += [(f"{what} left", str(self.left[what])) for what in self.LEFT]
            rows += [
                ("slowest answer after a deadline", f"{self.late * 1000:.0f} ms"),
                (
                    "    while forkserver or guard was stopped",
                    f"{self.late_with_machinery_stopped * 1000:.0f} ms",
                ),
            ]
            rows += [
                (f"growth of a host, {kind}", f"{size / 2**20:+.2f} MiB")
                for kind, size in sorted(self.growth.items())
            ]
        if self.many_calls:
            rows += [
                ("calls of one host in a row", str(self.many_calls)),
                ("    growth of that host", f"{self.many_growth / 2**20:+.2f} MiB"),
            ]
        width = max((len(name) for name, _ in rows), default=0)
        return [f"{name:<{width}}  {value}" for name, value in rows]


TALLY = Tally()
