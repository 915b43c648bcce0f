"""
The instances of actors, in their workers.

A worker of an actor has one. One that took the place of a worker that was killed has none, and says
so before anything of the call has happened: then the host has it built again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_objects: dict[int, Any] = {}


class NotHereError(Exception):
    """The instance is not in this worker, and the method has not been called."""

    def __init__(self, owner: int) -> None:
        super().__init__(owner)
        self.owner = owner


def build(owner: int, actor_class: Any, /, *args: Any, **kwargs: Any) -> None:
    """Makes the instance."""
    _objects[owner] = actor_class.__wrapped__(*args, **kwargs)


def call(owner: int, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of it."""
    return getattr(_find(owner), name)(*args, **kwargs)


async def call_async(owner: int, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a coroutine method of it."""
    return await getattr(_find(owner), name)(*args, **kwargs)


def _find(owner: int) -> Any:
    try:
        return _objects[owner]
    except KeyError:
        raise NotHereError(owner) from None
