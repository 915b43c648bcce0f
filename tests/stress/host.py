"""
A host of a stress run: a process that makes calls of all kinds and says how each ended.

Run as `python host.py CONFIG`, with orders on standard input and reports on standard output, a line
of JSON each. How each call began and ended goes to the file `calls` in the directory of the round,
because a host may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import behaviours
from behaviours import BEHAVIOURS, Behaviour, right_value

if TYPE_CHECKING:
    from collections.abc import Callable

# What ends by itself has a deadline that only a deadlock misses; more than a round's length, so
# that what a stopped process holds up goes on when it is continued.
QUICK_TIMEOUT = 20.0
# A worker that has not been set up by then is stuck.
START_LIMIT = 25.0


def limit_this_process(limits: dict[str, int]) -> bool:
    """Sets resource limits; true if there were any, and this program must be run anew."""
    for name, value in limits.items():
        if name == "uid":
            become_unprivileged(value)
        else:
            number = getattr(resource, name)
            resource.setrlimit(number, (value, value))
    return bool(limits)


def become_unprivileged(uid: int) -> None:
    """
    Changes the user, so that limits of processes count, but keeps the right to read all files.

    The interpreter may be in a directory that is only root's.
    """
    set_keepcaps, ambient, ambient_raise, dac_override = 8, 47, 2, 1
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "keeping a capability")

    check(libc.prctl(set_keepcaps, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    only = 1 << dac_override
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)
    check(libc.capset(header, data))
    check(libc.prctl(ambient, ambient_raise, dac_override, 0, 0))


if __name__ == "__main__":
    config = json.loads(sys.argv[1])
    if limit_this_process(config.pop("limits", {})):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-1], json.dumps(config)])

# All that is used is imported here: a thread that imports while another one forks would leave the copy
# with a lock that nobody gives back.
from killercall import (  # noqa: E402
    KillerError,
    WorkerDied,
    WorkerStartError,
    _host,
    killer_call,
    killer_pmap,
    shutdown,
)
from processes import is_running, thread_count, wait_until  # noqa: E402


def ending_of(error: BaseException) -> str:
    """How a call ended, in the words of `Behaviour.endings`."""
    if isinstance(error, WorkerDied):
        if "could not be understood" in str(error):
            return "WorkerDied nonsense"
        return f"WorkerDied {error.exitcode}"
    return type(error).__name__


class Log:
    """The file `calls`: what began and what ended."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(f"{directory}/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, records: list[dict[str, Any]]) -> None:
        """Appends the records in one write."""
        os.write(self._fd, "".join(f"{json.dumps(record)}\n" for record in records).encode())

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._fd)


class Mixer:
    """One thread's calls and maps in random order."""

    def __init__(self, order: dict[str, Any], index: int, log: Log) -> None:
        self.chance = random.Random(f"{order['seed']}/{index}")
        self.directory: str = order["directory"]
        self.methods: list[str] = order["methods"]
        self.index = index
        self.numbers = iter(range(index * 1_000_000, (index + 1) * 1_000_000))
        self.log = log

    def run(self, end: float) -> None:
        """Calls and maps until the end."""
        while time.monotonic() < end:
            if self.chance.random() < 0.75:
                self.call()
            else:
                self.map()

    def _choose(self, weight: Callable[[Behaviour], int], method: str, *, quick: bool) -> str:
        fits = {
            name: weight(behaviour)
            for name, behaviour in BEHAVIOURS.items()
            if not (quick and not behaviour.quick)
            and not (method == "fork" and behaviour.needs_own_memory)
        }
        return self.chance.choices(list(fits), list(fits.values()))[0]

    def _options(self) -> dict[str, Any]:
        method = self.chance.choice(self.methods)
        return {"start_method": method, "reuse": self.chance.choice([True, True, True, False, 3])}

    def call(self) -> None:
        """One call of any kind."""
        options = self._options()
        how = self._choose(lambda behaviour: behaviour.calls, options["start_method"], quick=False)
        number, behaviour = next(self.numbers), BEHAVIOURS[how]
        timeout = QUICK_TIMEOUT if behaviour.quick else self.chance.uniform(0.02, 0.3)
        if how.startswith("exceed_memory"):
            options["max_memory"] = behaviours.MAX_MEMORY
        function = killer_call(behaviours.work, timeout=timeout, **options)
        self._begin([(number, how)], timeout=timeout, **options)
        began = time.monotonic()
        try:
            value = function(self.directory, number, how)
        except BaseException as error:
            self._end([self._ended(number, how, error, began)])
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._end([self._ended(number, how, value, began)])

    def map(self) -> None:
        """One map whose items end in any way."""
        options = self._options()
        # With "spawn", a new worker takes a tenth of a second of a core.
        spawns = options["start_method"] == "spawn"
        count = self.chance.randrange(1, 6 if spawns else 20)
        # One that is late holds its worker up for the whole of a deadline that all items share.
        late = self.chance.random() < 0.04
        hows = [
            self._choose(lambda behaviour: behaviour.items, options["start_method"], quick=True)
            for _ in range(count)
        ]
        if late:
            hows[self.chance.randrange(count)] = self.chance.choice(["hang", "stop_itself", "loop"])
        items = [(next(self.numbers), how) for how in hows]
        timeout = 3.0 if late else QUICK_TIMEOUT
        directory = self.directory
        cpus = self.chance.randrange(1, 5)
        self._begin(items, timeout=timeout, cpus=cpus, **options)
        began = time.monotonic()
        try:
            results = killer_pmap(
                # A function of the main module, to travel by value.
                lambda item: behaviours.work(directory, *item),
                items,
                cpus=cpus,
                timeout=timeout,
                on_timeout="return",
                on_error="return",
                **options,
            )
        except BaseException as error:
            self._end([self._ended(number, how, error, began) for number, how in items])
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._end(
                [
                    self._ended(number, how, result, began)
                    for (number, how), result in zip(items, results, strict=True)
                ]
            )

    def _begin(self, items: list[tuple[int, str]], **how: Any) -> None:
        at = time.monotonic()
        self.log.write([{"begins": number, "how": name, "at": at, **how} for number, name in items])

    def _end(self, records: list[dict[str, Any]]) -> None:
        self.log.write(records)

    def _ended(self, number: int, how: str, result: Any, began: float) -> dict[str, Any]:
        at = time.monotonic()
        record: dict[str, Any] = {"ends": number, "began": began, "at": at, "text": ""}
        if isinstance(result, BaseException):
            record["ending"] = ending_of(result)
            record["text"] = "".join(traceback.format_exception(result))[-2000:]
            record["pid"] = getattr(result, "pid", None)
            if isinstance(result, WorkerStartError):
                record["errno"] = result.errno
            if isinstance(result, KillerError):
                record["survivors"] = self._survivors(number)
        elif result == right_value(how, number):
            record["ending"] = "returned"
        else:
            record["ending"] = "returned something else"
            record["text"] = repr(result)[:200]
        return record

    def _survivors(self, number: int) -> list[int]:
        """Descendants of a call that has ended badly which still run code."""
        path = Path(f"{self.directory}/tree-{number}")
        if not path.exists():
            return []
        return [pid for pid in map(int, path.read_text().split()) if is_running(pid)]


