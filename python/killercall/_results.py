"""What takes the place of an item that has ended, by the options of its map."""

from __future__ import annotations

from killercall._exceptions import KillerError, SerializationError, add_note
from killercall._payload import short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from killercall import _core
    from killercall._host import HostJob
    from killercall._options import Options


class Results:
    """The rules of one map."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def of(self, job: HostJob, outcome: _core.Outcome, index: int, item: Any) -> Any:
        """What takes the place of an item by its outcome; or raises what ends the map."""
        if outcome.ending == "returned":
            try:
                return job.value(outcome)
            except SerializationError as error:
                return self.of_failure(error, index, item)
        failure = job.failure(outcome)
        if outcome.ending == "not_started":
            # No worker, no map: this concerns all items alike.
            raise failure
        return self.of_failure(failure, index, item, timed_out=outcome.ending == "timed_out")

    def of_failure(
        self, failure: BaseException, index: int, item: Any, *, timed_out: bool = False
    ) -> Any:
        """What takes the place of an item that failed; or raises its failure."""
        if isinstance(failure, KillerError):
            failure.item = item
            failure.index = index
        add_note(failure, f"item {index} of the map: {short_repr(item)}")
        match self._options.on_timeout if timed_out else self._options.on_error:
            case "return":
                return failure
            case "default":
                return self._options.default
            case _:
                raise failure


__all__ = ["Results"]
