"""
Volatility models on the S&P 500, every fit under a deadline.

A grid of volatility models is fitted on rolling and on growing windows of real prices.
Most fits take a few hundredths of a second. Long memory on a long history takes tens of
times as long, and now and then an ordinary search wanders where the likelihood is flat.
The time goes into compiled code that holds the GIL, so nothing inside the process can
be relied on to end it. Each fit gets a deadline and is killed when it misses it.

Afterwards a tick loop refits its model under the same deadline: the parameters in
force are replaced when the answer is there in time and kept when it is not.

There is no `if __name__ == "__main__"` guard: workers never import this script.

At the end it draws the volatilities, and a timeline of the map: when which worker ran what,
and which fits were killed.

    python examples/garch_sp500.py [picture.png [timeline.png]]
"""

import itertools
import os
import random
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# The workers share the cores already: BLAS threads in each would fight over them.
# numpy reads this when it is imported, here and in the workers.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import arch.data.sp500
import matplotlib as mpl
import numpy as np
import pandas as pd
from arch.univariate import (
    APARCH,
    EGARCH,
    FIGARCH,
    GARCH,
    ConstantMean,
    Normal,
    SkewStudent,
    StudentsT,
)
from arch.univariate.distribution import Distribution
from arch.univariate.volatility import VolatilityProcess
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import killercall
from killercall import killer_call, killer_pmap

mpl.use("Agg")
import matplotlib.pyplot as plt

YEAR = 252
"""Trading days in a year; also the step from one window to the next."""

FIRST_END = 9 * YEAR
"""Days before a window may end: "all history" means something, 2008 is the first."""

LOOKBACKS: dict[str, int | None] = {"one year": YEAR, "all history": None}

MODELS: dict[str, Callable[[int], VolatilityProcess]] = {
    "GARCH": lambda _: GARCH(p=1, o=0, q=1),
    "GJR": lambda _: GARCH(p=1, o=1, q=1),
    "EGARCH": lambda _: EGARCH(p=1, o=1, q=1),
    "APARCH": lambda _: APARCH(p=1, o=1, q=1),
    # Long memory is only long if the lags are not cut off: truncated at the sample.
    "FIGARCH": lambda days: FIGARCH(truncation=days),
}

DISTRIBUTIONS: dict[str, Callable[[], Distribution]] = {
    "normal": Normal,
    "t": StudentsT,
    "skewed t": SkewStudent,
}

MAX_ITERATIONS = 3000
"""Far above SLSQP's default of 100: here the deadline ends a search, not a count."""

PATIENCE = 10
"""The deadline, in medians of the fits on one-year windows."""

CALIBRATION_FITS = 24
CALIBRATION_DEADLINE = 4
"""Seconds; only so that a fit that never ends does not hold up the calibration."""

SAMPLE_FITS = 32
TICKS = 90
TICKS_PER_REFIT = 3
SEED = 20181231
TALLY_LINES = 5

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"done": "#d5e6f0", "failed": "#e69f00", "killed": "#d55e00"}
FITTED_COLOURS = {"one year": "#56b4e9", "all history": "#004c7a"}


class Spec(NamedTuple):
    """
    What to estimate: keys of `MODELS`, `DISTRIBUTIONS` and `LOOKBACKS`.
    """

    model: str
    distribution: str
    lookback: str


class Job(NamedTuple):
    """
    One model to fit on one window of returns.
    """

    spec: Spec
    end: int
    """Position of the first day after the window."""
    returns: np.ndarray
    """Daily log returns in percent."""


class Fit(NamedTuple):
    """
    What a converged fit brings back from its worker.
    """

    spec: Spec
    end: int
    params: np.ndarray
    bic: float
    volatility: np.ndarray
    """Fitted volatility of the window's last year, annualised, in percent."""
    seconds: float


class NotConverged(RuntimeError):
    """
    The optimiser gave up: what it found is not a maximum of the likelihood.
    """


