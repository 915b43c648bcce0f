"""What is measured, with whom, how often and how large; in full and in the quick form."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cold import FIRST, ITEMS, MAP
from benchmarks.conductor import Contestant, Measure

# Peers that are systems of their own: daemons that would disturb the turns of the others.
HEAVY = {"ray", "dask"}
GB = 10**9
MB = 10**6


def measures(*, quick: bool) -> list[Measure]:
    """The measures of a run; the quick form has one tiny round of each, without heavy peers."""
    found = [
        *_warm(),
        *_fresh(quick=quick),
        *_cold(quick=quick),
        *_late(quick=quick),
        *_maps(quick=quick),
    ]
    found += [*_arrays(quick=quick), *_memory()]
    return [_shrunk(measure) for measure in found] if quick else found


def _shrunk(measure: Measure) -> Measure:
    contestants = tuple(
        replace(contestant, rounds=1, calls=1)
        for contestant in measure.contestants
        if contestant.name.split()[0] not in HEAVY
    )
    return replace(measure, rounds=1, calls=1, contestants=contestants)


def _peer(name: str, peer: str, turn: str = "warm.calls", **arguments: object) -> Contestant:
    return Contestant(name, turn, {"peer": peer, **arguments})


def _few(contestant: Contestant, calls: int, rounds: int | None = None) -> Contestant:
    return replace(contestant, calls=calls, rounds=rounds)


def _alone(contestant: Contestant, calls: int, rounds: int = 2) -> Contestant:
    return replace(contestant, calls=calls, rounds=rounds, alone=True)


def _in_threads(name: str, peer: str, number: int) -> Contestant:
    # So many calls that it matters little what the threads themselves cost.
    return replace(_peer(name, peer, turn="warm.threads", number=number), calls=1600)


def _warm() -> list[Measure]:
    floor = _peer("raw socketpair", "socketpair")
    ours = _peer("killercall", "killercall")
    return [
        Measure(
            "warm",
            "Warm call, int in and out, back to back",
            "us",
            rounds=20,
            calls=100,
            contestants=(
                floor,
                ours,
                _peer("killercall, function of a module", "killercall_module"),
                _peer("pebble ProcessPool", "pebble_pool"),
                _peer("billiard Pool", "billiard_pool"),
                _peer("multiprocessing.Pool", "multiprocessing_pool"),
                _peer("ProcessPoolExecutor", "executor"),
                _peer("mpire", "mpire"),
                _peer("loky", "loky"),
                _few(_peer("joblib", "joblib"), 5),
                _alone(_peer("ray", "ray"), 100),
                _alone(_peer("dask", "dask"), 30),
            ),
        ),
        Measure(
            "spaced",
            "Warm call 1 ms after the last one (the host sleeps in between)",
            "us",
            rounds=20,
            calls=50,
            contestants=tuple(
                replace(contestant, arguments=contestant.arguments | {"pause": 0.001})
                for contestant in (
                    floor,
                    ours,
                    _peer("pebble ProcessPool", "pebble_pool"),
                    _peer("multiprocessing.Pool", "multiprocessing_pool"),
                    _peer("ProcessPoolExecutor", "executor"),
                )
            ),
        ),
        Measure(
            "rich",
            "Warm call of a closure, with a dict argument and a small numpy result, back to back",
            "us",
            rounds=20,
            calls=50,
            contestants=(
                _peer(
                    "raw socketpair, cloudpickle",
                    "socketpair",
                    turn="warm.rich",
                    serializer="cloudpickle",
                ),
                _peer("killercall", "killercall_module", turn="warm.rich"),
                _peer("loky", "loky", turn="warm.rich"),
            ),
        ),
    ]


def _fresh(*, quick: bool) -> list[Measure]:
    large = MB if quick else 2 * GB
    host = "2 GB and pandas in the host"
    return [
        Measure(
            "large host",
            "Warm call from a large host, and from 8 threads at once (wall clock over calls)",
            "us",
            rounds=20,
            calls=80,
            contestants=(
                _peer("killercall", "killercall"),
                _peer(f"killercall, {host}", "killercall", host=large),
                _in_threads("killercall, 1 thread", "killercall", 1),
                _in_threads("killercall, 8 threads", "killercall", 8),
                _in_threads("ProcessPoolExecutor, 8 threads", "executor", 8),
            ),
        ),
        Measure(
            "fresh",
            "Fresh process for every call, back to back",
            "ms",
            rounds=15,
            calls=10,
            contestants=(
                Contestant("os.fork, _exit, wait of a bare Python", "warm.bare_fork"),
                _peer("killercall, reuse=False", "killercall_fresh"),
                _few(_peer("pebble decorator (fork)", "pebble_decorator"), 5),
                _few(
                    _peer(
                        "pebble decorator (forkserver)",
                        "pebble_decorator",
                        start_method="forkserver",
                    ),
                    2,
                    8,
                ),
                _few(
                    _peer("pebble decorator (spawn)", "pebble_decorator", start_method="spawn"),
                    2,
                    8,
                ),
                _few(_peer("recipe: dill, Process, Queue", "recipe"), 5),
                _few(_peer("wrapt_timeout_decorator", "wrapt"), 5),
            ),
        ),
        Measure(
            "fresh large host",
            f"Fresh process for every call, {host}",
            "ms",
            rounds=5,
            calls=4,
            contestants=(
                Contestant("os.fork, _exit, wait", "warm.bare_fork", {"host": large}),
                _peer("killercall, reuse=False", "killercall_fresh", host=large),
                _peer("pebble decorator (fork)", "pebble_decorator", host=large),
                _peer("recipe: dill, Process, Queue", "recipe", host=large),
                _peer("wrapt_timeout_decorator", "wrapt", host=large),
            ),
        ),
        Measure(
            "ten a second",
            "One call every 100 ms: fresh and warm",
            "ms",
            rounds=10,
            calls=10,
            contestants=(
                _peer("killercall, warm", "killercall", pause=0.1),
                _peer("killercall, reuse=False", "killercall_fresh", pause=0.1),
                _peer("raw socketpair", "socketpair", pause=0.1),
            ),
            chart=False,
        ),
    ]


def _cold(*, quick: bool) -> list[Measure]:
    def scripts(bodies: dict[str, str], expected: str) -> tuple[Contestant, ...]:
        found = [
            Contestant(
                name, "cold.script", {"body": body, "expected": expected, "warm_up": not quick}
            )
            for name, body in bodies.items()
        ]
        return tuple(
            replace(contestant, calls=1, rounds=4) if contestant.name in HEAVY else contestant
            for contestant in found
        )

    return [
        Measure(
            "cold",
            "First result of a script, from the start of its interpreter",
            "ms",
            rounds=12,
            calls=2,
            contestants=(
                Contestant(
                    "python -c pass",
                    "cold.interpreter",
                    {"arguments": ["-c", "pass"], "expected": ""},
                ),
                Contestant(
                    "python -I -S -c pass",
                    "cold.interpreter",
                    {"arguments": ["-I", "-S", "-c", "pass"], "expected": ""},
                ),
                *scripts(FIRST, "7"),
            ),
        ),
        Measure(
            "cold map",
            f"Map of {ITEMS} no-ops by 2 workers, from the start of the script's interpreter",
            "ms",
            rounds=12,
            calls=2,
            contestants=scripts(MAP, repr(list(range(ITEMS)))),
        ),
    ]


def _late(*, quick: bool) -> list[Measure]:
    def late(name: str, peer: str, **arguments: object) -> Contestant:
        return _peer(name, peer, turn="late.overshoot", **arguments)

    sleep = "killercall: sleep"
    ours = [late(sleep, "killercall")] + [
        late(f"killercall: {function}", "killercall", function=function)
        for function in ("sleep_with_child", "busy_in_c", "regex", "ignore_sigterm")
    ]
    busy = [
        replace(contestant, arguments=contestant.arguments | {"busy": True})
        for contestant in (
            Contestant("poll, SIGKILL, wait in Python", "late.bare_kill"),
            *ours,
            late("pebble ProcessPool: sleep", "pebble_pool"),
            late("pebble decorator: sleep", "pebble_decorator"),
        )
    ]
    # Each of which takes three seconds.
    stubborn = (
        []
        if quick
        else [
            late(f"pebble {kind}: {function}", peer, function=function)
            for kind, peer in (("ProcessPool", "pebble_pool"), ("decorator", "pebble_decorator"))
            for function in ("busy_in_c", "ignore_sigterm")
        ]
    )
    return [
        Measure(
            "late",
            "How late the answer comes after a deadline of 100 ms",
            "ms",
            rounds=20,
            calls=5,
            contestants=(
                Contestant("poll, SIGKILL, wait in Python", "late.bare_kill"),
                *(
                    contestant if contestant.name == sleep else _few(contestant, 3)
                    for contestant in ours
                ),
                _few(late("pebble ProcessPool: sleep", "pebble_pool"), 2, 10),
                _few(late("pebble decorator: sleep", "pebble_decorator"), 2, 10),
                _few(late("wrapt_timeout_decorator: sleep", "wrapt"), 2, 10),
                # Neither pool can be relied on after a kill.
                _alone(late("mpire: sleep", "mpire"), 1, 8),
                _alone(late("billiard Pool: sleep", "billiard_pool"), 1, 8),
                _few(late("joblib: sleep", "joblib"), 1, 10),
                *(_few(contestant, 1, 2) for contestant in stubborn),
            ),
        ),
        Measure(
            "late busy",
            "How late the answer comes after a deadline of 100 ms, beside 4 busy processes a cpu",
            "ms",
            rounds=10,
            calls=5,
            contestants=tuple(busy),
        ),
        Measure(
            "after kill",
            "The next call after one that was killed at its deadline",
            "ms",
            rounds=12,
            calls=5,
            contestants=(
                _peer("killercall", "killercall", turn="late.after_kill"),
                _peer(
                    "killercall: the call after that",
                    "killercall",
                    turn="late.after_kill",
                    next_but_one=True,
                ),
                _peer("killercall: a warm call, back to back", "killercall"),
                _few(_peer("pebble ProcessPool", "pebble_pool", turn="late.after_kill"), 2),
                _few(_peer("pebble decorator", "pebble_decorator", turn="late.after_kill"), 2),
                _few(_peer("recipe", "recipe", turn="late.after_kill"), 2),
                _few(_peer("joblib", "joblib", turn="late.after_kill"), 1),
                _alone(_peer("ray", "ray", turn="late.after_kill", timeout=0.5), 3),
            ),
        ),
    ]


def _maps(*, quick: bool) -> list[Measure]:
    most = 2_000 if quick else 1_000_000

    def rate(name: str, how: str, kind: str = "ints", **options: object) -> Contestant:
        arguments = {"how": how, "kind": kind, "most": most, **options}
        return Contestant(name, "maps.rate", arguments)

    def hang(name: str, how: str, **options: object) -> Contestant:
        return Contestant(name, "maps.some_hang", {"how": how, "items": items, **options})

    items = 20 if quick else 200
    return [
        Measure(
            "map",
            "Map of no-ops on ints, 2 workers",
            "items/s",
            rounds=5,
            calls=1,
            more_is_better=True,
            contestants=(
                rate("the plain loop", "plain_loop"),
                rate("killercall: deadline an item", "killercall"),
                rate("multiprocessing.Pool.map: no deadlines", "multiprocessing_pool"),
                rate("ProcessPoolExecutor, chunksize 1,000: no deadlines", "executor"),
                rate("loky, chunksize 1,000: no deadlines", "loky"),
                rate("mpire: deadline an item", "mpire"),
                rate("pebble, chunksize 1: deadline an item", "pebble"),
                rate("pebble, chunksize 1,000: deadline a chunk", "pebble", chunksize=1000),
                rate("billiard: deadline an item", "billiard"),
            ),
        ),
        Measure(
            "map of tuples",
            "Map of tuples to dicts, 2 workers",
            "items/s",
            rounds=5,
            calls=1,
            more_is_better=True,
            contestants=(
                rate("the plain loop", "plain_loop", "tuples"),
                rate("killercall: deadline an item", "killercall", "tuples"),
                rate("multiprocessing.Pool.map: no deadlines", "multiprocessing_pool", "tuples"),
                rate("ProcessPoolExecutor, chunksize 1,000: no deadlines", "executor", "tuples"),
            ),
        ),
        Measure(
            "some hang",
            f"{items} items of 1 ms, every tenth of which hangs: deadline 100 ms, 2 workers",
            "s",
            rounds=5,
            calls=1,
            contestants=(
                hang("two threads that sleep as long", "naps_in_threads"),
                hang("killercall", "killercall"),
                hang("recipe in 2 threads", "in_threads", peer="recipe"),
                hang("wrapt_timeout_decorator in 2 threads", "in_threads", peer="wrapt"),
                hang("pebble ProcessPool", "pebble"),
                _few(hang("billiard Pool", "billiard"), 1, 1),
            ),
        ),
    ]


def _arrays(*, quick: bool) -> list[Measure]:
    def identity(size: int, name: str, peer: str, rounds: int | None = None) -> Contestant:
        # A gigabyte that waits for its turn is in the way of the others.
        return Contestant(
            name,
            "arrays.there_and_back",
            {"peer": peer, "size": size},
            rounds=rounds,
            alone=size >= GB or name in HEAVY,
        )

    hundred, thousand = (MB, 2 * MB) if quick else (100 * MB, GB)
    workers = 2 if quick else 8
    captures = {"killercall": "killercall_map", "joblib": "joblib_map"}
    return [
        Measure(
            "array",
            "numpy float64 identity of 100 MB, there and back",
            "ms",
            rounds=6,
            calls=2,
            contestants=(
                identity(hundred, "killercall", "killercall"),
                identity(hundred, "ProcessPoolExecutor", "executor"),
                identity(hundred, "ray", "ray", 3),
                identity(hundred, "dask", "dask", 2),
                identity(hundred, "recipe: dill, Process, Queue", "recipe", 3),
                identity(hundred, "loky", "loky", 3),
                identity(hundred, "pebble ProcessPool", "pebble_pool", 3),
            ),
        ),
        Measure(
            "large array",
            "numpy float64 identity of 1 GB, there and back",
            "ms",
            rounds=3,
            calls=1,
            contestants=(
                identity(thousand, "killercall", "killercall"),
                identity(thousand, "ProcessPoolExecutor", "executor", 2),
                identity(thousand, "ray", "ray"),
                identity(thousand, "dask", "dask", 1),
                identity(thousand, "recipe: dill, Process, Queue", "recipe", 1),
                identity(thousand, "pebble ProcessPool", "pebble_pool", 1),
            ),
        ),
        Measure(
            "captured",
            "Map of 64 items whose function sums a captured array of 100 MB, 8 workers",
            "ms",
            rounds=5,
            calls=1,
            contestants=tuple(
                Contestant(
                    name, "arrays.captured", {"how": how, "size": hundred, "workers": workers}
                )
                for name, how in captures.items()
            ),
        ),
        Measure(
            "copies",
            "Copies of that array in memory beside the host's own",
            "copies",
            rounds=1,
            calls=2,
            contestants=tuple(
                Contestant(name, "arrays.copies", {"how": how, "size": hundred, "workers": workers})
                for name, how in captures.items()
            ),
            chart=False,
        ),
    ]


def _memory() -> list[Measure]:
    def idle(name: str, how: str, **options: object) -> Contestant:
        return Contestant(name, "memory.idle", {"how": how, **options})

    return [
        Measure(
            "memory",
            "PSS of an idle warm worker, one of 4",
            "MB",
            rounds=2,
            calls=1,
            contestants=(
                idle("killercall", "killercall"),
                idle("multiprocessing.Pool", "multiprocessing_pool"),
                idle("ProcessPoolExecutor", "executor", chunksize=1),
                idle("pebble ProcessPool (fork)", "pebble"),
                idle("pebble ProcessPool (spawn)", "pebble", start_method="spawn"),
                idle("billiard Pool", "billiard"),
                idle("mpire", "mpire"),
                idle("loky", "loky", chunksize=1),
            ),
        )
    ]
