"""
Functions that behave badly, each in one way, for workers to run.

They are imported in workers, under the deadline of the call, so this module imports little.
Those that take a `path` record there who takes part: see `note`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

from killercall import publish

# Longer than any test takes: whoever sleeps so long is killed or has escaped.
FOREVER = 600.0


def publish_and_hang(*values: Any) -> None:
    """Each of them, then nothing more."""
    for value in values:
        publish(value)
    time.sleep(FOREVER)


def publish_sometimes(x: int) -> int:
    """The odd ones do; 3 has nothing to say before."""
    if x != 3:
        publish(-x)
    if x % 2:
        time.sleep(FOREVER)
    return x


def count_beside(path: str) -> int:
    """How many of these run at a time, by what each leaves in a directory while it does."""
    mark = os.path.join(path, str(os.getpid()))
    append(mark, "here")
    time.sleep(0.05)
    beside = len(os.listdir(path))
    os.remove(mark)
    return beside


def note(path: str, role: str = "worker", pid: int | None = None) -> None:
    """Appends `role pid` to the file, in one write."""
    append(path, f"{role} {os.getpid() if pid is None else pid}")


def append(path: str, line: str) -> None:
    """Appends a line to the file, in one write, so that processes can do it at the same time."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def note_worker(path: str) -> None:
    """Records this worker, and as `machinery` its forkserver and guard, which outlive the call."""
    note(path)
    note(path, "machinery", forkserver_pid())
    note(path, "machinery", guard_pid())


def forkserver_pid() -> int:
    """The process that forked this worker."""
    return os.getppid()


def guard_pid() -> int:
    """The process that forked the forkserver."""
    with open(f"/proc/{os.getppid()}/stat", encoding="utf-8") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


def _wait_for_lines(path: str, count: int) -> None:
    """Until others have recorded themselves; the deadline of the call bounds it."""
    while True:
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            if len(file.readlines()) >= count:
                return
        time.sleep(0.005)


# What misses its deadline.


def busy_loop(path: str) -> NoReturn:
    """Keeps the interpreter busy with Python code."""
    note_worker(path)
    while True:
        pass


def hold_gil_in_pow(path: str) -> int:
    """Stays in one C function that holds the GIL and looks for no signal."""
    note_worker(path)
    return pow(3, 10**9)


def hold_gil_in_regex(path: str) -> object:
    """Stays in a regular expression that backtracks for years."""
    note_worker(path)
    return re.match(r"(a+)+$", "a" * 60 + "b")


def block_on_lock(path: str) -> NoReturn:
    """Waits for a lock that nobody releases."""
    note_worker(path)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
    raise AssertionError


def swallow_everything(path: str) -> NoReturn:
    """Catches whatever is raised in it, for ever."""
    note_worker(path)
    while True:
        try:
            while True:
                time.sleep(0.001)
        except BaseException:  # noqa: BLE001, S110
            pass


def ignore_sigterm(path: str) -> NoReturn:
    """Ignores every polite signal."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    note_worker(path)
    while True:
        time.sleep(1)


def block_all_signals(path: str) -> NoReturn:
    """Blocks every signal that can be blocked, the one for stack dumps too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    note_worker(path)
    while True:
        time.sleep(1)


def stop_itself(path: str) -> None:
    """Stops, so that nothing but SIGKILL and SIGCONT has an effect."""
    note_worker(path)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(FOREVER)


def escape_to_own_session(path: str) -> None:
    """Leaves a grandchild in a session of its own whose parent is gone, then hangs."""
    note_worker(path)
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note(path, "grandchild")
            time.sleep(FOREVER)
        os._exit(0)
    os.wait()
    _wait_for_lines(path, 4)
    time.sleep(FOREVER)


def start_children(path: str) -> None:
    """Has a child process, a child program and threads, then hangs."""
    note_worker(path)
    if os.fork() == 0:
        note(path, "child")
        time.sleep(FOREVER)
    program = subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True)
    note(path, "child", program.pid)
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    _wait_for_lines(path, 5)
    time.sleep(FOREVER)


def relay_race(path: str) -> None:
    """
    Hands on from parent to child without end: each forks the next, in a new session, and leaves.

    Who lists processes and kills them later is always late. Ends by itself after 30 seconds.
    """
    note_worker(path)
    end = time.monotonic() + 30
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
        os._exit(0)
    time.sleep(FOREVER)


def finally_writes(path: str, done: str) -> None:
    """Cleans up when it is ended, which takes a moment."""
    try:
        # Not before: whoever reads it may ask for the end at once.
        note_worker(path)
        while True:
            time.sleep(0.01)
    finally:
        time.sleep(0.1)
        append(done, "finally")


def return_when_told(path: str, done: str) -> str:
    """Returns a value when the polite signal arrives, after the deadline that is."""
    note_worker(path)
    try:
        while True:
            time.sleep(0.01)
    except TimeoutError as error:
        append(done, str(error))
        return "too late"