class Run(NamedTuple):
    """
    One pass of `killer_pmap`: what was asked, what came back, how long it took.
    """

    jobs: Sequence[Job]
    outcomes: killercall.Outcomes
    wall: float

    @property
    def answers(self) -> list[Fit | BaseException]:
        """
        What came back of each job: its fit, or why there is none.
        """
        return [one.value if one.error is None else one.error for one in self.outcomes]

    def count(self, verdict: str) -> int:
        """
        Count the jobs that ended as `done`, `killed` or `failed`.
        """
        return sum(verdict_on(answer) == verdict for answer in self.answers)

    def pick(self, verdict: str) -> list[Job]:
        """
        Return the jobs that ended as `done`, `killed` or `failed`.
        """
        return [
            job
            for job, answer in zip(self.jobs, self.answers, strict=True)
            if verdict_on(answer) == verdict
        ]

    def timeouts(self) -> list[killercall.TimeoutError]:
        """
        Return the exceptions of the killed fits.
        """
        return [a for a in self.answers if isinstance(a, killercall.TimeoutError)]

    def failures(self) -> list[BaseException]:
        """
        Return what went wrong with the fits that failed within their deadline.
        """
        return [
            a
            for a in self.answers
            if isinstance(a, BaseException) and not isinstance(a, killercall.TimeoutError)
        ]

    def longest(self) -> float:
        """
        Return the seconds of the fit that ran longest, killed ones included.
        """
        seconds = [a.seconds for a in self.answers if isinstance(a, Fit)]
        return max(seconds + [error.elapsed for error in self.timeouts()])


def load_returns() -> pd.Series:
    """
    Return the daily log returns of the S&P 500 from 1999 to 2018, in percent.
    """
    log_closes = pd.Series(np.log(arch.data.sp500.load()["Adj Close"]))
    return 100 * log_closes.diff().dropna()


def make_job(spec: Spec, returns: np.ndarray, end: int) -> Job:
    """
    Cut the window that ends before `end` out of the series.
    """
    days = LOOKBACKS[spec.lookback]
    start = 0 if days is None else end - days
    return Job(spec, end, returns[start:end])


def grid(returns: np.ndarray) -> list[Job]:
    """
    Return every model, distribution and lookback, for a window end every year.
    """
    ends = range(len(returns), FIRST_END - 1, -YEAR)
    return [
        make_job(Spec(*names), returns, end)
        for end in reversed(ends)
        for names in itertools.product(MODELS, DISTRIBUTIONS, LOOKBACKS)
    ]


def build(job: Job) -> ConstantMean:
    """
    Build the model of a job, with nothing estimated yet.
    """
    return ConstantMean(
        job.returns,
        volatility=MODELS[job.spec.model](len(job.returns)),
        distribution=DISTRIBUTIONS[job.spec.distribution](),
    )


