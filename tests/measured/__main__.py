"""
Runs a part of the tests with coverage.py in every process, and prints which lines of the package none has run.

`sitecustomize` beside this file does the measuring. The part is what runs most in the least time: measured
processes are slow and large, so tests of memory and of time are not in it. For the same reason a test that
fails is told of, and no more: whether all is right is for `make test-python` to say.

Usage: python tests/measured [options of pytest]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import coverage
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "build" / "coverage"
PACKAGE = ROOT / "python" / "killercall"


def run_tests(lines: Path, options: list[str]) -> None:
    """Runs them. What has run is then in a file."""
    search = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "KILLERCALL_COVERAGE": str(lines),
        "PYTHONPATH": os.pathsep.join(search),
    }
    listed = (HERE / "tests.txt").read_text(encoding="utf-8").splitlines()
    tests = [line for line in listed if not line.startswith("#")]
    command = [sys.executable, "-m", "pytest", "-q", *options, *tests]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status == pytest.ExitCode.TESTS_FAILED:
        print("a test has failed that may have been too slow; `make test-python` tells")
    elif status:
        sys.exit(status)


def read(lines: Path) -> dict[str, set[int]]:
    """What has run: the lines of each file, by the names of those of the sources."""
    found: dict[str, set[int]] = {str(file): set() for file in PACKAGE.glob("*.py")}
    for record in lines.read_text(encoding="utf-8").splitlines():
        try:
            new = json.loads(record or "{}")
        except ValueError:
            # Its process was killed while it wrote that.
            continue
        for file, numbers in new.items():
            found[str(PACKAGE / Path(file).name)].update(numbers)
    return found


def main(*options: str) -> int:
    """Zero if the tests cover as much as `pyproject.toml` asks for."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    lines = RESULTS / "lines"
    lines.touch()
    # Some tests run as another user.
    lines.chmod(0o666)
    run_tests(lines, list(options))
    data = coverage.CoverageData(str(RESULTS / "data"))
    found = read(lines)
    data.add_lines(found)
    data.touch_files(found)
    report = subprocess.run([sys.executable, "-m", "coverage", "report"], cwd=ROOT)
    return report.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
