"""What a user sees of a failure: in the interpreter, in IPython, in pytest and in a log."""

from __future__ import annotations

import gc
import logging
import os
import re
import traceback
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import killercall
from killercall import KillerPool, _stack, killer_call, killer_imap, killer_pipeline, killer_pmap
from processes import run_script, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OURS = os.path.join(os.path.dirname(killercall.__file__), "")
FRAME = f'File "{OURS}'

DEFINITIONS = """
import asyncio, os, signal, sys, threading, time
from killercall import *

def inner(x):
    if x == "hang":
        time.sleep(60)
    if x == "die":
        os._exit(3)
    raise ValueError(x)

def work(x):
    return inner(x)

async def later(x):
    return inner(x)

class Held:
    def __reduce__(self):
        raise LookupError("held")

@killer_actor(timeout=20)
class Account:
    def deposit(self, x):
        return inner(x)

def broken():
    yield 1
    raise OverflowError

def refuse(*_):
    raise OverflowError

def interrupted():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    killer_pmap(time.sleep, [60, 60], 2, timeout=None)
"""

# A line of a user's, how many frames of ours there are at most, and what has to be there beside it.
CASES = {
    "killer_call(work)(1)": (1, "raise ValueError(x)", "ValueError: 1"),
    "killer_call(work, timeout=0.5)('hang')": (1, "timed out after 0.5s"),
    "killer_call(work)('die')": (1, "exited with code 3"),
    "killer_pmap(work, [1], 1)": (1, "raise ValueError(x)", "item 0 of the map: 1"),
    "list(killer_imap(work, [1], 1))": (1, "raise ValueError(x)", "item 0 of the map: 1"),
    "killer_call(work).submit(1).result()": (1, "raise ValueError(x)"),
    "killer_call(work, timeout=0.5).submit('hang').result()": (1, "timed out after 0.5s"),
    "asyncio.run(killer_call(later)(1))": (2, "return inner(x)", "raise ValueError(x)"),
    "list(KillerPool(1).map(work, [1]))": (3, "raise ValueError(x)"),
    "Account().deposit(1)": (3, "raise ValueError(x)"),
    "killer_pipeline(range(3).__iter__, work, list, 1)": (1, "stage 'work'", "raise ValueError(x)"),
    "killer_pipeline(broken, abs, list, 1)": (1, "raise OverflowError", "stage 'read'"),
    "killer_pipeline(range(3).__iter__, abs, refuse, 1)": (1, "raise OverflowError", "'write'"),
    "killer_exec(['killercall-none'], timeout=5)": (2, "No such file"),
    "killer_call(work)(Held())": (1, "cannot pickle args[0]", 'raise LookupError("held")'),
    "killer_pmap(work, [Held()])": (1, "cannot pickle args[0]", 'raise LookupError("held")'),
    "list(killer_imap(work, [Held()]))": (1, "cannot pickle", 'raise LookupError("held")'),
    "killer_call(Held().__reduce__)()": (1, "cannot pickle function", "LookupError: held"),
    "killer_pmap(Held().__reduce__, [1])": (1, "cannot pickle function", "LookupError: held"),
    "killer_call(Held)()": (1, "cannot pickle result", 'raise LookupError("held")'),
    "killer_call(abs, initializer=work, initargs=(1,))(1)": (1, "raise ValueError(x)"),
    "list(killer_imap(abs, broken(), 1))": (1, "raise OverflowError"),
    "killer_pmap(abs, broken(), 1)": (1, "raise OverflowError"),
    "interrupted()": (1, "KeyboardInterrupt", "in interrupted"),
}

# How those begin that are tested in pytest too: another way to fail each.
IN_PYTEST = (
    "killer_call(work)",
    "killer_pmap(work",
    "list(",
    "Account",
    "killer_pipeline(broken",
    "killer_exec",
)


def printed(directory: Path) -> dict[str, str]:
    """What the interpreter prints of each case; of all in one process, by its own hook."""
    lines = "".join(
        f"try:\n    {case}\nexcept BaseException as error:\n    show(error)\n" for case in CASES
    )
    code = f"""{DEFINITIONS}
def show(error):
    sys.__excepthook__(type(error), error, error.__traceback__)
    print("=" * 9, file=sys.stderr, flush=True)
{lines}"""
    done = run_script(code, way="file", directory=directory, limit=100)
    texts = done.stderr.split("=" * 9 + "\n")
    assert len(CASES) + 1 == len(texts), done.stderr
    return dict(zip(CASES, texts))


