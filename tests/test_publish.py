"""What a function may do while it runs: publish the best answer so far, and ask how much time there is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import killercall
from hostile import publish_and_hang, publish_sometimes
from killercall import killer_call, killer_pmap, publish, time_left
from processes import PATIENCE, run_script, took

LONG = 3600.0


def partial_of(function: Any, *args: Any, timeout: float = 0.5, **options: Any) -> Any:
    """What a call that does not end has published."""
    try:
        value = killer_call(function, timeout=timeout, **options)(*args)
    except killercall.TimeoutError as error:
        return error.partial
    raise AssertionError(value)


def test_the_newest_value_is_on_the_exception() -> None:
    """Plain ones, pickled ones and large ones, each in place of the one before."""
    assert partial_of(publish_and_hang, 1, 2, 3) == 3
    assert partial_of(publish_and_hang, "x", {"a": {1, 2}}) == {"a": {1, 2}}
    assert partial_of(publish_and_hang, 1, None) is None
    large = np.arange(100_000.0)
    options: dict[str, Any] = {"timeout": 1, "preload": ("numpy",)}
    assert np.array_equal(large, partial_of(publish_and_hang, 1, large, **options))
    assert partial_of(publish_and_hang, large, "y" * 100_000, **options) == "y" * 100_000
    assert partial_of(publish_and_hang, large, 4, **options) == 4


def test_nothing_was_published() -> None:
    """Then there is nothing, and `on_timeout` has nothing to take."""
    assert partial_of(publish_and_hang) is None
    with pytest.raises(killercall.TimeoutError, match="'publish_and_hang' timed out after 0.1s"):
        killer_call(publish_and_hang, timeout=0.1, on_timeout="partial")()


def test_it_is_the_result() -> None:
    """With `on_timeout="partial"`, None too; from calls that answer in time it is the answer."""
    call = killer_call(publish_and_hang, timeout=0.3, on_timeout="partial")
    assert call(1, 2) == 2
    assert call(1, None) is None
    assert call.submit(1, [3]).result(PATIENCE) == [3]
    answers = killer_call(lambda x: publish(x) or x + 1, timeout=5, on_timeout="partial")
    assert [2, 2, 3] == [answers(1), answers(1), answers(2)]


def test_items_of_a_map() -> None:
    """Each has its own; without one it is `default`."""
    values = killer_pmap(
        publish_sometimes, range(6), cpus=2, timeout=0.4, on_timeout="partial", default="none"
    )
    assert [0, -1, 2, "none", 4, -5] == values
    errors = killer_pmap(publish_sometimes, range(4), cpus=2, timeout=0.4, on_timeout="return")
    assert [-1, None] == [error.partial for error in errors if isinstance(error, TimeoutError)]
    with pytest.raises(ValueError, match="'default', 'raise', 'return', not 'partial'"):
        killer_pmap(publish_sometimes, [1], on_error="partial")


def test_many_small_items_that_publish() -> None:
    """Whatever runs together, and whoever answers in the meantime."""
    function = lambda x: publish(x) or 2 * x
    assert [2 * x for x in range(5000)] == killer_pmap(function, range(5000), cpus=2)


def test_a_retry_starts_with_none(tmp_path: Any) -> None:
    """What the attempt before has published is not this one's."""
    mark = tmp_path / "tried"

    def once(how: str) -> None:
        if not mark.exists():
            mark.touch()
            publish("first")
            if how == "raise":
                raise ValueError
        time.sleep(LONG)

    for how in ("hang", "raise"):
        assert partial_of(once, how, retries=1) is None
        assert mark.exists()
        mark.unlink()


def test_from_threads() -> None:
    """Also while the call itself ends; then it is too late and does nothing."""

    def threads() -> None:
        def work() -> None:
            for number in range(1000):
                publish(number)
            done.set()

        done = threading.Event()
        threading.Thread(target=work, daemon=True).start()
        done.wait()
        time.sleep(LONG)

    assert partial_of(threads, timeout=1) == 999

    def left_behind(x: int) -> int:
        def work() -> None:
            while True:
                publish(b"x" * 1000)

        if x % 50 == 0:
            threading.Thread(target=work, daemon=True).start()
        return x

    call = killer_call(left_behind, timeout=20)
    assert list(range(120)) == [call(x) for x in range(120)]


def test_of_nested_calls_it_is_the_innermost_ones() -> None:
    """The outer one has what it has published itself."""

    def outer() -> None:
        publish("outer")
        inner = killer_call(publish_and_hang, timeout=0.2, on_timeout="partial")
        publish(["inner", inner("x")])
        killer_call(publish_and_hang, timeout=LONG)("lost")

    assert partial_of(outer, timeout=3) == ["inner", "x"]


