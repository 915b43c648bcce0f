"""Maps with `outcomes=True`, `seed=` and `progress=`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import sysconfig
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import hostile
import killercall
from killercall import Outcome, Outcomes, killer_imap, killer_pmap
from processes import is_running, run_script, took, wait_until

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ["forkserver", "spawn", "fork"]


@pytest.fixture(scope="module", autouse=True)
def _threads_of_libraries() -> None:
    """They start some that stay, which no test has left."""
    __import__("pandas")


def end_as_told(item: Any) -> Any:
    match item:
        case "raise":
            message = "as told"
            raise ValueError(message)
        case "hang":
            time.sleep(60)
        case "die":
            os._exit(7)
        case "odd":
            return lambda: (yield)
    return item


@pytest.mark.parametrize("method", METHODS)
def test_a_record_of_each_item(method: str) -> None:
    """Nothing is raised, whatever happened."""
    items = [1, "raise", "hang", "die", 2]
    outcomes = killer_pmap(
        end_as_told, items, 2, timeout=3, outcomes=True, default=-1, start_method=method
    )
    assert isinstance(outcomes, Outcomes) and isinstance(outcomes, list)
    expected = ["returned", "raised", "timed_out", "died", "returned"]
    assert expected == [outcome.status for outcome in outcomes]
    assert list(range(5)) == [outcome.index for outcome in outcomes]
    assert items == [outcome.item for outcome in outcomes]
    assert [1, -1, -1, -1, 2] == outcomes.values()
    assert [1, None, None, None, 2] == [outcome.value for outcome in outcomes]
    assert [1] * 5 == [outcome.attempts for outcome in outcomes]
    assert all(isinstance(outcome.pid, int) and outcome.pid > 0 for outcome in outcomes)
    assert all(outcome.pid != os.getpid() for outcome in outcomes)
    assert [True, False, False, False, True] == [bool(found.peak_memory) for found in outcomes]
    assert 3 <= outcomes[2].seconds < 30 and 0 < outcomes[0].seconds < 3
    raised, late, died = (outcome.error for outcome in outcomes[1:4])
    assert isinstance(raised, ValueError) and isinstance(late, killercall.TimeoutError)
    assert isinstance(died, killercall.WorkerDied) and died.exitcode == 7
    assert ("hang", 2, "end_as_told") == (late.item, late.index, late.function)
    assert "function 'end_as_told' timed out after 3s" == str(late)
    assert "in end_as_told" in (late.stack or "") and "_wrapped.py" not in (late.stack or "")
    assert "_wrapped.py" not in str(raised.__cause__) and "as told" in str(raised.__cause__)
    assert all(0 <= outcome.started < 30 for outcome in outcomes)
    counts = {"returned": 2, "raised": 1, "timed_out": 1, "died": 1, "cancelled": 0}
    assert counts == outcomes.counts()


def test_many_items_have_times_and_pids_of_their_own() -> None:
    outcomes = killer_pmap(
        lambda x: (time.sleep(x), os.getpid()), [0.0, 0.1] * 40, 2, outcomes=True
    )
    for outcome in outcomes:
        assert outcome.pid == outcome.value[1]
        assert outcome.item <= outcome.seconds + 0.001
    assert sum(outcome.seconds for outcome in outcomes if not outcome.item) < 4


@pytest.mark.parametrize("ordered", [True, False])
def test_imap_yields_records(ordered: bool) -> None:
    items = [1, "raise", "hang", "die", 2]
    found = list(killer_imap(end_as_told, items, 2, timeout=3, ordered=ordered, outcomes=True))
    if ordered:
        assert list(range(5)) == [outcome.index for outcome in found]
    by_item = {outcome.item: outcome.status for outcome in found}
    expected = {1: "returned", 2: "returned", "raise": "raised", "hang": "timed_out", "die": "died"}
    assert expected == by_item


def test_what_cannot_be_pickled_has_a_record() -> None:
    items = [lambda: (yield), iter([]), (x for x in ()), 3]
    for run in (killer_pmap, killer_imap):
        outcomes = list(run(lambda x: 0, items, 2, outcomes=True))
        third, last = outcomes[2:]
        assert ("raised", 0, None, None) == (
            third.status,
            third.attempts,
            third.pid,
            third.started,
        )
        assert isinstance(third.error, killercall.SerializationError)
        assert ("returned", 0) == (last.status, last.value)
    (result,) = killer_pmap(lambda x: (y for y in ()), [1], 1, outcomes=True)
    assert ("raised", 1) == (result.status, result.attempts)
    assert isinstance(result.error, killercall.SerializationError)


def test_attempts(tmp_path: Path) -> None:
    def fail_twice(x: int) -> int:
        with open(tmp_path / str(x), "a", encoding="ascii") as file:
            file.write(".")
        if x and os.path.getsize(tmp_path / str(x)) < 3:
            raise ValueError(x)
        return x

    outcomes = killer_pmap(fail_twice, [0, 1], 2, retries=5, outcomes=True)
    assert [(1, "returned"), (3, "returned")] == [(o.attempts, o.status) for o in outcomes]
    tmp_path.joinpath("1").unlink()
    outcomes = killer_pmap(fail_twice, [1], 2, retries=1, outcomes=True)
    assert [(2, "raised")] == [(o.attempts, o.status) for o in outcomes]


def test_budget_leaves_records() -> None:
    outcomes = killer_pmap(hostile.nap, [60] * 4, 1, timeout=None, budget=0.5, outcomes=True)
    assert ["timed_out"] * 4 == [outcome.status for outcome in outcomes]
    assert [1, 0, 0, 0] == [outcome.attempts for outcome in outcomes]
    assert [False, True, True, True] == [outcome.started is None for outcome in outcomes]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the peak since the start")
def test_peak_memory_is_that_of_the_item() -> None:
    """Not that of a large one before it, in the same worker."""

    def take(size: int) -> int:
        return len(bytearray(os.urandom(1) * size))

    sizes = [0, 200_000_000, 0]
    small, large, after = killer_pmap(take, sizes, 1, outcomes=True, timeout=60)
    assert small.pid == large.pid == after.pid
    assert 200_000_000 < large.peak_memory < 600_000_000
    assert 1_000_000 < after.peak_memory < 150_000_000


def test_memory_limit_is_a_death_with_its_memory() -> None:
    def fill(_item: int) -> None:
        held = []
        while True:
            held.append(bytearray(os.urandom(1) * 10_000_000))

    (outcome,) = killer_pmap(fill, [0], 1, outcomes=True, max_memory="300MB", timeout=60)
    assert isinstance(outcome.error, killercall.MemoryLimitExceeded)
    assert outcome.status in {"died", "raised"}


def test_errors_of_the_map_are_raised() -> None:
    def fail() -> None:
        message = "no start"
        raise RuntimeError(message)

    for run in (killer_pmap, killer_imap):
        with pytest.raises(killercall.WorkerStartError, match="no start"):
            list(run(abs, [1], 2, initializer=fail, outcomes=True))


def test_of_nothing() -> None:
    empty = killer_pmap(abs, [], outcomes=True)
    assert isinstance(empty, Outcomes) and [] == empty.values()
    assert "0 outcomes" in empty._repr_html_()
    assert 0 == len(empty.to_frame())


def test_to_frame() -> None:
    outcomes = killer_pmap(end_as_told, [[1, 2], "raise", 3], 2, outcomes=True)
    frame = outcomes.to_frame()
    columns = "index item status value error started seconds pid peak_memory attempts".split()
    assert columns == list(frame.columns)
    assert ["returned", "raised", "returned"] == list(frame["status"])
    assert [[1, 2], "raise", 3] == list(frame["item"])
    assert frame["error"][1] is outcomes[1].error
    assert frame["seconds"].sum() > 0 and frame["peak_memory"].isna().tolist() == [
        False,
        True,
        False,
    ]


def test_to_frame_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs the package pandas"):
        Outcomes().to_frame()


def test_summary_in_a_notebook() -> None:
    outcomes = killer_pmap(end_as_told, ["<b>", "hang", "raise"], 2, timeout=3, outcomes=True)
    text = outcomes._repr_html_()
    assert "3 outcomes" in text and "1 timed_out" in text and "died" not in text
    assert "&lt;b&gt;" in text and "<b>'" not in text
    assert "in end_as_told" in text


STACK = """Current thread 0x00007f (most recent call first):
  File "{library}/scipy/opt.py", line 7 in solve
  File "{standard}/contextlib.py", line 3 in inner
  File "/home/me/work/<model>.py", line 9 in fit
  File "/home/me/work/main.py", line 2 in <module>

