"""How a function, its items and its options go to the workers of a map that seeds or measures."""

from __future__ import annotations

import contextlib
import sys

from killercall._host import is_async, name_of
from killercall._options import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


def function_for(func: Any, options: Options) -> Any:
    """The function as a worker is to have it."""
    if options.seed is None and not options.outcomes:
        return func
    from killercall._wrapped import Wrapped

    return Wrapped(
        func,
        name_of(func),
        is_async=is_async(func),
        seed=options.seed,
        measures=options.outcomes,
    )


def options_for(options: Options) -> Options:
    """With what a worker has to import before its first item, whose time is not for that."""
    if options.seed is None:
        return options
    needed = ["random"]
    if "numpy" in sys.modules:
        # What the host has the function may use. Imported by that later, it would be unseeded.
        needed.append("numpy.random")
    more = tuple(name for name in needed if name not in options.preload)
    return Options(**{**vars(options), "preload": options.preload + more})


@contextlib.contextmanager
def seeded_here(options: Options, index: int) -> Generator[None, None, None]:
    """Seeds for one item in this process, and puts back what was."""
    if options.seed is None:
        yield
        return
    import random

    from killercall._wrapped import seed_item

    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    before = random.getstate()
    numpy_before = None if numpy_random is None else numpy_random.get_state()
    try:
        seed_item(options.seed, index)
        yield
    finally:
        random.setstate(before)
        if numpy_random is not None:
            numpy_random.set_state(numpy_before)


__all__ = ["function_for", "options_for", "seeded_here"]
