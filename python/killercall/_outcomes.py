"""What `outcomes=True` gives instead of values: a record of how each item ended."""

from __future__ import annotations

import os

from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from matplotlib.axes import Axes

STATUSES = ("returned", "raised", "timed_out", "died", "cancelled")

# The fields of a record, which are the columns of a table.
_FIELDS = (
    "index", "item", "status", "value", "error", "started", "seconds", "pid", "peak_memory",
    "attempts",
)  # fmt: skip

# How many of the slowest items, and of the places where killed ones were, a summary shows.
_SHOWN = 5
_TEXT_MAX = 100
# How many parts of a path it shows.
_PARTS = 2


class Outcome:
    """
    How one item of a map ended.

    Attributes:
        index: the item's place, from 0.
        item: the item.
        status: "returned", "raised" (its function did, or item or result could not be pickled),
            "timed_out", "died" (its worker did, or was killed for its memory), or "cancelled".
        value: what the function returned; None unless the status is "returned".
        error: the exception otherwise; None if the status is "returned".
        started: when its last attempt began, in seconds since the map began; None if it was never
            begun, or was waiting for another attempt when the map's budget was spent.
        seconds: how long that attempt ran; 0.0 if `started` is None.
        pid: the worker's process id, None if there was none.
        peak_memory: the most memory in bytes that the worker had resident while the item ran; what
            it had before counts, what it started does not. Where the system cannot begin the
            measurement anew (all but Linux), the peak since the worker started. For an item that
            was killed for its memory, what it and all that it had started used. None where unknown:
            if the item did not return, and under `KILLERCALL_INLINE`.
        attempts: how many times it was begun.

    Example:
        >>> from killercall import killer_pmap
        >>> first, second = killer_pmap(lambda x: 1 / x, [0, 4], cpus=1, outcomes=True)
        >>> first.status, first.error
        ('raised', ZeroDivisionError('division by zero'))
        >>> second.status, second.item, second.value, second.attempts
        ('returned', 4, 0.25, 1)
    """

    def __init__(
        self,
        index: int,
        item: Any,
        status: str,
        *,
        value: Any = None,
        error: BaseException | None = None,
        started: float | None = None,
        seconds: float = 0.0,
        pid: int | None = None,
        peak_memory: int | None = None,
        attempts: int = 0,
    ) -> None:
        """Made by a map; by hand for tests of what takes such records."""
        self.index = index
        self.item = item
        self.status = status
        self.value = value
        self.error = error
        self.started = started
        self.seconds = seconds
        self.pid = pid
        self.peak_memory = peak_memory
        self.attempts = attempts

    def __repr__(self) -> str:
        """What matters most, in short."""
        what = self.value if self.error is None else self.error
        return (
            f"<Outcome {self.index} {self.status} in {self.seconds:.3g}s: "
            f"{short_repr(self.item)} -> {short_repr(what)}>"
        )


