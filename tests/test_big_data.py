"""Large values: mapped and not copied, and yet the receiver's own."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import killercall
from killercall import MemoryLimitExceeded, WorkerDied, _core, _payload, killer_call, killer_pmap
from processes import open_fds, run_script, wait_until

MIB = 1 << 20
# How the kernel calls ours.
FILE = "memfd:killercall (deleted)"
# Beyond all thresholds.
LARGE = 4 * MIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files are read, not mapped")


def identity(value: Any) -> Any:
    """There and back."""
    return value


def number_of_bytes(size: int, start: int = 0) -> np.ndarray:
    """An array in which a page at the wrong place shows."""
    return np.arange(start, start + size // 8, dtype=np.int64)


def mapped_files() -> list[str]:
    """The mappings of this process of files that came from a worker."""
    text = Path("/proc/self/maps").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if FILE in line and "rw-p" in line]


ARRAYS = {
    "rows": number_of_bytes(LARGE).reshape(512, -1),
    "columns": np.asfortranarray(number_of_bytes(LARGE).reshape(512, -1)),
    "every other": number_of_bytes(2 * LARGE)[::2],
    "backwards": number_of_bytes(LARGE)[::-1],
    "a corner": number_of_bytes(2 * LARGE).reshape(1024, -1)[:700, 3:900],
    "a scalar": np.array(1.5),
    "empty": np.empty((0, 1 << 20)),
    "structured": np.zeros(1 << 17, dtype=[("a", "i4"), ("b", "f8", (3,)), ("c", "S5")]),
    "objects": np.array([None, "text", {1: 2}] * 50_000, dtype=object),
    "booleans": number_of_bytes(LARGE) % 3 == 0,
    "dates": np.arange("1950", "2350", dtype="datetime64[h]"),
    "text": np.array(["äöü", "x" * 40] * 40_000),
    "big endian": number_of_bytes(LARGE).astype(">i8"),
    "sixteen bytes": number_of_bytes(LARGE).astype(np.complex128),
}
THRESHOLDS = [16 * 1024, 64 * 1024, 128 * 1024, 256 * 1024]
SIZES = [size + more for size in THRESHOLDS for more in (-8, 0, 8)]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
@pytest.mark.parametrize("serializer", ["cloudpickle", "pickle", "dill"])
def test_arrays_come_back_as_they_were(array: np.ndarray, serializer: str) -> None:
    """Their values, type, shape and order, and they can be written to."""
    if serializer == "dill" and array.dtype.byteorder == ">":
        pytest.skip("dill itself changes the order of bytes")
    ordinary = pickle.loads(pickle.dumps(array, 5))
    back = killer_call(identity, serializer=serializer)(array)
    assert ordinary.dtype == back.dtype
    np.testing.assert_array_equal(ordinary, back)
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED"):
        assert ordinary.flags[flag] == back.flags[flag]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_each_threshold(size: int) -> None:
    """In the ring, in a file, read or mapped: it is all the same."""
    array = number_of_bytes(size)
    call = killer_call(lambda value: (value, value.nbytes, bytes(value)))
    back, nbytes, raw = call(array)
    np.testing.assert_array_equal(array, back)
    assert (size, array.tobytes()) == (nbytes, raw)
    back[:] = 0


def test_read_only_stays_read_only() -> None:
    """As after ordinary pickling, there and back."""
    array = number_of_bytes(LARGE)
    array.flags.writeable = False
    back, was_writeable = killer_call(lambda value: (value, value.flags.writeable))(array)
    assert not was_writeable
    assert not back.flags.writeable
    np.testing.assert_array_equal(array, back)


def test_what_is_shared_stays_shared() -> None:
    """Two references to an array come back as two references to one."""
    array = number_of_bytes(LARGE)
    one, other = killer_call(identity)((array, [array]))
    assert one is other[0]


def test_arrays_inside_of_objects() -> None:
    """Instances of classes of `__main__`, and of containers of these."""
    code = """
import numpy as np
from killercall import killer_call, killer_pmap

class Holder:
    def __init__(self, array):
        self.array = array
        self.inner = {"deep": [(array[:10], {"deeper": array * 2})]}

