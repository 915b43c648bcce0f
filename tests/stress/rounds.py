"""
The rounds of the fault injection: what each is made of, who does the harm, and what is checked.

In a round a host makes calls (`host.py`) that misbehave (`behaviours.py`), while this process
sends signals to the host's workers, forkservers and guards, and in some rounds to the host.
Afterwards the files of the round tell who ran, who was harmed and how each call ended.

All choices follow from the seed and the number of the round; the moments do not, so a replay shows
the same mix but not the same schedule.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from behaviours import BEHAVIOURS, MARK_VARIABLE, children_of, has_mark, parent_of
from tally import TALLY, Tally

from processes import TESTS, is_being_killed, lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MiB = 2**20
# How long what is to be gone may take to be gone: far more than it does.
PATIENCE = 10.0
# How long a host may take for the rest of a round, a start limit included.
ROUND_PATIENCE = 90.0
# What is worth reading of a run that goes wrong all the time.
MOST_WRONG = 20
# After so many rounds a long run says how far it is.
SHOWN_EVERY = 100
# How many rounds a host may grow in at least, and by how much it may grow in the second half of all. What
# leaks grows all the time; caches and the allocator's arenas fill ever more slowly.
WARM_UP = 3
MOST_GROWTH = MiB
# A user that has no other processes, not even those of a run beside this one.
UNUSED_UID = 50_000 + os.getpid() % 10_000

# What a host can be, and how often. The limits are those that its mixers meet now and then.
KINDS = {
    "plain": 12,
    "forks": 3,
    "forty threads": 2,
    "few files": 3,
    "few processes": 3,
    "little memory": 3,
    "Ctrl+C": 3,
    "paused": 1,
    "killed": 5,
    "terminated": 3,
    "exits on SIGTERM": 3,
}
# After these the host is gone.
FATAL = {"killed", "terminated", "exits on SIGTERM"}
LIMITED = {"few files", "few processes", "little memory"}

# How many workers that die while they start a job puts up with.
START_ATTEMPTS = 3

# What may come of a call whose worker has met this.
OF_WORKER = {
    "SIGKILL": ("WorkerDied -9",),
    "SIGSEGV": ("WorkerDied -11",),
    "SIGTERM": ("WorkerDied -15",),
    "SIGSTOP": ("TimeoutError",),
    "close": ("WorkerDied *", "TimeoutError"),
    "scribble": ("WorkerDied *", "TimeoutError", "SerializationError", "KillerError"),
}
# And of one whose forkserver or guard has.
OF_MACHINERY = {
    "SIGKILL": ("WorkerDied None", "WorkerStartError"),
    "SIGSTOP": ("WorkerDied None", "WorkerStartError", "TimeoutError"),
}
# And of one in a host with few of something: no worker could be had, or the function itself got
# no more of it.
OF_LIMIT = {
    # A host that cannot take the file in which an answer comes has lost that answer.
    "few files": ("WorkerStartError", "OSError", "WorkerDied nonsense"),
    "few processes": ("WorkerStartError", "BlockingIOError", "RuntimeError"),
    "little memory": ("WorkerStartError", "MemoryError", "OSError"),
}


@dataclass(frozen=True)
class Plan:
    """What a round is made of."""

    seed: str
    kind: str
    seconds: float
    threads: int
    methods: list[str]
    # Signals a second.
    rate: float

    @classmethod
    def of(cls, seed: int, number: int, longest: float) -> Plan:
        """The same for the same seed and number."""
        text = f"{seed}/{number}"
        chance = random.Random(text)
        # A short run has at least one round of the most common kind.
        kind = "plain" if number == 0 else chance.choices(list(KINDS), list(KINDS.values()))[0]
        # A copy of a host is made with its mappings and descriptors, so with few of those it has
        # fewer still; and "spawn" takes a tenth of a second of both cores.
        methods = ["forkserver"] * 12 + ["spawn", "fork"]
        seconds = chance.uniform(1.5, 4)
        return cls(
            seed=text,
            kind=kind,
            seconds=min(seconds, max(longest, 0.5)),
            threads=40 if kind == "forty threads" else chance.randrange(3, 8),
            methods=methods,
            rate=chance.choice([0, 5, 10, 20, 40]),
        )


def limits_of(kind: str) -> dict[str, int]:
    """The resource limits of a host."""
    match kind:
        case "few files":
            return {"RLIMIT_NOFILE": 44}
        case "few processes" if os.geteuid() == 0:
            return {"uid": UNUSED_UID, "RLIMIT_NPROC": 16}
        case "few processes":
            # Without privileges all processes of this user count, those of others with it.
            mine = 0
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    mine += process.num_threads() if process.uids().real == os.getuid() else 0
            return {"RLIMIT_NPROC": mine + 16}
        case "little memory":
            return {"RLIMIT_AS": 600 * MiB}
        case _:
            return {}


class Host:
    """A running host, and its files."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.mark = f"{os.getpid()}-{directory.name}"
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)
        directory.chmod(0o777)
        self.temporary.chmod(0o777)
        self.errors = directory / "stderr"
        config = {"limits": limits_of(kind), "terminates": kind == "exits on SIGTERM"}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                # A fork of a process with threads is what these rounds are about.
                [
                    sys.executable,
                    *("-W", "error", "-W", "ignore::DeprecationWarning"),
                    # As it should in a host with a limit.
                    *("-W", "ignore:killer_pmap runs with:RuntimeWarning"),
                    str(Path(__file__).with_name("host.py")),
                    json.dumps(config),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={
                    **os.environ,
                    MARK_VARIABLE: self.mark,
                    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "stress")]),
                    "TMPDIR": str(self.temporary),
                    "HOME": str(self.temporary),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    # So that what is freed goes back to the system, and growth is what is held.
                    "MALLOC_ARENA_MAX": "1",
                    "MALLOC_MMAP_THRESHOLD_": "131072",
                    "MALLOC_TRIM_THRESHOLD_": "131072",
                },
                cwd=directory,
            )
        # What it reported after each of its rounds.
        self.reports: list[dict[str, Any]] = []
        # It says so when it has started.
        self.report()

    def order(self, order: dict[str, Any]) -> None:
        """Has it do a round."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def report(self) -> dict[str, Any] | None:
        """What it says of the round; nothing if it has ended or does not get done."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ROUND_PATIENCE)[0]:
            self.process.send_signal(signal.SIGUSR1)
            wait_until(lambda: "Current thread" in self.said(), 2)
            return None
        line = self.process.stdout.readline()
        if not line:
            return None
        report: dict[str, Any] = json.loads(line)
        if report:
            self.reports.append(report)
        return report

    def said(self) -> str:
        """Its standard error, the end of it."""
        return self.errors.read_text(encoding="utf-8", errors="replace")[-20_000:]

    def end(self) -> int | None:
        """Closes its input, on which it leaves; its exit code, or nothing if it does not leave."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE * 3)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            wait_until(lambda: "Current thread" in self.said(), 2)
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self.process.stdout.close()

    def relatives(self) -> dict[int, str]:
        """All that it has started and that runs code."""
        return {
            pid: described(pid)
            for pid in pids()
            if pid != self.process.pid and has_mark(pid, self.mark) and not is_being_killed(pid)
        }


def pids() -> Iterator[int]:
    """All processes."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def described(pid: int) -> str:
    """For a message: what it is and who its parent is."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        status, parent, group, session = stat.rpartition(")")[2].split()[:4]
        waits = Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8")
        return f"{status} parent {parent} group {group} session {session} in {waits}"
    except OSError:
        return "gone"


@dataclass(frozen=True)
class Fault:
    """What was done to whom."""

    kind: str
    pid: int
    at: float


@dataclass(frozen=True)
class Start:
    """A line of the journal: a call that began to run."""

    number: int
    pid: int
    server: int
    guard: int
    at: float

    @classmethod
    def parse(cls, line: str) -> Start | None:
        """Nothing for a line that is being written."""
        words = line.split()
        return cls(*map(int, words[:4]), float(words[4])) if len(words) == 5 else None


class Chaos:
    """Who sends the signals."""

    def __init__(self, host: Host, plan: Plan, directory: Path) -> None:
        self.host = host
        self.plan = plan
        self.chance = random.Random(f"{plan.seed}/chaos")
        self.journal = directory / "journal"
        self.faults: list[Fault] = []
        self.sent: Counter[str] = Counter()
        self._read = 0
        self._starts: list[Start] = []
        # Pairs of forkserver and guard of which one was harmed: the other is their only hope.
        self._harmed: set[int] = set()
        self._stopped: list[tuple[float, int]] = []

    def run(self, end: float) -> None:
        """Sends signals until the end, then continues all who were stopped."""
        last = end - 0.1
        deadly = self.plan.kind in FATAL
        if deadly:
            # Some at once, while the first workers are starting.
            last -= self.chance.random() ** 2 * self.plan.seconds
        next_one = time.monotonic() + self._pause(self.plan.rate)
        next_for_host = time.monotonic() + self._pause(8)
        while (now := time.monotonic()) < last:
            self._read_journal()
            if now >= next_one:
                self._strike()
                next_one = now + self._pause(self.plan.rate)
            if now >= next_for_host and not deadly:
                self._strike_host()
                next_for_host = now + self._pause(8)
            self._continue([pid for until, pid in self._stopped if until < now])
            left = min(next_one, next_for_host, last) - time.monotonic()
            time.sleep(min(max(left, 0.0), 0.02))
        if deadly:
            self._send(
                signal.SIGKILL if self.plan.kind == "killed" else signal.SIGTERM,
                self.host.process.pid,
                "host",
            )
        self._continue([pid for _, pid in self._stopped])

    def continue_all(self) -> None:
        """For those that were hit while the above was ending."""
        self._continue([pid for _, pid in self._stopped])

    def _pause(self, rate: float) -> float:
        return self.chance.expovariate(rate) if rate else 1e9

    def _read_journal(self) -> None:
        if not self.journal.exists():
            return
        with self.journal.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        self._starts += filter(None, map(Start.parse, whole.decode().splitlines()))
        del self._starts[:-50]

    def _strike_host(self) -> None:
        pid = self.host.process.pid
        if self.plan.kind == "Ctrl+C":
            self._send(signal.SIGINT, pid, "host")
        elif self.plan.kind == "paused" and self._send(signal.SIGSTOP, pid, "host"):
            time.sleep(self.chance.uniform(0, 0.3))
            os.kill(pid, signal.SIGCONT)

    def _strike(self) -> None:
        if not self._starts:
            return
        recent = self.chance.choice(self._starts[-8:])
        match self.chance.choices(["worker", "any worker", "machinery"], [10, 4, 1])[0]:
            case "worker":
                self._strike_worker(recent.pid)
            case "any worker":
                # Those that are idle or just starting too.
                found = children_of(recent.server)
                if found and recent.server != self.host.process.pid:
                    self._strike_worker(self.chance.choice(found))
            case _:
                self._strike_machinery(recent)

    def _strike_worker(self, pid: int) -> None:
        if pid in {self.host.process.pid, *self._harmed}:
            return
        number = self.chance.choice(
            [signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP]
        )
        self._send(number, pid, "worker")

    def _strike_machinery(self, recent: Start) -> None:
        server, guard = recent.server, recent.guard
        # It may have ended, and its worker have another parent by now.
        is_pair = parent_of(recent.pid) == server and parent_of(server) == guard
        if not is_pair or guard in {0, 1, self.host.process.pid} or {server, guard} & self._harmed:
            return
        self._harmed |= {server, guard}
        name = self.chance.choice(["forkserver", "guard"])
        number = self.chance.choice([signal.SIGKILL, signal.SIGSTOP])
        self._send(number, server if name == "forkserver" else guard, name)

    def _send(self, number: signal.Signals, pid: int, role: str) -> bool:
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            # With the handle, what has the mark now is what gets the signal.
            if not has_mark(pid, self.host.mark) or is_being_killed(pid):
                return False
            self.faults.append(Fault(number.name, pid, time.monotonic()))
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        if number == signal.SIGSTOP and role != "host":
            until = time.monotonic() + self.chance.uniform(0.05, 2)
            self._stopped.append((until, pid))
        self.sent[f"{number.name} to a {role}"] += 1
        return True

    def _continue(self, stopped: list[int]) -> None:
        for pid in stopped:
            if has_mark(pid, self.host.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self._stopped = [(until, pid) for until, pid in self._stopped if pid not in stopped]


@dataclass
class Record:
    """What the files of a round say."""

    begins: list[dict[str, Any]] = field(default_factory=list)
    ends: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[int, list[Start]] = field(default_factory=lambda: defaultdict(list))
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path, faults: list[Fault]) -> Record:
        """Reads them."""
        record = cls(faults=list(faults))
        for line in lines(directory / "calls"):
            entry = json.loads(line)
            if "begins" in entry:
                record.begins.append(entry)
            else:
                record.ends[entry["ends"]].append(entry)
        for line in lines(directory / "journal"):
            start = Start.parse(line)
            if start is not None:
                record.starts[start.number].append(start)
        for line in lines(directory / "faults"):
            kind, pid, at = line.split()
            record.faults.append(Fault(kind, int(pid), float(at)))
        return record

    def killed_at_start(self, end: dict[str, Any]) -> int:
        """How many workers were killed before they had begun any call, while this one waited."""
        began: dict[int, float] = {}
        for starts in self.starts.values():
            for start in starts:
                began[start.pid] = min(start.at, began.get(start.pid, start.at))
        return len(
            {
                fault.pid
                for fault in self.faults
                if fault.kind in {"SIGKILL", "SIGSEGV", "SIGTERM"}
                and end["began"] < fault.at < end["at"]
                and not began.get(fault.pid, fault.at) < fault.at
            }
        )

    def machinery(self, starts: list[Start]) -> set[int]:
        """
        Forkservers and guards of these calls.

        A call that began after the death of its guard names another in its place, so what others
        have seen counts too.
        """
        servers = {start.server for start in starts}
        all_starts = (start for starts in self.starts.values() for start in starts)
        return servers | {start.guard for start in all_starts if start.server in servers}


class Round:
    """One round and its checks."""

    def __init__(self, plan: Plan, host: Host, directory: Path, tally: Tally) -> None:
        self.plan = plan
        self.host = host
        self.directory = directory
        self.tally = tally
        self.chaos = Chaos(host, plan, directory)
        self.wrong: list[str] = []

    def run(self) -> list[str]:
        """Runs it; returns all that was wrong."""
        self.directory.mkdir()
        self.directory.chmod(0o777)
        began = time.monotonic()
        end = began + self.plan.seconds
        self.host.order(
            {
                "seed": self.plan.seed,
                "directory": str(self.directory),
                "threads": self.plan.threads,
                "methods": self.plan.methods,
                "end": end,
                "forks": self.plan.kind == "forks",
                "interrupts": self.plan.kind == "Ctrl+C",
            }
        )
        self.chaos.run(end)
        report = self._end_of_host() if self.plan.kind in FATAL else self._report()
        record = Record.of(self.directory, self.chaos.faults)
        self._check_processes()
        self._check_calls(record, report)
        self._check_said()
        if report is not None:
            self._check_report(report)
        self._count(record)
        return self.wrong

    def _report(self) -> dict[str, Any] | None:
        report = self.host.report()
        if report is None:
            status = self.host.process.poll()
            what = f"ended with {status}" if status is not None else "did not get done"
            self.wrong.append(f"the host {what}; it said:\n{self.host.said()}")
        return report

    def _end_of_host(self) -> None:
        """A host that was killed is gone, and with the status that belongs to it."""
        expected = {"killed": -9, "terminated": -15, "exits on SIGTERM": 7}[self.plan.kind]
        status = self.host.end()
        if status != expected:
            said = self.host.said()
            self.wrong.append(f"the host ended with {status}, not {expected}; it said:\n{said}")

    def _check_processes(self) -> None:
        if wait_until(lambda: not self.host.relatives(), PATIENCE):
            left: dict[int, str] = {}
        else:
            left = self.host.relatives()
        self._left("processes", left)
        for pid in left:
            # So that only this round fails. They have the mark, so they are ours.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        def zombies() -> list[int]:
            # Orphans are init's to reap, and how long it takes is its affair.
            return [
                pid
                for pid in pids()
                if described(pid).startswith("Z")
                and (
                    parent_of(pid) == self.host.process.pid
                    or has_mark(parent_of(pid), self.host.mark)
                )
            ]

        wait_until(lambda: not zombies(), PATIENCE)
        self._left("zombies", zombies())
        self._left("temp files", [str(path) for path in self.host.temporary.rglob("*")])
        shared = [name for name in os.listdir("/dev/shm") if name.startswith(("kc.", "killercall"))]
        self._left("shm segments", shared)

    def _check_report(self, report: dict[str, Any]) -> None:
        first = self.host.reports[0]
        self.wrong += report["wrong"]
        self._left("threads", ["thread"] * (report["threads"] - 1))
        fds = {fd: to for fd, to in report["fds"].items() if fd not in first["fds"]}
        self._left("fds", fds if len(report["fds"]) > len(first["fds"]) else {})
        ours = [to for to in report["fds"].values() if "killercall" in to or "timerfd" in to]
        self._left("fds", ours)
        self._left("shm segments", ["memfd"] * report["segments"])

    def _left(self, what: str, left: Any) -> None:
        if left:
            self.tally.left[what] += len(left)
            self.wrong.append(f"{len(left)} {what} left: {left}")

    def _check_said(self) -> None:
        said = self.host.said()
        for sign in ("panicked at", "Fatal Python error"):
            if sign in said:
                self.wrong.append(f"somebody said:\n{said}")
                self.host.errors.write_text("", encoding="utf-8")
                return

    def _check_calls(self, record: Record, report: dict[str, Any] | None) -> None:
        begun = {entry["begins"]: entry for entry in record.begins}
        for number, entry in begun.items():
            ends = record.ends.get(number, [])
            if len(ends) != 1 and not (not ends and self._may_be_unfinished(number, report)):
                self.tally.wrong += 1
                self.wrong.append(f"{entry} ended {len(ends)} times")
            for end in ends[:1]:
                self._check_ending(entry, end, record)
        for number, starts in record.starts.items():
            if len(starts) > 1:
                self.tally.twice += 1
                self.wrong.append(f"{begun.get(number)} ran {len(starts)} times: {starts}")

    def _may_be_unfinished(self, number: int, report: dict[str, Any] | None) -> bool:
        """The host is dead, or Ctrl+C came just before it could write."""
        return report is None or (self.plan.kind == "Ctrl+C" and number < 1_000_000)

    def _check_ending(self, entry: dict[str, Any], end: dict[str, Any], record: Record) -> None:
        number, how = entry["begins"], entry["how"]
        starts = record.starts.get(number, [])
        problems = []
        right = self._right(entry, end, starts, record)
        if not any(fnmatch.fnmatch(end["ending"], pattern) for pattern in right):
            problems.append(f"may end with {sorted(right)}")
        if end["ending"] in {"returned", "ValueError"} and not starts:
            problems.append("never ran")
        pid = end.get("pid")
        if starts and pid is not None and pid != starts[0].pid:
            problems.append(f"ran in {starts[0].pid}")
        if end.get("survivors"):
            problems.append(f"left {end['survivors']} running")
        if problems:
            self.tally.wrong += 1
            about = {
                pid,
                *(of for start in starts for of in (start.pid, start.server, start.guard)),
            }
            met = [fault for fault in record.faults if fault.pid in about]
            self.wrong.append(f"{how}: {problems}\n  {entry}\n  {end}\n  {starts}\n  {met}")
        self._time(entry, end, starts, record)

    def _right(
        self, entry: dict[str, Any], end: dict[str, Any], starts: list[Start], record: Record
    ) -> set[str]:
        """How a call may have ended, with all that was done to it."""
        right = set(BEHAVIOURS[entry["how"]].endings)
        right.update(OF_LIMIT.get(self.plan.kind, ()))
        if self.plan.kind == "Ctrl+C" and entry["begins"] < 1_000_000:
            right.add("KeyboardInterrupt")
        if self.plan.kind == "exits on SIGTERM":
            # The end of the interpreter ends the calls of daemon threads, quietly.
            right.update(("WorkerDied None", "WorkerStartError", "RuntimeError", "SystemExit"))
        if record.killed_at_start(end) >= START_ATTEMPTS:
            right.add("WorkerStartError")
        workers = {start.pid for start in starts} | {end.get("pid")}
        machinery = record.machinery(starts)
        for fault in record.faults:
            if fault.at > end["at"]:
                continue
            if fault.pid in workers:
                right.update(OF_WORKER.get(fault.kind, ()))
            elif fault.pid in machinery or (not machinery and fault.at > end["began"] - 3):
                # Of a call that did not run it is not known who was to run it.
                right.update(OF_MACHINERY.get(fault.kind, ()))
        return right

    def _time(
        self, entry: dict[str, Any], end: dict[str, Any], starts: list[Start], record: Record
    ) -> None:
        """How long after its deadline a call was answered, by the clock of the function's start."""
        if end["ending"] != "TimeoutError" or not starts or "cpus" in entry:
            return
        if self.plan.kind == "paused":
            return
        late = end["at"] - starts[0].at - entry["timeout"]
        machinery = record.machinery(starts)
        if any(fault.pid in machinery for fault in record.faults):
            slowest = max(self.tally.late_with_machinery_stopped, late)
            self.tally.late_with_machinery_stopped = slowest
        else:
            self.tally.late = max(self.tally.late, late)
        if late > PATIENCE / 2:
            self.wrong.append(f"answered {late:.1f} s after its deadline: {entry}")

    def _count(self, record: Record) -> None:
        tally = self.tally
        tally.rounds[self.plan.kind] += 1
        tally.faults.update(self.chaos.sent)
        for entry in record.begins:
            behaviour = BEHAVIOURS[entry["how"]]
            if behaviour.fault and entry["begins"] in record.starts:
                tally.faults[f"call does {entry['how']}"] += 1
            for end in record.ends.get(entry["begins"], [])[:1]:
                tally.endings[end["ending"]] += 1
                if "cpus" in entry:
                    tally.items += 1
                else:
                    tally.calls += 1


