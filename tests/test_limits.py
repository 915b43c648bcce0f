"""Limits of the system: fewer workers and a warning, or an error that names the limit. Never a hang."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from killercall import _limits, killer_imap, killer_pipeline, killer_pmap
from processes import TESTS, run_script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Of a call and a map under a limit: what came of them, and every warning.
SCRIPT = """
import os, resource, sys, time, warnings
import killercall
from killercall import _limits, killer_call, killer_pmap
LIMIT
def work(x):
    time.sleep(0.05)
    return x
def tried(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = run()
        except killercall.WorkerStartError as error:
            answer = f"{type(error).__name__} {error}"
    for warning in caught:
        print(warning.category.__name__, warning.message, warning.filename == __file__)
    print(answer)
tried(lambda: killer_call(work)(0))
tried(lambda: killer_pmap(work, range(8), cpus=8))
killercall.shutdown()
"""
WHOLE = str(list(range(8)))


def outcome(tmp_path: Path, limit: str, prefix: Sequence[str] = ()) -> tuple[str, str, list[str]]:
    """What the call and the map came to, and the warnings; nothing else may be printed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("LIMIT", limit), encoding="utf-8")
    tmp_path.chmod(0o755)
    search = [str(TESTS), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [*prefix, sys.executable, "-B", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))},
    )
    assert (0, "") == (done.returncode, done.stderr)
    printed = done.stdout.splitlines()
    warned = [line for line in printed if line.startswith("RuntimeWarning")]
    call, mapped = [line for line in printed if line not in warned]
    return call, mapped, warned


# The least that any worker could be had with differs by system; those are far from it.
@pytest.mark.parametrize(("fds", "least", "most"), [(26, 1, 4), (40, 2, 8), (200, 8, 8)])
def test_open_files(fds: int, least: int, most: int, tmp_path: Path) -> None:
    """A map takes as many workers as there is room for."""
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({fds}, {fds}))"
    call, mapped, warned = outcome(tmp_path, limit)

    assert ("0", WHOLE) == (call, mapped)
    workers = 8
    for line in warned:
        found = re.fullmatch(
            rf"RuntimeWarning killer_pmap runs with (\d) of 8 workers: "
            rf"\d+ files are open, and ulimit -n is {fds} True",
            line,
        )
        assert found, line
        workers = int(found[1])
    assert least <= workers <= most
    assert (workers < 8) == (len(warned) == 1)


def test_hardly_any_open_files(tmp_path: Path) -> None:
    """Not even one worker: an error that names the limit and what to do."""
    limit = """
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
"""
    call, mapped, _ = outcome(tmp_path, limit)
    for answer in (call, mapped):
        assert answer.startswith("WorkerStartError failed to ")
        assert "ulimit -n) is 24" in answer


def unprivileged() -> list[str]:
    """
    What runs a program as a user whom `ulimit -u` binds, which root it does not.

    The program may still read files that are root's own, as those of the interpreter may be.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("this needs a user other than root, or setpriv")
    capability = "+dac_read_search"
    # Whoever runs beside this has another one.
    user = str(60_000 + os.getpid())
    return [
        setpriv, "--reuid", user, "--clear-groups", f"--inh-caps={capability}",
        f"--ambient-caps={capability}",
    ]  # fmt: skip


# How many tasks this user has already; the made-up one has none.
def own_tasks() -> int:
    """So that the limit is relative to them."""
    if os.geteuid() == 0:
        return 0
    from killercall import _limits

    return _limits._own_tasks()


def limit_processes(extra: int) -> str:
    """Room for this process and so many more."""
    limit = own_tasks() + 1 + extra
    return f"resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit}))"


def test_few_processes(tmp_path: Path) -> None:
    """Guard, forkserver, and some workers."""
    call, mapped, (warned,) = outcome(tmp_path, limit_processes(9), unprivileged())
    assert ("0", WHOLE) == (call, mapped)
    assert re.search(r"runs with [2-7] of 8 workers: the user has \d+ tasks, and ulimit -u", warned)


def test_few_processes_that_nobody_foresaw(tmp_path: Path) -> None:
    """What the system refuses has the same consequence as what was foreseen."""
    limit = f"{limit_processes(5)}\n_limits._room_for_processes = lambda _: (1000, '')"
    call, mapped, (warned,) = outcome(tmp_path, limit, unprivileged())
    assert ("0", WHOLE) == (call, mapped)
    assert re.search(r"runs with [1-4] of 8 workers: failed to fork a worker: ", warned)


@pytest.mark.parametrize("extra", [0, 1, 2, 3])
def test_hardly_any_processes(extra: int, tmp_path: Path) -> None:
    """The first worker, the forkserver, or the guard: whichever cannot be forked, the limit is named."""
    call, mapped, _ = outcome(tmp_path, limit_processes(extra), unprivileged())
    for answer, right in ((call, "0"), (mapped, WHOLE)):
        if extra < 3 or answer != right:
            assert re.search(r"WorkerStartError failed to .*ulimit -u\) is \d", answer)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of our own that limits the number of tasks, where this user may make one."""
    for root in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = root / f"killercall-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("this user may not make a cgroup")