class Forker:
    """Forks the host while calls are running; every other copy makes a call of its own."""

    def __init__(self, order: dict[str, Any], log: Log) -> None:
        self.chance = random.Random(f"{order['seed']}/forker")
        self.order = order
        self.log = log
        self.forks = 0
        self.wrong: list[str] = []

    def run(self, end: float) -> None:
        """Forks until the end."""
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.02, 0.3))
            self.forks += 1
            calls = self.forks % 2 == 0
            pid = os.fork()
            if pid == 0:
                self._copy(self.forks, calls=calls)
            self._wait(pid)

    def _copy(self, count: int, *, calls: bool) -> None:
        status = 1
        try:
            if calls:
                mixer = Mixer({**self.order, "methods": ["forkserver"]}, 500 + count, self.log)
                mixer.call()
            status = 0
        finally:
            os._exit(status)

    def _wait(self, pid: int) -> None:
        limit = time.monotonic() + 2 * QUICK_TIMEOUT
        while time.monotonic() < limit:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                if status:
                    self.wrong.append(f"forked copy {pid} of the host ended with status {status}")
                return
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.wrong.append(f"forked copy {pid} of the host hung")


def mix(order: dict[str, Any]) -> dict[str, Any]:
    """One round: mixers in threads, and one in this thread if it is to be interrupted."""
    log = Log(order["directory"])
    mixers = [Mixer(order, index, log) for index in range(1, order["threads"] + 1)]
    forker = Forker(order, log)
    end = order["end"]
    jobs: list[Callable[[float], None]] = [mixer.run for mixer in mixers]
    if order["forks"]:
        jobs.append(forker.run)
    threads = [threading.Thread(target=job, args=(end,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    interrupts = 0
    if order["interrupts"]:
        interrupts = mix_interrupted(Mixer(order, 0, log), end)
    for thread in threads:
        thread.join()
    shutdown()
    gc.collect()
    log.close()
    # A thread that was joined is Python's no more, but for a moment still the kernel's.
    wait_until(lambda: thread_count() == 1, 5)
    return {
        "interrupts": interrupts,
        "forks": forker.forks,
        "wrong": forker.wrong,
        "threads": thread_count(),
        "fds": open_files(),
        "segments": Path("/proc/self/maps").read_text().count("memfd:killercall"),
        "rss": resident(),
    }


def mix_interrupted(mixer: Mixer, end: float) -> int:
    """Mixes in the main thread; each Ctrl+C ends what it does at that moment, and that alone."""
    interrupts = 0
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            try:
                mixer.run(end)
            finally:
                # Those that come late are nobody's.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            break
        except KeyboardInterrupt:
            interrupts += 1
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGINT, before)
    return interrupts


def open_files() -> dict[str, str]:
    """The descriptors of this process and what they lead to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Serves rounds until standard input ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if config.get("terminates"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    _host.START_LIMIT = START_LIMIT
    # What the first call imports and opens for good is no leak.
    with contextlib.suppress(KillerError):
        killer_call(abs, timeout=QUICK_TIMEOUT)(-1)
    shutdown()
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(mix(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
