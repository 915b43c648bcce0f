"""Log records of workers go through the host's loggers, filters and handlers."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from killercall import KillerPool, WorkerDied, killer_call, killer_pmap
from processes import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_METHODS = ["forkserver", "spawn", "fork"]


class Keeping(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """As the base has it."""
        self.records.append(record)

    def said(self) -> list[str]:
        """The messages, and none of ours."""
        return [record.getMessage() for record in self.records if record.name != "killercall._core"]


@pytest.fixture
def handler() -> Iterator[Keeping]:
    """Of a logger whose records nobody else gets, for all levels."""
    logger, handler = logging.getLogger("app"), Keeping()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def log(name: str, message: str, *args: Any, level: int = logging.INFO) -> bool:
    """Whether the worker believes that somebody wants it."""
    import logging

    logging.getLogger(name).log(level, message, *args)
    return logging.getLogger(name).isEnabledFor(level)


@pytest.mark.parametrize("method", START_METHODS)
def test_records(method: str, handler: Keeping) -> None:
    """They come as they were made, with where and by whom."""

    def run() -> int:
        import logging

        logger = logging.getLogger("app.part")
        logger.info("%s is %d", "answer", 42, extra={"item": 7})
        try:
            raise LookupError("inside")
        except LookupError:
            logger.exception("failed", stack_info=True)
        return os.getpid()

    pid = killer_call(run, start_method=method)()
    first, second = handler.records
    assert ("app.part", "answer is 42", 7, pid) == (
        first.name, first.getMessage(), first.item, first.process,
    )  # fmt: skip
    assert ("run", "test_logging.py") == (first.funcName, os.path.basename(first.pathname))
    text = logging.Formatter("%(levelname)s %(message)s").format(second)
    assert "ERROR failed\nTraceback" in text
    assert "LookupError: inside\nStack (most recent call last)" in text


def test_levels_of_the_host(handler: Keeping) -> None:
    """They decide, also for a warm worker, and what nobody wants is not even sent."""
    call = killer_call(log)
    assert call("app", "1")
    logging.getLogger("app").setLevel(logging.WARNING)
    assert not call("app", "2")
    assert call("app", "3", level=logging.ERROR)
    logging.getLogger("app.sub").setLevel(logging.DEBUG)
    assert call("app.sub", "4")
    logging.getLogger("app.sub").setLevel(logging.NOTSET)
    assert not call("app.sub", "5")
    logging.disable(logging.ERROR)
    try:
        assert not call("app", "6", level=logging.ERROR)
    finally:
        logging.disable(logging.NOTSET)
    assert call("app", "7", level=logging.ERROR)
    assert ["1", "3", "4", "7"] == handler.said()


def test_filters_of_the_host(handler: Keeping) -> None:
    """Those of loggers and of handlers."""
    logger = logging.getLogger("app")

    def refuse(record: logging.LogRecord) -> bool:
        return "no" not in record.getMessage()

    logger.addFilter(refuse)
    try:
        killer_pmap(lambda text: log("app", text), ["yes", "no", "yes"], cpus=1)
    finally:
        logger.removeFilter(refuse)
    handler.setLevel(logging.ERROR)
    killer_call(log)("app", "not so bad")
    assert ["yes", "yes"] == handler.said()


def test_level_that_the_function_sets(handler: Keeping) -> None:
    """It concerns the worker only: the host's level still decides."""
    logging.getLogger("app").setLevel(logging.ERROR)

    def run() -> None:
        import logging

        logging.getLogger("app").setLevel(logging.DEBUG)
        logging.getLogger("app").debug("unwanted")
        logging.basicConfig(level=logging.DEBUG)
        logging.getLogger("app").error("wanted")

    killer_call(run, env={})()
    assert ["wanted"] == handler.said()


