"""
One contestant in a process of its own: does a turn when told to, and answers with what it measured.

Imports next to nothing, because its process is the host whose forks are measured, and the floor of
some measures is what a bare interpreter takes. So messages are marshalled, not JSON.

Usage: by `benchmarks.conductor` only.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# In the environment of a contestant and all that it starts.
MARK = "KILLERCALL_BENCHMARK"
_LENGTH = 4


def send(fd: int, message: Any) -> None:
    """Writes one message."""
    data = marshal.dumps(message)
    data = len(data).to_bytes(_LENGTH, "big") + data
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> Any:
    """Reads one message; EOFError at the end of the stream."""
    return marshal.loads(_read(fd, int.from_bytes(_read(fd, _LENGTH), "big")))


def _read(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(fd, length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _failure(error: BaseException) -> dict[str, str]:
    """One line for the conductor; all of it goes into the log."""
    import traceback

    traceback.print_exc()
    return {"failed": f"{type(error).__name__}: {str(error)[:200]}".partition("\n")[0]}


def main() -> None:
    """Sets up what the first message names, and does a turn for each further one."""
    # What libraries print belongs into the log, which is stderr.
    commands, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    setup = receive(commands)
    try:
        module = __import__(setup["module"], fromlist=["*"])
        with getattr(module, setup["turn"])(**setup["arguments"]) as turn:
            send(answers, {"ready": True})
            while True:
                try:
                    count = receive(commands)
                except EOFError:
                    break
                try:
                    samples = turn(count)
                    note = ""
                    if isinstance(samples, tuple):
                        samples, note = samples
                    answer = {"samples": samples, "note": note}
                except Exception as error:
                    answer = _failure(error)
                send(answers, answer)
    except Exception as error:
        # Setting up or putting away; the conductor may have gone.
        try:
            send(answers, _failure(error))
        except BrokenPipeError:
            print("and nobody wants to know", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