Thread 0x00007e (most recent call first):
  File "/home/me/work/other.py", line 1 in wait
"""


def test_where_killed_ones_were_stuck() -> None:
    """The innermost line of the user's own code, and the innermost of all; of one thread."""
    paths = sysconfig.get_paths()
    cases: list[tuple[str | None, list[str]]] = [
        (STACK, ["2", "work/&lt;model&gt;.py, line 9 in fit", "scipy/opt.py, line 7 in solve"]),
        (STACK.replace("{library}/scipy", "/home/me"), ["2", "me/opt.py, line 7 in solve", ""]),
        (STACK.replace("/home/me", "{standard}"), ["2", "", "scipy/opt.py, line 7 in solve"]),
        ("no frame", []),
        (None, []),
    ]
    for told, cells in cases:
        stack = told
        if told is not None:
            stack = told.replace("{library}", paths["purelib"])
            stack = stack.replace("{standard}", paths["stdlib"])
        late = killercall.TimeoutError("f", 1, stack=stack)
        died = killercall.WorkerDied("f", -11, stack=stack)
        records = [
            Outcome(0, "x", "timed_out", error=late),
            Outcome(1, "x", "died", error=died),
            Outcome(2, "x", "raised", error=late),
        ]
        text = Outcomes(records)._repr_html_()
        if cells:
            assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in text
        else:
            assert "stuck" not in text


