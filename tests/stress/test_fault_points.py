"""
A process dies, stops or stalls at every step of the protocol, and the promises hold.

`docs/design.md` lists the steps and what is promised at each; `PLAN` says it for each moment.
Seeded and timed: `KILLERCALL_STRESS_SEED=<n>` replays the order of one run. With
`KILLERCALL_STRESS_SECONDS` of 120 or more all cases are walked, otherwise as many as fit into twice
that time, but at least one of each step. `KILLERCALL_FAULT_ONLY=<part of a case's name>` picks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from processes import TESTS, is_running, lines, wait_until

SECONDS = float(os.environ.get("KILLERCALL_STRESS_SECONDS", "1"))
SEED = int(os.environ.get("KILLERCALL_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(32)
ONLY = os.environ.get("KILLERCALL_FAULT_ONLY", "")
BUILD = TESTS.parent / "build" / "faults"
HOST = Path(__file__).parent / "fault_host.py"

# Cases at the same time; most of them wait most of the time.
AT_ONCE = 5
# Far more than a whole case takes.
CASE_LIMIT = 60.0
# A stopped host is let go on after this.
STOPPED_FOR = 0.7
# What one call may take: its timeout or start limit (4 s), and the end of a forkserver that does
# not answer.
CALL_LIMIT = 12.0

# Who is ended in time never reaches its step: the interpreter that has forked the guard is killed if
# a worker is there before it has left.
ATTEMPTS = 3
MISSED = "the fault did not strike"

ACTIONS = ("die", "stop", "stall")
METHODS = ("forkserver", "spawn", "fork")


@dataclasses.dataclass(frozen=True)
class Allowed:
    """
    The errors that calls may end with, beside the right value.

    A stall may never do anything, and neither may a host that was stopped and goes on.
    """

    die: frozenset[str] = frozenset()
    stop: frozenset[str] = frozenset()
    # The first call after the one in which a worker was stopped.
    next_call: frozenset[str] = frozenset()


DIED = frozenset({"WorkerDied"})
LATE = frozenset({"TimeoutError"})
NOT_STARTED = frozenset({"WorkerStartError"})

# Nobody's call is harmed: the work goes to another worker, or whoever was stopped is told to go on.
RIGHT = Allowed()
# The guard dies when a worker may have got a call already, or the forkserver during a map.
TAKEN_ALONG = Allowed(die=DIED)
# Another worker is started for one that dies; one that is stopped is told to go on.
STARTING = Allowed()
# The call that runs.
BUSY = Allowed(die=DIED, stop=LATE)
# A worker that is stopped when idle is found out by the call that it gets next.
IDLE = Allowed(stop=LATE, next_call=LATE)

# For each step the moments at which the fault is armed (see `arm` in the host), and what it may do.
PLAN: dict[str, dict[str, Allowed]] = {
    "HostLaunches": {"start": RIGHT},
    "HostAsks": {"start": RIGHT, "map": RIGHT},
    "HostAsked": {"start": RIGHT, "map": RIGHT},
    "HostFileSent": {"call": RIGHT},
    "HostHeaderWritten": {"start": RIGHT, "call": RIGHT, "map": RIGHT},
    "HostRequestWritten": {"start": RIGHT, "call": RIGHT, "map": RIGHT},
    "HostHanded": {"start": RIGHT, "call": RIGHT, "map": RIGHT},
    "HostAnswerSeen": {"start": RIGHT, "call": RIGHT, "map": RIGHT},
    "HostKills": {"late": RIGHT},
    "HostKilled": {"late": RIGHT},
    "HostHalfClosed": {"end": RIGHT},
    "GuardUnborn": {"start": RIGHT},
    "GuardBorn": {"start": RIGHT},
    "GuardForked": {"start": RIGHT},
    "GuardUnknown": {"start": TAKEN_ALONG},
    "GuardIntroduced": {"start": TAKEN_ALONG},
    "GuardSweeps": {"end": RIGHT},
    "ServerUp": {"start": RIGHT},
    "ServerCommanded": {"start": RIGHT, "late": TAKEN_ALONG, "map": TAKEN_ALONG},
    "ServerForks": {"start": RIGHT, "map": TAKEN_ALONG},
    "ServerForked": {"start": RIGHT, "map": TAKEN_ALONG},
    "ServerTold": {"start": RIGHT, "map": TAKEN_ALONG},
    "ServerKills": {"late": RIGHT},
    "ServerKilled": {"late": RIGHT},
    "ServerReaped": {"late": RIGHT},
    "ServerSweeps": {"guard": RIGHT},
    "WorkerForked": {"start": STARTING, "map": STARTING},
    "WorkerLeads": {"start": STARTING},
    "WorkerOpens": {"start": STARTING},
    "WorkerSetupClaimed": {"start": STARTING, "map": STARTING},
    "WorkerSetUp": {"start": STARTING},
    "WorkerClaimed": {"call": BUSY, "map": BUSY},
    "WorkerRan": {"call": BUSY, "map": BUSY},
    "WorkerFileSent": {"call": BUSY},
    "WorkerHeaderHalf": {"start": STARTING, "call": BUSY, "map": BUSY},
    "WorkerBodyHalf": {"start": STARTING, "call": BUSY, "map": BUSY},
    "WorkerAnswerWritten": {"start": STARTING, "call": BUSY, "map": BUSY},
    "WorkerPublished": {"start": IDLE, "call": IDLE, "map": IDLE},
    "WorkerAnswered": {"start": IDLE, "call": IDLE, "map": IDLE},
    "WorkerSleeps": {"call": IDLE, "map": IDLE},
    "WorkerDumps": {"late": RIGHT},
    "WorkerIdle": {"idle": IDLE},
    "WorkerRetired": {"idle": RIGHT},
}

# With these methods a step or a moment does not occur.
ABSENT = {
    # A copy of the host is made for each call: it is no interpreter that is launched, arguments are
    # not sent, and idle workers are not kept.
    "fork": {
        "HostLaunches",
        "HostFileSent",
        "GuardBorn",
        "WorkerIdle",
        "WorkerRetired",
        "ServerSweeps",
        "WorkerSleeps",
    },
    "forkserver": set(),
    "spawn": set(),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One fault."""

    step: str
    action: str
    moment: str
    method: str

    def __str__(self) -> str:
        return f"{self.step}-{self.action}-{self.moment}-{self.method}"

    @property
    def in_host(self) -> bool:
        """Whether it is the host that it strikes."""
        return self.step.startswith("Host")

    def allowed(self, entry: int) -> frozenset[str]:
        """What the calls of an entry may end with: 0 is that in which it struck, 1 the next."""
        plan = PLAN[self.step][self.moment]
        if self.action == "stop":
            return (plan.stop, plan.next_call)[entry]
        if self.action == "stall" or entry > 0:
            return frozenset()
        # There is no second copy of the host for the same call.
        last = self.method == "fork" and self.step.startswith(("Guard", "Server"))
        return plan.die | NOT_STARTED if last else plan.die


