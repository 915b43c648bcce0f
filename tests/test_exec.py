"""Command lines under a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import killercall
from killercall import killer_call, killer_exec
from processes import PATIENCE, is_running, run_script, took, wait_until

if TYPE_CHECKING:
    from pathlib import Path


def pids(path: Path, count: int) -> list[int]:
    """Those that a script has written there."""
    assert wait_until(lambda: path.exists() and len(path.read_text().split()) == count)
    return [int(pid) for pid in path.read_text().split()]


def test_what_the_command_writes() -> None:
    """Captured as bytes, as text, together, or not at all."""
    script = "printf 'out\\r\\n'; printf 'fehler ä' >&2"
    done = killer_exec(["bash", "-c", script], 20, capture_output=True)
    assert (0, b"out\r\n", "fehler ä".encode()) == (done.returncode, done.stdout, done.stderr)
    assert done.args == ["bash", "-c", script]
    done = killer_exec(script, 20, shell=True, capture_output=True, encoding="utf-8")
    assert ("out\n", "fehler ä") == (done.stdout, done.stderr)
    done = killer_exec(
        script, 20, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    assert ("out\nfehler ä", None) == (done.stdout, done.stderr)
    done = killer_exec(["true"], timeout=20, stdout=subprocess.DEVNULL)
    assert (0, None, None) == (done.returncode, done.stdout, done.stderr)


def test_a_character_that_was_cut_at_the_deadline() -> None:
    """What was captured so far is there, with a mark in the place of what is not all there."""
    with pytest.raises(killercall.TimeoutError) as caught:
        killer_exec(
            ["bash", "-c", "printf 'so far \\303'; exec sleep 300"],
            timeout=0.5,
            capture_output=True,
            encoding="utf-8",
        )
    assert ("so far \N{REPLACEMENT CHARACTER}", "") == (caught.value.stdout, caught.value.stderr)


def test_at_the_deadline_all_of_it_is_dead(tmp_path: Path) -> None:
    """With what it had written by then, whatever left its session too."""
    path = tmp_path / "pids"
    script = (
        f"echo before; echo err >&2; sleep 300 & echo $! >> {path}; "
        f"setsid bash -c 'echo $$ >> {path}; exec sleep 300' & echo $$ >> {path}; exec sleep 300"
    )
    with took(0.3, PATIENCE), pytest.raises(killercall.TimeoutError) as caught:
        killer_exec(["bash", "-c", script], timeout=0.8, capture_output=True, text=True)
    error = caught.value
    assert str(error) == "command 'bash' timed out after 0.8s"
    assert ("before\n", "err\n") == (error.stdout, error.stderr)
    assert error.cmd == ["bash", "-c", script]
    assert error.timeout == 0.8
    assert [] == [pid for pid in pids(path, 3) if is_running(pid)]
    with pytest.raises(killercall.TimeoutError, match=r"command 'bash' timed out after 0\.3s"):
        killer_exec(["bash", "-c", "sleep 300 & sleep 300"], timeout=0.3)


def test_what_it_leaves_in_the_background_is_killed(tmp_path: Path) -> None:
    """Before the call returns, though it holds the pipes open."""
    path = tmp_path / "pids"
    script = (
        f"sleep 300 & echo $! >> {path}; setsid sleep 300 & echo $! >> {path}; "
        f"(trap '' TERM HUP; echo started; sleep 300) & echo $! >> {path}; sleep 0.2; echo end; exit 3"
    )
    with took(0, PATIENCE):
        done = killer_exec(["bash", "-c", script], timeout=60, capture_output=True, text=True)
    assert done.returncode == 3
    assert sorted(done.stdout.split()) == ["end", "started"]
    assert [] == [pid for pid in pids(path, 3) if is_running(pid)]


def test_how_it_ended() -> None:
    """Exit codes, signals, and `check`."""
    assert killer_exec(["bash", "-c", "exit 7"], 20).returncode == 7
    assert killer_exec(["bash", "-c", "kill -9 $$"], 20).returncode == -signal.SIGKILL
    with pytest.raises(subprocess.CalledProcessError) as caught:
        killer_exec("echo x; exit 2", 20, shell=True, check=True, capture_output=True)
    assert (2, b"x\n") == (caught.value.returncode, caught.value.stdout)


def test_much_goes_in_and_out() -> None:
    """Far more than pipes and rings hold, both ways at once; what is not read does not matter."""
    given = os.urandom(20_000_000)
    with took(0, 30):
        done = killer_exec(["cat"], timeout=30, input=given, capture_output=True)
    assert (given, b"") == (done.stdout, done.stderr)
    assert killer_exec(["true"], timeout=20, input=given).returncode == 0
    assert killer_exec(["cat"], 20, input="ä\n", stdout=-1, encoding="latin-1").stdout == "ä\n"
    assert killer_exec(["cat"], 20, capture_output=True).stdout == b""


def test_much_was_written_by_the_deadline() -> None:
    """All of it that came through is there, in its order."""
    script = "i=0; while true; do echo $i; i=$((i+1)); done"
    with pytest.raises(killercall.TimeoutError) as caught:
        killer_exec(["bash", "-c", script], timeout=0.6, stdout=subprocess.PIPE, text=True)
    numbers = caught.value.stdout.split("\n")[:-1]
    assert len(numbers) > 10
    assert numbers == [str(number) for number in range(len(numbers))]
    assert caught.value.stderr is None


def test_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directory and environment are the caller's unless given."""
    monkeypatch.setenv("KILLERCALL_TEST_WORD", "here")
    monkeypatch.chdir(tmp_path)
    script = ["bash", "-c", "echo $KILLERCALL_TEST_WORD $OTHER; pwd"]
    done = killer_exec(script, 20, capture_output=True, text=True)
    assert done.stdout == f"here\n{tmp_path}\n"
    (tmp_path / "below").mkdir()
    env = {"OTHER": "other", "PATH": os.environ["PATH"]}
    done = killer_exec(script, 20, capture_output=True, text=True, env=env, cwd="below")
    assert done.stdout == f"other\n{tmp_path}/below\n"


