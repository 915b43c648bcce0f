"""
The hostile functions by name, with how a call of each ends.

A module of its own, because workers import it under the deadline of the call: it imports little.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

import hostile

if TYPE_CHECKING:
    from collections.abc import Callable

# For those that hang: long enough to do their worst on a machine that is busy with the others.
TIMEOUT = 1.0
# For those that end: how long that takes is not the question here.
AMPLE = 30.0
LATE = "late"


class Case(NamedTuple):
    """A function, its arguments after the path (if it takes one), and how its call ends."""

    function: Callable[..., Any]
    takes_path: bool
    arguments: tuple[Any, ...]
    # "late", ("died", exit code) or "value".
    ending: Any

    @property
    def timeout(self) -> float:
        """The deadline to give it."""
        return TIMEOUT if self.ending == LATE else AMPLE

    def run(self, path: str) -> Any:
        """The call."""
        return self.function(*([path] if self.takes_path else []), *self.arguments)


def hangs(function: Callable[..., Any], *arguments: Any) -> Case:
    """It misses its deadline."""
    return Case(function, takes_path=True, arguments=arguments, ending=LATE)


def dies(function: Callable[..., Any], exitcode: int, *arguments: Any) -> Case:
    """Its process ends."""
    return Case(function, takes_path=False, arguments=arguments, ending=("died", exitcode))


def write_nonsense(path: str, what: str) -> None:
    """With the path in front."""
    hostile.write_nonsense(what, path)


CASES = {
    **{
        function.__name__: hangs(function)
        for function in (
            hostile.busy_loop,
            hostile.hold_gil_in_pow,
            hostile.hold_gil_in_regex,
            hostile.block_on_lock,
            hostile.swallow_everything,
            hostile.ignore_sigterm,
            hostile.block_all_signals,
            hostile.stop_itself,
            hostile.escape_to_own_session,
            hostile.start_children,
            hostile.relay_race,
            hostile.return_hanging,
            hostile.note_and_nap,
            hostile.close_fds_and_hang,
            hostile.flood_socket,
        )
    },
    "_exit(0)": dies(hostile.exit_hard, 0, 0),
    "_exit(7)": dies(hostile.exit_hard, 7, 7),
    "exit(3)": dies(hostile.exit_softly, 3, 3),
    "crash": dies(hostile.crash, -signal.SIGSEGV),
    "abort": dies(hostile.abort, -signal.SIGABRT),
    "SIGKILL": dies(hostile.signal_itself, -signal.SIGKILL, signal.SIGKILL),
    "SIGTERM": dies(hostile.signal_itself, -signal.SIGTERM, signal.SIGTERM),
    **{
        what: Case(write_nonsense, True, (what,), ("died", -signal.SIGKILL))
        for what in ("ready", "setup failed", "another task", "descriptors", "positions")
    },
    "exit_in_child": Case(hostile.exit_in_child_after_fork, False, (), "value"),
    "fork_and_return": Case(hostile.fork_and_return, True, (), "value"),
    "fork_and_raise": Case(hostile.fork_and_raise, True, (), "value"),
    "close_fds_and_return": Case(hostile.close_fds_and_return, False, (), "value"),
}


def run_case(where: tuple[str, str]) -> Any:
    """What the innermost worker does."""
    name, directory = where
    return CASES[name].run(os.path.join(directory, name))