def nap(seconds: float) -> float:
    """Sleeps and returns how long."""
    time.sleep(seconds)
    return seconds


def note_and_nap(path: str, seconds: float = FOREVER) -> float:
    """The same, recorded."""
    note_worker(path)
    time.sleep(seconds)
    return seconds


class HangsInReduce:
    """Pickling it does not end."""

    def __reduce__(self) -> Any:
        time.sleep(FOREVER)


class HangsWhenLoaded:
    """Unpickling it does not end."""

    def __reduce__(self) -> Any:
        return time.sleep, (FOREVER,)


def return_hanging(path: str) -> HangsInReduce:
    """Its result cannot be pickled in finite time."""
    note_worker(path)
    return HangsInReduce()


def take(value: Any) -> str:
    """Returns the type's name of what it got."""
    return type(value).__name__


# What ends its process.


def exit_hard(code: int) -> NoReturn:
    """Leaves past everything."""
    os._exit(code)


def exit_softly(*code: Any) -> NoReturn:
    """Leaves as scripts do."""
    sys.exit(*code)


def exit_in_child_after_fork() -> int:
    """Its child leaves as scripts do; the parent returns its pid."""
    child = os.fork()
    if child == 0:
        sys.exit(3)
    os.waitpid(child, 0)
    return os.getpid()


def crash() -> None:
    """Reads address 0 in C code."""
    ctypes.string_at(0)


def abort() -> NoReturn:
    """As a failed assertion in C code does."""
    os.abort()


def signal_itself(number: int) -> None:
    """Sends itself a signal and waits for its effect."""
    os.kill(os.getpid(), number)
    time.sleep(FOREVER)


def fork_and_return(path: str) -> int:
    """Returns twice, in itself and in a child."""
    note(path)
    if os.fork() == 0:
        note(path, "child")
    return os.getpid()


def fork_and_raise(path: str) -> int:
    """Returns in itself and raises in a child."""
    note(path)
    if os.fork() == 0:
        note(path, "child")
        raise ValueError(path)
    return os.getpid()


def close_fds_and_return() -> int:
    """Closes all descriptors that are not its own."""
    os.closerange(3, 4096)
    return os.getpid()


def close_fds_and_hang(path: str) -> None:
    """The same, and does not return."""
    note_worker(path)
    os.closerange(3, 4096)
    time.sleep(FOREVER)


def overwrite_segment(path: str) -> None:
    """Fills what it shares with the host with a pattern that makes all counts differ, and hangs."""
    append(path, "ran")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        (region,) = (line.split()[0] for line in maps if "memfd:killercall" in line)
    ctypes.memset(int(region.split("-")[0], 16), 0x55, 4096)
    # A descriptor that is no doorbell wakes the host all the same.
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(int(fd), b"?")
    time.sleep(FOREVER)


def overwrite_claim_word(path: str, byte: int = 0x12) -> str:
    """Fills what counts the requests with nonsense, and returns."""
    append(path, "ran")
    memory, _ = _channel()
    memory[192:200] = bytes([byte] * 8)
    return "returned"


def send_stray_file(path: str, item: int, culprit: int) -> object:
    """The `culprit` sends a file that nobody waits for before its big answer; the others behave."""
    append(path, str(item))
    if item != culprit:
        return item
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as duplicate:
                    socket.send_fds(duplicate, [b"?"], [0])
    return b"x" * 1_000_000


