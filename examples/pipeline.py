"""
A large file through a pipeline: read in one process, estimated in several, written in one.

The file has daily prices of the S&P 500 in a great many histories that might have been: a
stationary bootstrap of the real days, by the package arch. For each day three estimators of
volatility are computed from open, high, low and close, from the text of the line to the text of
the result.

The writer writes to a file of another name and renames it after its loop. If any stage fails, its
loop never ends, so there is either the whole file or none. The second part of this example shows
how soon the script hears of a writer that cannot open its file, while there is input without end.

    python examples/pipeline.py [histories]
"""

import csv
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

import arch.data.sp500
import pandas as pd
from arch.bootstrap import StationaryBootstrap

from killercall import killer_pipeline

HISTORIES = int(sys.argv[1]) if len(sys.argv) > 1 else 120
BATCH = 2_000
FIELDS = ("Open", "High", "Low", "Close")


def make_file(path: str) -> int:
    """Writes the histories; returns the number of lines."""
    prices = arch.data.sp500.load()[list(FIELDS)]
    bootstrap = StationaryBootstrap(20, prices, seed=1)
    with open(path, "w", encoding="ascii") as file:
        for (days,), _ in bootstrap.bootstrap(HISTORIES):
            pd.DataFrame(days).to_csv(file, header=False, index=False, float_format="%.2f")
    return HISTORIES * len(prices)


def lines_of(path: str) -> Iterator[str]:
    """The reader: one line after the other."""
    with open(path, encoding="ascii") as file:
        yield from file


def estimate(lines: list[str]) -> str:
    """The work: volatilities after Parkinson, Garman and Klass, and Rogers and Satchell."""
    rows = []
    for start, high, low, end in csv.reader(lines):
        to_high, to_low = math.log(float(high) / float(start)), math.log(float(low) / float(start))
        to_end = math.log(float(end) / float(start))
        span = to_high - to_low
        parkinson = span**2 / (4 * math.log(2))
        klass = 0.5 * span**2 - (2 * math.log(2) - 1) * to_end**2
        satchell = to_high * (to_high - to_end) + to_low * (to_low - to_end)
        rows.append(
            ",".join(
                f"{math.sqrt(max(variance, 0)):.6f}" for variance in (parkinson, klass, satchell)
            )
        )
    return "\n".join(rows) + "\n"


def write_to(path: str, parts: Iterable[str]) -> int:
    """The writer: all or nothing. Returns the number of lines."""
    count = 0
    with open(f"{path}.part", "w", encoding="ascii") as file:
        for part in parts:
            file.write(part)
            count += part.count("\n")
    os.replace(f"{path}.part", path)
    return count


def in_batches(lines: Iterator[str]) -> Iterator[list[str]]:
    """As the pipeline does it."""
    while batch := list(itertools.islice(lines, BATCH)):
        yield batch


def open_in_vain(parts: Iterable[str]) -> None:
    """A writer that cannot open its file, and says when it found out."""
    path = "/no/such/directory/volatility.csv"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.writelines(parts)
    except OSError as error:
        error.add_note(f"failed at {time.monotonic()}")
        raise


def main() -> None:
    """Runs both parts."""
    with tempfile.TemporaryDirectory() as directory:
        source = os.path.join(directory, "prices.csv")
        alone, together = (os.path.join(directory, name) for name in ("alone.csv", "together.csv"))
        count = make_file(source)
        print(f"{count:,} lines, {os.path.getsize(source) / 1e6:.0f} MB")

        start = time.perf_counter()
        write_to(alone, map(estimate, in_batches(lines_of(source))))
        took = time.perf_counter() - start
        print(f"in one process:  {took:5.1f} s, {count / took:10,.0f} lines a second")

        start = time.perf_counter()
        written = killer_pipeline(
            lambda: lines_of(source),
            estimate,
            lambda parts: write_to(together, parts),
            batch=BATCH,
            timeout=10,
        )
        took = time.perf_counter() - start
        print(f"in a pipeline:   {took:5.1f} s, {count / took:10,.0f} lines a second")
        with open(alone, "rb") as first, open(together, "rb") as second:
            assert written == count
            assert first.read() == second.read()

        try:
            killer_pipeline(
                lambda: itertools.cycle(lines_of(source)), estimate, open_in_vain, batch=BATCH
            )
        except FileNotFoundError as error:
            heard = time.monotonic()
            (said,) = (note for note in error.__notes__ if note.startswith("failed at"))
            after = heard - float(said.split()[-1])
            print(
                f"the writer's {type(error).__name__} arrived {after * 1e3:.0f} ms after it failed"
            )


main()
