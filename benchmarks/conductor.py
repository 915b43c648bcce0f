"""
Gives the contestants of a measure their turns: one after the other, round by round.

Each has a process of its own, so that none carries what another has loaded or left, and one that
fails or hangs costs itself only. All of a measure live beside each other and wait while one has its
turn, but those marked `alone`, which are started for each of their turns. What a contestant leaves
behind is found, told and ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.contestant import MARK, receive, send

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
# No turn is planned to take longer than half of this.
PATIENCE = 120.0
# No round of a measure begins after so long, but for two of them: a busy machine gets fewer samples
# instead of a run without end.
BUDGET = 75.0
AT_LEAST = 2
# What a contestant has to put away its processes, and what those have to notice its end.
END = 20.0
LINGER = 3.0
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class Contestant:
    """Whose turn it is, and what it does then."""

    name: str
    # module.function: a context that gives a function of the number of calls.
    turn: str
    arguments: dict[str, Any] = field(default_factory=dict)
    # Where None, the measure's.
    calls: int | None = None
    rounds: int | None = None
    alone: bool = False


@dataclass(frozen=True)
class Measure:
    """What is measured, in which unit, and who takes part."""

    key: str
    title: str
    unit: str
    rounds: int
    calls: int
    contestants: tuple[Contestant, ...]
    more_is_better: bool = False
    chart: bool = True


@dataclass
class Taken:
    """What a contestant's turns gave: samples in seconds, items a second, bytes or copies."""

    samples: list[float] = field(default_factory=list)
    note: str = ""
    failed: str = ""
    left: list[str] = field(default_factory=list)


class Failed(Exception):
    """A contestant could not do its turn; says why in a line."""


# Pids of contestants, which are waited for by name.
_live: set[int] = set()


class Process:
    """A contestant's process."""

    def __init__(self, contestant: Contestant, log: Path) -> None:
        self.mark = uuid.uuid4().hex
        # RAY_...: it would tell its makers of each start.
        environment = os.environ | {MARK: self.mark, "RAY_USAGE_STATS_ENABLED": "0"}
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contestant"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        _live.add(self._popen.pid)
        if self._popen.stdin is None or self._popen.stdout is None:
            raise AssertionError
        self._commands, self._answers = self._popen.stdin, self._popen.stdout
        module, _, turn = contestant.turn.partition(".")
        setup = {"module": f"benchmarks.{module}", "turn": turn, "arguments": contestant.arguments}
        send(self._commands.fileno(), setup)

    def answer(self) -> dict[str, Any]:
        """The next answer, which may be the first: that it is ready."""
        give_up = time.monotonic() + PATIENCE
        # Its children may hold the pipe, so the end of it is not the end of the contestant.
        while not select.select([self._answers], [], [], 0.2)[0]:
            if self._popen.poll() is not None:
                raise Failed(f"ended with {self._popen.returncode}")
            if time.monotonic() > give_up:
                raise Failed(f"gave no answer in {PATIENCE:g} s")
        try:
            message: dict[str, Any] = receive(self._answers.fileno())
        except EOFError:
            raise Failed(f"ended with {self._popen.wait(END)}") from None
        if "failed" in message:
            raise Failed(message["failed"])
        return message

    def turn(self, count: int) -> dict[str, Any]:
        """Has it do so many calls."""
        try:
            send(self._commands.fileno(), count)
        except BrokenPipeError:
            raise Failed(f"ended with {self._popen.wait(END)}") from None
        return self.answer()

    def say_end(self) -> None:
        """Tells it that there are no more turns."""
        self._commands.close()

    def close(self) -> list[str]:
        """Ends it, and what it has left; gives the command lines of the latter."""
        left = []
        self.say_end()
        try:
            self._popen.wait(END)
        except subprocess.TimeoutExpired:
            left.append("itself: it did not end")
            self._popen.kill()
            self._popen.wait()
        _live.discard(self._popen.pid)
        self._answers.close()
        patience = time.monotonic() + LINGER
        while (remains := list(self._remains())) and time.monotonic() < patience:
            time.sleep(0.05)
        for process in remains:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(" ".join(process.cmdline())[:80] or process.name())
                process.kill()
        reap()
        return left

    def _remains(self) -> Iterator[psutil.Process]:
        """Whoever carries the mark."""
        reap()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    yield process


def adopt_orphans() -> None:
    """Has all that contestants leave behind become a child of this process (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Reaps adopted processes, but no contestant."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if process.status() == psutil.STATUS_ZOMBIE and process.pid not in _live:
                os.waitpid(process.pid, os.WNOHANG)


@contextlib.contextmanager
def started(
    contestants: Sequence[Contestant], log: Path, taken: dict[str, Taken]
) -> Generator[dict[str, Process], None, None]:
    """Starts these beside each other; those that are ready have their process in the answer."""
    processes = {contestant.name: Process(contestant, log) for contestant in contestants}
    ready = {}
    try:
        for name, process in processes.items():
            try:
                process.answer()
            except Failed as failed:
                taken[name].failed = str(failed)
            else:
                ready[name] = process
        yield ready
    finally:
        # All at once, and then waits for one after the other.
        for process in processes.values():
            process.say_end()
        for name, process in processes.items():
            taken[name].left += process.close()


def conduct(measure: Measure, log: Path) -> dict[str, Taken]:
    """All rounds of a measure."""
    taken = {contestant.name: Taken() for contestant in measure.contestants}

    def one(contestant: Contestant, process: Process) -> None:
        mine = taken[contestant.name]
        try:
            answer = process.turn(contestant.calls or measure.calls)
        except Failed as failed:
            mine.failed = str(failed)
        else:
            mine.samples += answer["samples"]
            mine.note = answer["note"]

    together = [contestant for contestant in measure.contestants if not contestant.alone]
    with started(together, log, taken) as processes:
        start = time.monotonic()
        for number in range(measure.rounds):
            if number >= AT_LEAST and time.monotonic() - start > BUDGET:
                break
            # Nobody has the same neighbour in front each time.
            first = number % len(measure.contestants)
            for contestant in measure.contestants[first:] + measure.contestants[:first]:
                if taken[contestant.name].failed or number >= (contestant.rounds or measure.rounds):
                    continue
                if not contestant.alone:
                    one(contestant, processes[contestant.name])
                    continue
                with started([contestant], log, taken) as alone:
                    if contestant.name in alone:
                        one(contestant, alone[contestant.name])
    return taken


def end_all() -> None:
    """Ends what is left of all contestants: for when the run itself is ended."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