def test_in_the_interpreter(tmp_path: Path) -> None:
    """The user's line and the user's error, and next to nothing of ours between them."""
    for case, text in printed(tmp_path).items():
        most, *expected = CASES[case]
        assert all(part in text for part in [*expected, case.removesuffix("()")]), text
        assert text.count(FRAME) <= most, text
        assert "During handling of the above exception" not in text, text
        remote = text.rpartition("direct cause of the following exception")[0]
        assert FRAME not in remote and "asyncio" not in remote, text


def test_with_the_sources_of_cells_in_ipython(tmp_path: Path) -> None:
    """Which only the shell has. A process of its own, as it leaves threads and files behind."""
    code = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
for cell in sys.argv[1:]:
    shell.run_cell(cell)
    print("=" * 9)
"""
    cells = [
        DEFINITIONS,
        "killer_pmap(work, [1], 1)",
        "killer_call(work, timeout=0.5)('hang')",
        "killer_call(Held)()",
    ]
    done = run_script(code, way="stdin", arguments=cells, environment={"IPYTHONDIR": str(tmp_path)})
    defined, *texts = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).split("=" * 9 + "\n")
    assert "Error" not in defined, done.stdout + done.stderr
    raised, late, unpicklable, _ = texts
    for cell, text in zip(cells[1:], texts):
        assert cell in text and text.count(f"File {OURS}") <= 1, text
        assert FRAME not in text and "During handling" not in text, text
    assert "    return inner(x)\n" in raised and "    raise ValueError(x)\n" in raised, raised
    assert "item 0 of the map: 1" in raised
    assert "timed out after 0.5s" in late
    assert 'raise LookupError("held")' in unpicklable


def test_in_pytest(tmp_path: Path) -> None:
    """It shows the line of the test, and no code of ours. A few of them, as each takes its time."""
    cases = [case for case in CASES if case.startswith(IN_PYTEST)]
    tests = "".join(f"def test_{n}():\n    {case}\n" for n, case in enumerate(cases))
    (tmp_path / "test_it.py").write_text(DEFINITIONS + tests, encoding="utf-8")
    code = "import pytest; pytest.main(['-q', '-p', 'no:cacheprovider', 'test_it.py'])"
    done = run_script(code, directory=tmp_path, limit=100)
    _, *texts = re.split(r"^_+ test_\d+ _+$", done.stdout, flags=re.MULTILINE)
    assert len(cases) == len(texts), done.stdout + done.stderr
    for case, text in zip(cases, texts):
        most, *expected = CASES[case]
        assert f">       {case}" in text or f">   {case}" in text.replace("       ", "   "), text
        assert all(part in text for part in expected), text
        assert FRAME not in text and OURS not in text, text


def test_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """`logging.exception` writes what the interpreter prints."""

    def fail(x: int) -> None:
        raise ValueError(x)

    caplog.handler.setFormatter(logging.Formatter("%(message)s"))
    for call in (
        lambda: killer_call(fail)(7),
        lambda: killer_pmap(fail, [7], 1),
        lambda: killer_call(fail).submit(7).result(),
    ):
        caplog.clear()
        try:
            call()
        except ValueError:
            logging.getLogger("killercall-test").exception("the price is not known")
            shown = traceback.format_exc()
        text = caplog.text
        assert "the price is not known\n" + shown == text
        assert 1 == text.count(FRAME) == text.count("raise ValueError(x)")
        assert "During handling" not in text


def test_inline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no other process the function's own frames are there."""
    monkeypatch.setenv("KILLERCALL_INLINE", "1")

    def fail(x: int) -> None:
        raise ValueError(x)

    for call in (lambda: killer_pmap(fail, [7]), lambda: list(killer_imap(fail, [7]))):
        try:
            call()
        except ValueError:
            shown = traceback.format_exc()
        assert 1 == shown.count(FRAME) and "in fail\n" in shown, shown
        assert "During handling" not in shown


def test_user_code_in_between_is_shown() -> None:
    """A progress function of the user's that fails, say."""

    def refuse(*_numbers: Any) -> None:
        raise OverflowError

    for run in (killer_pmap, killer_imap):
        with pytest.raises(OverflowError) as caught:
            list(run(abs, [1], 1, progress=refuse))
        assert "refuse" == caught.traceback[-1].name


class Told(Exception):
    """One that can be referred to weakly."""


def tell(x: Any) -> None:
    raise Told(x)


