"""
Measures which lines of the package run in this process, if it belongs to `make coverage`.

Each interpreter that has this directory in `PYTHONPATH` imports this module when it starts: the tests, what
they start, and forkservers. Forked processes are measured on: coverage.py sees to that. Most of ours end
by SIGKILL or `os._exit`, so what is new is saved around each answer and before such an end: a line of JSON
that is appended to one file, so a kill loses no more than that line.
"""

from __future__ import annotations

import contextlib
import json
import os
from importlib.machinery import PathFinder

LINES = os.environ.get("KILLERCALL_COVERAGE")


def _start(path):
    import atexit

    import coverage

    measured = coverage.Coverage(
        data_file=None, config_file=False, include=["*/killercall/*.py"], messages=False
    )
    measured.set_option("run:disable_warnings", ["no-data-collected"])
    saved = {}

    def save():
        # A process that has neither memory nor descriptors left, say, saves nothing: its test goes on.
        with contextlib.suppress(Exception):
            data = measured.get_data()
            new = {}
            for file in data.measured_files():
                lines = set(data.lines(file)) - saved.setdefault(file, set())
                if lines:
                    new[file] = sorted(lines)
                    saved[file] |= lines
            if new:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    os.write(file, b"\n" + json.dumps(new).encode() + b"\n")
                finally:
                    os.close(file)

    def save_around(owner, name):
        function = getattr(owner, name)

        def saving(*args, **kwargs):
            save()
            try:
                return function(*args, **kwargs)
            finally:
                save()

        # Tests send some of these to a worker, so pickle has to find them.
        saving.__name__ = saving.__qualname__ = name
        saving.__module__ = owner.__name__
        setattr(owner, name, saving)

    def watch_worker(module):
        save_around(module._Worker, "_send")
        save_around(module._Worker, "publish")
        # After the last answer no time may be left.
        save_around(module, "_end_children")

    for name in ("_exit", "execv", "execve"):
        save_around(os, name)
    _when_imported("killercall._worker", watch_worker)
    # The first to be registered is the last to be called.
    atexit.register(save)
    measured.start()
    return save


def _when_imported(wanted, change):
    """Changes a module as soon as it is there."""
    import sys

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != wanted:
                return None
            spec = PathFinder.find_spec(name, path, target)
            run = spec.loader.exec_module

            def run_and_change(module):
                run(module)
                change(module)

            spec.loader.exec_module = run_and_change
            return spec

    sys.meta_path.insert(0, Finder)


if LINES:
    save = _start(LINES)
