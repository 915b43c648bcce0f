"""`killer_exec`: a command line under a deadline, with all that it starts."""

from __future__ import annotations

import io
import os

from killercall import _command
from killercall._exceptions import (
    KillerError,
    TimeoutError,  # ruff: ignore[builtin-import-shadowing]
)
from killercall._host import Plan, is_inline
from killercall._options import CHECKS, Options, check_timeout
from killercall._payload import in_bytes, short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal, overload

    from killercall._host import Call
    from killercall._typing import Timeout

    # The exit code, and what was captured of both streams.
    Done = tuple[int, bytes | None, bytes | None]
    StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


if TYPE_CHECKING:

    @overload
    def killer_exec(
        cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
        timeout: Timeout,
        *,
        input: str | None = ...,
        stdin: Any = ...,
        stdout: Any = ...,
        stderr: Any = ...,
        capture_output: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        text: Literal[True],
        encoding: str | None = ...,
        errors: str | None = ...,
        shell: bool = ...,
        check: bool = ...,
        max_memory: int | str | None = ...,
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def killer_exec(
        cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
        timeout: Timeout,
        *,
        input: str | None = ...,
        stdin: Any = ...,
        stdout: Any = ...,
        stderr: Any = ...,
        capture_output: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        text: bool | None = ...,
        encoding: str,
        errors: str | None = ...,
        shell: bool = ...,
        check: bool = ...,
        max_memory: int | str | None = ...,
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def killer_exec(
        cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
        timeout: Timeout,
        *,
        input: str | None = ...,
        stdin: Any = ...,
        stdout: Any = ...,
        stderr: Any = ...,
        capture_output: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        text: bool | None = ...,
        encoding: str | None = ...,
        errors: str,
        shell: bool = ...,
        check: bool = ...,
        max_memory: int | str | None = ...,
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def killer_exec(
        cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
        timeout: Timeout,
        *,
        input: bytes | None = ...,
        stdin: Any = ...,
        stdout: Any = ...,
        stderr: Any = ...,
        capture_output: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        text: Literal[False] | None = ...,
        encoding: None = ...,
        errors: None = ...,
        shell: bool = ...,
        check: bool = ...,
        max_memory: int | str | None = ...,
    ) -> subprocess.CompletedProcess[bytes]: ...

    @overload
    def killer_exec(
        cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
        timeout: Timeout,
        *,
        input: str | bytes | None = ...,
        stdin: Any = ...,
        stdout: Any = ...,
        stderr: Any = ...,
        capture_output: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        text: bool | None = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        shell: bool = ...,
        check: bool = ...,
        max_memory: int | str | None = ...,
    ) -> subprocess.CompletedProcess[Any]: ...


def killer_exec(
    cmd: StrOrBytesPath | Sequence[StrOrBytesPath],
    timeout: Any,
    *,
    input: str | bytes | None = None,  # ruff: ignore[builtin-argument-shadowing] - as subprocess has it
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    capture_output: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    shell: bool = False,
    check: bool = False,
    max_memory: int | str | None = None,
) -> subprocess.CompletedProcess[Any]:
    r"""
    Runs a command line under a deadline, at which all that it has started is killed.

    As `subprocess.run`, with these differences. At the deadline the whole tree of processes is dead
    before the exception is raised, also what has left its process group or session. Whatever the
    command has left running in the background when it ends is killed before this returns. Standard
    input is empty unless it is given, and what is not captured goes where a worker's output goes.

    Args:
        cmd: the program and its arguments; one string if `shell` is true.
        timeout: seconds (int or float), a `datetime.timedelta`, or None for no limit.
        input: what the command reads, as bytes, or as a string if the streams are text.
        stdin: `subprocess.DEVNULL`, or a file, which with a file for another stream takes
            a copy of this process (`start_method="fork"`). Default: empty.
        stdout: `subprocess.PIPE` to capture it, `DEVNULL`, or a file.
        stderr: the same, or `subprocess.STDOUT`. What is captured is kept in memory.
        capture_output: captures both.
        env: the environment. Default: that of this process.
        cwd: the working directory. Default: that of this process.
        text: whether what it reads and writes are strings. Default: if `encoding` or `errors` are
            given.
        encoding: of text. Default: the locale's.
        errors: what to do about bytes that are no text in it, as in `open`.
        shell: whether `cmd` is a command line for `/bin/sh`.
        check: whether an exit code other than 0 raises.
        max_memory: bytes, or a text such as "2GiB", for the command and all that it starts.

    Returns:
        A `subprocess.CompletedProcess`; its `returncode` is the negative number of the signal if
        one has ended the command.

    Raises:
        TimeoutError: the deadline was missed. Its `stdout` and `stderr` are what was captured by
            then, `cmd` is the command.
        MemoryLimitExceeded: it used more than `max_memory`.
        subprocess.CalledProcessError: the exit code was not 0, with `check`.
        OSError: as `subprocess` raises it: FileNotFoundError where there is no such program or
            directory, PermissionError where it cannot be executed.
        TypeError: a wrong type of argument.
        ValueError: a wrong value, such as a timeout that is not positive, or a command without a
            program.

    Example:
        >>> from killercall import killer_exec
        >>> killer_exec(["echo", "hello"], timeout=5, capture_output=True, text=True).stdout
        'hello\n'
        >>> killer_exec("sleep 60 & sleep 60", timeout=0.3, shell=True)
        Traceback (most recent call last):
        ...
        killercall.TimeoutError: command 'sleep 60 & sleep 60' timed out after 0.3s
    """
    import subprocess

    __tracebackhide__ = True
    command = _check_command(cmd, shell=shell)
    seconds = check_timeout("timeout", timeout)
    most = CHECKS["max_memory"]("max_memory", max_memory)
    codec = _Codec(encoding or "locale", errors) if text or encoding or errors else None
    given = _encoded(input, codec)
    streams = _streams(given, stdin, stdout, stderr, capture_output=capture_output)
    directory = None if cwd is None else _check_text("cwd", cwd)
    keywords = {**streams, "env": _check_env(env), "cwd": directory, "shell": shell}
    if is_inline():
        code, out, err = _run_inline(command, given, keywords)
    else:
        # Files are inherited by a copy of this process, and by nobody else.
        inherits = not all(map(_is_word, streams.values()))
        options = Options(
            timeout=seconds,
            max_memory=most,
            reuse=False,
            start_method="fork" if inherits else "forkserver",
            # So that it is there before the clock runs.
            preload=("killercall._command",),
        )
        code, out, err = _run(cmd, (command, given, keywords), options, codec)
    completed = subprocess.CompletedProcess(cmd, code, _decoded(out, codec), _decoded(err, codec))
    if check:
        completed.check_returncode()
    return completed


def _check_command(cmd: Any, *, shell: bool) -> str | bytes | list[str | bytes]:
    """What subprocess takes; read once, as that may be all that is possible."""
    if isinstance(cmd, (str, bytes, os.PathLike)):
        command = _check_text("cmd", cmd)
        if command or shell:
            return command
    else:
        try:
            parts = list(cmd)
        except TypeError:
            raise TypeError(_not_text("cmd", cmd, "a program with its arguments")) from None
        command_line = [_check_text("cmd", part) for part in parts]
        if command_line and command_line[0]:
            return command_line
    message = f"cmd must name a program, not {short_repr(cmd)}"
    raise ValueError(message)


def _check_text(name: str, value: Any) -> str | bytes:
    try:
        text: str | bytes = os.fspath(value)
    except TypeError:
        raise TypeError(_not_text(name, value, "a string, bytes or a path")) from None
    if "\0" in os.fsdecode(text):
        message = f"{name} must be without null bytes, not {short_repr(value)}"
        raise ValueError(message)
    return text


def _not_text(name: str, value: Any, expected: str) -> str:
    kind = type(value).__qualname__
    return f"{name} must be {expected}, not {short_repr(value)} of type {kind}"


def _check_env(env: Any) -> dict[str | bytes, str | bytes] | None:
    if env is None:
        return None
    try:
        entries = dict(env)
    except (TypeError, ValueError):
        raise TypeError(_not_text("env", env, "a mapping of strings")) from None
    found = {_check_text("env", name): _check_text("env", entry) for name, entry in entries.items()}
    for name in found:
        if not name or "=" in os.fsdecode(name):
            message = f"env has a variable that no environment can hold: {short_repr(name)}"
            raise ValueError(message)
    return found


def _streams(
    given: bytes | None, stdin: Any, stdout: Any, stderr: Any, *, capture_output: bool
) -> dict[str, Any]:
    """What the standard streams of the command are, as `subprocess.Popen` has it."""
    import subprocess

    if capture_output:
        if stdout is not None or stderr is not None:
            message = "stdout and stderr must not be given with capture_output"
            raise ValueError(message)
        stdout = stderr = subprocess.PIPE
    if given is not None and stdin is not None:
        message = "stdin and input must not both be given"
        raise ValueError(message)
    if _is_pipe(stdin):
        message = "stdin must not be PIPE: nobody would write to it; input says what it is to be"
        raise ValueError(message)
    if given is not None:
        stdin = subprocess.PIPE
    elif stdin is None:
        stdin = subprocess.DEVNULL
    return {"stdin": stdin, "stdout": stdout, "stderr": stderr}


def _is_word(stream: Any) -> bool:
    """Whether it means the same in another process."""
    import subprocess

    words = (None, subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT)
    return (stream is None or isinstance(stream, int)) and stream in words


def _is_pipe(stream: Any) -> bool:
    import subprocess

    return isinstance(stream, int) and stream == subprocess.PIPE


def _run_inline(command: Any, given: bytes | None, keywords: dict[str, Any]) -> Done:
    """In this process, for `KILLERCALL_INLINE`: without a deadline."""
    import subprocess

    with subprocess.Popen[bytes](command, **keywords) as process:
        out, err = process.communicate(given)
    return process.returncode, out, err


def _run(cmd: Any, arguments: tuple[Any, ...], options: Options, codec: _Codec | None) -> Done:
    __tracebackhide__ = True
    call: Call = arguments, {}
    plan = Plan(_command.run, options, [call] if options.start_method == "fork" else None)
    job = plan.job()
    job.name = _name(arguments[0])
    job.submit(0, call)
    plan.import_ahead()
    with job.scope:
        (outcome,) = job.wait()
        captured = _command.split(in_bytes(outcome.partial or b""))
        out, err = (
            captured[stream] if _is_pipe(arguments[-1][name]) else None
            for stream, name in ((_command.STDOUT, "stdout"), (_command.STDERR, "stderr"))
        )
        if outcome.ending == "returned":
            return job.value(outcome), out, err
        failure = job.failure(outcome) if outcome.ending != "timed_out" else None
    if failure is None:
        failure = TimeoutError(
            job.name,
            options.timeout,
            elapsed=outcome.elapsed,
            pid=outcome.pid,
            message=f"command {job.name!r} timed out after {options.timeout:.12g}s",
        )
    if isinstance(failure, KillerError):
        so_far = {"stdout": _decoded_so_far(out, codec), "stderr": _decoded_so_far(err, codec)}
        vars(failure).update(cmd=cmd, **so_far)
    try:
        raise failure
    finally:
        # Or the traceback holds this frame, which holds the exception.
        del failure


def _name(cmd: Any) -> str:
    """What to call it in messages."""
    if not isinstance(cmd, (str, bytes)):
        cmd = cmd[0]
    text = os.fsdecode(cmd)
    return text if len(text) <= 60 else text[:57] + "..."  # ruff: ignore[magic-value-comparison]


class _Codec:
    """How text is encoded."""

    def __init__(self, encoding: str, errors: str | None) -> None:
        self._encoding = encoding
        self._errors = errors
        # One that does not exist is found out before anything starts.
        self._over(io.BytesIO())

    def _over(self, buffer: io.BytesIO, errors: str | None = None) -> io.TextIOWrapper:
        return io.TextIOWrapper(buffer, encoding=self._encoding, errors=errors or self._errors)

    def encode(self, text: str) -> bytes:
        buffer = io.BytesIO()
        with self._over(buffer) as writer:
            writer.write(text)
            writer.flush()
            return buffer.getvalue()

    def decode(self, captured: bytes, errors: str | None = None) -> str:
        with self._over(io.BytesIO(captured), errors) as reader:
            return reader.read()


def _encoded(given: Any, codec: _Codec | None) -> bytes | None:
    if given is None:
        return None
    if codec is not None and isinstance(given, str):
        return codec.encode(given)
    if codec is None and isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    kind = "bytes" if codec is None else "a string"
    message = f"input must be {kind}, not {short_repr(given)} of type {type(given).__qualname__}"
    raise TypeError(message)


def _decoded(captured: bytes | None, codec: _Codec | None) -> str | bytes | None:
    return captured if captured is None or codec is None else codec.decode(captured)


def _decoded_so_far(captured: bytes | None, codec: _Codec | None) -> str | bytes | None:
    """It may end in the middle of a character, for which there is no better place to be told."""
    try:
        return _decoded(captured, codec)
    except UnicodeError:
        return captured if captured is None or codec is None else codec.decode(captured, "replace")


__all__ = ["killer_exec"]
