"""From what was taken to a page: the table of what is to be shown, then one for each measure."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.limits import LINES, Line, median, p99

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.conductor import Measure, Taken
    from benchmarks.limits import Results

# What a sample is multiplied with.
SCALE = {"us": 1e6, "ms": 1e3, "s": 1.0, "items/s": 1.0, "MB": 1e-6, "copies": 1.0}
PEERS = (
    "numpy", "pandas", "pebble", "billiard", "mpire", "loky", "joblib", "ray", "dask",
    "distributed", "multiprocess", "dill", "cloudpickle", "wrapt_timeout_decorator", "psutil",
)  # fmt: skip


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = platform.processor()
    memory = ""
    if Path("/proc/cpuinfo").exists():
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                model = text.partition(":")[2].strip()
                break
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {pages / 1e9:.0f} GB of memory"
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    versions = []
    for name in PEERS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "date": f"{datetime.date.today()}",
        "machine": f"{platform.machine()}, {model}, {len(os.sched_getaffinity(0))} cpus{memory}",
        "system": f"{platform.system()} {platform.release()}, transparent huge pages: "
        + (huge.read_text(encoding="ascii").strip() if huge.exists() else "unknown"),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "killercall": f"{importlib.metadata.version('killercall')}, commit "
        + (commit.stdout.strip() or "unknown"),
        "peers": ", ".join(versions),
    }


class Missing(Exception):
    """A figure of a line is not there; says why."""


def _samples(results: Results, measure: str, name: str) -> list[float]:
    taken = results.get(measure, {}).get(name)
    if taken is None:
        raise Missing("not run")
    if not taken.samples:
        raise Missing(f"{name} failed: {taken.failed}")
    return taken.samples


def _against(line: Line, results: Results) -> tuple[str, list[float]]:
    found = {}
    why = ""
    for name in line.against:
        try:
            found[name] = _samples(results, line.measure, name)
        except Missing as missing:
            why = str(missing)
    if not found:
        raise Missing(why)
    name = min(found, key=lambda name: median(found[name]))
    return name, found[name]


def _judge(line: Line, ratio: float) -> str:
    at_most = not (line.faster or line.rate)

    def met(limit: float) -> bool:
        return ratio <= limit if at_most else ratio >= limit

    if line.aim is not None and met(line.aim):
        return "yes, and the aim"
    return "yes" if met(line.at_least) else "**no**"


def _cells(line: Line, results: Results, units: dict[str, str]) -> Iterator[str]:
    unit = units[line.measure]
    # Both sides in one unit, so that a reader sees the ratio.
    scale = SCALE[unit]
    sign, word = ("≥ ", " x") if line.faster or line.rate else ("≤ ", " x")
    if not line.against and line.constant is None:
        word = ""
    limits = [
        "" if limit is None else f"{sign}{limit:g}{word}" for limit in (line.at_least, line.aim)
    ]
    yield line.text
    try:
        ours = _samples(results, line.measure, line.ours)
        theirs = _against(line, results) if line.against else None
    except Missing as missing:
        yield from ["", "", "", *limits, f"not measured: {missing}"]
        return
    # Of items a second the low ones are the bad ones.
    tail = min if line.rate else p99
    yield f"{figure(median(ours) * scale)} / {figure(tail(ours) * scale)} {unit}"
    ratio = line.of(ours) * scale
    if theirs is not None:
        name, samples = theirs
        yield (
            f"{name}: {figure(median(samples) * scale)} / {figure(tail(samples) * scale)} {unit}"
        )
        ratio = line.of(ours) / line.of(samples)
    elif line.constant is not None:
        yield f"{line.constant:g} {unit}"
        ratio /= line.constant
    else:
        yield ""
    if line.faster:
        ratio = 1 / ratio
    yield f"{figure(ratio)}{word}"
    yield from [*limits, _judge(line, ratio)]


def shown(results: Results, measures: Sequence[Measure]) -> list[str]:
    """The table of what is to be shown."""
    units = {measure.key: measure.unit for measure in measures}
    rows = [
        "| what | ours: median / p99 | against: median / p99 | ratio | at least | aim | met |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        "| " + " | ".join(_cells(line, results, units)) + " |"
        for line in LINES
        if line.measure in units
    ]
    return rows


def table(measure: Measure, taken: dict[str, Taken]) -> list[str]:
    """One measure, contestant by contestant."""
    scale = SCALE[measure.unit]
    base = next((mine.samples for mine in taken.values() if mine.samples), None)
    tail = "slowest" if measure.more_is_better else "p99"
    rows = [
        f"| contestant | median {measure.unit} | {tail} | x the first | samples | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, mine in taken.items():
        remarks = [mine.note] if mine.note else []
        if mine.failed:
            remarks.append(f"**failed**: {mine.failed.replace('|', '/')}")
        if mine.left:
            remarks.append(f"left behind: {len(mine.left)}, `{mine.left[0].replace('|', '/')}`")
        cells = ["", "", ""]
        if mine.samples and base:
            worst = min(mine.samples) if measure.more_is_better else p99(mine.samples)
            cells = [
                figure(median(mine.samples) * scale),
                figure(worst * scale),
                figure(median(mine.samples) / median(base)),
            ]
        rows.append(
            f"| {name} | {' | '.join(cells)} | {len(mine.samples)} | {'; '.join(remarks)} |"
        )
    return rows
