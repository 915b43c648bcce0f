"""
Compares two commits by the instructions that a warm call and an item of a map cost.

Seconds differ from run to run on a shared machine; instructions hardly do. Each commit is built in
a worktree of its own, installed into an environment of its own, and runs the same driver under
callgrind, once short and once long: the difference is what the calls cost, without the start. Host
and worker are counted apart. What the kernel does is not counted, and a side that spins while it
waits is counted with its turns, of which there are more under callgrind: `callgrind_annotate` on
the kept files tells where they are.

A commit is whatever git takes; "." stands for the working tree (without untracked files).

Usage: python -m benchmarks.compare A B [--limit 1.05]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRIVER = Path(__file__).resolve().parent / "compare_driver.py"
BUILDS = ROOT / "build" / "compare"
# Short and long run: calls, items.
LENGTHS = {"call": (100, 600), "map": (500, 4500)}
ROLES = ("host", "worker")


def git(*arguments: str) -> str:
    """What git says."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def resolve(name: str) -> str:
    """The commit that is meant."""
    if name == ".":
        name = git("stash", "create") or "HEAD"
    return git("rev-parse", "--verify", f"{name}^{{commit}}")


def build(commit: str) -> Path:
    """The Python of an environment with that commit installed, made unless it is there."""
    home = BUILDS / commit[:12]
    python = home / "venv" / "bin" / "python"
    done = home / "built"
    if done.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    print(f"building {commit[:12]}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            subprocess.run([python, "-m", "pip", "install", "--quiet", tree], check=True)
        finally:
            git("worktree", "remove", "--force", str(tree))
    done.touch()
    return python


def count(python: Path, what: str, length: int, kept: Path) -> dict[str, int]:
    """Instructions of host and worker of one run."""
    kept.mkdir(parents=True)
    run = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--trace-children=yes",
            f"--callgrind-out-file={kept}/out.%p",
            f"--log-file={kept}/log.%p",
            python,
            DRIVER,
            what,
            str(length),
        ],
        # The order of sets and dicts is to be the same in all runs.
        env=os.environ | {"PYTHONHASHSEED": "0"},
        cwd=kept,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {
        role: total(kept / f"out.{pid}")
        for role, pid in zip(ROLES, run.stdout.split(), strict=True)
    }


def total(path: Path) -> int:
    """The instructions that a file of callgrind tells."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1])
    message = f"{path} has no summary"
    raise ValueError(message)


def each(python: Path, what: str, kept: Path) -> dict[str, float]:
    """Instructions of one call or item, in host and worker."""
    short, long = LENGTHS[what]
    few, many = (count(python, what, length, kept / f"{what}-{length}") for length in (short, long))
    return {role: (many[role] - few[role]) / (long - short) for role in ROLES}


def main() -> int:
    """Builds, counts and prints."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument(
        "--limit", type=float, help="end with 1 if B costs more than so many times A"
    )
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("needs valgrind, for example from apt-get install valgrind")
    commits = [resolve(arguments.a), resolve(arguments.b)]
    pythons = [build(commit) for commit in commits]
    kept = Path(tempfile.mkdtemp(prefix="compare-"))
    worst = 0.0
    print(f"\nA is {git('log', '-1', '--format=%h %s', commits[0])}")
    print(f"B is {git('log', '-1', '--format=%h %s', commits[1])}\n")
    print("| instructions | A | B | B / A |\n|---|---:|---:|---:|")
    for what, unit in (("call", "a warm call"), ("map", "an item of a map")):
        a, b = (
            each(python, what, kept / side)
            for side, python in zip(("a", "b"), pythons, strict=True)
        )
        for role in ROLES:
            ratio = b[role] / a[role]
            worst = max(worst, ratio)
            print(f"| {unit}, {role} | {a[role]:,.0f} | {b[role]:,.0f} | {ratio:.3f} |", flush=True)
    print(f"\nThe files of callgrind are in {kept}")
    return 1 if arguments.limit and worst > arguments.limit else 0


if __name__ == "__main__":
    sys.exit(main())
