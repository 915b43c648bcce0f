"""
Measures killercall beside its peers and the floor, and writes docs/benchmarks.md with its charts.

The quick form only checks that every measurement runs: one tiny round of each, without the peers
that are systems of their own; it writes no page and ends with 1 if anything failed.

Usage: python -m benchmarks [--quick] [--only warm fresh ...] [--out docs]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import charts, conductor, report
from benchmarks.catalogue import measures

if TYPE_CHECKING:
    from benchmarks.conductor import Measure, Taken
    from benchmarks.limits import Results

ROOT = Path(conductor.ROOT)
# So many measures beside each other in the quick form, where no figure counts.
BESIDE = 3

METHOD = """\
Each contestant has a process of its own, a fresh interpreter that carries only its own library, and
is warmed up. Then they take turns, round by round, so that what else the machine does hits them
alike; those that start daemons (ray, dask) and those that hold a gigabyte are started for each of
their turns, so that they are in nobody's way. Every answer is checked. Medians and 99th percentiles
are over all rounds; with fewer than 100 samples p99 is the slowest one. What a contestant leaves
behind when it has ended, after a patience of three seconds, is told here and ended. "Alive at the
answer" are those that `/proc` shows without a SIGKILL and not on their way out; the moment between
the two counts as alive, and there is a chance to meet it on a busy machine.

Garbage collector, processor affinity, priorities and environment are left as a user has them;
nothing is pinned. These machines are virtual and noisy: compare the ratios inside this run, never
numbers of two runs. Where the host itself is part of the work (`ProcessPoolExecutor` pickles in a
thread, for instance) that is what its users pay too.

killercall runs functions of the script, which it pickles by value, the peers functions of a
module, which all of them can take. All its calls have a deadline, 60 s where none is to be missed.
"""


def run(chosen: list[Measure], log: Path, *, quick: bool) -> Results:
    """Takes these measures one after the other; in the quick form beside each other."""
    results: Results = {}

    def one(measure: Measure) -> None:
        start = time.monotonic()
        results[measure.key] = conductor.conduct(measure, log)
        took = time.monotonic() - start
        print(f"\n## {measure.title} ({took:.0f} s)\n", flush=not quick)
        print("\n".join(report.table(measure, results[measure.key])), flush=True)

    if quick:
        with ThreadPoolExecutor(BESIDE) as threads:
            list(threads.map(one, chosen))
    else:
        for measure in chosen:
            one(measure)
    return results


def page(chosen: list[Measure], results: Results, out: Path, facts: dict[str, str]) -> None:
    """Writes the page and its charts."""
    images = out / "images"
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`, all in one run; compare the ratios, not the numbers.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "## What is to be shown",
        "",
        *report.shown(results, chosen),
        "",
        "That the promises hold under all of it is shown by `make test` and `make stress`.",
        "",
        "## Method",
        "",
        METHOD,
    ]
    for measure in chosen:
        lines += [f"## {measure.title}", ""]
        if measure.chart and charts.draw(measure, results[measure.key], images):
            lines += [f"![{measure.title}](images/{charts.file_name(measure)})", ""]
        lines += [*report.table(measure, results[measure.key]), ""]
    (out / "benchmarks.md").write_text("\n".join(lines), encoding="utf-8")


def troubles(results: Results) -> list[str]:
    """What failed and what was left behind, a line each."""

    def of(where: str, taken: Taken) -> list[str]:
        found = [f"{where} failed: {taken.failed}"] if taken.failed else []
        return found + [f"{where} left behind: {command}" for command in taken.left]

    return [
        trouble
        for key, contestants in results.items()
        for name, taken in contestants.items()
        for trouble in of(f"{key}: {name}", taken)
    ]


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these measures, no page")
    parser.add_argument("--out", type=Path, help="where the page goes; default docs")
    arguments = parser.parse_args()
    chosen = measures(quick=arguments.quick)
    if arguments.only:
        unknown = set(arguments.only) - {measure.key for measure in chosen}
        if unknown:
            parser.error(f"{unknown} are not among {[measure.key for measure in chosen]}")
        chosen = [measure for measure in chosen if measure.key in arguments.only]

    conductor.adopt_orphans()
    start = time.monotonic()
    facts = report.machine()
    load = os.getloadavg()
    descriptor, log = tempfile.mkstemp(prefix="benchmarks-", suffix=".log")
    os.close(descriptor)
    try:
        results = run(chosen, Path(log), quick=arguments.quick)
    finally:
        conductor.end_all()
    facts["load average"] = (
        f"{load[0]:.1f} before the run, {os.getloadavg()[0]:.1f} at its end (its own work included)"
    )
    facts["took"] = f"{(time.monotonic() - start) / 60:.0f} minutes"
    if not arguments.only:
        print("\n## What is to be shown\n")
        print("\n".join(report.shown(results, chosen)))
    out = arguments.out
    if out is None and not arguments.only and not arguments.quick:
        out = ROOT / "docs"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        page(chosen, results, out, facts)
    wrong = troubles(results)
    print("", *wrong, sep="\n")
    print(f"{len(chosen)} measures in {time.monotonic() - start:.0f} s; stderr of all in {log}")
    return 1 if arguments.quick and any("killercall" in trouble for trouble in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
