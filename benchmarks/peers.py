"""
One way to call them all: each peer is a context that binds a function to a deadline.

`with peer() as bind: call = bind(function, timeout); call(argument)` runs the function in a worker
process and gives its value, or raises something with "Time" in its name. Peers that have no
deadlines ignore it. Pools have one worker unless told otherwise. Nothing is imported before it is
needed, so that a contestant carries only its own library.
"""

from __future__ import annotations

import contextlib
import os

from benchmarks.work import STUCK, identity, of_script

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Call = Callable[..., Any]
    Bind = Callable[..., Call]


@contextlib.contextmanager
def killercall(**options: Any) -> Generator[Bind, None, None]:
    """Ours, with a function of the script."""
    from killercall import killer_call, shutdown

    try:
        yield lambda function, timeout=STUCK: killer_call(
            of_script(function), timeout=timeout, **options
        )
    finally:
        shutdown()


@contextlib.contextmanager
def killercall_module(**options: Any) -> Generator[Bind, None, None]:
    """Ours, with a function of a module."""
    from killercall import killer_call, shutdown

    try:
        yield lambda function, timeout=STUCK: killer_call(function, timeout=timeout, **options)
    finally:
        shutdown()


def killercall_fresh() -> contextlib.AbstractContextManager[Bind]:
    """Ours, a fresh process for every call."""
    return killercall(reuse=False)


@contextlib.contextmanager
def socketpair(serializer: str = "pickle") -> Generator[Bind, None, None]:
    """The floor: a forked process that serves a socket. No deadline, no supervision."""
    import importlib
    import pickle
    import socket
    import struct

    dumps, loads = importlib.import_module(serializer).dumps, pickle.loads
    ours, theirs = socket.socketpair()

    def send(connection: socket.socket, value: object) -> None:
        data = dumps(value, pickle.HIGHEST_PROTOCOL)
        connection.sendall(struct.pack("!I", len(data)) + data)

    def read(connection: socket.socket, length: int) -> bytes:
        data = connection.recv(length)
        while len(data) < length:
            part = connection.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(connection: socket.socket) -> Any:
        return loads(read(connection, *struct.unpack("!I", read(connection, 4))))

    def bind(function: Call, timeout: float = STUCK) -> Call:
        if serializer == "pickle":
            # The function is known there: only the argument travels.
            def call(value: Any) -> Any:
                send(ours, value)
                return receive(ours)
        else:

            def call(*arguments: Any) -> Any:
                send(ours, (function, arguments))
                return receive(ours)

        return call

    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            while True:
                message = receive(theirs)
                if serializer == "pickle":
                    send(theirs, identity(message))
                else:
                    send(theirs, message[0](*message[1]))
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield bind
    finally:
        ours.close()
        os.waitpid(pid, 0)


@contextlib.contextmanager
def pebble_pool(workers: int = 1, start_method: str = "fork") -> Generator[Bind, None, None]:
    """Pebble's pool, whose workers can be killed."""
    import multiprocessing

    import pebble

    pool = pebble.ProcessPool(
        max_workers=workers, context=multiprocessing.get_context(start_method)
    )
    try:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: pool.schedule(function, args=arguments, timeout=timeout).result()
            )
        )
    finally:
        pool.close()
        pool.join()


@contextlib.contextmanager
def pebble_decorator(start_method: str = "fork") -> Generator[Bind, None, None]:
    """Pebble's decorator: a process for every call."""
    import multiprocessing

    from pebble import concurrent

    context = multiprocessing.get_context(start_method)

    def bind(function: Call, timeout: float = STUCK) -> Call:
        decorated = concurrent.process(timeout=timeout, context=context)(function)
        return lambda *arguments: decorated(*arguments).result()

    yield bind


def billiard_value(result: Any) -> Any:
    """What the call returned; what the pool itself has raised comes wrapped."""
    from billiard.einfo import ExceptionWithTraceback

    try:
        return result.get()
    except ExceptionWithTraceback as error:
        raise error.exc from None