class Run:
    """All rounds, with the hosts that live through several of them."""

    def __init__(self, directory: Path, seed: int, tally: Tally = TALLY) -> None:
        self.directory = directory
        self.seed = seed
        self.tally = tally
        tally.seed = seed
        self._hosts: dict[str, Host] = {}
        # The user of some hosts must be able to write here.
        for parent in (directory, *directory.parents):
            if parent.owner() == directory.owner() and parent != Path(parent.anchor):
                with contextlib.suppress(OSError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        directory.chmod(0o777)

    def round(self, number: int, longest: float) -> list[str]:
        """Runs one round; returns all that was wrong."""
        plan = Plan.of(self.seed, number, longest)
        host = self._hosts.get(plan.kind)
        if host is None:
            host = Host(plan.kind, self.directory / f"host-{number}")
            self._hosts[plan.kind] = host
        wrong = Round(plan, host, self.directory / f"round-{number}", self.tally).run()
        if plan.kind in FATAL or host.process.poll() is not None or wrong:
            del self._hosts[plan.kind]
            host.end()
        return [f"seed {self.seed}, round {number} ({plan.kind}): {what}" for what in wrong]

    def end(self) -> list[str]:
        """Ends all hosts; returns what was wrong."""
        wrong = []
        for kind, host in self._hosts.items():
            status = host.end()
            if status != 0:
                wrong.append(f"host {kind!r} ended with {status}; it said:\n{host.said()}")
            if not wait_until(lambda host=host: not host.relatives(), PATIENCE):
                wrong.append(f"host {kind!r} left {host.relatives()}")
            wrong += self._measure_growth(kind, host)
        return wrong

    def _measure_growth(self, kind: str, host: Host) -> list[str]:
        sizes = [report["rss"] for report in host.reports]
        if len(sizes) <= WARM_UP:
            return []
        growth = self.tally.growth[kind] = sizes[-1] - sizes[max(WARM_UP, len(sizes) // 2) - 1]
        return [f"host {kind!r} grew: {sizes}"] if growth > MOST_GROWTH else []


def repeat(run: Run, seconds: float, only: list[int], warn: Callable[[str], None]) -> list[str]:
    """Rounds until the time is over, or those named, or too much has gone wrong."""
    began = time.monotonic()
    wrong: list[str] = []
    numbers = iter(only) if only else iter(range(10**9))
    for number in numbers:
        left = began + seconds - time.monotonic()
        if len(wrong) >= MOST_WRONG or (left <= 0 and not only):
            break
        found = run.round(number, 2.5 if only else left)
        for what in found:
            warn(what)
        wrong += found
        run.tally.seconds = time.monotonic() - began
        warn(f"round {number}, {run.tally.seconds:.1f} s")
        if number % SHOWN_EVERY == SHOWN_EVERY - 1:
            warn("so far\n" + "\n".join(run.tally.table()))
    wrong += run.end()
    run.tally.seconds = time.monotonic() - began
    return wrong