@pytest.mark.parametrize("run", [killer_pmap, killer_imap])
def test_when_items_began(run: Any) -> None:
    """One at a time in each worker, and after the beginning of the map, however its host is held up."""

    def work(item: Any) -> None:
        if item == "polite":
            try:
                time.sleep(60)
            except TimeoutError:
                time.sleep(0.3)
        elif item:
            time.sleep(item)

    items = ["polite", 0.1, *[0] * 30, "polite", 0.1, 0]
    begun = time.monotonic()
    outcomes = list(
        run(
            work,
            items,
            2,
            timeout=0.5,
            grace=10,
            retries=1,
            outcomes=True,
            progress=lambda *_: time.sleep(0.01),
        )
    )
    whole = time.monotonic() - begun
    assert [2 if item == "polite" else 1 for item in items] == [
        found.attempts for found in outcomes
    ]
    for found in outcomes:
        assert 0 <= found.started <= found.started + found.seconds <= whole
        if found.item == "polite":
            # The first attempt was over by then; its grace is no part of the last one's time.
            assert found.started >= 0.8 and found.seconds < 5
    for pid in {found.pid for found in outcomes}:
        spans = sorted((o.started, o.started + o.seconds) for o in outcomes if o.pid == pid)
        assert all(before[1] <= after[0] + 1e-6 for before, after in zip(spans, spans[1:]))


def test_records_pickle_and_show() -> None:
    outcomes = killer_pmap(end_as_told, [1, "raise"], 2, outcomes=True, default=5)
    again = pickle.loads(pickle.dumps(outcomes))
    assert isinstance(again, Outcomes) and [1, 5] == again.values()
    assert repr(outcomes[0]).startswith("<Outcome 0 returned in ")
    assert "1 -> 1" in repr(outcomes[0]) and "ValueError" in repr(again[1])
    assert Outcome(0, "x", "cancelled").value is None


def test_local_classes_come_back_as_themselves() -> None:
    class Local:
        pass

    for method in METHODS:
        (outcome,) = killer_pmap(lambda _: Local(), [0], 1, outcomes=True, start_method=method)
        assert type(outcome.value) is Local


