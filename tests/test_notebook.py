"""In a notebook: everything comes to its cell, nothing is stale, and nothing stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from processes import PATIENCE, TESTS, is_running, wait_until

if TYPE_CHECKING:
    from pathlib import Path

# What each cell runs, by what it is about.
CELLS = {
    "start": """
import logging, os, sys, threading, time, warnings
from killercall import killer_call, killer_pmap
%load_ext autoreload
%autoreload 2
sys.path.insert(0, {directory!r})
import edited
from edited import taken
def wait_for(path):
    end = time.monotonic() + {patience}
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)
    return os.path.exists(path)
""",
    "order": """
@killer_call
def speak(x):
    print("out", x)
    warnings.warn(f"careful {x}", stacklevel=1)
    return x
print("before")
speak(1)
print("between")
killer_pmap(speak, [2])
print("after")
""",
    "threads and exception": """
@killer_call
def fail():
    threads = [threading.Thread(target=print, args=("thread\\n",), kwargs={"end": ""}) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    print("last")
    raise LookupError
fail()
""",
    "live": """
@killer_call(timeout={patience})
def live(path):
    print("to be seen")
    return wait_for(path)
print(live({seen!r}))
""",
    "late": """
@killer_call
def late(path):
    wait_for(path)
    print("from late")
future = late.submit({gate!r})
""",
    "next": """
open({gate!r}, "w").close()
future.result()
print("from next")
""",
    "logging": """
logging.getLogger("app").setLevel(logging.INFO)
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
def log():
    logging.getLogger("app").info("logged")
    logging.getLogger("app").debug("not logged")
killer_call(log)()
""",
    "definitions": """
class Pair:
    def __init__(self, x):
        self.x = x
    def kind(self):
        return "first"
factor = 2
def double(x):
    return Pair(x * factor)
made = killer_call(double)
print(made(1).x, made(1).kind(), type(made(1)) is Pair)
""",
    "changed global": """
factor = 3
print(made(1).x)
""",
    "redefined": """
class Pair:
    def __init__(self, x):
        self.x = x
    def kind(self):
        return "second"
print(made(1).kind(), type(made(1)) is Pair)
def double(x):
    return -x
print(killer_call(double)(1))
""",
    "module": """
print(killer_call(edited.version)(), killer_call(taken)(), killer_call(lambda: edited.version())())
print(killer_pmap(lambda _: edited.version(), [0]))
open(os.path.join({directory!r}, "edited.py"), "w").write({second!r})
""",
    "edited": """
print(killer_call(edited.version)(), killer_call(taken)(), killer_call(lambda: edited.version())())
print(killer_pmap(lambda _: edited.version(), [0]))
""",
    "progress": """
killer_pmap(abs, range(5), progress="items")
""",
    "interrupted call": """
def hang(x):
    print("hangs", os.getpid(), flush=True)
    time.sleep(600)
killer_call(hang, timeout=None)(0)
""",
    "interrupted map": """
killer_pmap(hang, range(3), cpus=2, timeout=None)
""",
    "after": """
print(killer_call(abs)(-1), killer_pmap(abs, [-2]))
""",
    "closing": """
def begin(path):
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)
paths = [{gate!r} + str(x) for x in range(2)]
futures = [killer_call(begin, timeout=None).submit(path) for path in paths]
def pids():
    return [line for path in paths if os.path.exists(path) for line in open(path) if line[-1:] == "\\n"]
while len(pids()) < 2:
    time.sleep(0.01)
print(*pids(), killer_call(os.getpid)(), sep="")
""",
}
FIRST = """
from helper import number
def version():
    return f"first {number}"
def taken():
    return version()
