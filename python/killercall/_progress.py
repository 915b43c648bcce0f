"""How far a map is, for a bar or for the user's own function."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from killercall._options import Options
    from killercall._results import Results


class Progress:
    """
    Tells a function; or nobody.

    To be called in the consumer's thread only: what the function raises is the consumer's.
    """

    def __init__(self, tell: Callable[..., object] | None, total: int | None) -> None:
        self._tell = tell
        self._total = total
        self._done = 0

    def report(self, done: int, results: Results) -> None:
        """So many items have ended; `results` knows how many of them have failed."""
        if self._tell is not None and done != self._done:
            self._done = done
            self._tell(done, results.timed_out, results.failed, self._total)

    def close(self) -> None:
        """There is nothing more to come."""


# Seconds between two states of a bar that nobody watches, as in a log, where each one stays.
_LOG_INTERVAL = 10.0


class _Bar(Progress):
    """
    A bar of tqdm.

    `tqdm.auto` finds out whether this is a notebook. Where the bar goes neither there nor to a
    terminal, it is drawn at its beginning, every ten seconds and at its end. `TQDM_MININTERVAL` and
    tqdm's other variables have the last word.
    """

    def __init__(self, description: str | None, total: int | None) -> None:
        from tqdm.auto import tqdm

        class Bar(tqdm):  # type: ignore[misc]
            # Its watchdog is a thread that never ends; all it does is to draw again what is slow.
            monitor_interval = 0

        super().__init__(self._draw, total)
        self._bar = Bar(total=total, desc=description, **_manner())
        self._failures = (0, 0)

    def _draw(self, done: int, timed_out: int, failed: int, _total: int | None) -> None:
        if self._failures != (timed_out, failed):
            self._failures = (timed_out, failed)
            self._bar.set_postfix(timed_out=timed_out, failed=failed, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leaves it as it is."""
        self._bar.close()


def _manner() -> dict[str, Any]:
    """What tqdm has to be told of where the bar goes."""
    import os
    import sys

    stream = sys.stderr
    if stream is None:
        # Whoever has closed it does not want to see anything.
        return {"disable": True}
    is_watched = stream.isatty() or type(stream).__module__.startswith("ipykernel.")
    if is_watched or "TQDM_MININTERVAL" in os.environ:
        return {}
    return {"mininterval": _LOG_INTERVAL}


def progress_for(options: Options, total: int | None) -> Progress:
    """What the options ask for, for so many items."""
    wanted: Any = options.progress
    if callable(wanted) or wanted is None:
        return Progress(wanted, total)
    return _Bar(None if wanted is True else wanted, total)


__all__ = ["Progress", "progress_for"]
