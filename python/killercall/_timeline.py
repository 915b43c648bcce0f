"""
The picture of a map: a row for each worker, a bar for each item, on an axis of seconds.

The one module that imports matplotlib. It draws on the axes that it is given, or on a new figure of
pyplot; what else there is in matplotlib, its backend and its settings, stays as it is.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
except ImportError as error:
    _message = "Outcomes.plot needs the package matplotlib: pip install matplotlib"
    raise ImportError(_message) from error

from killercall._outcomes import STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from killercall._outcomes import Outcome

    # How many of the items that are drawn together ended in which way.
    Counts = collections.Counter[str]


class _Style(NamedTuple):
    colour: str
    hatch: str
    line: str


# From Okabe and Ito's palette, which colour-blind readers can tell apart; from light to dark, so
# that they differ in grey too, as far as they are too narrow for a hatch.
_STYLES = {
    "returned": _Style("#afd3e7", "", "white"),
    "raised": _Style("#e69f00", "///", "#5c4000"),
    "timed_out": _Style("#d55e00", "xxx", "#4a2100"),
    "died": _Style("#1b1b3a", "\\\\\\", "white"),
    "cancelled": _Style("#f4f4f4", "...", "#777777"),
}

# What is narrower than this part of the whole cannot be seen by itself.
_NARROW = 1 / 1000
# Such items are gathered in so many steps from left to right.
_STEPS = 500
# How much of a row is bar, and how much of a bar at least shows that there are failures.
_HEIGHT = 0.76
_LEAST_SHARE = 0.2
# More rows than this do not each have a label.
_LABELS = 24
# How many bars have the index of their item, and of what size, in points.
_INDEXES = 300
_INDEX_SIZE = 6.5
# Of a new figure, in inches.
_WIDTH = 8.0
_EDGES = 1.45
_PER_ROW = 0.42
_HEIGHTS = (2.2, 12.0)
# Where one worker ends and another begins these may differ by the rounding of a number.
_ROUNDING = 1e-6


class _Rectangle(NamedTuple):
    left: float
    right: float
    top: float
    bottom: float

    def corners(self) -> list[tuple[float, float]]:
        left, right, top, bottom = self
        return [(left, top), (right, top), (right, bottom), (left, bottom)]


class _Row:
    """A worker, and those that took its place."""

    def __init__(self) -> None:
        self.processes = 0
        self.free_at = 0.0
        self.was_killed = False
        self.records: list[Outcome] = []

    def add(self, records: list[Outcome]) -> None:
        """All items of one process."""
        last = max(records, key=_end)
        self.processes += 1
        self.free_at = _end(last)
        self.was_killed = last.status in {"timed_out", "died", "cancelled"}
        self.records += records


def draw(records: Sequence[Outcome], ax: Axes | None) -> Axes:
    """Draws the records; `Outcomes.plot` tells more."""
    if not (ax is None or isinstance(ax, Axes)):
        message = f"ax must be an Axes of matplotlib or None, not {type(ax).__qualname__}"
        raise TypeError(message)
    rows = _rows([record for record in records if record.started is not None])
    if ax is None:
        least, most = _HEIGHTS
        height = min(max(_EDGES + _PER_ROW * len(rows), least), most)
        _, ax = pyplot.subplots(figsize=(_WIDTH, height), layout="constrained")
    whole = max((row.free_at for row in rows), default=0.0) or 1.0
    notes, deadlines = _draw_rows(ax, rows, whole)
    _set_up(ax, rows, whole)
    never = sum(record.started is None for record in records)
    if never:
        notes.append(f"{_items(never)} never begun")
    again = sum(record.attempts > 1 for record in records)
    if again:
        notes.append(f"{_items(again)} tried more than once: the last attempts are drawn")
    ax.set_xlabel("\n".join(["seconds since the map began", *notes]))
    _add_legend(ax, records, has_deadlines=deadlines > 0)
    return ax


def _begin(record: Outcome) -> float:
    return record.started or 0.0


def _end(record: Outcome) -> float:
    return _begin(record) + record.seconds


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


def _rows(records: Iterable[Outcome]) -> list[_Row]:
    """A worker that began when another had ended, best of all by a kill, continues its row."""
    by_process: dict[int | None, list[Outcome]] = {}
    for record in records:
        by_process.setdefault(record.pid, []).append(record)
    rows: list[_Row] = []
    for found in sorted(by_process.values(), key=lambda found: min(map(_begin, found))):
        first = min(map(_begin, found)) + _ROUNDING
        free = [row for row in rows if row.free_at <= first]
        if not free:
            free.append(_Row())
            rows.append(free[0])
        max(free, key=lambda row: (row.was_killed, row.free_at)).add(found)
    return rows


def _draw_rows(ax: Axes, rows: Sequence[_Row], whole: float) -> tuple[list[str], int]:
    """The bars and their indexes; what there is to say of them, and the number of deadlines."""
    narrow = whole * _NARROW
    bars: dict[str, list[_Rectangle]] = collections.defaultdict(list)
    slivers: dict[str, list[_Rectangle]] = collections.defaultdict(list)
    wide: list[tuple[int, Outcome]] = []
    deadlines: list[tuple[int, float]] = []
    together: Counts = collections.Counter()
    for number, row in enumerate(rows):
        short: list[Outcome] = []
        for record in row.records:
            if record.seconds < narrow:
                short.append(record)
                continue
            if record.status == "timed_out":
                deadlines.append((number, _deadline(record)))
            wide.append((number, record))
            bars[record.status].append(_bar(number, _begin(record), _end(record)))
        for left, right, counts in _gathered(short, whole):
            for status, rectangle in _shares(number, left, max(right, left + narrow), counts):
                slivers[status].append(rectangle)
        together.update(record.status for record in short)
    for status, style in _STYLES.items():
        _add(ax, bars[status], style, hatch=style.hatch, line=0.5 if style.hatch else 0.3)
        _add(ax, slivers[status], style, hatch="", line=0.0)
    middles = [number for number, _ in deadlines]
    ax.vlines(
        [moment for _, moment in deadlines],
        [middle - 0.48 for middle in middles],
        [middle + 0.48 for middle in middles],
        colors=[ax.xaxis.label.get_color()],
        linewidth=1.4,
        zorder=4,
    )
    notes = []
    if _add_indexes(ax, wide, whole, len(rows)):
        notes.append("the number in a bar is the item's index")
    if together.total() > 1:
        notes.append(f"{_items(together.total())} shorter than {narrow:.1g} s drawn together")
        if len(together) > 1:
            notes[-1] += ", by the share of each status (of failures at least a fifth)"
    return notes, len(deadlines)


def _bar(number: int, left: float, right: float) -> _Rectangle:
    return _Rectangle(left, right, number - _HEIGHT / 2, number + _HEIGHT / 2)


def _deadline(record: Outcome) -> float:
    """When it was to be done: after its timeout, or when the budget of its map was spent."""
    timeout = getattr(record.error, "timeout", None)
    if not isinstance(timeout, (int, float)):
        return _end(record)
    return _begin(record) + min(timeout, record.seconds)


def _gathered(records: list[Outcome], whole: float) -> Iterator[tuple[float, float, Counts]]:
    """Steps of one row with items that are too short to be seen: from, to, how these ended."""
    steps: dict[int, list[Outcome]] = {}
    for record in records:
        steps.setdefault(int(_begin(record) / whole * _STEPS), []).append(record)
    before: tuple[float, float, Counts] | None = None
    for _, found in sorted(steps.items()):
        left, right = min(map(_begin, found)), max(map(_end, found))
        counts = collections.Counter(record.status for record in found)
        if before is not None:
            same = len(counts) == 1 and counts.keys() == before[2].keys()
            if same and left - before[1] < whole * _NARROW:
                # In one, or there would be a seam.
                before = before[0], right, before[2] + counts
                continue
            yield before
        before = left, right, counts
    if before is not None:
        yield before


def _shares(
    number: int, left: float, right: float, counts: Counts
) -> Iterator[tuple[str, _Rectangle]]:
    """A bar divided from bottom to top by how many ended how; failures are never too few."""
    total = counts.total()
    parts = {
        status: max(counts[status] / total, 0.0 if status == "returned" else _LEAST_SHARE)
        for status in STATUSES
        if counts[status]
    }
    bottom = number + _HEIGHT / 2
    for status, part in parts.items():
        top = bottom - _HEIGHT * part / sum(parts.values())
        yield status, _Rectangle(left, right, top, bottom)
        bottom = top


def _add(ax: Axes, rectangles: list[_Rectangle], style: _Style, *, hatch: str, line: float) -> None:
    if rectangles:
        collection = PolyCollection(
            [rectangle.corners() for rectangle in rectangles],
            facecolors=[style.colour],
            edgecolors=[style.line if line else style.colour],
            linewidths=[line],
            hatch=hatch or None,
            zorder=3,
        )
        ax.add_collection(collection, autolim=False)


def _add_indexes(ax: Axes, wide: Iterable[tuple[int, Outcome]], whole: float, rows: int) -> bool:
    """Where there is room for them; whether there was."""
    pixels = ax.get_window_extent()
    point = ax.figure.dpi / 72
    if pixels.height / max(rows, 1) < 2 * _INDEX_SIZE * point:
        return False
    added = 0
    # If they are too many, the longest have theirs.
    for number, record in sorted(wide, key=lambda pair: -pair[1].seconds)[:_INDEXES]:
        text = str(record.index)
        if record.seconds / whole * pixels.width < (0.65 * len(text) + 1) * _INDEX_SIZE * point:
            continue
        style = _STYLES[record.status]
        ax.text(
            _begin(record) + record.seconds / 2,
            number,
            text,
            ha="center",
            va="center",
            size=_INDEX_SIZE,
            color="black",
            zorder=5,
            clip_on=True,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if style.hatch else None,
        )
        added += 1
    return added > 0


def _set_up(ax: Axes, rows: Sequence[_Row], whole: float) -> None:
    ax.set_xlim(0, whole * 1.01)
    ax.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    every = -(-len(rows) // _LABELS)
    ticks = range(0, len(rows), every or 1)
    ax.set_yticks(ticks, [_label(number, rows[number], every) for number in ticks])
    ax.tick_params(axis="y", length=0)
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis="x", alpha=0.3)
    ax.spines[["left", "right", "top"]].set_visible(False)
    if not rows:
        ax.text(0.5, 0.5, "no item was begun", ha="center", va="center", transform=ax.transAxes)


def _label(number: int, row: _Row, every: int) -> str:
    name = f"worker {number + 1}"
    return name if row.processes == 1 or every > 1 else f"{name}\n{row.processes:,} processes"


def _add_legend(ax: Axes, records: Iterable[Outcome], *, has_deadlines: bool) -> None:
    counts = collections.Counter(record.status for record in records)
    handles: list[Any] = [
        Patch(
            facecolor=style.colour,
            edgecolor=style.line if style.hatch else style.colour,
            hatch=style.hatch or None,
            linewidth=0.6,
            label=f"{status} ({counts[status]:,})",
        )
        for status, style in _STYLES.items()
        if counts[status]
    ]
    if has_deadlines:
        colour = ax.xaxis.label.get_color()
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                linestyle="none",
                marker="|",
                markersize=11,
                markeredgewidth=1.4,
                label="deadline",
            )
        )
    if handles:
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            ncols=len(handles),
            frameon=False,
            fontsize="small",
            columnspacing=1.4,
            handlelength=1.8,
            handletextpad=0.5,
        )


__all__ = ["draw"]