def all_cases() -> list[Case]:
    """
    Every step, moment and action with the forkserver.

    With the other methods every step at its first moment, with one action by the seed, or with all
    of them if there is a lot of time.
    """
    chance = random.Random(SEED)
    return [
        Case(step, action, moment, method)
        for step, plan in PLAN.items()
        for method in METHODS
        if step not in ABSENT[method]
        for moment in list(plan)[: None if method == "forkserver" else 1]
        for action in (
            ACTIONS if method == "forkserver" or SECONDS >= 600 else chance.sample(ACTIONS, 1)
        )
    ]


def chosen_cases() -> list[Case]:
    """In random order, but so that each step comes once before any comes again."""
    chance = random.Random(SEED + 1)
    cases = [case for case in all_cases() if ONLY in str(case)]
    chance.shuffle(cases)
    seen: Counter[str] = Counter()
    rank = {}
    for case in cases:
        rank[case] = seen[case.step]
        seen[case.step] += 1
    return sorted(cases, key=rank.__getitem__)


@dataclasses.dataclass
class Walked:
    """What became of a case."""

    case: Case
    problems: list[str]
    slowest: float
    seconds: float
    endings: list[str]


def walk(case: Case, directory: Path) -> Walked:
    """Runs one case and judges it."""
    directory.mkdir()
    token, ran, report = directory / "token", directory / "ran", directory / "report"
    fault = f"{case.step}:{case.action}:{token}"
    begin = time.monotonic()
    problems: list[str] = []
    with (directory / "output").open("w", encoding="utf-8") as output:
        host = subprocess.Popen(
            [
                sys.executable,
                str(HOST),
                case.method,
                case.moment,
                str(token),
                str(ran),
                str(report),
            ],
            env={**os.environ, "PYTHONPATH": str(BUILD), "KILLERCALL_FAULT": fault},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        if case.in_host and case.action == "stop":
            continue_when_stopped(host)
        status: int | None = host.wait(CASE_LIMIT)
    except subprocess.TimeoutExpired:
        status = None
        problems.append(f"the host did not end: {marked(fault)}")
        host.kill()
        host.wait()
    if not wait_until(lambda: not marked(fault), 5):
        problems.append(f"left behind: {marked(fault)}")
        for pid in marked(fault):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    entries = [json.loads(line) for line in lines(report)]
    problems += judge(case, status, entries)
    if not Path(f"{token}.fired").exists():
        problems.append(MISSED)
    twice = {number: times for number, times in Counter(lines(ran)).items() if times > 1}
    if twice:
        problems.append(f"ran more than once: {twice}")
    said = (directory / "output").read_text(encoding="utf-8")
    if "Traceback" in said or "panicked" in said:
        problems.append(f"said: {said[-2000:]}")
    calls = [entry for entry in entries if entry["what"] != "left"]
    unusual = [
        f"{entry['what']}: {kind}"
        for entry in calls
        for kind in entry["endings"]
        if kind != "right" and (entry["what"], kind) != ("late", "TimeoutError")
    ]
    slowest = max((entry["seconds"] for entry in calls), default=0.0)
    return Walked(case, problems, slowest, time.monotonic() - begin, unusual)


def continue_when_stopped(host: subprocess.Popen[bytes]) -> None:
    """As whoever has stopped it would do in the end."""
    stopped = psutil.Process(host.pid)
    with_fault = wait_until(
        lambda: host.poll() is not None or stopped.status() == psutil.STATUS_STOPPED, CASE_LIMIT
    )
    if with_fault and host.poll() is None:
        threading.Event().wait(STOPPED_FOR)
        host.send_signal(signal.SIGCONT)


def marked(fault: str) -> dict[int, str]:
    """All processes of a case that run: they have its fault in their environment."""
    found = {}
    for name in os.listdir("/proc"):
        # It may end between one look and the next.
        with contextlib.suppress(ValueError, OSError):
            environment = Path(f"/proc/{int(name)}/environ").read_bytes()
            if fault.encode() in environment and is_running(int(name)):
                status = Path(f"/proc/{name}/status").read_text(encoding="utf-8")
                found[int(name)] = " ".join(re.findall(r"(?m)^(?:State|PPid):\s*(.*)$", status))
    return found


def judge(case: Case, status: int | None, entries: list[dict]) -> list[str]:
    """Compares what the host wrote with what the step promises."""
    problems = []
    killed = case.in_host and case.action == "die"
    if status is not None and status != (-signal.SIGKILL if killed else 0):
        problems.append(f"the host ended with {status}")
    since = -1
    # On a busy machine a process may be pushed aside between the mark that the fault strikes and its
    # death: until then its workers serve, and one later call goes down with it.
    may_die_late = (
        case.action == "die"
        and case.moment == "start"
        and case.step.startswith(("Guard", "Server"))
    )
    for entry in entries:
        if entry["what"] == "left":
            if entry["fds"] > 0 or entry["children"]:
                problems.append(f"left in the host: {entry}")
            continue
        # The fault struck in the first entry that saw it fired.
        since += entry["fired"]
        allowed = case.allowed(since) if since in {0, 1} else frozenset()
        if since >= 0 and may_die_late:
            allowed |= DIED
            may_die_late = "WorkerDied" not in entry["endings"]
        right = {"TimeoutError"} if entry["what"] == "late" else {"right"}
        wrong = [kind for kind in entry["endings"] if kind not in right]
        # A map has no more calls in flight than workers.
        if any(kind not in allowed for kind in wrong) or len(wrong) > 2:
            problems.append(f"{entry['what']}: {Counter(entry['endings'])} {entry['message']}")
        if entry["seconds"] > CALL_LIMIT:
            problems.append(f"{entry['what']} took {entry['seconds']:.1f}s")
    if not killed and (not entries or entries[-1]["what"] != "left"):
        problems.append(f"the host came only as far as {entries[-1:]}")
    return problems


def step_names() -> list[str]:
    """The steps that the build has."""
    assert BUILD.exists(), "make build/faults/.built makes the build that this needs"
    command = "from killercall import _core; print(*_core.FAULT_STEPS)"
    found = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": str(BUILD)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_every_step_has_a_plan_and_a_line_in_the_design() -> None:
    """So that no step is forgotten here or there."""
    names = step_names()
    assert names == list(PLAN)
    design = (TESTS.parent / "docs" / "design.md").read_text(encoding="utf-8")
    assert names == re.findall(r"(?m)^\| `((?:Host|Guard|Server|Worker)\w+)` \|", design)


@pytest.mark.timeout(900)
def test_fault_at_every_step(tmp_path: Path) -> None:
    """Every call ends as its step promises, the next ones work, and nothing is left."""
    end = time.monotonic() + (float("inf") if SECONDS >= 120 or ONLY else 2 * SECONDS)
    cases = chosen_cases()
    first = {case.step for case in cases}
    must = len(first)

    def run(number: int, case: Case) -> Walked | None:
        if number >= must and time.monotonic() > end:
            return None
        for attempt in range(ATTEMPTS):
            walked = walk(case, tmp_path / f"{case}-{attempt}")
            if MISSED not in walked.problems:
                break
        return walked

    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(threads.map(run, range(len(cases)), cases))
    walked = [one for one in found if one is not None]
    print(f"\nseed {SEED}: {len(walked)} of {len(cases)} cases")
    for one in sorted(walked, key=lambda one: list(PLAN).index(one.case.step)):
        what = "; ".join(one.problems) or "ok"
        unusual = dict(Counter(one.endings)) or ""
        print(f"{one.case!s:<48} {one.slowest:6.2f}s {one.seconds:6.2f}s {unusual} {what}")
    assert {} == {str(one.case): one.problems for one in walked if one.problems}
