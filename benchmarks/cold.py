"""
Scripts run by a fresh interpreter each: seconds from its start to the first result on its stdout.

What an interpreter does after that, such as ending its pool, is waited for but not counted.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import time

from benchmarks.warm import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

HEAD = """\
import os

def identity(value):
    return value

def put(queue, value):
    queue.put(identity(value))

def done(value):
    os.write(1, repr(value).encode())

"""
# Spawned workers of most peers run the script again, so what it does must be guarded.
GUARD = 'if __name__ == "__main__":\n'
ITEMS = 16
EXECUTOR = """
with ProcessPoolExecutor({workers}) as pool:
    done({ask})
"""
PEBBLE = """
import multiprocessing
import pebble
with pebble.ProcessPool({workers}, context=multiprocessing.get_context({start_method!r})) as pool:
    done({ask})
"""

# What is asked of whom, with the start of the script in front. `done` gives the result.
FIRST = {
    "killercall": """
from killercall import killer_call
done(killer_call(identity, timeout=60)(7))
""",
    "ProcessPoolExecutor (fork)": "from concurrent.futures import ProcessPoolExecutor"
    + EXECUTOR.format(workers=1, ask="pool.submit(identity, 7).result()"),
    "recipe": """
import multiprocess
queue = multiprocess.Queue()
process = multiprocess.Process(target=put, args=(queue, 7))
process.start()
done(queue.get(timeout=60))
process.join()
""",
    "pebble (fork)": PEBBLE.format(
        workers=1,
        start_method="fork",
        ask="pool.schedule(identity, args=[7], timeout=60).result()",
    ),
    "pebble (spawn)": PEBBLE.format(
        workers=1,
        start_method="spawn",
        ask="pool.schedule(identity, args=[7], timeout=60).result()",
    ),
    "loky": """
from loky import get_reusable_executor
done(get_reusable_executor(max_workers=1).submit(identity, 7).result())
get_reusable_executor().shutdown()
""",
    "mpire": """
from mpire import WorkerPool
with WorkerPool(1) as pool:
    done(pool.apply(identity, (7,), task_timeout=60))
""",
    "joblib": """
from joblib import Parallel, delayed
done(Parallel(n_jobs=2)([delayed(identity)(7)])[0])
""",
    "dask": """
from distributed import Client, LocalCluster
with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
    with Client(cluster) as client:
        done(client.submit(identity, 7).result())
""",
    "ray": """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
done(ray.get(ray.remote(identity).remote(7)))
ray.shutdown()
""",
}

MAP = {
    "killercall": f"""
from killercall import killer_pmap
done(killer_pmap(identity, range({ITEMS}), cpus=2, timeout=60))
""",
    "ProcessPoolExecutor (fork)": "from concurrent.futures import ProcessPoolExecutor"
    + EXECUTOR.format(workers=2, ask=f"list(pool.map(identity, range({ITEMS})))"),
    "recipe": f"""
import multiprocess
results = []
for first in range(0, {ITEMS}, 2):
    queues = [multiprocess.Queue() for _ in range(2)]
    processes = [
        multiprocess.Process(target=put, args=(queue, first + index))
        for index, queue in enumerate(queues)
    ]
    for process in processes:
        process.start()
    results += [queue.get(timeout=60) for queue in queues]
    for process in processes:
        process.join()
done(results)
""",
    "pebble (fork)": PEBBLE.format(
        workers=2,
        start_method="fork",
        ask=f"list(pool.map(identity, range({ITEMS}), timeout=60).result())",
    ),
    "loky": f"""
from loky import get_reusable_executor
done(list(get_reusable_executor(max_workers=2).map(identity, range({ITEMS}))))
get_reusable_executor().shutdown()
""",
    "joblib": f"""
from joblib import Parallel, delayed
done(Parallel(n_jobs=2)(delayed(identity)(item) for item in range({ITEMS})))
""",
}


@contextlib.contextmanager
def script(
    body: str, expected: str, *, warm_up: bool = True
) -> Generator[Callable[[int], list[float]], None, None]:
    """Runs the script so often."""
    import tempfile
    import textwrap

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "script.py")
        pathlib.Path(path).write_text(
            HEAD + GUARD + textwrap.indent(body, "    "), encoding="ascii"
        )
        with interpreter([path], expected) as turn:
            if warm_up:
                turn(1)
            yield turn


@contextlib.contextmanager
def interpreter(
    arguments: list[str], expected: str
) -> Generator[Callable[[int], list[float]], None, None]:
    """Starts an interpreter so often."""
    import subprocess

    def one() -> float:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
        output = process.stdout
        if output is None:
            raise AssertionError
        # Where nothing is expected, to the end of the process.
        said = output.read(len(expected) or -1)
        took = time.perf_counter() - start
        output.close()
        check(process.wait(timeout=60), 0)
        check(said.decode(), expected)
        return took

    yield lambda count: [one() for _ in range(count)]
