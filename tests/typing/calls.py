# pyright: reportUnnecessaryTypeIgnoreComment=true
"""
What type checkers make of single calls: `killer_call`, `killer_actor`, `killer_exec`, futures.

Nothing runs this: mypy and pyright read it. A mistake that each has to find is marked by a comment
that tells it to pass over it, and both complain about such a comment where there is no mistake.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, assert_type

import killercall
from killercall import (
    KillerFunction,
    KillerFuture,
    killer_actor,
    killer_call,
    killer_exec,
    publish,
    time_left,
)


@killer_call
def bare(number: int, *, times: int = 1) -> str:
    publish(number)
    return str(number) * times


@killer_call(timeout=4, retries=2, max_memory="1GiB", retry_on=(OSError, ValueError))
def with_options(number: int) -> str:
    return str(number)


@killer_call(timeout=datetime.timedelta(seconds=4))
async def coroutine(number: int) -> str:
    await asyncio.sleep(0)
    return str(number)


def plain(number: int) -> str:
    return str(number)


def functions() -> None:
    assert_type(bare(1, times=2), str)
    assert_type(with_options(1), str)
    assert_type(killer_call(plain, timeout=None)(1), str)
    assert_type(killer_call(lambda: 1.5, 2)(), float)
    assert_type(killer_call(functools.partial(plain, 1))(), str)
    assert_type(bare.__wrapped__(1), str)
    bare("one")  # type: ignore[arg-type]
    bare(1, 2)  # type: ignore[call-arg]
    bare(1, time=2)  # type: ignore[call-arg]
    bare()  # type: ignore[call-arg]


def futures() -> None:
    future = bare.submit(1, times=2)
    assert_type(future, KillerFuture[str])
    assert_type(future.result(), str)
    assert_type(future.result(timeout=1), str)
    assert_type(future.cancel(), bool)
    as_usual: Future[str] = future
    assert as_usual
    assert_type(coroutine.submit(1), KillerFuture[str])
    bare.submit("one")  # type: ignore[arg-type]
    coroutine.submit("one")  # type: ignore[call-overload]


async def awaited() -> None:
    waiting: Awaitable[str] = bare.aio(1)
    assert_type(await waiting, str)
    assert_type(await bare.aio(1, times=2), str)
    assert_type(await coroutine(1), str)
    assert_type(await coroutine.aio(1), str)
    later: Coroutine[Any, Any, str] = coroutine(1)
    assert_type(await later, str)
    await bare.aio("one")  # type: ignore[arg-type]
    await coroutine("one")  # type: ignore[arg-type]


def options() -> None:
    assert_type(bare.options(timeout=1)(1, times=2), str)
    assert_type(bare.options(timeout=1).submit(1), KillerFuture[str])
    assert_type(bare.options(on_timeout="raise")(1), str)
    assert_type(bare.options(on_timeout="return")(1), str | killercall.TimeoutError)
    assert_type(bare.options(on_timeout="default")(1), str | None)
    assert_type(bare.options(on_timeout="default", default=0)(1), str | int)
    bare.options(timeout=1)("one")  # type: ignore[arg-type]
    bare.options(timeut=1)  # type: ignore[call-overload]
    bare.options(timeout="1")  # type: ignore[call-overload]
    bare.options(on_timeout="ignore")  # type: ignore[call-overload]
    bare.options(serializer="json")  # type: ignore[call-overload]
    killer_call(plain, timeut=1)  # type: ignore[call-overload]
    killer_call(plain, grace="long")  # type: ignore[call-overload]
    killer_call(4)  # type: ignore[call-overload]


@killer_call(on_timeout="default", default=0)
def or_zero(number: int) -> str:
    return str(number)


@killer_call(on_timeout="default")
async def or_none(number: int) -> str:
    return str(number)


@killer_call(on_timeout="return")
def or_exception(number: int) -> str:
    return str(number)


async def instead_of_raising() -> None:
    assert_type(or_zero(1), str | int)
    assert_type(or_zero.submit(1).result(), str | int)
    assert_type(await or_none(1), str | None)
    assert_type(or_exception(1), str | killercall.TimeoutError)
    assert_type(killer_call(plain, on_timeout="default")(1), str | None)
    partial: str = killer_call(plain, on_timeout="partial")(1)
    assert partial


class Model:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    @killer_call
    def method(self, number: int) -> float:
        return self.scale * number

    @killer_call(timeout=1)
    async def slow(self, number: int) -> float:
        return self.scale * number

    @killer_call
    @classmethod
    def named(cls, name: str) -> Model:
        return cls(len(name))

    @killer_call(timeout=1)
    @staticmethod
    def double(number: int) -> int:
        return 2 * number

    @classmethod
    @killer_call(timeout=1)
    def inside(cls, name: str) -> Model:
        return cls(len(name))


class Better(Model):
    pass


async def methods() -> None:
    model = Model(2.0)
    assert_type(model.method(1), float)
    assert_type(model.method.submit(1), KillerFuture[float])
    assert_type(await model.method.aio(1), float)
    assert_type(model.method.options(timeout=1)(1), float)
    assert_type(Better(1.0).method(1), float)
    assert_type(await model.slow(1), float)
    assert_type(Model.method(model, 1), float)
    assert_type(Model.named("one"), Model)
    assert_type(Model.named.submit("one"), KillerFuture[Model])
    assert_type(model.named("one"), Model)
    assert_type(Model.inside("one"), Model)
    assert_type(Model.double(1), int)
    assert_type(Model.double.submit(1), KillerFuture[int])
    model.method("one")  # type: ignore[arg-type]
    model.method(1, 2)  # type: ignore[call-arg]
    model.method.submit("one")  # type: ignore[arg-type]


class Counter:
    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count


CounterActor = killer_actor(Counter, timeout=4)


def typed(counter: Counter) -> int:
    counter.add("one")  # type: ignore[arg-type]
    return counter.add(1)


def actors() -> None:
    with CounterActor(10) as counter:
        # Where it is taken for an instance of the plain class, its calls are checked.
        assert_type(typed(counter), int)
        # Elsewhere it may have any method, with what an actor's methods have.
        future: KillerFuture[Any] = counter.add.submit(1)
        assert_type(counter.add.options(timeout=1).submit(1).result(), Any)
        assert future
    counter.close()
    CounterActor("ten")  # type: ignore[arg-type]
    CounterActor()  # type: ignore[call-arg]
    killer_actor(Counter, retries=3)  # type: ignore[call-overload]


def commands() -> None:
    assert_type(killer_exec(["ls"], 4), subprocess.CompletedProcess[bytes])
    assert_type(killer_exec("ls", timeout=None, shell=True).returncode, int)
    assert_type(killer_exec(["ls"], 4, text=True), subprocess.CompletedProcess[str])
    assert_type(killer_exec(["ls"], 4, encoding="utf-8"), subprocess.CompletedProcess[str])
    assert_type(killer_exec(["cat"], 4, input=b"text"), subprocess.CompletedProcess[bytes])
    assert_type(killer_exec(["cat"], 4, input="text", text=True), subprocess.CompletedProcess[str])
    killer_exec(["ls"])  # type: ignore[call-overload]
    killer_exec(["ls"], 4, on_timeout="return")  # type: ignore[call-overload]


def inside() -> None:
    assert_type(time_left(), float | None)
    publish({"best": 1})


def higher_order(function: Callable[[int], str]) -> KillerFunction[[int], str]:
    return killer_call(function, timeout=1)


def failures() -> None:
    try:
        higher_order(plain)(1)
    except killercall.TimeoutError as late:
        assert_type(late.timeout, float | None)
        assert_type(late.stack, str | None)
    except killercall.WorkerDied as died:
        assert_type(died.exitcode, int | None)
