"""What type checkers are told agrees with what is checked when a program runs."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from killercall import KillerPool, _options, _pool, _typing

# What overloads and signatures name, so that it decides about the type of the result.
NAMED = {"default", "on_error", "on_timeout", "outcomes", "timeout"}
SET_UP = set(inspect.signature(KillerPool).parameters) - {"workers", "options"}


@pytest.mark.parametrize(
    ("declared", "named", "allowed"),
    [
        (_typing.FunctionOptions, NAMED - {"on_error", "outcomes"}, _options.FUNCTION_OPTIONS),
        (_typing.MapOptions, NAMED, _options.MAP_OPTIONS),
        (_typing.PipelineOptions, NAMED - {"outcomes"}, _options.PIPELINE_OPTIONS),
        (_typing.ActorOptions, {"timeout"}, _options.ACTOR_OPTIONS),
        (_typing.MethodOptions, set(), _options.METHOD_OPTIONS),
        (_typing.PoolOptions, SET_UP, _options.CALL_OPTIONS),
        (_typing.ViewOptions, set(), _pool._VIEW_OPTIONS),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_type_checkers_know_every_option(
    declared: type, named: set[str], allowed: frozenset[str]
) -> None:
    """An option that one side does not have would be refused by the other."""
    known = set(declared.__annotations__)
    assert set() == known & named
    assert set(allowed) == known | named


def test_the_choices_are_the_same() -> None:
    """Words that are checked when a program runs are those in the types."""
    annotations = _typing.WorkerOptions.__annotations__
    for name, choices in (
        ("start_method", _options.START_METHODS),
        ("serializer", _options._payload.SERIALIZER_NAMES),
    ):
        said = annotations[name].__forward_arg__
        assert [] == [choice for choice in choices if repr(choice) not in said]
    for name, literal in (("on_error", _typing.OnFailure), ("on_timeout", _typing.OnTimeout)):
        for choice in literal.__args__:
            assert choice == _options.CHECKS[name](name, choice)


def test_nothing_imports_the_types() -> None:
    """They would cost each worker the import of `typing` and more."""
    root = Path(_typing.__file__).parent
    importing = "from killercall._typing import"
    at_run_time = [
        path.name
        for path in root.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(importing)
    ]
    assert [] == at_run_time