def test_files(tmp_path: Path) -> None:
    """What it reads and writes may be open files."""
    path = tmp_path / "file"
    path.write_text("first\nsecond\n")
    with path.open() as source, (tmp_path / "out").open("w") as target:
        done = killer_exec(["cat"], timeout=20, stdin=source, stdout=target, stderr=subprocess.PIPE)
    assert (0, None, b"") == (done.returncode, done.stdout, done.stderr)
    assert (tmp_path / "out").read_text() == path.read_text()


ERRORS: list[tuple[Any, dict[str, Any]]] = [
    ("ls -l", {}), (["/nowhere/at/all"], {}), (["/"], {}), (["ls"], {"cwd": "/nowhere/at/all"}),
    (["ls"], {"cwd": ""}),
]  # fmt: skip


def test_errors_are_those_of_subprocess() -> None:
    """The same class, with the same text."""
    for cmd, options in ERRORS:
        with pytest.raises(OSError) as expected:
            subprocess.run(cmd, check=False, **options)
        with pytest.raises(OSError) as caught:
            killer_exec(cmd, timeout=20, **options)
        assert str(expected.value) == str(caught.value)
        assert type(expected.value) is type(caught.value)


BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timeout": 0}, ValueError, "timeout must be greater than 0.*not 0"),
    ({"timeout": "1"}, TypeError, "timeout must be .*'1'"),
    ({"max_memory": "much"}, ValueError, "max_memory must be .*'much'"),
    ({"input": "text"}, TypeError, "input must be bytes, not 'text' of type str"),
    ({"input": b"x", "text": True}, TypeError, "input must be a string, not b'x' of type bytes"),
    ({"input": b"x", "stdin": subprocess.DEVNULL}, ValueError, "stdin and input"),
    ({"stdin": subprocess.PIPE}, ValueError, "stdin must not be PIPE"),
    ({"stdout": subprocess.PIPE, "capture_output": True}, ValueError, "capture_output"),
    ({"encoding": "no such"}, LookupError, "no such"),
    ({"cmd": ""}, ValueError, "cmd must name a program, not ''"),
    ({"cmd": b""}, ValueError, "cmd must name a program, not b''"),
    ({"cmd": []}, ValueError, r"cmd must name a program, not \[\]"),
    ({"cmd": iter(())}, ValueError, "cmd must name a program, not <tuple_iterator"),
    ({"cmd": [], "shell": True}, ValueError, "cmd must name a program"),
    ({"cmd": ["", "a"]}, ValueError, r"cmd must name a program, not \['', 'a'\]"),
    ({"cmd": ["ls", "a\0b"]}, ValueError, r"cmd must be without null bytes, not 'a\\x00b'"),
    ({"cmd": 3}, TypeError, "cmd must be a program with its arguments, not 3 of type int"),
    ({"cmd": None}, TypeError, "cmd must be a program with its arguments, not None"),
    ({"cmd": ["ls", 3]}, TypeError, "cmd must be a string, bytes or a path, not 3 of type int"),
    ({"cwd": "a\0b"}, ValueError, "cwd must be without null bytes"),
    ({"cwd": 3.5}, TypeError, "cwd must be a string, bytes or a path, not 3.5 of type float"),
    ({"env": 3}, TypeError, "env must be a mapping of strings, not 3 of type int"),
    ({"env": {"A": 1}}, TypeError, "env must be a string, bytes or a path, not 1 of type int"),
    ({"env": {"A=B": "1"}}, ValueError, "env has a variable .*'A=B'"),
    ({"env": {"A": "\0"}}, ValueError, "env must be without null bytes"),
]  # fmt: skip