def test_coroutine_functions() -> None:
    async def later(x: int) -> int:
        return 2 * x

    assert [2, 4] == killer_pmap(later, [1, 2], 2, outcomes=True).values()


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    for run in (killer_pmap, killer_imap):
        good, bad = run(end_as_told, [1, "raise"], outcomes=True, retries=2)
        assert ("returned", 1, 1, os.getpid()) == (good.status, good.value, good.attempts, good.pid)
        assert 0 <= good.started <= good.started + good.seconds <= bad.started
        assert ("raised", 3, None) == (bad.status, bad.attempts, bad.peak_memory)
        assert "item 1 of the map: 'raise'" in bad.error.__notes__[0]


def draw(_item: Any) -> tuple[float, float]:
    import random

    import numpy

    return random.random(), float(numpy.random.random())  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
def test_seeded_items_draw_the_same_whatever_the_workers(method: str) -> None:
    expected = killer_pmap(draw, range(20), 1, timeout=60, seed=7)
    assert 20 == len({first for first, _ in expected}) == len({second for _, second in expected})
    assert expected == killer_pmap(draw, range(20), 3, timeout=60, seed=7, start_method=method)
    if method != "fork":
        values = killer_imap(draw, range(20), 2, timeout=60, seed=7, start_method=method)
        assert expected == list(values)


def test_seeds_differ_and_none_is_none() -> None:
    runs = [
        killer_pmap(draw, [0, 0], 1, timeout=60, seed=seed) for seed in (0, -1, 2**80, None, None)
    ]
    assert 10 == len({pair for run in runs for pair in run})
    assert runs[1] == killer_pmap(draw, [0, 0], 1, timeout=60, seed=-1)


def test_a_retry_draws_the_same(tmp_path: Path) -> None:
    """And what ran before in the worker does not matter."""

    def fail_once(item: int) -> Any:
        drawn = draw(item)
        path = tmp_path / str(item)
        if not path.exists():
            path.touch()
            raise ValueError(item)
        return drawn

    expected = killer_pmap(draw, range(6), 1, timeout=60, seed=1)
    assert expected == killer_pmap(fail_once, range(6), 2, timeout=60, seed=1, retries=1)
    again = killer_imap(fail_once, range(6), 2, timeout=60, seed=1, outcomes=True, reuse=False)
    assert expected == [outcome.value for outcome in again]


@pytest.mark.parametrize("more", [{}, {"outcomes": True}])
def test_messages_of_seeded_items_are_those_of_the_function(more: dict[str, Any]) -> None:
    options: dict[str, Any] = {"seed": 3, "on_error": "return", "on_timeout": "return", **more}
    for run in (killer_pmap, killer_imap):
        found = list(
            run(end_as_told, ["raise", "hang", "die", (x for x in ())], 2, timeout=3, **options)
        )
        raised, late, died, unsent = (getattr(entry, "error", entry) for entry in found)
        assert "function 'end_as_told' timed out after 3s" == str(late)
        assert ("hang", 1, "die", 2) == (late.item, late.index, died.item, died.index)
        assert "_wrapped.py" not in str(raised.__cause__) + (late.stack or "")
        assert "item 0 of the map: 'raise'" in raised.__notes__[0]
        assert isinstance(unsent, killercall.SerializationError) and unsent.index == 3


def test_seed_inline_leaves_the_state_of_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    expected = killer_pmap(draw, range(3), 1, timeout=60, seed=7)
    monkeypatch.setenv("KILLERCALL_INLINE", "1")
    before = random.getstate()
    assert (
        expected == killer_pmap(draw, range(3), seed=7) == list(killer_imap(draw, range(3), seed=7))
    )
    assert before == random.getstate()


def test_seed_with_coroutines_and_many_plain_items() -> None:
    async def later(x: int) -> tuple[int, float]:
        import random

        return x, random.random()

    expected = killer_pmap(later, range(300), 1, timeout=60, seed=5)
    assert list(range(300)) == [x for x, _ in expected]
    assert expected == list(killer_imap(later, range(300), 2, timeout=60, seed=5))


