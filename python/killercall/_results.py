"""What takes the place of an item that has ended, by the options of its map."""

from __future__ import annotations

from killercall._exceptions import KillerError, SerializationError, add_note, leave_out_ours
from killercall._outcomes import Outcome
from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from killercall import _core
    from killercall._host import HostJob
    from killercall._options import Options

    # How an item ended: as the native side tells it, or as we have seen it here.
    Ended: TypeAlias = "_core.Outcome | Here"


class Failed(BaseException):
    """
    Brings what ends a map to where that is raised: by the frames on its way nobody is helped.

    Attributes:
        failure: what is to be raised.
    """

    def __init__(self, failure: BaseException) -> None:
        leave_out_ours(failure)
        super().__init__()
        self.failure = failure


class Results:
    """
    What maps and pipelines give by default: values, and what the options say.

    Attributes:
        timed_out: how many items have timed out.
        failed: how many have failed otherwise.
    """

    # Whether what an item has published takes its place.
    _takes_partial = True

    def __init__(self, options: Options, *, of: str = "map", has_batches: bool = False) -> None:
        """What the items are `of` is for messages; a batch of them counts as so many."""
        self._options = options
        self._of = of
        self._has_batches = has_batches
        self.timed_out = 0
        self.failed = 0

    def size(self, item: Any) -> int:
        """How many items that is."""
        return len(item) if self._has_batches else 1

    def of(self, job: HostJob, outcome: _core.Outcome, index: int, item: Any) -> Any:
        """What takes the place of an item by its outcome; or `Failed`, which ends the map."""
        is_partial = self._takes_partial and job.is_partial(outcome)
        if is_partial or outcome.ending == "returned":
            try:
                value = job.partial(outcome) if is_partial else job.value(outcome)
            except SerializationError as error:
                return self.of_failure(error, index, item, outcome)
            if is_partial:
                self.timed_out += self.size(item)
                return value
            return self.of_value(value, index, item, outcome)
        failure = job.failure(outcome)
        if outcome.ending == "not_started":
            # No worker, no map: this concerns all items alike.
            raise Failed(failure)
        return self.of_failure(failure, index, item, outcome)

    def of_value(self, value: Any, _index: int, _item: Any, _outcome: Ended) -> Any:
        """What takes the place of an item that returned."""
        return value

    def of_failure(self, failure: BaseException, index: int, item: Any, outcome: Ended) -> Any:
        """What takes the place of an item that failed; or raises `Failed`."""
        is_late = self._note(failure, index, item, outcome)
        match self._options.on_timeout if is_late else self._options.on_error:
            case "return":
                return failure
            case "default" | "partial":
                return self._options.default
            case _:
                raise Failed(failure)

    def _note(self, failure: BaseException, index: int, item: Any, outcome: Ended) -> bool:
        """Counts a failure, and has it say which item it is about; whether it is a timeout."""
        if isinstance(failure, KillerError):
            failure.item = item
            failure.index = index
        add_note(failure, f"item {index} of the {self._of}: {short_repr(item)}")
        is_late = outcome.ending == "timed_out"
        if is_late:
            self.timed_out += self.size(item)
        else:
            self.failed += self.size(item)
        return is_late


class Records(Results):
    """With `outcomes=True`: a record of each item, and nothing is raised for one."""

    # It is on the error, of which there is a record.
    _takes_partial = False

    def of_value(self, value: Any, index: int, item: Any, outcome: Ended) -> Outcome:
        """Its record."""
        peak = None
        if not isinstance(outcome, Here):
            # From a worker, where the function was a wrapped one.
            value, peak = value
        return self._record(outcome, index, item, "returned", value=value, peak_memory=peak)

    def of_failure(self, failure: BaseException, index: int, item: Any, outcome: Ended) -> Outcome:
        """Its record."""
        self._note(failure, index, item, outcome)
        return self._record(
            outcome,
            index,
            item,
            _STATUSES.get(outcome.ending, "raised"),
            error=failure,
            peak_memory=outcome.over_memory,
        )

    @staticmethod
    def _record(outcome: Ended, index: int, item: Any, status: str, **more: Any) -> Outcome:
        return Outcome(
            index,
            item,
            status,
            started=outcome.started,
            seconds=outcome.elapsed,
            pid=outcome.pid,
            attempts=outcome.attempts,
            **more,
        )


class Here:
    """How an item ended that no worker has had; as `_core.Outcome` tells it of others."""

    over_memory: int | None = None

    def __init__(
        self,
        ending: str,
        *,
        pid: int | None = None,
        started: float | None = None,
        elapsed: float = 0.0,
        attempts: int = 0,
    ) -> None:
        self.ending = ending
        self.pid = pid
        self.started = started
        self.elapsed = elapsed
        self.attempts = attempts


NEVER_SENT = Here("raised")

# Of all others it is "raised": of "returned" too, where the value could not be had.
_STATUSES = {
    "timed_out": "timed_out",
    "died": "died",
    "over_memory": "died",
    "cancelled": "cancelled",
}


def results_for(options: Options) -> Results:
    """The rules of a map with these options."""
    return Records(options) if options.outcomes else Results(options)


__all__ = ["NEVER_SENT", "Failed", "Here", "Records", "Results", "results_for"]