def test_tasks_of_a_cgroup(cgroup: Path, tmp_path: Path) -> None:
    """`pids.max` is respected, and named."""
    (cgroup / "pids.max").write_text("10", encoding="ascii")
    join = f"open('{cgroup}/cgroup.procs', 'w').write(str(os.getpid()))"

    call, mapped, (warned,) = outcome(tmp_path, join)

    assert ("0", WHOLE) == (call, mapped)
    expected = (
        rf"runs with [1-7] of 8 workers: \d+ tasks exist, and pids.max of cgroup {cgroup} is 10"
    )
    assert re.search(expected, warned)


def test_each_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tightest of the cgroups counts; one that has no such limit, or no such file, does not."""
    groups = {"outer": ("50", "7"), "inner": ("20", "6"), "endless": ("max", "5"), "none": ()}
    for name, values in groups.items():
        (tmp_path / name).mkdir()
        for file, value in zip(("pids.max", "pids.current"), values):
            (tmp_path / name / file).write_text(f"{value}\n", encoding="ascii")
    monkeypatch.setattr(
        _limits, "enclosing_groups", lambda _: [(str(tmp_path / name), True) for name in groups]
    )

    assert _limits.room_for_workers(10) is None
    inner = f"6 tasks exist, and pids.max of cgroup {tmp_path}/inner is 20"
    assert (10, inner) == _limits.room_for_workers(11)


def test_imap_and_pipeline_warn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under their own names; a pipeline has its reader and its writer as well."""
    monkeypatch.setattr(_limits, "_room_for_fds", lambda: (4, "no more files"))

    with pytest.warns(RuntimeWarning, match="^killer_imap runs with 4 of 5 workers: no more files"):
        assert [0, 1] == list(killer_imap(abs, [0, -1], cpus=5))
    expected = "^killer_pipeline runs with [1-6] of 50 workers: no more files"
    with pytest.warns(RuntimeWarning, match=expected) as caught:
        assert [0, 1] == killer_pipeline(lambda: [0, -1], abs, list, cpus=50)
    assert [__file__] == [warning.filename for warning in caught]


def test_no_warning_without_a_shortage(recwarn: pytest.WarningsRecorder) -> None:
    """As on nearly every machine."""
    assert killer_pmap(abs, range(4), cpus=4) == list(range(4))
    assert [] == list(recwarn)


def test_limit_reached_while_a_map_runs() -> None:
    """Descriptors that the host opens meanwhile cost no item."""
    script = """
import os, resource, time, warnings
warnings.simplefilter("ignore")
import killercall
from killercall import killer_pmap
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
taken = []
def items():
    for item in range(40):
        yield item
def work(item):
    if item % 7 == 3:
        os._exit(3)
    time.sleep(0.01)
    return item
def take_all():
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
import threading
threading.Timer(0.1, take_all).start()
try:
    results = killer_pmap(work, items(), cpus=4, on_error="return", timeout=30)
except killercall.WorkerStartError as error:
    # All four had died by then.
    assert "ulimit -n) is 60" in str(error), error
else:
    kinds = {type(result).__name__ for result in results}
    assert len(results) == 40 and kinds <= {"int", "WorkerDied"}, kinds
for fd in taken:
    os.close(fd)
print(killer_pmap(abs, range(3)))
"""
    done = run_script(script)
    assert ("", "[0, 1, 2]\n") == (done.stderr, done.stdout)