def double(holder):
    holder.array *= 2
    return holder

array = np.arange(1_000_000)
back = killer_call(double)(Holder(array))
assert type(back) is Holder
assert (back.array == array * 2).all() and array[1] == 1
assert (back.inner["deep"][0][1]["deeper"] == array * 2).all()
backs = killer_pmap(double, [Holder(array + n) for n in range(9)], cpus=3)
for n, back in enumerate(backs):
    assert (back.array == (array + n) * 2).all()
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


def test_bytes_and_what_holds_them() -> None:
    """They are part of the stream, which travels in the same way."""
    value = {
        "bytes": b"\x00\xff" * MIB,
        "bytearray": bytearray(b"ab" * MIB),
        "text": "ä" * MIB,
        "list": list(range(200_000)),
        "many": [bytes([n]) * 70_000 for n in range(50)],
    }
    back = killer_call(identity)(value)
    assert value == back
    back["bytearray"][0] = 0
    assert value["bytearray"][0] == ord("a")
    assert type(back["bytearray"]) is bytearray


class Buffer:
    """Reduces to a buffer of its own, out of band."""

    def __init__(self, data: Any) -> None:
        """Of something with bytes."""
        self.data = data

    def __reduce_ex__(self, protocol: int) -> Any:
        """As libraries with buffers do it."""
        return Buffer, (pickle.PickleBuffer(self.data),)


def test_any_buffer_goes_out_of_band() -> None:
    """Not only arrays: whoever reduces to a PickleBuffer."""
    back = killer_call(lambda value: (value, type(value.data).__name__))
    value, kind = back(Buffer(bytearray(b"xy" * LARGE)))
    assert (bytes(value.data), kind) == (b"xy" * LARGE, "memoryview")
    read_only, _ = back(Buffer(b"xy" * LARGE))
    assert memoryview(read_only.data).readonly


def test_buffer_that_is_not_in_one_piece() -> None:
    """Is an error that names it, as with pickle."""
    with pytest.raises(killercall.SerializationError, match="non-contiguous"):
        killer_call(identity)(Buffer(memoryview(bytearray(LARGE))[::2]))


# In a process of its own, as for those below: they start threads.
FRAMES = """
import numpy as np
import pandas as pd
from killercall import killer_call

size = 200_000
data = pd.DataFrame(
    {
        "whole": np.arange(size),
        "real": np.linspace(0, 1, size),
        "text": [f"row {n}" for n in range(size)],
        "time": pd.date_range("2000", periods=size, freq="min"),
        "kind": pd.Categorical(["a", "b"] * (size // 2)),
    }
)

def change(value):
    value.loc[0, "real"] = 7.0
    value["more"] = value["whole"] + 1
    return value

back = killer_call(change, timeout=60)(data)
assert (data.loc[0, "real"], back.loc[0, "real"]) == (0.0, 7.0)
back.loc[1, "real"] = 8.0
pd.testing.assert_frame_equal(data.iloc[2:], back.iloc[2:].drop(columns="more"))
print("right")
"""


def test_data_frames() -> None:
    """Pandas; they can be changed, on either side."""
    # Importing pandas takes long on a busy machine, and the worker does so once more.
    result = run_script(FRAMES, limit=110)
    assert (result.stdout, result.stderr) == ("right\n", "")


@pytest.mark.parametrize(
    "make", ["pyarrow.table(columns)", "polars.DataFrame(columns)"], ids=["pyarrow", "polars"]
)
def test_tables_of_others(make: str) -> None:
    """As they were."""
    module = make.split(".")[0]
    code = f"""
import numpy as np
import {module}
from killercall import killer_call

columns = {{"whole": np.arange(300_000), "real": np.linspace(0, 1, 300_000)}}
columns["text"] = [str(number) for number in columns["whole"]]
table = {make}
assert killer_call(lambda table: table, timeout=60)(table).equals(table)
print("right")
"""
    result = run_script(code, limit=110)
    assert (result.stdout, result.stderr) == ("right\n", "")


