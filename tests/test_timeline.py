"""The picture of a map, `Outcomes.plot`."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection

import killercall
from killercall import Outcome, Outcomes, _timeline, killer_pmap
from processes import took

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes


@pytest.fixture(scope="module", autouse=True)
def _fonts() -> None:
    """Their files stay open for good once there is a text, which no test has left."""
    saved(Outcomes([outcome(0)]).plot())
    plt.close("all")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def outcome(
    index: int,
    status: str = "returned",
    started: float | None = 0.0,
    seconds: float = 1.0,
    pid: int = 1,
    timeout: float | None = None,
    attempts: int = 1,
) -> Outcome:
    error = killercall.TimeoutError("f", timeout, elapsed=seconds) if timeout else None
    return Outcome(
        index,
        "x",
        status,
        started=started,
        seconds=seconds,
        pid=pid,
        error=error,
        attempts=attempts,
    )


def rectangles(ax: Axes, colour: str | None = None) -> list[tuple[float, float, float, float]]:
    """Left, right, lowest and highest of each bar, or of those of a status."""
    wanted = mpl.colors.to_rgba(_timeline._STYLES[colour].colour) if colour else None
    return [
        (xs.min(), xs.max(), ys.min(), ys.max())
        for collection in ax.collections
        if isinstance(collection, PolyCollection)
        if wanted is None or tuple(collection.get_facecolor()[0]) == wanted
        for xs, ys in (path.vertices.T for path in collection.get_paths())
    ]


def deadlines(ax: Axes) -> list[float]:
    (lines,) = (found for found in ax.collections if isinstance(found, LineCollection))
    return [segment[0][0] for segment in lines.get_segments()]


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def saved(ax: Axes) -> None:
    """Whatever can be wrong with it is told when it is drawn."""
    ax.figure.savefig(io.BytesIO(), format="png")


def test_a_real_map() -> None:
    """One that has all of it: a killed worker, one in its place, a retry, an item never begun."""

    def work(item: str) -> str:
        import os
        import time

        if item == "hang":
            time.sleep(60)
        if item == "die":
            os._exit(1)
        if item == "raise":
            raise ValueError(item)
        time.sleep(0.05)
        return item

    items = ["hang", "raise", "die", "good", "good"]
    outcomes = killer_pmap(work, items, 2, timeout=1, retries=1, outcomes=True, budget=60)
    for _ in range(2):
        # Also one that was kept in a file meanwhile.
        ax = outcomes.plot()
        expected = ["returned (2)", "raised (1)", "timed_out (1)", "died (1)", "deadline"]
        assert expected == legend(ax)
        # No more rows than workers; one is enough where the last attempt at an item came last.
        assert 1 <= len(ax.get_yticks()) <= 2
        assert any("processes" in text for text in ticks(ax))
        (left, right, *_), *more = rectangles(ax, "timed_out")
        assert [] == more and 1 <= right - left < 30 and left > 1
        assert [pytest.approx(left + 1)] == deadlines(ax)
        assert "3 items tried more than once: the last attempts are drawn" in ax.get_xlabel()
        saved(ax)
        import pickle

        outcomes = pickle.loads(pickle.dumps(outcomes))


def test_bars_are_where_the_items_were() -> None:
    ax = Outcomes(
        [
            outcome(0, started=0, seconds=1, pid=5),
            outcome(1, "raised", started=1, seconds=2, pid=5),
            outcome(2, started=0.5, seconds=3, pid=4),
        ]
    ).plot()
    assert [(0, 1), (0.5, 3.5)] == [found[:2] for found in rectangles(ax, "returned")]
    ((left, right, low, high),) = rectangles(ax, "raised")
    assert (1, 3) == (left, right) and low < 0 < high and high - low < 1
    assert ["worker 1", "worker 2"] == ticks(ax)
    assert ["returned (2)", "raised (1)"] == legend(ax)
    assert "seconds since the map began" in ax.get_xlabel()
    # The one that began first is on top.
    assert ax.yaxis_inverted() and ax.get_xlim()[0] == 0
    indexes = {text.get_text(): text.get_position() for text in ax.texts}
    assert {"0": (0.5, 0), "1": (2, 0), "2": (2, 1)} == indexes
    saved(ax)


def test_one_that_takes_the_place_of_a_killed_one_continues_its_row() -> None:
    """Not that of one that has ended by itself, and not beside one that runs."""
    records = [
        outcome(0, started=0, seconds=1, pid=1),
        outcome(1, "timed_out", started=0, seconds=0.9, pid=2, timeout=0.9),
        outcome(2, "died", started=1.1, seconds=1, pid=3),
        outcome(3, started=1.2, seconds=5, pid=1),
        outcome(4, started=2.2, seconds=1, pid=4),
        outcome(5, started=2.3, seconds=1, pid=5),
    ]
    ax = Outcomes(records).plot()
    assert ["worker 1", "worker 2\n3 processes", "worker 3"] == ticks(ax)
    assert "died (1)" in legend(ax)
    saved(ax)


def test_marks_of_deadlines() -> None:
    """What had a grace period has its mark where that began; what a budget ended, at its end."""
    ax = Outcomes(
        [
            outcome(0, "timed_out", started=1, seconds=2.3, timeout=2, pid=1),
            outcome(1, "timed_out", started=1, seconds=0.5, timeout=2, pid=2),
            Outcome(2, "x", "timed_out", started=0, seconds=1, pid=3),
        ]
    ).plot()
    assert [1, 1.5, 3] == sorted(deadlines(ax))
    saved(ax)


@pytest.mark.parametrize(
    ("records", "texts", "entries"),
    [
        ([], [], []),
        ([outcome(0, "timed_out", started=None)], ["1 item never begun"], ["timed_out (1)"]),
        ([outcome(0, seconds=0.0)], [], ["returned (1)"]),
    ],
)
def test_next_to_nothing(records: list[Outcome], texts: list[str], entries: list[str]) -> None:
    ax = Outcomes(records).plot()
    assert all(text in ax.get_xlabel() for text in texts)
    assert (ax.get_legend() is None) if not entries else entries == legend(ax)
    begun = any(record.started is not None for record in records)
    assert begun == ("no item was begun" not in [text.get_text() for text in ax.texts])
    assert ax.get_xlim()[1] > ax.get_xlim()[0] and ax.get_ylim()[0] > ax.get_ylim()[1]
    saved(ax)


def test_a_hundred_thousand_items() -> None:
    """In a few seconds, with few shapes; what was merged is said, and a failure can be seen."""
    records = [outcome(n, started=n // 2 * 1e-3, seconds=1e-3, pid=n % 2) for n in range(100_000)]
    records[30_000].status = "died"
    with took(0, 30):
        ax = Outcomes(records).plot()
        saved(ax)
    assert len(rectangles(ax)) < 20
    ((left, right, low, high),) = rectangles(ax, "died")
    assert left <= 15 <= right and high - low > 0.1 and (right - left) / 50 >= 1e-3
    label = ax.get_xlabel()
    assert (
        "100,000 items shorter than 0.05 s drawn together" in label and "at least a fifth" in label
    )
    assert ["returned (99,999)", "died (1)"] == legend(ax)
    assert 0 == len(ax.texts)


def test_short_ones_are_divided_by_their_share() -> None:
    """Of bottom to top: 1 of 4 that returned, 3 of 4 that raised."""
    records = [outcome(0, started=1, seconds=99)] + [
        outcome(n, "returned" if n == 1 else "raised", started=n / 1e4, seconds=1e-4)
        for n in range(1, 5)
    ]
    ax = Outcomes(records).plot()
    assert "4 items shorter than 0.1 s" in ax.get_xlabel()
    _, (_, _, middle, bottom) = rectangles(ax, "returned")
    ((_, _, top, end),) = rectangles(ax, "raised")
    assert pytest.approx(3) == (end - top) / (bottom - middle)
    assert pytest.approx(middle) == end


def test_many_workers_share_the_labels() -> None:
    ax = Outcomes(outcome(n, pid=n) for n in range(100)).plot()
    assert len(ticks(ax)) <= 24 and "worker 1" == ticks(ax)[0]
    assert 100 == len(rectangles(ax)) and ax.figure.get_figheight() <= 12
    saved(ax)


def test_statuses_differ_in_grey_and_in_hatch() -> None:
    """In order, from light to dark; and what is light enough for a hatch to be seen has its own."""
    styles = [_timeline._STYLES[name] for name in ("returned", "raised", "timed_out", "died")]
    greys = [
        0.299 * red + 0.587 * green + 0.114 * blue
        for red, green, blue in (mpl.colors.to_rgb(style.colour) for style in styles)
    ]
    assert all(lighter - darker > 0.12 for lighter, darker in zip(greys, greys[1:]))
    assert len(_timeline._STYLES) == len({style.hatch for style in _timeline._STYLES.values()})
    assert list(killercall._outcomes.STATUSES) == list(_timeline._STYLES)


def test_on_axes_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is touched: no figure, no setting, no window."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    figure, axes = plt.subplots(2)
    before, backend = dict(mpl.rcParams), mpl.get_backend()
    monkeypatch.setattr(plt, "show", fail)
    monkeypatch.setattr(plt, "figure", fail)
    monkeypatch.setattr(plt, "switch_backend", fail)
    assert axes[1] is Outcomes([outcome(0)]).plot(ax=axes[1])
    assert before == dict(mpl.rcParams) and backend == mpl.get_backend()
    assert [figure.number] == plt.get_fignums()
    assert [] == list(axes[0].collections) and axes[0].get_legend() is None
    saved(axes[1])


def test_settings_of_the_user_are_followed() -> None:
    """A mark is seen on a dark ground."""
    with plt.style.context("dark_background"):
        ax = Outcomes([outcome(0, "timed_out", timeout=1)]).plot()
        (lines,) = (found for found in ax.collections if isinstance(found, LineCollection))
        assert (1, 1, 1, 1) == tuple(lines.get_color()[0])


@pytest.mark.parametrize("ax", ["axes", 0, plt])
def test_what_is_no_axes(ax: Any) -> None:
    with pytest.raises(TypeError, match="ax must be an Axes of matplotlib or None, not "):
        Outcomes().plot(ax)
    assert [] == plt.get_fignums()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "killercall._timeline")
    monkeypatch.delattr(killercall, "_timeline")
    with pytest.raises(ImportError, match="needs the package matplotlib: pip install matplotlib"):
        Outcomes().plot()