def test_a_forked_child_has_nothing_to_say() -> None:
    """It would write into the memory of its parent."""

    def fork() -> None:
        publish("parent")
        pid = os.fork()
        if pid == 0:
            publish("child")
            os._exit(0)
        os.waitpid(pid, 0)
        time.sleep(LONG)

    assert partial_of(fork) == "parent"


def test_what_cannot_be_pickled() -> None:
    """Is told at once; what was there before stays."""

    def fails() -> None:
        publish(1)
        try:
            publish({"lock": threading.Lock()})
        except killercall.SerializationError as error:
            publish([1, error.path, str(error)])
            publish_more(threading.Lock())
        time.sleep(LONG)

    def publish_more(lock: Any) -> None:
        with contextlib.suppress(killercall.SerializationError):
            publish(lock)

    before, path, message = partial_of(fails)
    assert (1, "published['lock']") == (before, path)
    assert "cannot pickle published['lock'] (a lock)" in message


def test_what_cannot_be_unpickled() -> None:
    """Is said, and does not hide the timeout; but it cannot be a result."""

    def refuse() -> None:
        raise RuntimeError("not here")

    class Unloadable:
        def __reduce__(self) -> Any:
            return refuse, ()

    def publish_it() -> None:
        publish(Unloadable())
        time.sleep(LONG)

    with pytest.raises(killercall.TimeoutError) as caught:
        killer_call(publish_it, timeout=0.5)()
    assert caught.value.partial is None
    assert "cannot unpickle what function 'publish_it' has published" in "".join(
        caught.value.__notes__
    )
    call = killer_call(publish_it, timeout=0.5, on_timeout="partial")
    with pytest.raises(killercall.SerializationError, match="RuntimeError: not here"):
        call()
    with pytest.raises(killercall.SerializationError, match="RuntimeError: not here"):
        call.submit().result(PATIENCE)


def test_until_the_grace_period_is_over() -> None:
    """What the function does in `finally` counts."""

    def careful() -> None:
        try:
            time.sleep(LONG)
        finally:
            publish("last")

    assert partial_of(careful, grace=5) == "last"


def test_a_full_ring_holds_nobody_up() -> None:
    """Megabytes of it, at any rate; the host has the last one."""

    def flood(size: int) -> None:
        end = time.monotonic() + 0.3
        value = b"x" * size
        while time.monotonic() < end:
            publish(value)
        publish(size)
        time.sleep(LONG)

    for size in (10, 10_000, 1_000_000):
        with took(0, PATIENCE):
            assert partial_of(flood, size, timeout=5) == size


@pytest.mark.parametrize("options", [
    {"start_method": "fork"}, {"start_method": "spawn"}, {"serializer": "pickle"},
    {"serializer": "dill"}, {"reuse": False}, {"grace": 0.1},
])  # fmt: skip
def test_with_other_options(options: dict[str, Any]) -> None:
    """Workers of all kinds publish, and have a deadline."""

    def both() -> None:
        publish((1, time_left()))
        time.sleep(LONG)

    function = publish_and_hang if options.get("serializer") == "pickle" else both
    args = (1, (1, 1.0)) if function is publish_and_hang else ()
    timeout = 2 if options.get("start_method") == "spawn" else 1
    number, left = partial_of(function, *args, timeout=timeout, **options)
    assert number == 1
    assert 0 < left <= 2


def test_a_worker_that_dies_right_there_has_published_whole_values() -> None:
    """Killed in the midst of publishing, again and again."""

    def fast(delay: float) -> None:
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        number = 0
        while True:
            publish([number] * 300)
            number += 1

    for delay in (0.001, 0.01, 0.02, 0.03):
        with pytest.raises(killercall.WorkerDied, match="SIGKILL"):
            killer_call(fast, timeout=20)(delay)

    def until_killed() -> None:
        number = 0
        while True:
            publish([number] * 300)
            number += 1

    found = partial_of(until_killed, timeout=0.2)
    assert found == [found[0]] * 300


def test_outside_of_a_worker() -> None:
    """Neither does any harm."""
    publish(threading.Lock())
    assert time_left() is None
    found = run_script(
        "import killercall\n"
        "f = lambda x: killercall.publish(x) or (x, killercall.time_left())\n"
        "print(killercall.killer_call(f, timeout=1)(3), killercall.killer_pmap(f, [4]))\n",
        environment={"KILLERCALL_INLINE": "1"},
    )
    assert ("(3, None) [(4, None)]\n", "") == (found.stdout, found.stderr)