POLARS = """
import datetime
import numpy as np
import polars as pl
from polars.testing import assert_frame_equal, assert_series_equal
from killercall import _frames, killer_call

size = 30_000
numbers = np.arange(size)
moments = pl.Series("m", numbers * 1000).cast(pl.Datetime("us", "Europe/Berlin"))
plain = {
    "whole": pl.Series("w", numbers),
    "small": pl.Series("s", (numbers % 100).repeat(4).astype(np.int8)),
    "unsigned": pl.Series("u", numbers.astype(np.uint64) + 2**63),
    "real": pl.Series("r", np.where(numbers % 3, numbers, np.nan)),
    "moment": moments,
    "day": pl.Series("d", numbers.repeat(2).astype(np.int32)).cast(pl.Date),
    "span": pl.Series("p", numbers).cast(pl.Duration("ns")),
    "time": pl.Series("t", numbers * 10**9).cast(pl.Time),
    "pieces": pl.concat([pl.Series("c", numbers), pl.Series("c", numbers)], rechunk=False),
    "a part": pl.Series("a", numbers)[7:-3000],
    "no name": pl.Series(numbers),
}
other = {
    "with gaps": pl.Series("g", [None, 1, 2] * 10_000),
    "text": pl.Series("x", [str(number) for number in numbers]),
    "truth": pl.Series("b", numbers % 2 == 0),
    "kind": pl.Series("k", ["a", "b"] * (size // 2), pl.Categorical),
    "one of": pl.Series("e", ["a", "b"] * (size // 2), pl.Enum(["b", "a"])),
    "decimal": pl.Series("f", [1, 2] * (size // 2), pl.Decimal(20, 3)),
    "rows": pl.Series("l", [[1, 2]] * size),
    "parts": pl.Series("q", [{"a": 1}] * size),
    "little": pl.Series("i", [1, 2]),
    "nothing": pl.Series("n", [], pl.Int64),
}
for name, series in plain.items():
    assert _frames.reduce_polars(series), name
for name, series in other.items():
    assert not _frames.reduce_polars(series), name
back = killer_call(lambda value: value, timeout=60)
everything = plain | other
for name, again in back(everything).items():
    assert_series_equal(everything[name], again)
frame = pl.DataFrame(
    [column.alias(name) for name, column in everything.items() if len(column) == size]
)
again = back({"deep": [frame]})["deep"][0]
assert_frame_equal(frame, again)
assert frame.schema == again.schema
for descending in (False, True):
    ordered = pl.Series("o", numbers).sort(descending=descending)
    assert back(ordered).flags == ordered.flags != plain["real"].flags
assert_frame_equal(pl.DataFrame(), back(pl.DataFrame()))
print("right")
"""


def test_series_of_polars() -> None:
    """Of all types, with their names, their gaps and what is known of their order."""
    result = run_script(POLARS, limit=110)
    assert (result.stdout, result.stderr) == ("right\n", "")


def test_each_has_its_own() -> None:
    """What a call changes in place is seen neither by the host nor by the next call."""
    array = number_of_bytes(LARGE)

    def spoil(value: np.ndarray) -> int:
        first = int(value[5])
        value[:] = -1
        return first

    call = killer_call(spoil)
    assert [call(array) for _ in range(5)] == [5] * 5
    assert killer_pmap(spoil, [array] * 9, cpus=2) == [5] * 9
    np.testing.assert_array_equal(number_of_bytes(LARGE), array)


