"""The script of the README's promise, wherever it is run: its top level runs once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from processes import TESTS, lines, run_script

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
    import time

    with open({ran!r}, "a") as file:
        file.write("top level\\n")

    from killercall import killer_call, killer_pmap

    @killer_call(timeout=4)
    def bar(x):
        time.sleep(x)
        return x

    def foo(x):
        time.sleep(x)
        return x

    class Refused(Exception):
        limit = 3

        def __init__(self, amount, reason):
            super().__init__(f"{{amount}}: {{reason}}")
            self.amount = amount

    class Price:
        seen = 0

        def __init__(self, value):
            self.value = value

    def refuse(amount):
        Price.seen += 1
        raise Refused(amount, "too much")

    def price(value):
        Price.seen += 100
        return Price(value)

    try:
        bar(10)
    except TimeoutError as error:
        print(error)
    print(bar(2))
    print(killer_pmap(foo, range(6), cpus=6))
    try:
        killer_call(refuse)(5)
    except Refused as error:
        print("refused", error.amount, error)
    one = killer_call(price)(1)
    print(type(one) is Price, isinstance(one, Price), one.value, Price.seen)
"""
EXPECTED = """
    function 'bar' timed out after 4s
    2
    [0, 1, 2, 3, None, None]
    refused 5 5: too much
    True True 1 0
"""


def expected() -> list[str]:
    """The lines that the script prints."""
    return textwrap.dedent(EXPECTED).strip().splitlines()


def run_in_kernel(code: str) -> subprocess.CompletedProcess[str]:
    """The same as a cell of a real notebook kernel."""
    return subprocess.run(
        [sys.executable, TESTS / "kernel.py"],
        input=code,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# These four sleep most of the time, so they run at the same time.
# The runs are made once.
pytestmark = pytest.mark.xdist_group("main")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], str, list[str]]]:
    """What each way of running the script printed, its errors, and how often its top level ran."""

    def run(way: str) -> tuple[list[str], str, list[str]]:
        directory: Path = tmp_path_factory.mktemp("script")
        ran = directory / "ran"
        code = textwrap.dedent(SCRIPT).format(ran=str(ran))
        if way == "kernel":
            done = run_in_kernel(code)
        else:
            done = run_script(code, way=way, directory=directory, limit=100)
        return done.stdout.splitlines(), done.stderr, lines(ran)

    ways = ["file", "-c", "stdin", "kernel"]
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(ways, threads.map(run, ways), strict=True))


@pytest.mark.parametrize("way", ["file", "-c", "stdin", "kernel"])
def test_script(way: str, runs: dict[str, tuple[list[str], str, list[str]]]) -> None:
    """It needs no guard, prints what it should, and is not imported again."""
    printed, error, ran = runs[way]

    assert "" == error
    assert expected() == printed
    assert ["top level"] == ran