def test_while_it_runs_and_in_order_with_what_is_printed(
    handler: Keeping, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the worker is killed then, and from threads."""
    handler.emit = lambda record: print("log", record.getMessage())  # type: ignore[method-assign]

    def run() -> None:
        for x in range(3):
            print("print", x)
            log("app", str(x))
        threads = [threading.Thread(target=log, args=("app", "thread")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied):
        killer_call(run)()
    expected = [f"{what} {x}" for x in range(3) for what in ("print", "log")] + ["log thread"] * 4
    assert expected == capsys.readouterr().out.splitlines()


def test_large_and_strange_records(handler: Keeping) -> None:
    """What is not picklable comes as its description; no size is too much."""

    def run() -> None:
        import logging

        logger = logging.getLogger("app")
        logger.info("%s", "x" * 1_000_000)
        logger.info("odd", extra={"lock": threading.Lock(), "fine": [1]})
        logger.info({"not": "text"})

    killer_call(run)()
    large, odd, other = handler.records
    assert ("x" * 1_000_000, "odd", "{'not': 'text'}") == (
        large.getMessage(), odd.getMessage(), other.getMessage(),
    )  # fmt: skip
    assert ("lock" in odd.lock, [1]) == (True, odd.fine)


def test_record_that_cannot_be_made(handler: Keeping, capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere, that is told on standard error, and the function goes on."""
    assert killer_call(log)("app", "%d", "text")
    assert [] == handler.records
    assert "--- Logging error ---" in capsys.readouterr().err


def test_handlers_of_the_function(handler: Keeping) -> None:
    """What it collects itself it gets."""

    def run() -> str:
        import io
        import logging

        stream = io.StringIO()
        logging.getLogger("app").addHandler(logging.StreamHandler(stream))
        logging.getLogger("app").info("both")
        return stream.getvalue()

    assert "both\n" == killer_call(run)()
    assert ["both"] == handler.said()


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_rotating_file(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process writes it, though all of them have set up the same handler: no line twice or lost."""
    (tmp_path / "their_logs.py").write_text(
        "import logging.handlers\n"
        "logger = logging.getLogger('theirs')\n"
        "logger.setLevel(logging.INFO)\n"
        "logger.propagate = False\n"
        f"path = {str(tmp_path / 'log')!r}\n"
        "logger.addHandler("
        "logging.handlers.RotatingFileHandler(path, maxBytes=2000, backupCount=99))\n"
        "logger.addHandler(logging.StreamHandler())\n"
        "def work(x):\n"
        "    logger.info('item %04d', x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import their_logs  # type: ignore[import-not-found]

    shown = their_logs.logger.handlers[1] = Keeping()
    killer_pmap(their_logs.work, range(500), cpus=2, timeout=60, start_method=method)
    for handler in their_logs.logger.handlers:
        handler.close()
    del sys.modules["their_logs"], logging.root.manager.loggerDict["theirs"]

    files = list(tmp_path.glob("log*"))
    said = sorted(line for file in files for line in file.read_text().splitlines())
    assert [f"item {x:04}" for x in range(500)] == said == sorted(shown.said())
    assert all(file.stat().st_size <= 2000 for file in files)


def test_own_file_of_each_item(tmp_path: Path, handler: Keeping) -> None:
    """A file that the host does not write is the worker's own."""

    def work(x: int) -> None:
        import logging

        logger = logging.getLogger(f"app.item{x}")
        handler = logging.FileHandler(tmp_path / f"{x}.log")
        logger.addHandler(handler)
        logger.info("item %d", x)
        handler.close()

    killer_pmap(work, range(3), cpus=1)
    assert ["item 0", "item 1", "item 2"] == handler.said()
    assert ["item 2\n"] == [(tmp_path / "2.log").read_text()]


def test_not_forwarded(handler: Keeping, capsys: pytest.CaptureFixture[str]) -> None:
    """With False the worker's `logging` is its own."""
    killer_call(log, forward_logging=False, env={})("app", "here", level=logging.ERROR)
    assert ([], "here\n") == (handler.said(), capsys.readouterr().err)
    killer_call(log, env={})("app", "there", level=logging.ERROR)
    assert ["there"] == handler.said()


def test_handler_that_fails(handler: Keeping) -> None:
    """The host is warned once, and no call is lost."""
    handler.emit = lambda record: 1 / 0  # type: ignore[method-assign, assignment]
    call = killer_call(log)
    with pytest.warns(RuntimeWarning, match="log record cannot be handled: ZeroDivision") as found:
        assert all(call("app", str(x)) for x in range(3))
    assert 1 == len(found)


def test_nested_and_in_a_pool(handler: Keeping) -> None:
    """A worker's worker logs through its host, and so up to ours; so does what sets one up."""

    def outer() -> None:
        log("app", "outer")
        killer_call(log)("app.inner", "inner")

    with KillerPool(1, initializer=log, initargs=("app", "set up")) as pool:
        pool.submit(outer).result()
    assert ["set up", "outer", "inner"] == handler.said()


def test_child_of_the_worker(handler: Keeping, capfd: pytest.CaptureFixture[str]) -> None:
    """It has nobody to send it to: its `logging` is its own."""

    def run() -> None:
        import logging

        logging.getLogger("app")
        pid = os.fork()
        if pid == 0:
            log("app", "child", level=logging.ERROR)
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        log("app", "parent")

    killer_call(run)()
    assert ["parent"] == handler.said()
    assert "child\n" == capfd.readouterr().err


SCRIPT = """
import sys
from killercall import killer_call
def run():
    import importlib.util
    # Who only looks for it does not import it.
    importlib.util.find_spec("logging")
    import logging
    logging.getLogger("app").info("unwanted")
    logging.getLogger("app").warning("wanted")
    return "logging" in sys.modules
call = killer_call(run)
assert not killer_call(lambda: "logging" in sys.modules)()
assert call() and call()
"""


def test_host_without_logging() -> None:
    """It does as `logging` does when nobody has set it up. No worker imports it before it is needed."""
    done = run_script(SCRIPT)
    assert ("", "wanted\nwanted\n") == (done.stdout, done.stderr)