"""
SECOND = FIRST.replace("first", "second version")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each cell has brought."""
    directory: Path = tmp_path_factory.mktemp("notebook")
    (directory / "edited.py").write_text(FIRST)
    (directory / "helper.py").write_text("number = 1\n")
    values = {
        "{directory!r}": repr(str(directory)), "{patience}": str(PATIENCE), "{second!r}": repr(SECOND),
        "{seen!r}": repr(str(directory / "seen")), "{gate!r}": repr(str(directory / "gate")),
    }  # fmt: skip
    cells: list[dict[str, Any]] = []
    for name, code in CELLS.items():
        for placeholder, value in values.items():
            code = code.replace(placeholder, value)
        cells.append({"code": code})
        if name.startswith("interrupted"):
            cells[-1]["interrupt"] = "hangs"
        if name == "live":
            cells[-1]["make"] = ("to be seen", str(directory / "seen"))
    done = subprocess.run(
        [sys.executable, TESTS / "notebook.py"],
        input=json.dumps(cells),
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    return dict(zip((*CELLS, "restarted"), json.loads(done.stdout), strict=True))


def test_order(said: dict[str, Any]) -> None:
    """Prints and warnings of workers are in their cell, in order with its own."""
    found = said["order"]
    assert "before\nout 1\nbetween\nout 2\nafter\n" == found["stdout"]
    assert ["careful 1", "careful 2"] == [
        line.split(": ")[-1] for line in found["stderr"].splitlines() if "UserWarning" in line
    ]


def test_threads_and_exception(said: dict[str, Any]) -> None:
    """All that came before the exception is there."""
    found = said["threads and exception"]
    assert ("thread\n" * 3 + "last\n", "LookupError") == (found["stdout"], found["error"])


def test_live(said: dict[str, Any]) -> None:
    """It is shown while the call runs."""
    assert "to be seen\nTrue\n" == said["live"]["stdout"]


def test_future(said: dict[str, Any]) -> None:
    """It prints in the cell that has submitted it."""
    assert ("from late\n", "from next\n") == (said["late"]["stdout"], said["next"]["stdout"])


def test_logging(said: dict[str, Any]) -> None:
    """Records go through the kernel's handlers."""
    assert "INFO logged\n" == said["logging"]["stdout"]


def test_definitions(said: dict[str, Any]) -> None:
    """Functions and classes of cells come back as they are; nothing of an earlier cell is used."""
    assert "2 first True\n" == said["definitions"]["stdout"]
    assert "3\n" == said["changed global"]["stdout"]
    assert "second True\n-1\n" == said["redefined"]["stdout"]


def test_autoreload(said: dict[str, Any]) -> None:
    """Warm workers do not run what a module was before."""
    assert "first 1 first 1 first 1\n['first 1']\n" == said["module"]["stdout"]
    second = "second version 1"
    assert f"{second} {second} {second}\n['{second}']\n" == said["edited"]["stdout"]


def test_progress(said: dict[str, Any]) -> None:
    """The bar is a widget."""
    found = said["progress"]
    assert ("", ["application/vnd.jupyter.widget-view+json", "text/plain"]) == (
        found["streams"], found["data"][0],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["interrupted call", "interrupted map"])
def test_interrupt(said: dict[str, Any], name: str) -> None:
    """Kernel > Interrupt ends a call or a map and its workers, and the kernel goes on."""
    assert "KeyboardInterrupt" == said[name]["error"]
    pids = [int(line.split()[1]) for line in said[name]["stdout"].splitlines()]
    assert pids and not any(map(is_running, pids))
    assert "1 [2]\n" == said["after"]["stdout"]


def test_restart_and_close(said: dict[str, Any]) -> None:
    """A kernel that is killed leaves nothing, whatever was running; nor does one that is closed."""
    pids = [int(line) for line in said["closing"]["stdout"].split()]
    assert 3 == len(pids)
    assert wait_until(lambda: not any(map(is_running, pids)))
    assert "1\n" == said["restarted"]["stdout"]


def test_nothing_fails(said: dict[str, Any]) -> None:
    """No other cell has raised, and nothing is printed unasked."""
    expected = {"threads and exception", "interrupted call", "interrupted map"}
    assert expected == {name for name, found in said.items() if found["error"]}
    assert "" == "".join(found["stderr"] for name, found in said.items() if name != "order")