@pytest.mark.parametrize("inline", [False, True])
def test_progress_is_told(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread of the consumer; the last time with all of them."""
    monkeypatch.setenv("KILLERCALL_INLINE", str(int(inline)))
    items = [1, "raise", 2, "raise", 3] if inline else [1, "raise", "hang", "die", 2]
    for run in (killer_pmap, killer_imap):
        for source, total in ((items, 5), (iter(items), 5 if run is killer_pmap else None)):
            told: list[tuple[Any, ...]] = []
            threads: set[int] = set()

            def progress(*numbers: Any, told: Any = told, threads: Any = threads) -> None:
                told.append(numbers)
                threads.add(threading.get_ident())

            list(run(end_as_told, source, 2, timeout=3, on_error="default", progress=progress))
            assert (5, 0, 2, total) == told[-1] if inline else (5, 1, 2, total) == told[-1]
            assert sorted(told, key=lambda numbers: numbers[0]) == told
            assert {threading.get_ident()} == threads


def test_progress_of_what_was_never_sent() -> None:
    for run in (killer_pmap, killer_imap):
        told: list[Any] = []
        items = [(x for x in ())] * 3
        list(run(abs, items, 1, on_error="return", progress=lambda *numbers: told.append(numbers)))
        assert (3, 0, 3, 3) == told[-1]


def test_what_progress_raises_ends_the_map(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")

    def work(item: int) -> None:
        if item:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
            time.sleep(60)

    def fail(*_numbers: Any) -> None:
        assert wait_until(lambda: os.path.exists(path) and os.path.getsize(path))
        raise LookupError(path)

    for run in (killer_pmap, killer_imap):
        with took(0, 40), pytest.raises(LookupError):
            list(run(work, [0, 1, 1, 1], 2, timeout=60, progress=fail))
        with open(path, encoding="ascii") as file:
            assert not is_running(int(file.read()))
        os.unlink(path)


def test_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """It counts, and tells of failures; and leaves no thread, see `no_leaks`."""
    for run in (killer_pmap, killer_imap):
        list(run(end_as_told, [1, "raise", 2], 2, on_error="default", progress="pricing"))
        text = capsys.readouterr().err
        assert "pricing: 100%" in text and "3/3" in text and "failed=1" in text
    list(killer_imap(abs, iter([1, 2]), 1, progress=True))
    assert "2it" in capsys.readouterr().err
    assert [1] == killer_pmap(abs, [1], progress=False) == killer_pmap(abs, [1], progress=None)
    assert "" == capsys.readouterr().err


BAR = """
import time
from killercall import killer_imap, killer_pmap
killer_pmap(time.sleep, [0.1] * 10, 1, progress=True)
list(killer_imap(time.sleep, [0.1] * 10, 1, progress="lazy", ordered=False))
killer_pmap(abs, range(50_000), 1, progress="quick")
"""


def test_bar_in_a_log() -> None:
    """One that goes to a file is drawn at the beginning and at the end, unless tqdm is told else."""
    done = run_script(BAR)
    assert 0 == done.returncode and "" == done.stdout
    assert all(text in done.stderr for text in ("10/10", "lazy: 100%", "50000/50000"))
    assert done.stderr.count("%|") <= 6
    told = run_script(BAR, environment={"TQDM_MININTERVAL": "0.01"})
    assert told.stderr.count("%|") > 12


def test_bar_in_a_terminal(tmp_path: Path) -> None:
    """It goes on meanwhile."""
    (tmp_path / "bar.py").write_text(BAR, encoding="utf-8")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    text = b""
    try:
        with subprocess.Popen([sys.executable, tmp_path / "bar.py"], stderr=theirs):
            os.close(theirs)
            while b"50000/50000" not in text:
                try:
                    text += os.read(ours, 1 << 16)
                except OSError:  # All others have closed it.
                    break
    finally:
        os.close(ours)
    assert all(part in text for part in (b"10/10", b"lazy: 100%", b"50000/50000"))
    assert text.count(b"%|") > 12


def test_bar_where_nobody_can_see_it() -> None:
    code = "import sys; sys.stderr = None; from killercall import killer_pmap\n"
    code += "print(killer_pmap(abs, [-1, -2], 1, progress=True))"
    assert "[1, 2]\n" == run_script(code).stdout