@contextlib.contextmanager
def billiard_pool(workers: int = 1) -> Generator[Bind, None, None]:
    """Celery's pool, whose workers can be killed."""
    from billiard.pool import Pool

    # Or deadlines of single calls are not kept.
    pool = Pool(workers, enable_timeouts=True)
    try:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: billiard_value(
                    pool.apply_async(function, arguments, timeout=timeout)
                )
            )
        )
    finally:
        pool.terminate()
        pool.join()


@contextlib.contextmanager
def multiprocessing_pool(workers: int = 1) -> Generator[Bind, None, None]:
    """The standard library's pool."""
    import multiprocessing

    with multiprocessing.Pool(workers) as pool:
        yield lambda function, timeout=STUCK: lambda *arguments: pool.apply(function, arguments)


@contextlib.contextmanager
def executor(workers: int = 1) -> Generator[Bind, None, None]:
    """The standard library's executor."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: pool.submit(function, *arguments).result()
            )
        )


@contextlib.contextmanager
def loky(workers: int = 1) -> Generator[Bind, None, None]:
    """The executor beneath joblib."""
    from loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=workers, timeout=600)
    try:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: pool.submit(function, *arguments).result()
            )
        )
    finally:
        pool.shutdown(wait=True)


@contextlib.contextmanager
def mpire(workers: int = 1) -> Generator[Bind, None, None]:
    """A pool with timeouts that end the whole pool."""
    from mpire import WorkerPool

    pool = WorkerPool(workers, keep_alive=True)
    try:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: pool.apply(function, arguments, task_timeout=timeout)
            )
        )
    finally:
        pool.terminate()


@contextlib.contextmanager
def joblib(workers: int = 2) -> Generator[Bind, None, None]:
    """Two workers, because with one joblib calls the function in the host."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    try:
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: Parallel(n_jobs=workers, timeout=timeout)(
                    [delayed(function)(*arguments)]
                )[0]
            )
        )
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def ray(workers: int = 1) -> Generator[Bind, None, None]:
    """A cluster of one machine. The deadline is the caller's; then the worker is killed."""
    import ray as library

    library.init(
        num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )

    def bind(function: Call, timeout: float = STUCK) -> Call:
        remote = library.remote(max_retries=0)(function)

        def call(*arguments: Any) -> Any:
            reference = remote.remote(*arguments)
            try:
                return library.get(reference, timeout=timeout)
            except library.exceptions.GetTimeoutError:
                library.cancel(reference, force=True)
                raise

        return call

    try:
        yield bind
    finally:
        library.shutdown()


@contextlib.contextmanager
def dask(workers: int = 1) -> Generator[Bind, None, None]:
    """A cluster of one machine, without deadlines."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield (
            lambda function, timeout=STUCK: (
                lambda *arguments: client.submit(function, *arguments, pure=False).result()
            )
        )


def _answer(queue: Any, function: Call, arguments: tuple[Any, ...]) -> None:
    queue.put(function(*arguments))


@contextlib.contextmanager
def recipe() -> Generator[Bind, None, None]:
    """The recipe that is passed around: dill, a process and a queue for every call."""
    import queue

    import multiprocess

    def bind(function: Call, timeout: float = STUCK) -> Call:
        def call(*arguments: Any) -> Any:
            answers = multiprocess.Queue()
            process = multiprocess.Process(target=_answer, args=(answers, function, arguments))
            process.start()
            try:
                return answers.get(timeout=timeout)
            except queue.Empty:
                process.kill()
                raise TimeoutError from None
            finally:
                process.join()
                answers.close()

        return call

    yield bind


@contextlib.contextmanager
def wrapt() -> Generator[Bind, None, None]:
    """wrapt_timeout_decorator: a process for every call."""
    from wrapt_timeout_decorator import timeout as decorator

    yield lambda function, timeout=STUCK: decorator(timeout, use_signals=False)(function)
