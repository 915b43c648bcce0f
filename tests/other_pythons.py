"""
Installs a wheel on every other CPython from 3.11 up that this machine has, and runs the tests for
which the interpreter may make a difference.

Usage: python tests/other_pythons.py dist/killercall-....whl
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOWEST = (3, 11)
# About pickling, code objects, threads, tracebacks, events and the end of the interpreter. Of processes,
# memory, options and pages, one interpreter tells as much as another.
DIFFERENT = (
    "call", "exports", "futures", "logging", "nesting", "notebook", "output", "pickling", "pmap", "reloads",
    "signals", "spares", "startup", "surroundings", "tracebacks", "waiting", "warm",
)  # fmt: skip


def interpreters() -> dict[tuple[int, int], str]:
    """One interpreter for each minor version, from PATH and from pyenv."""
    candidates = [Path(folder) / name for folder in os.get_exec_path() for name in _names(folder)]
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))]
    candidates += [found for root in roots for found in sorted(root.glob("versions/*/bin/python"))]
    found: dict[tuple[int, int], str] = {}
    for candidate in candidates:
        version = _version(candidate)
        if version is not None and version >= LOWEST:
            found.setdefault(version, str(candidate))
    return found


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if re.fullmatch(r"python3\.\d+", name)]
    except OSError:
        return []


def _version(candidate: Path) -> tuple[int, int] | None:
    code = (
        "import sys; print(sys.implementation.name, *sys.version_info[:2], "
        "getattr(sys, '_is_gil_enabled', lambda: True)())"
    )
    try:
        run = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match run.stdout.split():
        case ["cpython", major, minor, "True"]:
            return int(major), int(minor)
        case _:
            return None


def main(wheel: str, *options: str) -> int:
    """Runs the tests on each, with these options of pytest; returns how many failed."""
    failed = 0
    here = sys.version_info[:2]
    others = {version: path for version, path in interpreters().items() if version != here}
    print(f"{wheel}: other CPythons here: {', '.join(map(str, others.values())) or 'none'}")
    for version, path in sorted(others.items()):
        folder = Path(tempfile.mkdtemp(prefix="killercall-wheel-"))
        try:
            subprocess.run([path, "-m", "venv", folder], check=True)
            python = folder / "bin" / "python"
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
            subprocess.run([*pip, wheel, "--group", "test-each"], check=True)
            print(f"--- {'.'.join(map(str, version))}", flush=True)
            files = [f"tests/test_{name}.py" for name in DIFFERENT]
            run = subprocess.run([python, "-m", "pytest", *files, "-q", *options])
            failed += run.returncode != 0
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