class Outcomes(list[Outcome]):  # ruff: ignore[subclass-builtin] - it is one, to all who ask
    """
    The records of a map, in the order of its items.

    A list; in a notebook it shows a summary: how many items ended how, the slowest ones, and where
    those that were killed were stuck.

    Example:
        >>> from killercall import killer_pmap
        >>> done = killer_pmap(lambda x: 1 / x, [0, 4], cpus=1, outcomes=True, default=-1)
        >>> done.values()
        [-1, 0.25]
    """

    def __init__(self, records: Iterable[Outcome] = (), *, default: Any = None) -> None:
        """`default` is what `values` has for items that did not return."""
        super().__init__(records)
        self.default = default

    def values(self) -> list[Any]:
        """The value of each item, and the map's `default` where there is none."""
        return [found.value if found.status == "returned" else self.default for found in self]

    def counts(self) -> dict[str, int]:
        """
        How many items ended in which way, none left out.

        Example:
            >>> from killercall import killer_pmap
            >>> killer_pmap(lambda x: 1 / x, [0, 4, 5], cpus=1, outcomes=True).counts()
            {'returned': 2, 'raised': 1, 'timed_out': 0, 'died': 0, 'cancelled': 0}
        """
        import collections

        found = collections.Counter(record.status for record in self)
        return {status: found[status] for status in STATUSES}

    def to_frame(self) -> Any:
        """
        A pandas DataFrame with a row an item.

        Its columns have the names of the attributes of `Outcome`, in that order. `pid` and
        `peak_memory` are numbers of pandas' own kind `Int64`, which may be missing.

        Raises:
            ImportError: pandas is not installed.

        Example:
            >>> from killercall import killer_pmap
            >>> frame = killer_pmap(lambda x: 1 / x, [0, 4], cpus=1, outcomes=True).to_frame()
            >>> frame.groupby("status").size().to_dict()
            {'raised': 1, 'returned': 1}
        """
        try:
            import pandas
        except ImportError as error:
            message = "Outcomes.to_frame needs the package pandas: pip install pandas"
            raise ImportError(message) from error
        columns = {name: [getattr(record, name) for record in self] for name in _FIELDS}
        # As objects first: whatever an item or a value is, it takes one cell.
        series = {name: pandas.Series(found, dtype=object) for name, found in columns.items()}
        frame = pandas.DataFrame(series, columns=list(_FIELDS))
        kinds = {
            "index": "int64", "status": "str", "started": "float64", "seconds": "float64",
            "pid": "Int64", "peak_memory": "Int64", "attempts": "int64",
        }  # fmt: skip
        return frame.astype(kinds)

    def plot(self, ax: Axes | None = None) -> Axes:
        """
        Draws a timeline: a row for each worker, a bar for each item, coloured by how it ended.

        A worker that took the place of a killed one continues its row. Of an item that was tried
        more than once the last attempt is drawn. A bold line marks each deadline that was missed.
        Bars are told apart by colour, by hatch and in grey; those that are wide enough have the
        item's index. Items that are too short to be seen (a thousandth of the whole) are drawn
        together, divided from bottom to top by how many of them ended how: so a hundred thousand
        are drawn as fast as a few. What is not drawn as it was is told below the axis.

        Nothing is shown or saved, and no setting of matplotlib is changed.

        Args:
            ax: the axes to draw on. None (the default) makes a new figure with `pyplot`, as high
                as the rows need.

        Returns:
            The axes; `.figure` of it has `savefig`.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: `ax` is something else.

        Example:
            >>> import matplotlib
            >>> matplotlib.use("Agg")
            >>> from killercall import killer_pmap
            >>> outcomes = killer_pmap(lambda x: 1 / x, [0, 4, 5], cpus=2, outcomes=True)
            >>> ax = outcomes.plot()
            >>> [text.get_text() for text in ax.get_legend().get_texts()]
            ['returned (2)', 'raised (1)']
        """
        from killercall import _timeline

        return _timeline.draw(self, ax)

    def _repr_html_(self) -> str:  # ruff: ignore[bad-dunder-method-name] - IPython's
        import collections

        counts = {status: count for status, count in self.counts().items() if count}
        numbers = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
        parts = [f"<p><b>{len(self)} outcomes</b>: {numbers}</p>"]
        slowest = sorted(self, key=lambda record: -record.seconds)[:_SHOWN]
        rows = [
            (str(record.index), short_repr(record.item), record.status, f"{record.seconds:.3g}")
            for record in slowest
        ]
        if rows:
            parts.append(_table("slowest", ("index", "item", "status", "seconds"), rows))
        places = collections.Counter(filter(None, map(_place, self)))
        if places:
            stuck = [(str(count), *place) for place, count in places.most_common(_SHOWN)]
            header = ("items", "in your code", "inside of that")
            parts.append(_table("where killed ones were stuck", header, stuck))
        return "\n".join(parts)


def _place(record: Outcome) -> tuple[str, str] | None:
    """
    Where the item was when it was killed: the innermost frame of the user's code.

    And the innermost one of all, if that is another. Where all of it is that of installed
    packages, there is no line of the user's.
    """
    stack = getattr(record.error, "stack", None) if record.status in {"timed_out", "died"} else None
    frames = list(_frames(stack)) if isinstance(stack, str) else []
    if not frames:
        return None
    own = next((frame for frame in frames if not _is_installed(frame[0])), None)
    return (
        "" if own is None else _short(*own),
        "" if frames[0] == own else _short(*frames[0]),
    )


def _frames(stack: str) -> Iterator[tuple[str, str]]:
    """File and rest of each line, from the innermost frame on, of the thread that comes first."""
    is_first = False
    for line in stack.splitlines():
        if line.endswith("(most recent call first):"):
            if is_first:
                return
            is_first = True
        opening, quote, rest = line.strip().partition('"')
        if opening == "File " and quote:
            path, _, where = rest.rpartition('"')
            yield path, where


def _is_installed(path: str) -> bool:
    """Whether it is part of Python or of a package that was installed, not the user's own."""
    import sysconfig

    homes = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    within = any(path.startswith(os.path.join(home, "")) for home in homes)
    return within or path.startswith("<frozen ") or os.path.dirname(__file__) in path


def _short(path: str, where: str) -> str:
    """The last parts of the path say enough, and the name of the function has to be seen."""
    return "/".join(path.split("/")[-_PARTS:]) + where


def _table(caption: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        import html

        texts = (html.escape(cell[:_TEXT_MAX]) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"

    lines = [row(header, "th"), *(row(cells, "td") for cells in rows)]
    return f"<table><caption>{caption}</caption>{''.join(lines)}</table>"


__all__ = ["STATUSES", "Outcome", "Outcomes"]