def test_what_was_raised_is_gone_with_its_last_reference() -> None:
    """No frame of ours keeps it, and with it all that its traceback refers to."""
    calls: list[Callable[[], Any]] = [
        lambda: killer_call(tell)(1),
        lambda: killer_pmap(tell, [1], 1),
        lambda: list(killer_imap(tell, [1], 1)),
        lambda: killer_call(tell).submit(1).result(),
        lambda: killer_pipeline(range(3).__iter__, tell, list, 1),
        _first_of_a_pool,
    ]
    gc.collect()
    gc.disable()
    try:
        for call in calls:
            try:
                call()
            except Told as error:
                gone = weakref.ref(error)
            # A thread of ours may have it for a moment more.
            assert wait_until(lambda gone=gone: gone() is None), call
    finally:
        gc.enable()


def _first_of_a_pool() -> None:
    with KillerPool(1) as pool:
        next(pool.map(tell, [1]))


HERE, ASYNCIO = OURS, os.path.join(os.path.dirname(os.__file__), "asyncio", "")
SERVING = [
    f'  File "{HERE}_worker.py", line 1 in answer',
    f'  File "{HERE}_worker.py", line 2 in serve',
    f'  File "{HERE}_forkserver.py", line 3 in main',
    '  File "<string>", line 1 in <module>',
]


def user(name: str) -> str:
    return f'  File "/home/me/model.py", line 1 in {name}'


STACKS: list[tuple[list[str], list[str]]] = [
    ([user("solve"), user("fit"), *SERVING], [user("solve"), user("fit")]),
    # Around the function, and where it has called us.
    (
        [f'  File "{HERE}_host.py", line 1 in wait', user("fit"), f'  File "{HERE}_wrapped.py", line 1 in _run', *SERVING],
        [user("fit")],
    ),
    # It has published something, which is the same file as what serves.
    (
        [user("__reduce__"), f'  File "{HERE}_worker.py", line 9 in publish', user("fit"), *SERVING],
        [user("__reduce__"), f'  File "{HERE}_worker.py", line 9 in publish', user("fit")],
    ),
    # A map in the host of a forked copy is not the function's.
    ([user("fit"), *SERVING, f'  File "{HERE}_pmap.py", line 1 in killer_pmap', user("main")], [user("fit")]),
    # What runs a coroutine, unless there is nothing else.
    ([user("fit"), f'  File "{ASYNCIO}runners.py", line 1 in run', *SERVING], [user("fit")]),
    ([f'  File "{ASYNCIO}base.py", line 1 in run', *SERVING], [f'  File "{ASYNCIO}base.py", line 1 in run']),
    ([f'  File "{ASYNCIO}x.py", line 1 in run', user("fit"), *SERVING], [f'  File "{ASYNCIO}x.py", line 1 in run', user("fit")]),
    # Too deep to be told to its end.
    ([user("fit"), user("fit"), "  ..."], [user("fit"), user("fit"), "  ..."]),
    # The time went into our part.
    (SERVING, SERVING[:1]),
    ([user("fit"), *SERVING[:2], "Extension modules: numpy"], [user("fit")]),
]  # fmt: skip


def test_stacks_are_the_functions_own() -> None:
    head = "Current thread 0x01 (most recent call first):"
    other = ["Thread 0x02 (most recent call first):", user("wait"), ""]
    for frames, kept in STACKS:
        text = _stack.readable("\n".join([*other, head, *frames]))
        assert "\n".join([head, *kept, *other]).rstrip() == (text or "").rstrip()


def test_sources_are_filled_in_where_there_are_none() -> None:
    import linecache

    lines = ["def f():\n", "    raise ValueError\n"]
    linecache.cache["/tmp/cell-17.py"] = (1, None, lines, "/tmp/cell-17.py")
    try:
        text = (
            'Traceback (most recent call last):\n  File "/tmp/cell-17.py", line 2, in f\n'
            '  File "/none.py", line 1, in g\n  File "/tmp/cell-17.py", line 2, in f\n'
            '    as it was\n  | File "/tmp/cell-17.py", line 1, in <module>\nValueError: a\n'
        )
        expected = text.replace("in f\n", "in f\n    raise ValueError\n", 1)
        expected = expected.replace("<module>\n", "<module>\n  |   def f():\n")
        assert expected == _stack.with_sources(text) == _stack.with_sources(expected)
        assert "" == _stack.with_sources("")
    finally:
        del linecache.cache["/tmp/cell-17.py"]


def test_groups_and_what_led_to_an_error() -> None:
    """None of them has frames of ours, however they are connected."""

    def fail() -> None:
        try:
            {}["none"]
        except KeyError:
            raise ExceptionGroup("both", [ValueError(1), OSError(2)])  # noqa: B904

    with pytest.raises(ExceptionGroup) as caught:
        killer_call(fail)()
    remote = str(caught.value.__cause__)
    assert all(part in remote for part in ("KeyError: 'none'", "ValueError: 1", "OSError: 2"))
    assert FRAME not in remote