def fit(job: Job) -> Fit:
    """
    Estimate a model by maximum likelihood; this is what the workers run.

    Raises:
        NotConverged: the optimiser stopped for another reason than success.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        # An optimiser that strays into overflow says so here. What matters of it, the
        # convergence flag, is checked below.
        warnings.simplefilter("ignore", RuntimeWarning)
        result = build(job).fit(disp="off", show_warning=False, options={"maxiter": MAX_ITERATIONS})
    if result.convergence_flag != 0:
        raise NotConverged(result.optimization_result.message)
    return Fit(
        job.spec,
        job.end,
        result.params.to_numpy(),
        result.bic,
        np.sqrt(YEAR) * np.asarray(result.conditional_volatility)[-YEAR:],
        time.perf_counter() - started,
    )


def verdict_on(answer: Fit | BaseException) -> str:
    """
    Tell whether a job is `done`, was `killed` at its deadline, or `failed`.
    """
    if isinstance(answer, Fit):
        return "done"
    return "killed" if isinstance(answer, killercall.TimeoutError) else "failed"


def run(jobs: Sequence[Job], deadline: float | None) -> Run:
    """
    Fit all jobs in parallel, each under the deadline, and time the whole.
    """
    started = time.perf_counter()
    outcomes = killer_pmap(fit, jobs, timeout=deadline, outcomes=True)
    return Run(jobs, outcomes, time.perf_counter() - started)


def calibrate(jobs: Sequence[Job], rng: random.Random) -> float:
    """
    Return the median seconds of a few one-year fits on this machine, as it is now.

    They run in the workers, two or more at a time like the grid itself, so that the
    deadline scales with the speed of the machine and with what else it is doing.
    """
    short = [job for job in jobs if job.spec.lookback == "one year"]
    answers = run(rng.sample(short, CALIBRATION_FITS), CALIBRATION_DEADLINE).answers
    unexpected = [a for a in answers if not isinstance(a, (Fit, NotConverged, TimeoutError))]
    if unexpected:
        raise unexpected[0]
    return statistics.median(a.seconds for a in answers if isinstance(a, Fit))


def draw_sample(whole: Run, rng: random.Random) -> list[Job]:
    """
    Draw jobs at random, killed ones in the same proportion as in the whole grid.
    """
    killed = whole.pick("killed")
    others = whole.pick("done") + whole.pick("failed")
    share = round(SAMPLE_FITS * len(killed) / len(whole.jobs))
    chosen = rng.sample(killed, share) + rng.sample(others, SAMPLE_FITS - share)
    rng.shuffle(chosen)
    return chosen


def innermost_frame(stack: str | None) -> str:
    """
    Return the file and function a killed worker was in, most recent call first.

    The import system and killercall's own frames say nothing about the fit and are
    passed over.
    """
    if stack is None:
        # A stack dump has 20 ms; on a busy machine the worker may not get to run in that time.
        return "(no stack in time)"
    for path, function in re.findall(r'File "(.+?)", line \d+ in (\S+)', stack):
        if "importlib" not in path and Path(path).parent.name != "killercall":
            # The part that names the package, whatever environment it is in.
            name = re.sub(r".*/(?:site-packages|dist-packages|python[\d.]+)/", "", path)
            return f"{name}: {function}"
    return "(no frame in the stack)"


def table(runs: Iterable[tuple[str, str, Run]]) -> str:
    """
    Lay out runs side by side: what became of the fits and how long it took.
    """
    columns = [
        (
            what,
            deadline,
            str(len(one.jobs)),
            str(one.count("done")),
            str(one.count("killed")),
            str(one.count("failed")),
            f"{one.wall:.1f} s",
            f"{one.longest():.2f} s",
        )
        for what, deadline, one in runs
    ]
    labels = "", "deadline", "fits", "done", "killed", "failed", "wall time", "longest"
    rows = zip(labels, *columns, strict=True)
    return "\n".join(
        f"  {label:<10}" + "".join(f"{cell:>14}" for cell in cells) for label, *cells in rows
    )


def tally(title: str, names: Iterable[str]) -> str:
    """
    Count equal names under a title, the most frequent first, the rare ones as one.
    """
    counts = Counter(names)
    lines = counts.most_common(TALLY_LINES)
    rest = counts.total() - sum(count for _, count in lines)
    if rest:
        lines.append(("others", rest))
    body = [f"  {count:>4}  {name}" for name, count in lines] or ["  none"]
    return "\n".join([title, *body])


class Refit(NamedTuple):
    """
    One refit of the tick loop: what was asked, what came back, how long it took.
    """

    spec: Spec
    answer: Fit | BaseException
    seconds: float


def try_refit(refit: Callable[[Job], Fit], job: Job) -> Refit:
    """
    Refit under the deadline of `refit`; an answer that never came is an answer too.
    """
    started = time.perf_counter()
    answer: Fit | BaseException
    try:
        answer = refit(job)
    except (killercall.KillerError, NotConverged) as error:
        answer = error
    return Refit(job.spec, answer, time.perf_counter() - started)


def current_volatility(in_force: Fit, returns: np.ndarray) -> float:
    """
    Run the variance recursion up to today with the parameters in force.
    """
    today = make_job(in_force.spec, returns, len(returns))
    filtered = build(today).fix(in_force.params)
    return float(np.sqrt(YEAR) * filtered.conditional_volatility[-1])


def walk_ticks(returns: np.ndarray, deadline: float) -> tuple[list[float], list[Refit]]:
    """
    Walk over the last days as a live loop would, refitting every few ticks.

    Returns:
        The volatility at every tick, and what became of every refit.
    """
    refit = killer_call(fit, timeout=deadline)
    rotation = itertools.cycle(itertools.product(MODELS, ["skewed t"], LOOKBACKS))
    first = len(returns) - TICKS
    in_force = fit(make_job(Spec("GARCH", "normal", "one year"), returns, first))
    volatility: list[float] = []
    refits: list[Refit] = []
    for tick in range(TICKS):
        history = returns[: first + tick + 1]
        if tick % TICKS_PER_REFIT == 0:
            job = make_job(Spec(*next(rotation)), history, len(history))
            refits.append(try_refit(refit, job))
            if isinstance(refits[-1].answer, Fit):
                in_force = refits[-1].answer
        volatility.append(current_volatility(in_force, history))
    return volatility, refits


def tick_report(volatility: Sequence[float], refits: Sequence[Refit]) -> str:
    """
    Tell how often the parameters in force were replaced, and how often kept.
    """
    late = [r for r in refits if isinstance(r.answer, killercall.TimeoutError)]
    refreshed = sum(isinstance(r.answer, Fit) for r in refits)
    return "\n".join(
        [
            f"tick loop: {len(volatility)} days, {len(refits)} refits",
            f"  {refreshed:>4}  refreshed the parameters",
            f"  {len(late):>4}  killed at the deadline, parameters kept",
            f"  {len(refits) - refreshed - len(late):>4}  failed, parameters kept",
            tally("  the killed ones:", (", ".join(r.spec) for r in late)),
            f"  slowest answer after {max(r.seconds for r in refits):.3f} s",
            f"  volatility on the last day {volatility[-1]:.1f} % a year",
        ]
    )


def best_fits(whole: Run, lookback: str) -> list[Fit]:
    """
    Return the fit with the lowest BIC for every window end, among those that finished.
    """
    best: dict[int, Fit] = {}
    for answer in whole.answers:
        if isinstance(answer, Fit) and answer.spec.lookback == lookback:
            end = answer.end
            best[end] = min(best.get(end, answer), answer, key=lambda one: one.bic)
    return [best[end] for end in sorted(best)]


def plot_volatility(axes: Axes, returns: pd.Series, whole: Run) -> None:
    """
    Draw realised volatility and, joined year by year, that of the best fits.
    """
    realised = np.sqrt(YEAR) * returns.rolling(21).std()
    axes.fill_between(realised.index, realised, color="0.82", lw=0, label="realised, 21 days")
    for lookback, colour in FITTED_COLOURS.items():
        fits = best_fits(whole, lookback)
        fitted = pd.concat(
            pd.Series(one.volatility, returns.index[: one.end][-YEAR:]) for one in fits
        )
        label = f"fitted on {lookback}, lowest BIC"
        axes.plot(fitted.index, fitted, color=colour, lw=0.9, label=label)
    axes.set_ylabel("volatility, % a year")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper right")


def plot_verdicts(axes: Axes, dates: pd.Index, whole: Run, lookback: str) -> None:
    """
    Draw a row for each model and a cell for each window: done, failed or killed.
    """
    rows = list(itertools.product(MODELS, DISTRIBUTIONS))
    ends = sorted({job.end for job in whole.jobs})
    verdicts = list(COLOURS)
    cells = np.zeros((len(rows), len(ends)))
    for job, answer in zip(whole.jobs, whole.answers, strict=True):
        if job.spec.lookback == lookback:
            row = rows.index((job.spec.model, job.spec.distribution))
            cells[row, ends.index(job.end)] = verdicts.index(verdict_on(answer))
    edges = [dates[ends[0] - YEAR], *(dates[end - 1] for end in ends)]
    axes.pcolormesh(
        edges,
        np.arange(len(rows) + 1),
        cells,
        cmap=ListedColormap(list(COLOURS.values())),
        vmin=0,
        vmax=len(COLOURS) - 1,
        edgecolors="white",
        linewidth=0.8,
    )
    names = [f"{model}, {distribution}" for model, distribution in rows]
    axes.set_yticks(np.arange(len(rows)) + 0.5, names, fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_title(f"Fits on {lookback}", loc="left", fontsize=10)


def draw(returns: pd.Series, whole: Run, deadline: float, path: Path) -> None:
    """
    Write the picture: volatility above, the fate of every fit below, one time axis.
    """
    figure, axes = plt.subplots(
        1 + len(LOOKBACKS),
        sharex=True,
        figsize=(11, 10),
        height_ratios=[1.5, *(1 for _ in LOOKBACKS)],
        layout="constrained",
    )
    killed = whole.count("killed")
    figure.suptitle(
        f"S&P 500: {len(whole.jobs)} volatility fits, "
        f"{killed} killed at their deadline of {deadline:.2f} s"
    )
    plot_volatility(axes[0], returns, whole)
    for panel, lookback in zip(axes[1:], LOOKBACKS, strict=True):
        plot_verdicts(panel, returns.index, whole, lookback)
    axes[1].legend(
        handles=[Patch(color=c, label=name) for name, c in COLOURS.items()],
        ncols=len(COLOURS),
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
    )
    axes[-1].set_xlabel("a cell is the last year of its window")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    first_end = min(job.end for job in whole.jobs)
    axes[0].set_xlim(returns.index[first_end - YEAR], returns.index[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def draw_timeline(whole: Run, deadline: float, path: Path) -> None:
    """
    Write the picture of the map: a row for each worker, a bar for each fit.
    """
    figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    whole.outcomes.plot(axes)
    figure.suptitle(
        f"{len(whole.jobs)} fits, {whole.count('killed')} of them killed after {deadline:.2f} s",
        fontsize="medium",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# Here the script begins: top-level code, as in a notebook.

output = Path(__file__).parent / "output" / "garch_sp500.png"
timeline = Path(__file__).parent.parent / "docs" / "images" / "timeline-garch.png"
if len(sys.argv) > 1:
    output = Path(sys.argv[1])
if len(sys.argv) > 2:  # ruff: ignore[magic-value-comparison] - script, picture, timeline
    timeline = Path(sys.argv[2])

# A worker that replaces a killed one must not import arch on the next fit's clock.
killercall.preload("arch.univariate")

rng = random.Random(SEED)
series = load_returns()
values = series.to_numpy()
jobs = grid(values)
median = calibrate(jobs, rng)
deadline = PATIENCE * median
print(
    f"S&P 500, {len(series)} daily returns, "
    f"{series.index[0]:%Y-%m-%d} to {series.index[-1]:%Y-%m-%d}\n"
    f"{len(jobs)} fits: {len(MODELS)} models x {len(DISTRIBUTIONS)} distributions x "
    f"{len(LOOKBACKS)} lookbacks x {len({job.end for job in jobs})} window ends\n"
    f"deadline {deadline:.2f} s a fit: {PATIENCE} times the median of "
    f"{CALIBRATION_FITS} one-year fits ({1000 * median:.0f} ms)\n",
    flush=True,
)

whole = run(jobs, deadline)
sample = draw_sample(whole, rng)
limit = f"{deadline:.2f} s"
print(
    table(
        [
            ("whole grid", limit, whole),
            ("sample", limit, run(sample, deadline)),
            ("same sample", "none", run(sample, None)),
        ]
    )
)
reasons = (f"{type(error).__name__}: {error}" for error in whole.failures())
print(tally("\nwhy the failed fits failed:", reasons))
stacks = (error.stack for error in whole.timeouts())
print(tally("\nwhere the killed fits were stuck:", map(innermost_frame, stacks)))
print(f"\n{tick_report(*walk_ticks(values, deadline))}")
draw(series, whole, deadline, output)
draw_timeline(whole, deadline, timeline)
print(f"\npicture: {output}\ntimeline: {timeline}")