def test_results_are_not_overwritten_by_later_ones() -> None:
    """Files are used again, but not while anybody looks at them."""
    call = killer_call(lambda start: np.arange(start, start + LARGE // 8))
    kept: dict[int, np.ndarray] = {}
    rng = np.random.default_rng(1)
    for start in range(300):
        kept[start] = call(start)
        if rng.random() < 0.8:
            del kept[rng.choice(list(kept))]
        for first, array in kept.items():
            assert (first, first + LARGE // 8 - 1) == (array[0], array[-1])
    for first, array in kept.items():
        np.testing.assert_array_equal(np.arange(first, first + LARGE // 8), array)


def test_arguments_that_the_worker_keeps() -> None:
    """What a call has put away is as it was, after many more calls."""

    def keep(value: np.ndarray) -> list[int]:
        import builtins

        if not hasattr(builtins, "kept"):
            builtins.kept = []  # type: ignore[attr-defined]
        kept = builtins.kept  # type: ignore[attr-defined]
        if len(kept) < 5:
            kept.append(value)
        return [int(array[-1] - array[0]) for array in kept] + [int(array[0]) for array in kept]

    call = killer_call(keep)
    answers = [call(number_of_bytes(LARGE, start)) for start in range(20)]
    assert answers[-1] == [LARGE // 8 - 1] * 5 + [0, 1, 2, 3, 4]


def test_one_view_keeps_the_whole() -> None:
    """A part of a result is right for as long as it is there."""
    call = killer_call(lambda start: [np.arange(start, start + LARGE // 8) for _ in range(3)])
    view = call(7)[1][-100:]
    gc.collect()
    for start in range(10):
        call(start)
    np.testing.assert_array_equal(np.arange(7, 7 + LARGE // 8)[-100:], view)


@linux
def test_results_are_mapped() -> None:
    """And the mapping ends with the last array."""
    assert mapped_files() == []
    one, other = killer_call(lambda: [np.ones(LARGE), np.ones(LARGE)])()
    assert len(mapped_files()) == 1
    del one
    assert len(mapped_files()) == 1
    assert other.sum() == LARGE
    del other
    assert mapped_files() == []


@linux
def test_worker_is_killed_while_the_host_has_its_result() -> None:
    """The memory stays."""
    array, pid = killer_call(lambda: (np.arange(LARGE), os.getpid()))()
    os.kill(pid, signal.SIGKILL)
    killercall.shutdown()
    np.testing.assert_array_equal(np.arange(LARGE), array)
    array += 1
    assert array[-1] == LARGE


@linux
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_host_forks_while_it_has_a_result() -> None:
    """The child's copy stays as it is, whatever the host does with its own."""
    call = killer_call(lambda start: np.arange(start, start + LARGE // 8))
    array = call(1)
    go_on, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(let_go)
            os.read(go_on, 1)
            status = 0 if (array == np.arange(1, 1 + LARGE // 8)).all() else 2
        finally:
            os._exit(status)
    os.close(go_on)
    del array
    for start in range(10):
        assert call(100 + start)[0] == 100 + start
        call(100 + start)
        killer_call(len)(number_of_bytes(LARGE, 500))
    os.close(let_go)
    assert os.waitpid(pid, 0)[1] == 0


@linux
def test_function_forks_while_it_has_its_argument() -> None:
    """The same in a worker: its child goes on with what it had."""

    def work(value: np.ndarray, path: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                while not os.path.exists(path + ".go"):
                    time.sleep(0.01)
                right = bool((value == np.arange(LARGE // 8)).all())
                Path(path + ".part").write_text(str(right), encoding="utf-8")
                os.rename(path + ".part", path)
            finally:
                os._exit(0)
        return int(value[0])

    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "answer"
        call = killer_call(work)
        assert call(number_of_bytes(LARGE), str(path)) == 0
        back = killer_call(identity)
        for start in range(1, 10):
            assert back(number_of_bytes(LARGE, start))[0] == start
        path.with_suffix(".go").touch()
        assert wait_until(path.exists)
        assert path.read_text(encoding="utf-8") == "True"


@linux
def test_many_large_calls_leave_nothing() -> None:
    """No descriptor, no mapping, and no memory."""
    call = killer_call(identity)
    array = number_of_bytes(MIB)
    for _ in range(50):
        call(array)
    fds, used = len(open_fds()), private_memory()
    for _ in range(1500):
        call(array)
    assert len(open_fds()) <= fds + 2
    assert mapped_files() == []
    assert private_memory() - used < 2 * MIB
    killercall.shutdown()
    assert [name for name in open_fds().values() if FILE in name] == []


def private_memory() -> int:
    """What this process has to itself."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))


@linux
def test_more_results_than_descriptors() -> None:
    """A host that keeps all of them needs none for each."""
    code = """
import resource
import numpy as np
from killercall import killer_pmap
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
kept = killer_pmap(lambda n: np.full(40_000, n), range(400), cpus=2)
assert [int(array[-1]) for array in kept] == list(range(400))
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


@linux
def test_worker_without_descriptors() -> None:
    """Cannot answer in a file: that call fails and says so, and the next one goes well."""

    def use_up(left: int) -> np.ndarray:
        import builtins
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        fds: list[int] = []
        builtins.kept_open = fds  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                fds.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(left):
            os.close(fds.pop())
        return number_of_bytes(LARGE)

    with pytest.raises(OSError, match="Too many open files"):
        killer_call(use_up)(0)
    total = killer_call(lambda value: int(value[-1]))
    assert total(number_of_bytes(LARGE)) == LARGE // 8 - 1
    killercall.shutdown()
    assert killer_call(use_up)(1)[-1] == LARGE // 8 - 1
    assert total(number_of_bytes(LARGE)) == LARGE // 8 - 1


@linux
def test_host_without_descriptors() -> None:
    """What it cannot receive costs that call, says why, and leaves nothing behind."""
    code = """
import os, resource
import numpy as np
import killercall
from killercall import killer_call

double = killer_call(lambda value: value * 2, timeout=60)
array = np.arange(1_000_000)
double(array)
before = len(os.listdir("/proc/self/fd"))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, hard))
right = failed = 0
for left in range(8):
    fds = []
    try:
        while True:
            fds.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for _ in range(left):
        os.close(fds.pop())
    for _ in range(2):
        try:
            right += int(double(array)[-1]) == 1_999_998
        except (killercall.WorkerDied, killercall.WorkerStartError, OSError) as error:
            assert "ulimit -n" in str(error) or "Too many open files" in str(error), error
            failed += 1
    for fd in fds:
        os.close(fd)
    assert int(double(array)[-1]) == 1_999_998
assert right and failed, (right, failed)
killercall.shutdown()
assert len(os.listdir("/proc/self/fd")) <= before, os.listdir("/proc/self/fd")
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


@linux
def test_large_items_are_not_copied_ahead() -> None:
    """A map has few of them under way at a time."""
    code = """
import resource
import numpy as np
from killercall import killer_pmap
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
array = np.ones(40_000)
assert killer_pmap(lambda value: float(value[0]), [array] * 400, cpus=2) == [1.0] * 400
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


def test_retried_call_gets_its_arguments_again(tmp_path: Path) -> None:
    """As they were, whatever the attempts before have made of them."""

    def work(value: np.ndarray, path: str) -> np.ndarray:
        first = int(value[3])
        value[:] = 9
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{first}\n")
        if len(Path(path).read_text(encoding="utf-8").split()) < 4:
            raise ValueError("again")
        return value

    call = killer_call(work, retries=5)
    path = tmp_path / "attempts"
    assert call(number_of_bytes(LARGE), str(path)).min() == 9
    assert path.read_text(encoding="utf-8").split() == ["3"] * 4


@linux
def test_captured_array_is_mapped_by_all_workers() -> None:
    """One copy in memory, and each worker's changes are its own."""
    big = number_of_bytes(16 * LARGE)

    def work(item: int) -> tuple[int, int, int, int]:
        total = int(big.sum())
        big[item] = -1
        # Until all have it.
        time.sleep(0.5)
        found = {"Pss": 0, "Anonymous": 0}
        inside = False
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if "-" in name:
                inside = FILE in line and "rw-p" in line
            elif inside and name in found:
                found[name] += 1024 * int(value.split()[0])
        time.sleep(0.5)
        return os.getpid(), total, found["Pss"], found["Anonymous"]

    expected = int(big.sum())
    answers = killer_pmap(work, range(4), cpus=4, timeout=60)
    assert [expected] * 4 == [total for _, total, _, _ in answers]
    assert len({pid for pid, _, _, _ in answers}) == 4
    # Only the page that each has written to is its own; of the others it has a quarter.
    assert max(own for *_, own in answers) < MIB
    assert max(part for _, _, part, _ in answers) < big.nbytes // 3
    assert big[0] == 0


WAYS = {
    "closure": lambda array: lambda at: int(array[at]),
    "default": lambda array: lambda at, array=array: int(array[at]),
    "partial": lambda array: __import__("functools").partial(
        lambda array, at: int(array[at]), array
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_captured_array_that_changes(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place or not: each call sees it as it is, and it is packed again only then."""
    packed = []
    real = _payload.Interner.large

    def note(self: _payload.Interner, parts: _payload.Parts) -> Any:
        answer = real(self, parts)
        packed.append(answer[0])
        return answer

    monkeypatch.setattr(_payload.Interner, "large", note)
    array = number_of_bytes(LARGE)
    call = killer_call(way(array))
    assert [call(5) for _ in range(3)] == [5] * 3
    array[5] = -5
    assert [call(5) for _ in range(3)] == [-5] * 3
    array[-1] = 0
    assert call(-1) == 0
    array[5] = 5
    assert (call(5), call(-1)) == (5, 0)
    assert killer_pmap(way(array), [5, -1, 6], cpus=2) == [5, 0, 6]
    assert len(set(packed[:3])) == 1
    # The map has a timeout of its own, which is a part of what is sent.
    assert len(set(packed[:-1])) == 4


def test_captured_by_a_global_of_main() -> None:
    """As a script has it."""
    code = """
import numpy as np
from killercall import killer_call, killer_pmap

table = np.arange(1_000_000)

@killer_call
def look(at):
    return int(table[at])

def other(at):
    table[at] += 1
    return int(table[at])

assert look(7) == 7
table[7] = 70
assert look(7) == 70
table = table * 2
assert look(7) == 140
assert killer_pmap(other, [7, 8, 9], cpus=2) == [141, 17, 19]
assert table[7] == 140
print("right")
"""
    result = run_script(code)
    assert (result.stdout, result.stderr) == ("right\n", "")


@linux
def test_old_versions_are_let_go_of() -> None:
    """A worker that gets the array anew with each call does not keep all of them."""
    array = number_of_bytes(LARGE)

    def mappings() -> int:
        text = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert array.size
        return sum(FILE in line and "rw-p" in line for line in text.splitlines())

    call = killer_call(mappings)
    counts = []
    for step in range(12):
        array[0] = step
        counts.append(call())
    assert max(counts) <= _core.LARGE_FUNCTIONS_MAX + 1
    kept = [name for name in open_fds().values() if FILE in name]
    # One file, and what a worker's segment and the last results take.
    assert len(kept) < 6


def test_functions_with_arrays_take_turns() -> None:
    """More of them than a worker keeps, in any order."""
    calls = [
        killer_call(lambda array=number_of_bytes(LARGE, start): int(array[0])) for start in range(5)
    ]
    rng = np.random.default_rng(2)
    for at in rng.integers(0, len(calls), 60):
        assert calls[at]() == at


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_start_methods(method: str) -> None:
    """All of them."""
    array = number_of_bytes(LARGE)
    back = killer_call(lambda value: value + array, start_method=method, timeout=60)(array)
    np.testing.assert_array_equal(array * 2, back)


class Reversed:
    """A serializer of the user's own: bytes, and nothing beside them."""

    def dumps(self, obj: Any) -> bytes:
        """Back to front."""
        return pickle.dumps(obj)[::-1]

    def loads(self, data: bytes) -> Any:
        """And back."""
        assert type(data) is bytes
        return pickle.loads(data[::-1])


def test_own_serializer() -> None:
    """Gets bytes and gives bytes, as ever."""
    array = number_of_bytes(LARGE)
    back = killer_call(np.negative, serializer=Reversed())(array)
    np.testing.assert_array_equal(-array, back)


def test_exception_with_an_array() -> None:
    """Arrives whole."""

    def work(value: np.ndarray) -> None:
        raise ValueError("too large", value)

    array = number_of_bytes(LARGE)
    with pytest.raises(ValueError, match="too large") as caught:
        killer_call(work)(array)
    np.testing.assert_array_equal(array, caught.value.args[1])


@linux
class TestMemoryLimit:
    """What is mapped counts as a copy would."""

    def test_arguments_that_fit(self) -> None:
        """Well below the limit, and the worker goes on."""
        call = killer_call(
            lambda value: (float(value.sum()), os.getpid()), max_memory=400 * MIB, timeout=60
        )
        array = np.ones(100 * MIB // 8)
        answers = [call(array) for _ in range(8)]
        assert answers == [(float(array.size), answers[0][1])] * 8

    @pytest.mark.parametrize("write", [False, True])
    def test_arguments_that_do_not_fit(self, write: bool) -> None:  # ruff: ignore[boolean-type-hint-positional-argument]
        """Refused by the kernel, or found by the watch when they are touched."""

        def work(value: np.ndarray) -> float:
            if write:
                value += 1
            total = float(value.sum())
            time.sleep(1)
            return total

        call = killer_call(work, max_memory=100 * MIB, timeout=60)
        with pytest.raises(MemoryLimitExceeded):
            call(np.ones(300 * MIB // 8))
        assert call(np.ones(10)) == (20.0 if write else 10.0)

    def test_captured_array_counts_for_each(self) -> None:
        """As each would have a copy of its own."""
        array = np.ones(150 * MIB // 8)

        def work(_item: int) -> float:
            return float(array.sum())

        expected = [float(array.size)] * 4
        assert killer_pmap(work, range(4), cpus=2, max_memory=300 * MIB, timeout=60) == expected
        with pytest.raises(MemoryLimitExceeded):
            killer_pmap(work, range(4), cpus=2, max_memory=50 * MIB, timeout=60)


def answer_with(how: str) -> np.ndarray:
    """Has this worker answer in a file that is not what it should be."""
    real = _payload.Parts.sent

    def sent(self: _payload.Parts, *, given: bool) -> Any:
        before = own_files()
        parcel = real(self, given=given)
        (fd,) = own_files() - before
        size = os.fstat(fd).st_size
        other = os.memfd_create("killercall", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        content = os.pread(fd, size, 0)
        match how:
            case "cut off":
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 4096)
            case "nonsense":
                os.pwrite(fd, b"\xff" * 64, 0)
            case "longer":
                os.ftruncate(fd, size + 1)
            case "shorter":
                os.write(other, content[:-1])
                os.dup2(other, fd, inheritable=False)
            case "not sealed":
                os.write(other, content)
                os.dup2(other, fd, inheritable=False)
                # When the host has had time to look at it, from elsewhere.
                cut_off_soon(other)
            case "sparse":
                os.ftruncate(other, size)
                os.pwrite(other, content[:64], 0)
                os.dup2(other, fd, inheritable=False)
            case "a directory":
                os.dup2(os.open("/", os.O_RDONLY), fd, inheritable=False)
            case "a pipe":
                os.dup2(os.pipe()[0], fd, inheritable=False)
        return parcel

    _payload.Parts.sent = sent  # type: ignore[method-assign]
    return np.ones(LARGE)


def own_files() -> set[int]:
    """Descriptors of the files of this package."""
    return {fd for fd, target in open_fds().items() if FILE in target}


def cut_off_soon(fd: int) -> None:
    """While the host does something else with what it has."""
    import threading

    threading.Timer(0.2, os.ftruncate, (fd, 0)).start()


@linux
@pytest.mark.parametrize(
    "how", ["nonsense", "longer", "shorter", "a directory", "a pipe", "sparse"]
)
def test_worker_that_sends_another_file(how: str) -> None:
    """Is found out, and costs its own call."""
    call = killer_call(answer_with, reuse=False)
    with pytest.raises((WorkerDied, killercall.SerializationError)) as caught:
        call(how)
    if isinstance(caught.value, WorkerDied):
        assert "could not be understood" in str(caught.value)
    assert killer_call(identity)(number_of_bytes(LARGE))[1] == 1


@linux
@pytest.mark.parametrize("how", ["cut off", "not sealed"])
def test_worker_that_cuts_its_file_off(how: str) -> None:
    """It cannot, or the host has a copy: to touch a page that is gone would kill it."""
    array = killer_call(answer_with, reuse=False)(how)
    time.sleep(0.5)
    assert array.sum() == LARGE
    assert (mapped_files() != []) == (how == "cut off")