def test_time_left_counts_down_to_the_deadline() -> None:
    """From what the call may take, down to nothing; never below."""

    def watch() -> list[float | None]:
        seen = [time_left()]
        time.sleep(0.2)
        return [*seen, time_left()]

    call = killer_call(watch, timeout=10)
    for _ in range(3):
        first, second = call()
        assert first is not None
        assert second is not None
        assert 5 < first <= 10
        assert 0.2 <= first - second < 5
    assert killer_call(time_left, timeout=None)() is None

    def overdue() -> None:
        try:
            time.sleep(LONG)
        finally:
            publish(time_left())

    assert partial_of(overdue, timeout=0.2, grace=5) == 0.0


def test_time_left_of_items() -> None:
    """Each has its own clock, also behind others, and after a retry; a budget counts for all."""
    lefts = killer_pmap(lambda _: (time.sleep(0.01), time_left())[1], range(100), cpus=2, timeout=5)
    assert all(2 < left <= 5 for left in lefts), lefts
    lefts = killer_pmap(lambda _: time_left(), range(2000), cpus=2, timeout=None)
    assert {None} == set(lefts)
    lefts = killer_pmap(lambda _: time_left(), range(20), cpus=2, timeout=60, budget=30)
    assert all(0 < left <= 30 for left in lefts), lefts

    def second_time(left_before: float) -> float:
        if left_before and (time_left() or 0) > 1.9:
            time.sleep(LONG)
        return time_left() or 0

    with pytest.raises(killercall.TimeoutError):
        killer_call(second_time, timeout=2, retries=1)(1.0)


def test_time_left_of_calls_inside_of_others() -> None:
    """The nearest deadline counts, whoever set it, at any depth and in any thread."""

    def ask() -> float | None:
        found: list[float | None] = []
        thread = threading.Thread(target=lambda: found.append(time_left()))
        thread.start()
        thread.join()
        return found[0]

    def nested(inner: float | None) -> tuple[float | None, float | None]:
        deepest = killer_call(lambda: killer_call(ask, timeout=None)(), timeout=inner)
        return deepest(), time_left()

    deep, left = killer_call(nested, timeout=30)(60)
    assert 10 < deep <= 30
    assert 0 <= deep - left < 20
    deep, left = killer_call(nested, timeout=30)(5)
    assert 0 < deep <= 5 < left <= 30
    assert (None, None) == killer_call(nested, timeout=None)(None)
    # A worker of the worker is used again by the next call, which has another deadline.
    for seconds in (40, 20, 50):
        deep, _ = killer_call(nested, timeout=seconds)(None)
        assert seconds - 15 < deep <= seconds
    assert 20 < killer_call(nested, timeout=30, start_method="fork")(None)[0] <= 30


OPTIMISER = """
import warnings

warnings.simplefilter("default")  # What others do is their affair.

import arch.data.sp500
import numpy as np
from arch.univariate import GARCH, ConstantMean, Normal
from killercall import killer_call, publish

returns = 100 * np.diff(np.log(arch.data.sp500.load()["Adj Close"].to_numpy()))
residuals = returns - returns.mean()
model = ConstantMean(returns, volatility=GARCH(p=1, o=1, q=1), distribution=Normal())
volatility = model.volatility
backcast = volatility.backcast(residuals)
bounds = volatility.variance_bounds(residuals)
start = volatility.starting_values(residuals)


def loss(parameters):
    variance = np.empty_like(residuals)
    volatility.compute_variance(parameters, residuals, variance, backcast, bounds)
    return -float(model.distribution.loglikelihood([], residuals, variance))


@killer_call(timeout=0.05, on_timeout="partial", preload=("arch.univariate", "numpy.random"))
def climb(parameters):
    rng = np.random.default_rng(1)
    best = loss(parameters)
    publish((best, parameters))
    while True:
        step = np.abs(parameters * (1 + 0.05 * rng.standard_normal(len(parameters))))
        found = loss(step) if step[1] + step[2] / 2 + step[3] < 1 else np.inf
        if found < best:
            best, parameters = found, step
            publish((best, parameters))


best, parameters = climb(start)
assert best <= loss(start), (best, loss(start))
assert abs(best - loss(parameters)) < 1e-6
print("done")
"""


def test_the_best_parameters_so_far_of_an_optimiser() -> None:
    """A likelihood is climbed for 50 ms, in compiled code, and what there is by then is returned."""
    # In a process of its own: what it imports starts threads for good.
    found = run_script(OPTIMISER, environment={"OPENBLAS_NUM_THREADS": "1"})
    assert found.stdout == "done\n", found.stderr