def test_bad_input() -> None:
    """Is refused before any process starts."""
    for case, error, match in BAD_INPUT:
        options = {"cmd": ["true"], "timeout": 20, **case}
        with pytest.raises(error, match=match):
            killer_exec(**options)
    assert not killercall._host._shared.roster.has_server()


def test_too_much_memory() -> None:
    """Of the command or what it starts; what was captured is on the exception."""
    code = "print('begun', flush=True); x = bytearray(1 << 30); x[::4096] = b'x' * (1 << 18)"
    script = [
        sys.executable,
        "-c",
        f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}]))",
    ]  # ruff: ignore[line-too-long]
    try:
        done = killer_exec(script, timeout=30, max_memory="200MB", capture_output=True)
    except killercall.MemoryLimitExceeded as error:
        assert "'" + sys.executable in str(error)
        assert b"begun" in error.stdout
    else:
        # The kernel has refused it before the watch has seen it.
        assert (done.returncode, done.stdout) == (1, b"begun\n")
        assert b"MemoryError" in done.stderr


def test_inside_of_a_call(tmp_path: Path) -> None:
    """The deadline around it ends the command as well."""

    def run(path: str) -> str:
        return killer_exec(f"echo $$ >> {path}; sleep 300", timeout=60, shell=True).stdout

    path = tmp_path / "pids"
    with pytest.raises(killercall.TimeoutError, match="function 'run'"):
        killer_call(run, timeout=2)(str(path))
    assert [] == [pid for pid in pids(path, 1) if is_running(pid)]


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """And raises in the caller."""
    path = tmp_path / "pids"

    def interrupt(_number: int, _frame: Any) -> None:
        # Not before the command runs, which nothing starts while this one waits.
        if path.exists() and path.read_text().endswith("\n"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(KeyboardInterrupt):
            killer_exec(f"echo $$ >> {path}; sleep 300", timeout=60, shell=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [] == [pid for pid in pids(path, 1) if is_running(pid)]


def test_inline() -> None:
    """In the calling process, without a deadline."""
    found = run_script(
        "from killercall import killer_exec\n"
        "print(killer_exec('cat', 5, input='x', capture_output=True, text=True).stdout)\n"
        "print(killer_exec('exit 4', 5, shell=True).returncode)\n",
        environment={"KILLERCALL_INLINE": "1"},
    )
    assert ("x\n4\n", "") == (found.stdout, found.stderr)


def test_its_own_output_goes_on_while_it_runs() -> None:
    """What is captured does not wait for the end: a worker that is killed has handed it on."""
    started = time.monotonic()
    with pytest.raises(killercall.TimeoutError) as caught:
        killer_exec("echo first; sleep 1; kill -STOP $PPID; sleep 300", 2, shell=True, stdout=-1)
    assert caught.value.stdout == b"first\n"
    assert time.monotonic() - started < PATIENCE