def send_many_files() -> None:
    """Sends more files at once than its host takes, and hangs."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as duplicate:
                    socket.send_fds(duplicate, [b"?"], [0] * 32)
    time.sleep(FOREVER)


def signal_machinery(which: str, number: int, path: str) -> None:
    """Sends a signal to its `forkserver` or `guard`, then hangs."""
    note_worker(path)
    os.kill(forkserver_pid() if which == "forkserver" else guard_pid(), number)
    time.sleep(FOREVER)


def kill_machinery_of_many(which: str, path: str) -> None:
    """Kills its `forkserver` or `guard` when it has thirty children, each in its own session."""
    note_worker(path)
    for _ in range(30):
        if os.fork() == 0:
            os.setsid()
            note(path, "child")
            time.sleep(FOREVER)
    _wait_for_lines(path, 33)
    os.kill(forkserver_pid() if which == "forkserver" else guard_pid(), signal.SIGKILL)
    time.sleep(FOREVER)


def kill_sibling(role: str, path: str) -> str:
    """The `killer` waits until the `victim` has recorded itself, and kills it."""
    if role == "victim":
        note(path, "victim")
        time.sleep(FOREVER)
    _wait_for_lines(path, 1)
    with open(path, encoding="utf-8") as file:
        os.kill(int(file.readline().split()[1]), signal.SIGKILL)
    return role


def _channel() -> tuple[mmap.mmap, socket.socket]:
    """The memory that a worker shares with its host, and the socket beside it."""
    sockets = []
    memory = None
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                sockets.append(int(name))
            elif target.startswith("/memfd:killercall ") and os.fstat(int(name)).st_size:
                memory = mmap.mmap(int(name), 0)
    assert memory is not None
    # Both were moved out of the way of what a function may expect at low numbers.
    return memory, socket.socket(fileno=os.dup(max(sockets)))


def answer_with(kind: int, task: int) -> None:
    """Answers as a worker does (see `src/transport`), but with this kind, to that task."""
    written_at, responses, ring, length = 136, 4096 + 65536, 65536, 32
    memory, bell = _channel()
    (written,) = struct.unpack_from("<Q", memory, written_at)
    header = struct.pack("<IIQQQ", kind, 0, task, time.monotonic_ns(), 0)
    at = responses + written % ring
    memory[at : at + length] = header
    struct.pack_into("<Q", memory, written_at, written + length)
    bell.send(b"d")


def write_nonsense(what: str, path: str) -> None:
    """Writes to its host what no worker should, once a call, then hangs."""
    note(path)
    if what == "ready":
        answer_with(0x4B00, 2**64 - 1)
    elif what == "setup failed":
        answer_with(0x4B01, 2**64 - 1)
    elif what == "another task":
        answer_with(0x4B02, 12345)
    elif what == "descriptors":
        socket.send_fds(_channel()[1], [b"f"], [0] * 20)
    else:
        memory, bell = _channel()
        memory[128 : 128 + 64] = b"\xff" * 64
        bell.send(b"d")
    time.sleep(FOREVER)


def flood_socket(path: str) -> NoReturn:
    """Rings its host without end."""
    note_worker(path)
    bell = _channel()[1]
    bell.setblocking(True)
    while True:
        bell.send(b"d" * 100_000)


def flood_stderr(size: int) -> int:
    """Writes more to standard error than any pipe holds."""
    return sys.stderr.write("x" * size)


# What behaves, for comparison.


def pid() -> int:
    """The pid of its worker."""
    return os.getpid()


def same(value: Any) -> Any:
    """Returns its argument."""
    return value


def raise_error(error: BaseException) -> NoReturn:
    """Raises its argument."""
    raise error


def count_and_return(path: str, value: Any) -> Any:
    """Appends the value to the file and returns it."""
    append(path, str(value))
    return value


def fail_first(path: str, times: int, error: BaseException | None = None) -> int:
    """Fails so often (without an error, by hanging), then returns the number of attempts."""
    append(path, "attempt")
    with open(path, encoding="utf-8") as file:
        attempts = len(file.readlines())
    if attempts > times:
        return attempts
    if error is not None:
        raise error
    time.sleep(FOREVER)
    raise AssertionError


SETTING: Any = None


def set_setting(value: Any) -> None:
    """An initializer: assigns a global."""
    global SETTING
    SETTING = value


def get_setting() -> Any:
    """Reads that global."""
    return SETTING


def hang_in_initializer() -> None:
    """An initializer that does not end."""
    time.sleep(FOREVER)


def nest(levels: int) -> int:
    """Calls itself through killercall so many levels deep and returns how many there were."""
    from killercall import killer_call

    return 0 if levels == 0 else 1 + killer_call(nest, timeout=60)(levels - 1)


class Base85Serializer:
    """A serializer of the user's own."""

    def dumps(self, obj: Any, /) -> bytes:
        """Pickles and encodes."""
        import base64
        import pickle

        return base64.b85encode(pickle.dumps(obj))

    def loads(self, data: bytes, /) -> Any:
        """The other way round."""
        import base64
        import pickle

        return pickle.loads(base64.b85decode(data))


def start_children_for(where: tuple[str, int]) -> NoReturn:
    """Has a child process and a child program in a session of its own, then keeps busy."""
    path, _ = where
    if os.fork() == 0:
        note(path, "child")
        time.sleep(FOREVER)
    program = subprocess.Popen(["sleep", str(FOREVER)], start_new_session=True)
    note(path, "child", program.pid)
    busy_loop(path)


def wait_for_file(path: str, done: str) -> str:
    """Returns as soon as the file exists."""
    note_worker(path)
    while not os.path.exists(done):
        time.sleep(0.01)
    return "seen"


def misbehave_at_times(number: int, path: str, how: str) -> Any:
    """Notes each start. One item in a hundred of the first thousand does not end as the others do."""
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    if number % 100 == 50 and number < 1000:
        match how:
            case "raises":
                raise ValueError(number)
            case "dies":
                os._exit(3)
            case "hangs":
                while True:
                    pass
            case "cannot be pickled":
                return threading.Lock()
    return number
