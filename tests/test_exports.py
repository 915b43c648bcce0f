"""What the package shows."""

from __future__ import annotations

import inspect
from importlib import metadata, resources

import killercall


def test_all_is_there_and_sorted() -> None:
    """Every name of `__all__` exists, once, in order."""
    assert sorted(set(killercall.__all__)) == killercall.__all__
    assert [] == [name for name in killercall.__all__ if not hasattr(killercall, name)]


def test_version_is_that_of_the_distribution() -> None:
    """The compiled part and the metadata agree."""
    assert metadata.version("killercall") == killercall.__version__


def test_package_is_typed() -> None:
    """Type checkers look for this file."""
    assert resources.files(killercall).joinpath("py.typed").is_file()


def test_everything_public_is_documented() -> None:
    """Every public function and class has a docstring."""
    public = [getattr(killercall, name) for name in killercall.__all__ if name != "__version__"]
    assert [] == [thing for thing in public if not inspect.getdoc(thing)]


def test_exceptions_have_the_builtin_bases() -> None:
    """Each derives from ours and from what people catch already."""
    import builtins
    import pickle

    expected = {
        killercall.TimeoutError: builtins.TimeoutError,
        killercall.MemoryLimitExceeded: MemoryError,
        killercall.SerializationError: pickle.PicklingError,
        killercall.WorkerStartError: OSError,
        killercall.DepthLimitExceeded: RecursionError,
        killercall.WorkerDied: killercall.KillerError,
    }
    for ours, base in expected.items():
        assert issubclass(ours, killercall.KillerError)
        assert issubclass(ours, base)
